package vmx

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/vmx/vmxtest"
)

func below2G(a mem.Phys) bool { return a < 2<<30 }

// layoutNamed is the layout that vmxtest calls so.
func layoutNamed(t testing.TB, name string) *Layout {
	t.Helper()
	for _, l := range Layouts {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no layout %q", name)
	return nil
}

func view(t testing.TB, page []byte, kind string) *VMCS {
	t.Helper()
	v, err := View(page, layoutNamed(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestViewSize(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4097, 8192} {
		if v, err := View(make([]byte, n), KVM); v != nil || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v, %v", n, v, err)
		}
		if a := Assess(make([]byte, n), nil); a.Plausible || a.VMCS != nil {
			t.Errorf("%d bytes: %+v", n, a)
		}
	}
}

// Every field that is published is where the layout has it, under its name, and the
// layouts that were published whole have no other.
func TestPlaces(t *testing.T) {
	for _, kind := range vmxtest.Kinds {
		l, names := layoutNamed(t, kind), vmxtest.Names(kind)
		seen := make(map[string]bool)
		for _, f := range l.Fields() {
			at, _ := l.Offset(f)
			want, ok := names[f.String()]
			seen[f.String()] = ok
			if ok && (at != want[0] || f.Size() != want[1]) {
				t.Errorf("%s: %v at %#x of %d bytes, want %#x of %d", kind, f, at, f.Size(), want[0], want[1])
			}
			if !ok && kind != vmxtest.Bochs {
				t.Errorf("%s: has a %v that is not published", kind, f)
			}
		}
		for name := range names {
			if !seen[name] {
				t.Errorf("%s: no %s", kind, name)
			}
		}
	}
}

// Offsets of layouts that were never published whole, as they were found.
func TestPlacesFound(t *testing.T) {
	for _, c := range []struct {
		layout *Layout
		want   map[Field]int
	}{
		{BochsPacked, map[Field]int{VPID: 0x10, EPTPointer: 0x278, LinkPointer: 0x4b0, ExitReason: 0x818,
			GuestCR3: 0xbd8, GuestRSP: 0xc40, GuestRIP: 0xc48, HostCR3: 0xc98, HostRSP: 0xce0, HostRIP: 0xce8}},
		{BochsPackedOld, map[Field]int{LinkPointer: 0x490, ExitReason: 0x7d8, GuestCR3: 0xb98, GuestRSP: 0xc00,
			GuestRIP: 0xc08, HostCR3: 0xc58, HostRSP: 0xca0, HostRIP: 0xca8}},
		{Xen, map[Field]int{VPID: 0x1f8, LinkPointer: 0x600, GuestCR3: 0xe08, GuestRIP: 0xe78, HostCR3: 0xf08, HostRIP: 0xf58}},
		{VMware, map[Field]int{LinkPointer: 0x2e8, GuestCR3: 0x8b0, GuestRIP: 0x920, HostCR3: 0xa20, HostRIP: 0xa70}},
	} {
		for f, want := range c.want {
			if at, ok := c.layout.Offset(f); !ok || at != want {
				t.Errorf("%s: %v at %#x (%v), want %#x", c.layout.Name, f, at, ok, want)
			}
		}
	}
}

// No two fields of a layout overlap, all are inside the page and behind the header.
func TestPlacesDisjoint(t *testing.T) {
	for _, l := range Layouts {
		var owner [PageSize]Field
		for _, f := range l.Fields() {
			at, _ := l.Offset(f)
			if at < 8 && l != EnlightenedVMCS || at+f.Size() > PageSize {
				t.Errorf("%s: %v at %#x", l.Name, f, at)
				continue
			}
			for i := at; i < at+f.Size(); i++ {
				if owner[i] != 0 {
					t.Errorf("%s: %v and %v share byte %#x", l.Name, f, owner[i], i)
				}
				owner[i] = f | 1 // VPID is 0
			}
		}
	}
}

func TestFieldNames(t *testing.T) {
	for f, want := range map[Field]string{
		VPID: "VPID 2 control", GuestTR: "guest TR 2 guest", HostTR: "host TR 2 host", EPTPointer: "EPT pointer 8 control",
		GuestPhysical: "guest-physical address 8 read-only", 0x2818: "guest IA32_PKRS 8 guest", 0x204c: "IA32_SPEC_CTRL shadow 8 control",
		0x482e: "VMX-preemption timer 4 guest", 0x440e: "VM-exit instruction information 4 read-only",
		HostSysCS: "host IA32_SYSENTER_CS 4 host", 0x6c1c: "host IA32_INTERRUPT_SSP_TABLE_ADDR 8 host",
		0x482c: "field 0x482c 4 guest",
	} {
		if got := fmt.Sprintf("%v %d %v", f, f.Size(), f.Area()); got != want {
			t.Errorf("%#x is %q, want %q", uint16(f), got, want)
		}
	}
}

// Each field that is a register has a value of its own.
func TestGuestRegisters(t *testing.T) {
	values, want := vmxtest.Values{}, map[string]uint64{}
	for i, s := range []string{"ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"} {
		n := uint64(i)
		values["guest "+s], values["guest "+s+" base"] = 0x10+n, 0x1000+n
		want[strings.ToLower(s)], want[strings.ToLower(s)+"_base"] = 0x10+n, 0x1000+n
	}
	for i, s := range []string{"CR0", "CR3", "CR4", "RSP", "RIP", "IA32_SYSENTER_CS", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP",
		"RFLAGS", "GDTR base", "GDTR limit", "IDTR base", "IDTR limit", "IA32_EFER", "IA32_PAT", "DR7"} {
		n := 0x2000 + uint64(i)
		values["guest "+s] = n
		reg := []string{"cr0", "cr3", "cr4", "rsp", "rip", "sysenter_cs", "sysenter_esp", "sysenter_eip", "eflags",
			"gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit", "efer", "pat", "dr7"}[i]
		want[reg] = n
	}
	values["guest SS access rights"], want["cpl"] = 0xc0f3, 3
	values["VM-exit controls"] = 1<<2 | 1<<18 | 1<<20
	check(t, view(t, vmxtest.Page(vmxtest.KVM, values), vmxtest.KVM).GuestRegisters(), want)
	for _, reg := range []string{"efer", "pat", "dr7"} {
		delete(want, reg)
	}
	values["VM-exit controls"], values["VM-entry controls"], want["efer_mode"] = 0, 1<<9, 0xd00
	check(t, view(t, vmxtest.Page(vmxtest.KVM, values), vmxtest.KVM).GuestRegisters(), want)
	values["VM-entry controls"] = 1<<2 | 1<<14 | 1<<15
	want["efer"], want["pat"], want["dr7"] = 0x200d, 0x200e, 0x200f
	delete(want, "efer_mode")
	check(t, view(t, vmxtest.Page(vmxtest.KVM, values), vmxtest.KVM).GuestRegisters(), want)
}

func TestHostRegisters(t *testing.T) {
	values := vmxtest.Values{"VM-exit controls": 1 << 9}
	want := map[string]uint64{"eflags": 2, "cpl": 0, "dr7": 0x400, "cs_base": 0, "ss_base": 0, "ds_base": 0, "es_base": 0,
		"ldtr": 0, "gdtr_limit": 0xffff, "idtr_limit": 0xffff, "efer_mode": 0xd00}
	for i, reg := range []string{"rip", "rsp", "cr0", "cr3", "cr4", "es", "cs", "ss", "ds", "fs", "gs", "tr", "fs_base",
		"gs_base", "tr_base", "gdtr_base", "idtr_base", "sysenter_cs", "sysenter_esp", "sysenter_eip"} {
		name := "host " + strings.ToUpper(reg)
		name = strings.Replace(strings.Replace(name, "_BASE", " base", 1), "SYSENTER", "IA32_SYSENTER", 1)
		values[name], want[reg] = 0x3000+uint64(i), 0x3000+uint64(i)
	}
	r, err := view(t, vmxtest.Page(vmxtest.KVM, values), vmxtest.KVM).HostRegisters()
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, want)
	values["VM-exit controls"], values["host IA32_EFER"], values["host IA32_PAT"] = 1<<19|1<<21, 0x4000, 0x4001
	delete(want, "efer_mode")
	want["efer"], want["pat"] = 0x4000, 0x4001
	if r, err = view(t, vmxtest.Page(vmxtest.KVM, values), vmxtest.KVM).HostRegisters(); err != nil {
		t.Fatal(err)
	}
	check(t, r, want)
	for _, field := range []string{"host RIP", "host CR3"} {
		page := vmxtest.VMCS(vmxtest.KVM, vmxtest.Values{field: 0})
		if r, err := view(t, page, vmxtest.KVM).HostRegisters(); r != nil || !errors.Is(err, ErrCorrupt) {
			t.Errorf("without %s: %v, %v", field, r, err)
		}
	}
}

// check compares registers by name; what is not in want must not be known.
func check(t *testing.T, r *arch.Registers, want map[string]uint64) {
	t.Helper()
	for i, reg := range arch.X86.Regs {
		w, expected := want[reg.Name]
		if r.Known(i) != expected {
			t.Errorf("%s: known %v, want %v", reg.Name, r.Known(i), expected)
			continue
		}
		if v, _ := r.Get(reg.Name); expected && v != w {
			t.Errorf("%s = %#x, want %#x", reg.Name, v, w)
		}
	}
}

func TestExitName(t *testing.T) {
	for reason, want := range map[uint64]string{
		0: "exception or NMI", 1: "external interrupt", 12: "HLT", 30: "I/O instruction", 48: "EPT violation",
		49: "EPT misconfiguration", 1<<31 | 33: "VM entry failed: invalid guest state", 75: "instruction timeout",
		1<<27 | 10: "CPUID in an enclave",
	} {
		if got, ok := ExitName(reason); got != want || !ok {
			t.Errorf("%#x is %q (%v), want %q", reason, got, ok, want)
		}
	}
	for _, reason := range []uint64{35, 38, 42, 71, 86, 0xffff, 1 << 16, 1 << 32, 1<<30 | 1} {
		if got, ok := ExitName(reason); ok || got != fmt.Sprintf("exit reason %#x", reason) {
			t.Errorf("%#x is %q (%v)", reason, got, ok)
		}
	}
	seen := make(map[string]bool)
	for reason := range uint64(len(exits)) {
		if name, ok := ExitName(reason); ok && seen[name] {
			t.Errorf("two reasons are %q", name)
		} else {
			seen[name] = true
		}
	}
	if name, ok := InsnErrorName(7); !ok || name != "VM entry with invalid control fields" {
		t.Errorf("error 7 is %q (%v)", name, ok)
	}
	if name, ok := InsnErrorName(14); ok {
		t.Errorf("error 14 is %q", name)
	}
}

func TestEventInjection(t *testing.T) {
	page := vmxtest.VMCS(vmxtest.KVM, vmxtest.Values{"VM-entry interruption information": 0x80000b0e,
		"VM-entry exception error code": 0x10})
	if e := view(t, page, vmxtest.KVM).EventInjection(); e != (Event{true, EventException, 14, true, 0x10}) {
		t.Errorf("%+v", e)
	}
	if e := view(t, vmxtest.VMCS(vmxtest.KVM, nil), vmxtest.KVM).EventInjection(); e.Valid {
		t.Errorf("%+v", e)
	}
	if e := view(t, page, VMware.Name).EventInjection(); e.Valid {
		t.Errorf("a layout without the field: %+v", e)
	}
}

// Where nothing else tells, a program counter above 4 GiB says that the guest is in 64-bit
// mode, and one below says nothing.
func TestModeByPC(t *testing.T) {
	for pc, known := range map[uint64]bool{0xffffffff81000000: true, 0x100000000: true, 0xffffffff: false} {
		mode, ok := view(t, vmxtest.VMCS(vmxtest.VMware, vmxtest.Values{"guest RIP": pc}), VMware.Name).GuestRegisters().Get("efer_mode")
		if ok != known || ok && mode != 0xd00 {
			t.Errorf("%#x: EFER %#x, %v", pc, mode, ok)
		}
	}
}
