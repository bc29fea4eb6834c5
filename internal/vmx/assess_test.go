package vmx

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
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
		for _, c := range a.VMCS.Checks(Processor{}) {
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

// firing are values that a check, by name, is against.
var firing = map[string]vmxtest.Values{
	"guest CR4.VMXE is 1":                                      {"guest CR4": 0x6b0},
	"guest RFLAGS bit 1 is 1":                                  {"guest RFLAGS": 0x200},
	"guest RFLAGS has no reserved bit":                         {"guest RFLAGS": 0x8002},
	"guest RFLAGS.VM is 0 in 64-bit and real mode":             {"guest RFLAGS": 0x20002},
	"guest CR0.NE is 1":                                        {"guest CR0": 0x80000011},
	"guest CR0.PG and CR4.PAE are 1 in 64-bit mode":            {"guest CR4": 0x2090},
	"guest CR0 has 32 bits":                                    {"guest CR0": 0x180050033},
	"guest CR3 has no reserved bit":                            {"guest CR3": 1 << 52},
	"guest RIP is canonical, or has 32 bits":                   {"guest RIP": 1 << 60},
	"guest EFER.LMA is the mode of the VM-entry controls":      {"guest IA32_EFER": 0x101},
	"guest PAT has valid memory types":                         {"guest IA32_PAT": 2},
	"guest GDTR base is canonical":                             {"guest GDTR base": 1 << 60},
	"guest GDTR limit has 16 bits":                             {"guest GDTR limit": 0x10000},
	"guest TR is usable":                                       {"guest TR access rights": 0x1008b},
	"guest TR has a type that can be loaded":                   {"guest TR access rights": 0x89},
	"guest CS.P is 1":                                          {"guest CS access rights": 0xa01b},
	"guest CS.L and CS.D are not both 1 in 64-bit mode":        {"guest CS access rights": 0xe09b},
	"guest SS.DPL is SS.RPL":                                   {"guest SS access rights": 0xc0b3, "secondary controls": 0x106e},
	"guest CS.G fits its limit":                                {"guest CS limit": 0xfffff000},
	"a halted guest has SS.DPL 0":                              {"guest activity state": 1, "guest SS access rights": 0xc0f3},
	"interrupts are not blocked by both STI and MOV SS":        {"guest interruptibility state": 3},
	"the activity state is one that there is":                  {"guest activity state": 4},
	"the VMCS link pointer is all ones or a page":              {"VMCS link pointer": 8},
	"host CR4.VMXE is 1":                                       {"host CR4": 0x6f0},
	"host CR0 has PE, NE and PG, and 32 bits":                  {"host CR0": 0x33},
	"host CS is not 0":                                         {"host CS": 0},
	"host TR has RPL 0 and is of the GDT":                      {"host TR": 0x43},
	"host FS base is canonical":                                {"host FS base": 1 << 60},
	"VPID is not 0":                                            {"VPID": 0},
	"EPT pointer is valid":                                     {"EPT pointer": 0x194ed042},
	"pin-based controls have their reserved bits":              {"pin-based controls": 0x41},
	"CR3-target count is at most 4":                            {"CR3-target count": 5},
	"MSR bitmaps is a physical address, aligned to 4096 bytes": {"MSR bitmaps": 0x2653010},
	"unrestricted guest, mode-based execute control, PML and sub-page permissions go with EPT":     {"secondary controls": 0xa8},
	"the injected event is one that can be":                                                        {"VM-entry interruption information": 0x80000302 | 0x20},
	"the injected event has an error code if its vector has":                                       {"VM-entry interruption information": 0x8000030e},
	"RFLAGS.IF is 1 for an external interrupt":                                                     {"VM-entry interruption information": 0x80000030, "guest RFLAGS": 2},
	"host RIP is canonical":                                                                        {"host RIP": 1 << 47},
	"host CR0.WP is 1 with CR4.CET":                                                                {"host CR4": 0xf726f0, "host CR0": 0x80040033},
	"EPTP switching goes with EPT":                                                                 {"secondary controls": 0x30ec, "VM-function controls": 1},
	"VM-exit MSR-load address ends at a physical address":                                          {"VM-exit MSR-load address": 1<<52 - 16, "VM-exit MSR-load count": 2},
	"guest IA32_DEBUGCTL has no reserved bit":                                                      {"guest IA32_DEBUGCTL": 1 << 4},
	"guest IA32_PERF_GLOBAL_CTRL has no reserved bit":                                              {"guest IA32_PERF_GLOBAL_CTRL": 1 << 50, "VM-entry controls": 0xf3ff},
	"host IA32_PERF_GLOBAL_CTRL has no reserved bit":                                               {"host IA32_PERF_GLOBAL_CTRL": 1 << 50, "VM-exit controls": 0x2bffff},
	"guest IA32_BNDCFGS has no reserved bit and a canonical address":                               {"guest IA32_BNDCFGS": 4, "VM-entry controls": 0x1d3ff},
	"guest DS.DPL is not below its RPL":                                                            {"guest DS": 0x1b, "guest DS access rights": 0xc093, "secondary controls": 0x106e},
	"guest SS.DPL is 0 in real mode and with a data segment in CS":                                 {"guest CS access rights": 0xa093, "guest SS access rights": 0xc0f3},
	"SMIs are not blocked, outside system-management mode":                                         {"guest interruptibility state": 4},
	"an enclave is not interrupted with blocking by MOV SS":                                        {"guest interruptibility state": 0x12},
	"an NMI is not injected into a guest that is blocked by MOV SS":                                {"VM-entry interruption information": 0x80000202, "guest interruptibility state": 2},
	"a virtual NMI is not injected into a guest that is blocked by NMI":                            {"VM-entry interruption information": 0x80000202, "guest interruptibility state": 8},
	"the activity state takes the injected event":                                                  {"VM-entry interruption information": 0x8000030d, "guest activity state": 1},
	"a single step is pending if and only if the guest single-steps":                               {"guest RFLAGS": 0x302, "guest interruptibility state": 1},
	"guest IA32_S_CET has no reserved bit, a canonical address, and not both SUPPRESS and TRACKER": {"guest IA32_S_CET": 0xc00, "VM-entry controls": 0x10d3ff},
	"guest SSP is canonical and aligned to 4 bytes":                                                {"guest SSP": 2, "VM-entry controls": 0x10d3ff},
	"guest IA32_INTERRUPT_SSP_TABLE_ADDR is canonical":                                             {"guest IA32_INTERRUPT_SSP_TABLE_ADDR": 1 << 60, "VM-entry controls": 0x10d3ff},
}

// Each check by name fails if the one thing it is about is wrong.
func TestChecksFire(t *testing.T) {
	for name, values := range firing {
		kind := vmxtest.KVM
		for field := range values {
			if _, has := vmxtest.Names(kind)[field]; !has {
				kind = vmxtest.HyperV
			}
		}
		page := vmxtest.VMCS(kind, values)
		checks := view(t, page, kind).Checks(Processor{})
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

// What entry takes, although it may look wrong: of each, no check fails.
func TestChecksPass(t *testing.T) {
	for name, values := range map[string]vmxtest.Values{
		"linear-address masking":                {"guest CR3": 3<<61 | 0x28ce000, "guest CR4": 1<<28 | 0x7526b0, "host CR3": 1<<62 | 0x19dc0000},
		"57-bit bases with 48-bit paging":       {"guest GS base": 0xff2bc0311fb00000, "host GS base": 0xff2bc0311fb00000},
		"57-bit RIP of a 57-bit host":           {"host RIP": 1 << 50, "host CR4": 0x7736f0},
		"halted, and an interrupt comes":        {"guest activity state": 1, "VM-entry interruption information": 0x80000030},
		"shutdown, and an NMI comes":            {"guest activity state": 2, "VM-entry interruption information": 0x80000202},
		"single-stepping behind STI":            {"guest RFLAGS": 0x302, "guest interruptibility state": 1, "guest pending debug exceptions": 1 << 14},
		"stepping branches behind STI":          {"guest RFLAGS": 0x302, "guest interruptibility state": 1, "guest IA32_DEBUGCTL": 2},
		"every counter on":                      {"guest IA32_PERF_GLOBAL_CTRL": 0x1000f000000ff, "VM-entry controls": 0xf3ff},
		"bounds":                                {"guest IA32_BNDCFGS": 0x7fff00000003, "VM-entry controls": 0x1d3ff},
		"MSRs up to the end of memory":          {"VM-entry MSR-load address": 1<<52 - 32, "VM-entry MSR-load count": 2},
		"conforming code of a higher privilege": {"guest DS": 0x1b, "guest DS access rights": 0xc09f, "guest DS limit": 0xffffffff, "secondary controls": 0x106e},
		"an unusable segment of no privilege":   {"guest DS": 3},
		"MSRs that no control loads":            {"guest IA32_PERF_GLOBAL_CTRL": 1 << 50, "guest IA32_BNDCFGS": 4},
		"a shadow stack that no control loads":  {"host SSP": 3},
	} {
		kind := vmxtest.KVM
		if _, has := vmxtest.Names(kind)[slices.Collect(maps.Keys(values))[0]]; !has {
			kind = vmxtest.HyperV
		}
		page := vmxtest.VMCS(kind, values)
		for _, c := range view(t, page, kind).Checks(Processor{}) {
			if !c.OK {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if a := Assess(page, nil); !a.Plausible {
			t.Errorf("%s: not plausible: %q", name, a.Against)
		}
	}
}

// The keys of supervisor pages are in no layout that vmxtest knows.
func TestChecksPKRS(t *testing.T) {
	for pkrs, want := range map[uint64]bool{0xffffffff: true, 1 << 32: false} {
		page := vmxtest.VMCS(vmxtest.Bochs, nil)
		for f, x := range map[Field]uint64{GuestPKRS: pkrs, HostPKRS: pkrs, EntryControls: 0x40d3ff, ExitControls: 0x202befff} {
			at, _ := Bochs.Offset(f)
			for i := range f.Size() {
				page[at+i] = byte(x >> (8 * i))
			}
		}
		made := 0
		for _, c := range view(t, page, vmxtest.Bochs).Checks(Processor{}) {
			if strings.HasSuffix(c.Name, "PKRS has 32 bits") {
				if made++; c.OK != want {
					t.Errorf("%#x: %+v", pkrs, c)
				}
			}
		}
		if made != 2 {
			t.Errorf("%d checks", made)
		}
	}
}

// How many bits an address has, and what is where a VMCS points to, decides too.
func TestChecksOn(t *testing.T) {
	ram := memtest.NewMemory(mem.Range{First: 0x2653000, Last: 0x2657fff})
	ram.Put(0x2655080, []byte{0x40})
	ram.Put(0x2656000, []byte{0xd0, 0x7e, 0xe5, 0x11})
	ram.Put(0x2657000, []byte{0xd0, 0x7e, 0xe5, 0x91})
	known := Processor{PhysBits: 40, Memory: ram}
	for _, c := range []struct {
		values vmxtest.Values
		on     Processor
		wrong  string
	}{
		{nil, known, ""},
		{vmxtest.Values{"guest CR3": 1 << 45}, known, "guest CR3: reserved bit set"},
		{vmxtest.Values{"guest CR3": 1 << 45}, Processor{}, ""},
		{vmxtest.Values{"EPT pointer": 1<<45 | 0x5e}, known, "EPT pointer: bad memory type, number of levels, or reserved bit set"},
		{vmxtest.Values{"MSR bitmaps": 1 << 45}, known, "MSR bitmaps beyond physical memory or not aligned to 4096 bytes"},
		{vmxtest.Values{"TPR threshold": 4}, known, ""},
		{vmxtest.Values{"TPR threshold": 5}, known, "TPR threshold above bits 7:4 of the virtual TPR"},
		{vmxtest.Values{"TPR threshold": 5}, Processor{}, ""},
		{vmxtest.Values{"TPR threshold": 5, "virtual-APIC address": 0x9000000}, known, ""}, // not there: not judged
		{vmxtest.Values{"VMCS link pointer": 0x2656000}, known, ""},
		{vmxtest.Values{"VMCS link pointer": 0x2657000}, known, "VMCS link pointer: no VMCS of this revision there, or its shadow bit is not that of VMCS shadowing"},
		{vmxtest.Values{"VMCS link pointer": 0x2657000, "secondary controls": 0x50ee, "VMREAD-bitmap address": 0x2653000, "VMWRITE-bitmap address": 0x2653000}, known, ""},
		{vmxtest.Values{"VMCS link pointer": 0x2654000}, known, "VMCS link pointer: no VMCS of this revision there, or its shadow bit is not that of VMCS shadowing"},
	} {
		var wrong []string
		for _, x := range view(t, vmxtest.VMCS(vmxtest.KVM, c.values), vmxtest.KVM).Checks(c.on) {
			if !x.OK {
				wrong = append(wrong, x.Wrong)
			}
		}
		if strings.Join(wrong, "; ") != c.wrong {
			t.Errorf("%#v: %q, want %q", c.values, wrong, c.wrong)
		}
	}
}

// What a layout does not have is not judged.
func TestChecksOfWhatIsThere(t *testing.T) {
	page := make([]byte, PageSize)
	page[0] = 1
	for _, c := range view(t, page, VMware.Name).Checks(Processor{}) {
		if strings.Contains(c.Name, "controls") || strings.Contains(c.Name, "EFER") {
			t.Errorf("judged without the field: %+v", c)
		}
	}
}
