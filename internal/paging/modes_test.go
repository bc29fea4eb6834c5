package paging_test

import (
	"errors"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
)

func TestForX86(t *testing.T) {
	const (
		pg, pse, pae, la57 = 1 << 31, 1 << 4, 1 << 5, 1 << 12
		lme, lma, nxe      = 1 << 8, 1 << 10, 1 << 11
	)
	for _, c := range []struct {
		cr0, cr4, efer uint64
		want           string // "" for an error
	}{
		{0, 0, 0, "identity"},
		{0x11, pae | la57, lme | nxe, "identity"},
		{pg, 0, 0, "x86-2level"},
		{pg, pse, 0, "x86-2level-pse"},
		{pg, pse, nxe, "x86-2level-pse"},
		{pg, pae, 0, "x86-pae-nonx"},
		{pg, pae | pse, nxe, "x86-pae"},
		{pg, pae | la57, nxe, "x86-pae"}, // LA57 means nothing outside long mode
		{pg, pae, lme | lma, "x86-4level-nonx"},
		{pg, pae, lme | lma | nxe, "x86-4level"},
		{pg, pae | la57, lme | lma | nxe, "x86-5level"},
		{pg, pae | la57, lme | lma, "x86-5level-nonx"},
		{0x80050033, 0x7516f0, 0xd01, "x86-5level"}, // Linux 6.1 on QEMU's -cpu max
		{pg, pse, lme | lma, ""},
	} {
		f, err := paging.ForX86(c.cr0, c.cr4, c.efer)
		checkFormat(t, f, err, c.want)
	}
}

func TestNPTForMode(t *testing.T) {
	for mode, want := range map[uint64]string{
		0: "npt-2level", 8: "npt-2level-pse", 0xc: "npt-2level-pse",
		1: "npt-pae-nonx", 5: "npt-pae", 0xd: "npt-pae", 0x11: "npt-pae-nonx",
		3: "npt4-nonx", 0xf: "npt4", 7: "npt4", 0x1f: "npt5", 0x1b: "npt5-nonx",
		2: "", 0x20: "", 1 << 40: "",
	} {
		f, err := paging.NPTForMode(mode)
		checkFormat(t, f, err, want)
	}
}

func checkFormat(t *testing.T, f *paging.Format, err error, want string) {
	t.Helper()
	switch {
	case want == "":
		if f != nil || !errors.Is(err, paging.ErrCorrupt) {
			t.Errorf("%v, %v, want an ErrCorrupt", f, err)
		}
	case err != nil || f.Name != want:
		t.Errorf("%v, %v, want %s", f, err, want)
	}
}

func TestEPTForPointer(t *testing.T) {
	for _, c := range []struct {
		eptp uint64
		want string
		root mem.Phys
	}{
		{0x1234_501e, "ept4", 0x1234_5000},
		{0x1234_505e, "ept4", 0x1234_5000}, // with accessed and dirty flags, as KVM and Bochs have it
		{0x1234_5026, "ept5", 0x1234_5000},
		{0x1234_5066, "ept5", 0x1234_5000},
		{0x000f_ffff_ffff_f098, "ept4", 0x000f_ffff_ffff_f000}, // uncached, supervisor shadow stack
		{0x1234_501d, "", 0},                                   // memory type 5
		{0x1234_5019, "", 0},                                   // memory type 1
		{0x1234_5016, "", 0},                                   // 3 levels
		{0x1234_502e, "", 0},                                   // 6 levels
		{0x1234_511e, "", 0},                                   // bit 8
		{0x1234_581e, "", 0},                                   // bit 11
		{1<<52 | 0x1234_501e, "", 0},
		{1<<63 | 0x1234_501e, "", 0},
		{0, "", 0},
		{^uint64(0), "", 0},
	} {
		f, root, err := paging.EPTForPointer(c.eptp)
		checkFormat(t, f, err, c.want)
		if root != c.root {
			t.Errorf("%#x: root %#x, want %#x", c.eptp, root, c.root)
		}
	}
}

func TestByName(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range paging.Formats() {
		if seen[f.Name] {
			t.Errorf("two formats %q", f.Name)
		}
		seen[f.Name] = true
		if got, err := paging.ByName(f.Name); got != f || err != nil {
			t.Errorf("ByName(%q) = %v, %v", f.Name, got, err)
		}
	}
	for _, name := range []string{"x86-4level", "x86-5level", "x86-pae", "x86-2level", "ept4", "ept5",
		"npt4", "npt5", "npt-pae", "npt-2level"} {
		if !seen[name] {
			t.Errorf("no format %q", name)
		}
	}
	if f, err := paging.ByName("vax"); f != nil || !errors.Is(err, paging.ErrNotFound) {
		t.Errorf("%v, %v", f, err)
	}
}

