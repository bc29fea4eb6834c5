package vmstate

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/vmstate/vmstatetest"
)

// small is a stream of one CPU in L2 with as little else as possible.
func small() *vmstatetest.Builder {
	return vmstatetest.NewDevices().
		Section("timer", 0, 2, make([]byte, 24)).
		SetID(4).
		Section("cpu_common", 0, 1, vmstatetest.Common(0, 2)).
		Section("cpu", 0, 12, vmstatetest.CPU(map[string]uint64{
			"rip": 0xffffffff81000000, "rsp": 0xffffc90000001000, "hflags": 1<<21 | 1<<15, "hflags2": 0x4b,
			"vm_vmcb": 0x18dce000, "v_tpr": 5,
		}, vmstatetest.NPT(0x194ed000, 0x17))).
		Section("apic", 0, 3, vmstatetest.APIC(0x20))
}

// check parses b and expects an error of class want whose text has part, or
// none if want is nil.
func check(t *testing.T, b []byte, want error, part string) *State {
	t.Helper()
	s, err := Parse(b, arch.X86)
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("error %v, want %v", err, want)
	}
	if (s == nil) == (err == nil) {
		t.Fatalf("state %v with error %v", s, err)
	}
	if err != nil && !strings.Contains(err.Error(), part) {
		t.Fatalf("error %q, want one with %q", err, part)
	}
	return s
}

// checkRegister expects a register to have a value.
func checkRegister(t *testing.T, r *arch.Registers, name string, want uint64) {
	t.Helper()
	if got, ok := r.Get(name); !ok || got != want {
		t.Errorf("%s = %#x (known %v), want %#x", name, got, ok, want)
	}
}

func TestSmall(t *testing.T) {
	s := check(t, small().Bytes(), nil, "")
	if len(s.Sections) != 4 || len(s.CPUs) != 1 || len(s.Problems) != 0 || len(s.Nested) != 0 {
		t.Fatalf("%+v", s)
	}
	for name, want := range map[string]uint64{"rip": 0xffffffff81000000, "rsp": 0xffffc90000001000,
		"guest_mode": 1, "nested_cr3": 0x194ed000, "nested_pg_mode": 0x17, "vm_vmcb": 0x18dce000, "halted": 0} {
		checkRegister(t, s.CPUs[0], name, want)
	}
	if s.Interrupts[0] != 2 {
		t.Errorf("interrupts %v", s.Interrupts)
	}
}

const truncatedJSON = `{"page_size":4096,"devices":[]}`

func TestTruncated(t *testing.T) {
	devices := small().Bytes()
	for n := range devices {
		check(t, devices[:n], ErrCorrupt, "")
	}
	migration := vmstatetest.NewMigration("pc-q35-7.2", "x-ignore-shared").
		Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).
		Piece(3, "ram", 4, ramEnd()).
		Section("cpu", 0, 12, vmstatetest.CPU(nil)).
		Description(truncatedJSON)
	check(t, migration, nil, "")
	for n := range migration {
		want := ErrCorrupt
		if n == len(migration)-len(truncatedJSON)-5 {
			want = nil // without the description it is whole again
		}
		check(t, migration[:n], want, "")
	}
}

func TestHeader(t *testing.T) {
	good := small().Bytes()
	patched := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	config := func(body ...byte) []byte { return append([]byte("QEVM\x00\x00\x00\x03\x07"), body...) }
	for name, c := range map[string]struct {
		b    []byte
		want error
		part string
	}{
		"empty":              {nil, ErrCorrupt, "no stream of QEMU"},
		"other magic":        {patched(0, 'X'), ErrCorrupt, "58 45 56 4d"},
		"old version":        {patched(7, 2), ErrUnsupported, "version 2"},
		"header only":        {good[:8], ErrCorrupt, "ends at offset 0x8"},
		"no section":         {patched(8, 9), ErrCorrupt, "no section at offset 0x8"},
		"a piece first":      {patched(8, 2), ErrUnsupported, "piece"},
		"end only":           {[]byte("QEVM\x00\x00\x00\x03\x00"), ErrCorrupt, "no section cpu"},
		"long machine type":  {config(0xff, 0xff, 0xff, 0xff, 'p'), ErrCorrupt, "machine type"},
		"empty machine type": {config(0, 0, 0, 0), ErrCorrupt, "machine type"},
		"unknown configuration": {append(config(0, 0, 0, 1, 'p'), vmstatetest.Subsection("configuration/x", nil)...),
			ErrUnsupported, `"configuration/x"`},
		"many capabilities": {append(config(0, 0, 0, 1, 'p'),
			vmstatetest.Subsection("configuration/capabilities", []byte{0xff, 0xff, 0xff, 0xff})...), ErrCorrupt, "passes the end"},
		"large pages": {append(config(0, 0, 0, 1, 'p'),
			vmstatetest.Subsection("configuration/target-page-bits", []byte{0, 0, 0, 40})...), ErrUnsupported, "2^40"},
	} {
		t.Run(name, func(t *testing.T) { check(t, c.b, c.want, c.part) })
	}
}

func TestConfiguration(t *testing.T) {
	b := vmstatetest.NewMigration("virt").
		Raw(vmstatetest.Subsection("configuration/uuid", make([]byte, 16))...).
		Raw(vmstatetest.Subsection("configuration/target-page-bits", []byte{0, 0, 0, 14})...).
		Section("cpu", 0, 12, vmstatetest.CPU(nil)).
		Section("globalstate", 0, 1, append([]byte{0, 0, 0, 7, 'p', 'a', 'u', 's', 'e', 'd'}, make([]byte, 94)...)).
		Bytes()
	s := check(t, b, nil, "")
	if s.MachineType != "virt" || s.RunState != "paused" {
		t.Errorf("machine %q, run state %q", s.MachineType, s.RunState)
	}
}

func TestRunState(t *testing.T) {
	for name, payload := range map[string][]byte{
		"short":    {0, 0, 0, 7},
		"size 0":   make([]byte, 104),
		"too long": append([]byte{0, 0, 0, 101}, make([]byte, 100)...),
	} {
		s := check(t, vmstatetest.NewMigration("pc").Section("cpu", 0, 12, vmstatetest.CPU(nil)).
			Section("globalstate", 0, 1, payload).Bytes(), nil, "")
		if s.RunState != "" || len(s.Problems) == 0 {
			t.Errorf("%s: run state %q, problems %q", name, s.RunState, s.Problems)
		}
	}
}

func TestArchitectures(t *testing.T) {
	if _, err := Parse(small().Bytes(), &arch.Arch{Name: "none"}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	// The names in the table are those of architectures that exist.
	if decoders["x86-64"] == nil || len(decoders) != 1 {
		t.Errorf("decoders for %d architectures", len(decoders))
	}
}

func TestNestedKindNames(t *testing.T) {
	if NestedVMX.String() != "vmx" || NestedSVM.String() != "svm" || NestedKind(7).String() != "format 7" {
		t.Errorf("%v %v %v", NestedVMX, NestedSVM, NestedKind(7))
	}
}
