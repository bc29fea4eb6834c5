package vmx

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/vmx/vmxtest"
)

// A VMCS is recognised with its layout, nothing speaks against it, and entry would
// take it.
func TestRecognise(t *testing.T) {
	for _, kind := range vmxtest.Kinds {
		page := vmxtest.VMCS(kind, nil)
		if QuickReject(page) {
			t.Errorf("%s: rejected", kind)
		}
		a := Assess(page, below2G)
		if !a.Plausible || len(a.Against) != 0 || a.Score != len(a.Evidence) || a.VMCS.Layout().Name != kind {
			t.Errorf("%s: assessed as %s: %+v", kind, a.VMCS.Layout().Name, a)
		}
		if kind == vmxtest.Bochs {
			continue // not all of it is known to vmxtest
		}
		for _, c := range a.VMCS.Checks() {
			if !c.OK {
				t.Errorf("%s: VM entry would refuse it: %+v", kind, c)
			}
		}
	}
}

// Layouts that no page is at hand for: one made by the layout itself is taken for
// that layout and for no other.
func TestLayoutsAreToldApart(t *testing.T) {
	for _, l := range Layouts {
		page := make([]byte, PageSize)
		revision := uint32(0x2b)
		if len(l.Revisions) > 0 {
			revision = l.Revisions[0]
		}
		binary.LittleEndian.PutUint32(page, revision)
		for name, x := range vmxtest.Linux() {
			for _, f := range l.Fields() {
				at, _ := l.Offset(f)
				for i := 0; f.String() == name && i < f.Size(); i++ {
					page[at+i] = byte(x >> (8 * i))
				}
			}
		}
		for _, other := range Layouts {
			if a := AssessAs(page, other, below2G); a.Plausible != (other == l) {
				t.Errorf("%s as %s: %v, against it: %q", l.Name, other.Name, a.Plausible, a.Against)
			}
		}
		if a := Assess(page, below2G); a.VMCS.Layout() != l || QuickReject(page) {
			t.Errorf("%s is taken for %s, rejected %v", l.Name, a.VMCS.Layout().Name, QuickReject(page))
		}
	}
}

// Each necessary rule is one: a page that breaks it is not plausible.
func TestNotPlausible(t *testing.T) {
	for name, c := range map[string]struct {
		values vmxtest.Values
		why    string
	}{
		"never entered":   {vmxtest.Values{"host RIP": 0}, "host RIP"},
		"no host paging":  {vmxtest.Values{"host CR0": 0x33}, "host CR0"},
		"host VMXE":       {vmxtest.Values{"host CR4": 0x6f0}, "host CR4"},
		"host root":       {vmxtest.Values{"host CR3": 0}, "host CR3"},
		"guest VMXE":      {vmxtest.Values{"guest CR4": 0x6b0}, "guest CR4"},
		"guest CR0":       {vmxtest.Values{"guest CR0": 0x80000020}, "guest CR0"},
		"guest root":      {vmxtest.Values{"guest CR3": 1 << 60}, "guest CR3"},
		"guest flags":     {vmxtest.Values{"guest RFLAGS": 0x200}, "guest RFLAGS"},
		"guest RIP":       {vmxtest.Values{"guest RIP": 1 << 62}, "guest RIP"},
		"link pointer":    {vmxtest.Values{"VMCS link pointer": 0x1234}, "link pointer"},
		"pin controls":    {vmxtest.Values{"pin-based controls": 0}, "pin-based controls"},
		"exit controls":   {vmxtest.Values{"VM-exit controls": 0x200}, "VM-exit controls"},
		"EPT pointer":     {vmxtest.Values{"EPT pointer": 0x194ed05f}, "EPT pointer"},
		"unknown exit":    {vmxtest.Values{"exit reason": 0x4321}, "exit reason"},
		"only the header": {nil, ""},
	} {
		for _, kind := range vmxtest.Kinds {
			page := vmxtest.VMCS(kind, c.values)
			if c.values == nil {
				page = vmxtest.Page(kind, nil)
			}
			a := AssessAs(page, layoutNamed(t, kind), below2G)
			named := slices.ContainsFunc(a.Against, func(s string) bool { return strings.Contains(s, c.why) })
			if a.Plausible || !named {
				t.Errorf("%s, %s: plausible %v, against it %q", name, kind, a.Plausible, a.Against)
			}
			if a := Assess(page, below2G); a.Plausible {
				t.Errorf("%s, %s: plausible as %s", name, kind, a.VMCS.Layout().Name)
			}
		}
	}
	shadow := vmxtest.VMCS(vmxtest.KVM, nil)
	shadow[3] |= 0x80
	if Assess(shadow, nil).Plausible {
		t.Error("a shadow VMCS is plausible")
	}
	other := vmxtest.VMCS(vmxtest.KVM, nil)
	binary.LittleEndian.PutUint32(other, 0x1234)
	if Assess(other, nil).Plausible || !QuickReject(other) {
		t.Error("a vmcs12 of a foreign revision is plausible, or not rejected")
	}
}