func TestRoot(t *testing.T) {
	for _, c := range []struct {
		f    *paging.Format
		reg  uint64
		want mem.Phys
	}{
		{paging.X86FourLevel, 0xfff0_0000_0123_4fff, 0x123_4000}, // PCID, LAM, bit 63 of a MOV
		{paging.X86FiveLevel, 3<<61 | 0x000f_ffff_ffff_f018, 0xf_ffff_ffff_f000},
		{paging.X86PAE, 0xffff_ffff, 0xffff_ffe0},
		{paging.X86TwoLevel, 0xffff_f018, 0xffff_f000},
		{paging.NPTFiveLevel, 0x59a2_8000, 0x59a2_8000},
		{paging.EPTFourLevel, 0x1234_505e, 0x1234_5000},
		{paging.Identity, 0x1234_5000, 0},
	} {
		if got := c.f.Root(c.reg); got != c.want {
			t.Errorf("%s: Root(%#x) = %#x, want %#x", c.f.Name, c.reg, got, c.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	m := memtest.NewMemory()
	m.PutUint64(0xffff_fff0, 0x1122)
	s := paging.NewSpace("flat", paging.Identity, m, 0)
	if v, err := mem.VirtUint64(s, 0xffff_fff0); err != nil || v != 0x1122 {
		t.Errorf("%#x, %v", v, err)
	}
	if _, n, err := s.Translate(0xffff_fff0); err != nil || n != 16 {
		t.Errorf("%#x contiguous, %v", n, err)
	}
	var b [32]byte
	n, err := s.ReadVirt(b[:], 0xffff_fff0)
	var nm *paging.NotMappedError
	if n != 16 || !errors.As(err, &nm) || nm.Reason != "address beyond 32 bits" || nm.Addr != 1<<32 {
		t.Errorf("%d, %v", n, err)
	}
	tr, err := s.Walk(0x1000)
	if err != nil || tr.Phys != 0x1000 || len(tr.Steps) != 0 || tr.Perm.String() != "rwxu" {
		t.Errorf("%+v, %v", tr, err)
	}
	var got []paging.Mapping
	for m, err := range s.Ranges(mem.Range{First: 0x1000, Last: ^uint64(0)}) {
		if err != nil {
			t.Error(err)
		}
		got = append(got, m)
	}
	if len(got) != 1 || got[0].First != 0x1000 || got[0].Phys != 0x1000 || got[0].Last() != 0xffff_ffff {
		t.Errorf("%+v", got)
	}
	for m := range s.Ranges(mem.Range{First: 1 << 32, Last: 1 << 33}) {
		t.Errorf("%+v", m)
	}
}

// TestAddressShape is the limits of each format's addresses, both sides of them.
func TestAddressShape(t *testing.T) {
	const canon = "non-canonical address"
	for _, c := range []struct {
		name   string
		addr   uint64
		reason string // "" if the address has the right shape
	}{
		{"x86-4level", 0x0000_7fff_ffff_ffff, ""},
		{"x86-4level", 0x0000_8000_0000_0000, canon},
		{"x86-4level", 0xffff_7fff_ffff_ffff, canon},
		{"x86-4level", 0xffff_8000_0000_0000, ""},
		{"x86-4level", 0x8000_0000_0000_0000, canon},
		{"x86-4level", 0x7fff_8000_0000_0000, canon},
		{"x86-4level", ^uint64(0), ""},
		{"x86-5level", 0x00ff_ffff_ffff_ffff, ""},
		{"x86-5level", 0x0100_0000_0000_0000, canon},
		{"x86-5level", 0xfeff_ffff_ffff_ffff, canon},
		{"x86-5level", 0xff00_0000_0000_0000, ""},
		{"x86-pae", 0xffff_ffff, ""},
		{"x86-pae", 0x1_0000_0000, "address beyond 32 bits"},
		{"x86-2level", 0xffff_ffff_8000_0000, "address beyond 32 bits"},
		{"npt4", 0x0000_ffff_ffff_ffff, ""},
		{"npt4", 0x0001_0000_0000_0000, "address beyond 48 bits"},
		{"npt4", 0xffff_8000_0000_0000, "address beyond 48 bits"},
		{"npt5", 0x01ff_ffff_ffff_ffff, ""},
		{"npt5", 0x0200_0000_0000_0000, "address beyond 57 bits"},
		{"ept4", 0x0000_ffff_ffff_ffff, ""},
		{"ept4", 1 << 48, "address beyond 48 bits"},
		{"ept5", 1 << 57, "address beyond 57 bits"},
	} {
		f, err := paging.ByName(c.name)
		if err != nil {
			t.Fatal(err)
		}
		want, cause, steps := c.reason, paging.Outside, 0
		if want == "" {
			want, cause, steps = "not present", paging.NotPresent, 1
		}
		tr, err := f.Walk(memtest.NewMemory(), 0x1000, c.addr)
		var nm *paging.NotMappedError
		if !errors.As(err, &nm) || nm.Reason != want || nm.Cause != cause || len(tr.Steps) != steps {
			t.Errorf("%s %#x: %v after %d steps, want %q", c.name, c.addr, err, len(tr.Steps), want)
		}
	}
}
