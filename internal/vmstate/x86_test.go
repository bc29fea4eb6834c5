package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/vmstate/vmstatetest"
)

// TestEveryRegister gives each field of the fixed part a value of its own, by
// the offsets of vmstatetest.
func TestEveryRegister(t *testing.T) {
	values := map[string]uint64{
		"rax": 1, "rcx": 2, "rdx": 3, "rbx": 4, "rsp": 5, "rbp": 6, "rsi": 7, "rdi": 8, "r8": 9, "r15": 10,
		"rip": 0xfffff80000000011, "eflags": 0x246, "fctrl": 0x37f, "fstat": 0x3821,
		"es": 13, "cs": 14, "ss": 15, "ss flags": 3 << 13, "fs_base": 16, "gs_base": 17, "tr": 18, "tr_base": 19,
		"gdtr_base": 20, "gdtr_limit": 21, "idtr_base": 22, "cr0": 23, "cr2": 24, "cr3": 25, "cr4": 26, "dr7": 27,
		"mxcsr": 28, "efer": 29, "lstar": 30, "k_gs_base": 31, "hflags2": 32, "vm_hsave": 33, "vm_vmcb": 34,
	}
	p := vmstatetest.CPU(values)
	binary.BigEndian.PutUint64(p[0x230+16*3:], 0x1122334455667788)
	binary.BigEndian.PutUint64(p[0x230+16*3+8:], 0x99aabbccddeeff00)
	s := check(t, vmstatetest.NewDevices().Section("cpu", 0, 12, p).Bytes(), nil, "")
	r := s.CPUs[0]
	for name, want := range values {
		if name == "ss flags" {
			name, want = "cpl", 3
		}
		checkRegister(t, r, name, want)
	}
	i, _ := arch.X86.Index("xmm3")
	want := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99}
	if !bytes.Equal(r.Bytes(i), want) {
		t.Errorf("xmm3 = % x", r.Bytes(i))
	}
	checkRegister(t, r, "guest_mode", 0)
	for _, name := range []string{"nested_cr3", "nested_pg_mode", "halted", "cr8"} {
		if v, ok := r.Get(name); ok {
			t.Errorf("%s = %#x, but nothing says so", name, v)
		}
	}
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "halted") {
		t.Errorf("problems %q", s.Problems)
	}
}

func TestX87(t *testing.T) {
	const one, exponentOfOne = 1 << 63, 0x3fff
	payload := func(top uint64, notEmpty uint64, subs ...[]byte) []byte {
		p := vmstatetest.CPU(map[string]uint64{"fstat": top << 11, "x87 not empty": notEmpty}, subs...)
		for i := range 8 {
			vmstatetest.SetX87(p, i, one+uint64(i), exponentOfOne)
		}
		return p
	}
	for name, c := range map[string]struct {
		payload []byte
		kvm     bool
		st      [2]uint64 // low bits of the mantissas of st0 and st1
		tags    uint64
	}{
		"nothing in use":         {payload(0, 0), false, [2]uint64{0, 1}, 0xffff},
		"TCG by physical number": {payload(6, 0xc0), false, [2]uint64{6, 7}, 0x0fff},
		"TCG past the end":       {payload(7, 0x81), false, [2]uint64{7, 0}, 0x3ffc},
		"KVM by stack order":     {payload(6, 0xc0), true, [2]uint64{0, 1}, 0x0fff},
		"KVM without its clock": {payload(6, 0xc0, vmstatetest.Subsection("cpu/tsc_khz", make([]byte, 8))), false,
			[2]uint64{0, 1}, 0x0fff},
	} {
		b := vmstatetest.NewDevices().Section("cpu", 0, 12, c.payload)
		if c.kvm {
			b.Section("kvmclock", 0, 1, make([]byte, 8))
		}
		r := check(t, b.Bytes(), nil, "").CPUs[0]
		for i, want := range c.st {
			n, _ := arch.X86.Index(fmt.Sprintf("st%d", i))
			v := r.Bytes(n)
			if v == nil || binary.LittleEndian.Uint64(v) != one+want || binary.LittleEndian.Uint16(v[8:]) != exponentOfOne {
				t.Errorf("%s: st%d = % x, want the value %d", name, i, v, want)
			}
		}
		if got, _ := r.Get("ftag"); got != c.tags {
			t.Errorf("%s: ftag = %#x, want %#x", name, got, c.tags)
		}
	}
}

func TestX87Pointers(t *testing.T) {
	sub := vmstatetest.Subsection("cpu/fpop_ip_dp", []byte{7, 0xd9,
		0xff, 0xff, 0x92, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0, 0, 0x7f, 0xfe, 1, 2, 3, 4})
	r := check(t, vmstatetest.NewDevices().Section("cpu", 0, 12, vmstatetest.CPU(nil, sub)).Bytes(), nil, "").CPUs[0]
	for name, want := range map[string]uint64{"fop": 0x7d9, "fioff": 0x56789abc, "fiseg": 0x9234, "fooff": 0x01020304, "foseg": 0x7ffe} {
		checkRegister(t, r, name, want)
	}
}