// Random pages and pages of page-table entries are no VMCS; most are rejected at a
// glance, and none that is plausible is rejected.
func TestNoise(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	passed := 0
	const pages = 4000
	for i := range pages {
		page := make([]byte, PageSize)
		for o := 0; o < PageSize; o += 8 {
			x := r.Uint64()
			if i%2 == 1 {
				x = x&0x7ffff000 | 0x67 // an entry
			}
			binary.LittleEndian.PutUint64(page[o:], x)
		}
		if i%4 >= 2 {
			binary.LittleEndian.PutUint64(page, uint64(r.Uint32N(100)))
		}
		if !QuickReject(page) {
			passed++
		}
		if Assess(page, nil).Plausible {
			t.Fatalf("page %d is plausible", i)
		}
	}
	if passed > pages/1000 {
		t.Errorf("%d of %d pages passed", passed, pages)
	}
}

// Each check by name fails if the one thing it is about is wrong.
func TestChecksFire(t *testing.T) {
	for name, values := range map[string]vmxtest.Values{
		"guest CR4.VMXE is 1":                                                {"guest CR4": 0x6b0},
		"guest RFLAGS bit 1 is 1":                                            {"guest RFLAGS": 0x200},
		"guest RFLAGS has no reserved bit":                                   {"guest RFLAGS": 0x8002},
		"guest RFLAGS.VM is 0 in 64-bit and real mode":                       {"guest RFLAGS": 0x20002},
		"guest CR0.NE is 1":                                                  {"guest CR0": 0x80000011},
		"guest CR0.PG and CR4.PAE are 1 in 64-bit mode":                      {"guest CR4": 0x2090},
		"guest CR0 has 32 bits":                                              {"guest CR0": 0x180050033},
		"guest CR3 has no reserved bit":                                      {"guest CR3": 1 << 52},
		"guest RIP is canonical, or has 32 bits":                             {"guest RIP": 1 << 60},
		"guest EFER.LMA is the mode of the VM-entry controls":                {"guest IA32_EFER": 0x101},
		"guest PAT has valid memory types":                                   {"guest IA32_PAT": 2},
		"guest GDTR base is canonical":                                       {"guest GDTR base": 1 << 60},
		"guest GDTR limit has 16 bits":                                       {"guest GDTR limit": 0x10000},
		"guest TR is usable":                                                 {"guest TR access rights": 0x1008b},
		"guest TR has a type that can be loaded":                             {"guest TR access rights": 0x89},
		"guest CS.P is 1":                                                    {"guest CS access rights": 0xa01b},
		"guest CS.L and CS.D are not both 1 in 64-bit mode":                  {"guest CS access rights": 0xe09b},
		"guest SS.DPL is SS.RPL":                                             {"guest SS access rights": 0xc0b3, "secondary controls": 0x106e},
		"guest CS.G fits its limit":                                          {"guest CS limit": 0xfffff000},
		"a halted guest has SS.DPL 0":                                        {"guest activity state": 1, "guest SS access rights": 0xc0f3},
		"interrupts are not blocked by both STI and MOV SS":                  {"guest interruptibility state": 3},
		"the activity state is one that there is":                            {"guest activity state": 4},
		"the VMCS link pointer is all ones or a page":                        {"VMCS link pointer": 8},
		"host CR4.VMXE is 1":                                                 {"host CR4": 0x6f0},
		"host CR0 has PE, NE and PG, and 32 bits":                            {"host CR0": 0x33},
		"host CS is not 0":                                                   {"host CS": 0},
		"host TR has RPL 0 and is of the GDT":                                {"host TR": 0x43},
		"host FS base is canonical":                                          {"host FS base": 1 << 60},
		"VPID is not 0":                                                      {"VPID": 0},
		"EPT pointer is valid":                                               {"EPT pointer": 0x194ed042},
		"pin-based controls have their reserved bits":                        {"pin-based controls": 0x41},
		"CR3-target count is at most 4":                                      {"CR3-target count": 5},
		"MSR bitmaps is a physical address, aligned to 4096 bytes":           {"MSR bitmaps": 0x2653010},
		"unrestricted guest, mode-based execute control and PML go with EPT": {"secondary controls": 0xa8},
		"the injected event is one that can be":                              {"VM-entry interruption information": 0x80000302 | 0x20},
		"the injected event has an error code if its vector has":             {"VM-entry interruption information": 0x8000030e},
		"RFLAGS.IF is 1 for an external interrupt":                           {"VM-entry interruption information": 0x80000030, "guest RFLAGS": 2},
	} {
		page := vmxtest.VMCS(vmxtest.KVM, values)
		checks := view(t, page, vmxtest.KVM).Checks()
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
		if i < 0 {
			t.Errorf("there is no check %q", name)
			continue
		}
		if checks[i].OK || checks[i].Seen == "" || checks[i].Wrong == "" {
			t.Errorf("%s: %+v", name, checks[i])
		}
	}
}

// What a layout does not have is not judged.
func TestChecksOfWhatIsThere(t *testing.T) {
	page := make([]byte, PageSize)
	page[0] = 1
	for _, c := range view(t, page, VMware.Name).Checks() {
		if strings.Contains(c.Name, "controls") || strings.Contains(c.Name, "EFER") {
			t.Errorf("judged without the field: %+v", c)
		}
	}
}