func TestCR8(t *testing.T) {
	cpu := func(hflags, hflags2, vtpr uint64) []byte {
		return vmstatetest.CPU(map[string]uint64{"hflags": hflags, "hflags2": hflags2, "v_tpr": vtpr})
	}
	const guest, own = 1 << 21, 1 << 3
	apic := vmstatetest.APIC(0x30)
	for name, c := range map[string]struct {
		b    *vmstatetest.Builder
		want []int // -1: not known
	}{
		"L1":         {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(0, 0, 5)).Section("apic", 0, 3, apic), []int{3}},
		"L2":         {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(guest, own, 5)).Section("apic", 0, 3, apic), []int{5}},
		"L2, shared": {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(guest, 0, 5)).Section("apic", 0, 3, apic), []int{3}},
		"no APIC":    {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(0, 0, 5)), []int{-1}},
		"APIC ids with gaps, sections in another order": {vmstatetest.NewDevices().
			SetID(9).Section("apic", 4, 3, vmstatetest.APIC(0x40)).SetID(8).Section("cpu", 1, 12, cpu(0, 0, 0)).
			SetID(4).Section("cpu", 0, 12, cpu(0, 0, 0)).Section("apic", 0, 3, vmstatetest.APIC(0x10)), []int{1, 4}},
		"APIC before CPU": {vmstatetest.NewDevices().Section("apic", 0, 3, apic).Section("cpu", 0, 12, cpu(0, 0, 0)), []int{-1}},
		"two APICs": {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(0, 0, 0)).
			Section("apic", 0, 3, apic).Section("apic", 1, 3, apic), []int{-1}},
		"other version": {vmstatetest.NewDevices().Section("cpu", 0, 12, cpu(0, 0, 0)).Section("apic", 0, 4, apic), []int{-1}},
	} {
		s := check(t, c.b.Bytes(), nil, "")
		for i, want := range c.want {
			got := -1
			if v, ok := s.CPUs[i].Get("cr8"); ok {
				got = int(v)
			}
			if got != want {
				t.Errorf("%s: CPU %d: cr8 %d, want %d (problems %q)", name, i, got, want, s.Problems)
			}
		}
	}
}

func TestCPUs(t *testing.T) {
	cpu := vmstatetest.CPU(nil)
	s := check(t, vmstatetest.NewDevices().Section("cpu", 2, 12, cpu).Section("cpu", 0, 12, cpu).Bytes(), nil, "")
	if len(s.CPUs) != 3 || s.CPUs[0] == nil || s.CPUs[1] != nil || s.CPUs[2] == nil {
		t.Errorf("CPUs %v", s.CPUs)
	}
	one := func(instance, version uint32, p []byte) []byte {
		return vmstatetest.NewDevices().Section("cpu", instance, version, p).Bytes()
	}
	check(t, one(4096, 12, cpu), ErrCorrupt, "CPU 4096")
	check(t, one(1<<32-1, 12, cpu), ErrCorrupt, "CPU 4294967295")
	check(t, one(0, 11, cpu), ErrUnsupported, "version 11")
	check(t, one(0, 12, cpu[:len(cpu)-1]), ErrCorrupt, "fixed part")
	check(t, vmstatetest.NewDevices().Section("timer", 0, 2, nil).Bytes(), ErrCorrupt, "no section cpu")

	// One CPU of two is better than none.
	s = check(t, vmstatetest.NewDevices().Section("cpu", 0, 13, cpu).Section("cpu", 1, 12, cpu).Bytes(), nil, "")
	if s.CPUs[0] != nil || s.CPUs[1] == nil || len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "version 13") {
		t.Errorf("CPUs %v, problems %q", s.CPUs, s.Problems)
	}
}

func TestSubsections(t *testing.T) {
	sub := vmstatetest.Subsection
	npt := vmstatetest.NPT(0x1000, 0x17)
	pkru := sub("cpu/pkru", make([]byte, 4))
	news := sub("cpu/new", []byte("new state"))
	for name, c := range map[string]struct {
		subs    [][]byte
		part    string // of the error, if there is one
		root    bool   // the nested root is found
		unknown string
	}{
		"none":                         {nil, "", false, ""},
		"several":                      {[][]byte{pkru, npt}, "", true, ""},
		"unknown last":                 {[][]byte{npt, news}, "", true, "cpu/new"},
		"unknown between":              {[][]byte{pkru, news, npt}, "", true, "cpu/new"},
		"unknown, chain of several":    {[][]byte{news, pkru, npt, sub("cpu/svm_guest", make([]byte, 4))}, "", true, "cpu/new"},
		"unknown, empty":               {[][]byte{sub("cpu/new", nil), npt}, "", true, "cpu/new"},
		"unknown, with a false start":  {[][]byte{sub("cpu/new", pkru[:8]), npt}, "", true, "cpu/new"},
		"unknown, two ends":            {[][]byte{sub("cpu/new", join(sub("cpu/avx512", nil))), make([]byte, 1600-len(npt)), npt}, "several places", false, ""},
		"unknown, then another one":    {[][]byte{news, sub("cpu/newer", nil)}, "", false, "cpu/new"},
		"twice":                        {[][]byte{npt, npt}, "twice", false, ""},
		"too short":                    {[][]byte{npt[:len(npt)-1]}, "needs 12 bytes", false, ""},
		"other name":                   {[][]byte{sub("apic/x", nil)}, "no subsection", false, ""},
		"other version":                {[][]byte{bytes.Replace(npt, []byte{0, 0, 0, 1}, []byte{0, 0, 0, 2}, 1)}, "no subsection", false, ""},
		"bytes that are no subsection": {[][]byte{npt, {0}}, "no subsection at 0x1d", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := vmstatetest.CPU(map[string]uint64{"hflags": 1 << 21}, c.subs...)
			b := vmstatetest.NewDevices().Section("cpu_common", 0, 1, vmstatetest.Common(0, 0)).Section("cpu", 0, 12, p).Bytes()
			if c.part != "" {
				check(t, b, ErrCorrupt, c.part)
				return
			}
			s := check(t, b, nil, "")
			if root, ok := s.CPUs[0].Get("nested_cr3"); ok != c.root || ok && root != 0x1000 {
				t.Errorf("nested root %#x (known %v)", root, ok)
			}
			if got := strings.Join(s.Problems, "\n"); (c.unknown == "") != (got == "") || !strings.Contains(got, c.unknown) {
				t.Errorf("problems %q, want %q in them", got, c.unknown)
			}
		})
	}
}

func TestNested(t *testing.T) {
	sub := vmstatetest.Subsection
	page, shadow := bytes.Repeat([]byte{0xa5}, 4096), bytes.Repeat([]byte{0x5a}, 4096)
	vmx := sub("cpu/kvm_nested_state/vmx", []byte{0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0})
	svm := sub("cpu/kvm_nested_state/svm", append([]byte{0, 0, 0, 0, 0, 0, 0x30, 0}, page...))
	head := func(flags, format byte) []byte {
		return sub("cpu/nested_state", []byte{1, flags, 0, format, 0, 0, 0x10, 0x80})
	}
	for name, c := range map[string]struct {
		subs [][]byte
		want *Nested
		part string
	}{
		"VMX in use": {[][]byte{head(1, 0), vmx, sub("cpu/kvm_nested_state/vmx/vmcs12", page),
			sub("cpu/kvm_nested_state/vmx/shadow_vmcs12", shadow)},
			&Nested{Kind: NestedVMX, Flags: 0x101, VMXON: 0x1000, VMCS12: 0x2000, Page: page, Shadow: shadow}, ""},
		"VMX without a VMCS": {[][]byte{head(0, 0), vmx}, &Nested{Kind: NestedVMX, Flags: 0x100, VMXON: 0x1000, VMCS12: 0x2000}, ""},
		"VMX with no current VMCS": {[][]byte{head(0, 0), sub("cpu/kvm_nested_state/vmx",
			[]byte{0, 0, 0, 0, 0, 0, 0x10, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0})},
			&Nested{Kind: NestedVMX, Flags: 0x100, VMXON: 0x1000, VMCS12: ^mem.Phys(0)}, ""},
		"SVM in use":      {[][]byte{head(1, 1), svm}, &Nested{Kind: NestedSVM, Flags: 0x101, VMCB: 0x3000, Page: page}, ""},
		"SVM, not in use": {[][]byte{head(0, 1)}, &Nested{Kind: NestedSVM, Flags: 0x100}, ""},
		"mixed":           {[][]byte{head(1, 1), vmx}, nil, "another kind"},
		"unknown format":  {[][]byte{head(1, 9)}, nil, "format 9"},
	} {
		t.Run(name, func(t *testing.T) {
			b := vmstatetest.NewDevices().Section("cpu", 0, 12, vmstatetest.CPU(map[string]uint64{"hflags": 1 << 21}, c.subs...)).Bytes()
			if c.want == nil {
				check(t, b, ErrCorrupt, c.part)
				return
			}
			s := check(t, b, nil, "")
			got, want := s.Nested[0], c.want
			if got == nil || got.Kind != want.Kind || got.Flags != want.Flags || got.VMXON != want.VMXON ||
				got.VMCS12 != want.VMCS12 || got.VMCB != want.VMCB ||
				!bytes.Equal(got.Page, want.Page) || !bytes.Equal(got.Shadow, want.Shadow) {
				t.Errorf("nested state %+v", got)
			}
			// The VMCS that is current goes with the CPU, with what KVM has of it.
			at, ok := s.CPUs[0].Get("vmcs")
			block := s.CPUs[0].ControlBlock()
			active := want.Page != nil
			if vmcs := active && want.Kind == NestedVMX; ok != vmcs || vmcs && at != uint64(want.VMCS12) ||
				(block != nil) != active || active && !bytes.Equal(block, page) {
				t.Errorf("VMCS at %#x (%v), %d bytes of it", at, ok, len(block))
			}
			if at, _ := s.CPUs[0].Get("vm_vmcb"); want.Kind == NestedSVM && active && at != uint64(want.VMCB) {
				t.Errorf("VMCB at %#x, want %#x", at, want.VMCB)
			}
		})
	}
}
