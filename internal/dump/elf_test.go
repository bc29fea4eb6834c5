package dump_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/dump"
	"nestdbg/internal/dump/dumptest"
)

// kernelCPU is a CPU in 64-bit mode with five levels of paging.
var kernelCPU = map[string]uint64{"rip": 0xffffffff81000123, "rsp": 0xffffc90000003ff8, "rax": 1, "rbx": 2, "r15": 15,
	"eflags": 0x246, "cs": 0x10, "cs_flags": 1 << 21, "cr0": 0x80050033, "cr2": 0xdead, "cr3": 0x1234000, "cr4": 0x751eb0,
	"gs_base": 0xff11000078800000, "k_gs_base": 0x7f00, "idtr_base": 0xfffffe0000000000, "idtr_limit": 0xfff}

// anELF has two CPUs and two pieces of memory.
func anELF() []byte {
	notes := dumptest.Notes(slices.Concat(dumptest.CPU(kernelCPU), dumptest.CPU(kernelCPU),
		[]dumptest.Note{{Name: "VMCOREINFO", Data: []byte("OSRELEASE=6.1\n")}})...)
	return dumptest.ELF(notes,
		dumptest.Segment{Phys: 0x100000000, Data: bytes.Repeat([]byte{2}, 0x2000)},
		dumptest.Segment{Phys: 0, Data: bytes.Repeat([]byte{1}, 0x3000)})
}

func readELF(b []byte) (*dump.ELF, error) { return dump.ReadELF(bytes.NewReader(b), uint64(len(b))) }

func TestELF(t *testing.T) {
	b := anELF()
	e, err := readELF(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Problems) != 0 || !e.QEMU || len(e.CPUs) != 2 || string(e.VMCoreInfo) != "OSRELEASE=6.1\n" {
		t.Errorf("%d CPUs, QEMU %v, VMCOREINFO %q, problems %q", len(e.CPUs), e.QEMU, e.VMCoreInfo, e.Problems)
	}
	var got []string
	for _, s := range e.Segments {
		got = append(got, fmt.Sprintf("%s of %#x, %d %d", s.Range, s.Present, b[s.Offset], b[s.Offset+s.Present-1]))
	}
	want := []string{"0x0-0x2fff of 0x3000, 1 1", "0x100000000-0x100001fff of 0x2000, 2 2"}
	if !slices.Equal(got, want) {
		t.Errorf("segments %q, want %q", got, want)
	}
	for _, c := range e.CPUs {
		for name, want := range kernelCPU {
			if name == "cs_flags" {
				continue
			}
			if v, ok := c.Get(name); !ok || v != want {
				t.Errorf("%s: %#x, %v; want %#x", name, v, ok, want)
			}
		}
		// What the note has not got is not made up.
		for _, name := range []string{"efer", "lstar", "cr8", "dr7", "guest_mode", "vm_hsave", "halted", "xmm0"} {
			if _, ok := c.Get(name); ok {
				t.Errorf("%s has a value", name)
			}
		}
		if v, ok := c.Get("efer_mode"); !ok || v != 0xd00 {
			t.Errorf("mode of paging %#x, %v", v, ok)
		}
	}
}

// The mode of paging follows from what the note has.
func TestMode(t *testing.T) {
	for _, test := range []struct {
		name   string
		change map[string]uint64
		want   uint64
	}{
		{"64-bit code", nil, 0xd00},
		{"32-bit code under a 64-bit kernel", map[string]uint64{"cs_flags": 0}, 0xd00},
		{"32-bit kernel with PAE", map[string]uint64{"cs_flags": 0, "idtr_base": 0xfff00000}, 0},
		{"32-bit kernel", map[string]uint64{"cs_flags": 0, "idtr_base": 0xfff00000, "cr4": 0}, 0},
		{"no paging", map[string]uint64{"cr0": 1}, 0},
	} {
		regs := make(map[string]uint64)
		for _, m := range []map[string]uint64{kernelCPU, test.change} {
			for k, v := range m {
				regs[k] = v
			}
		}
		e, err := readELF(dumptest.ELF(dumptest.Notes(dumptest.CPU(regs)...), dumptest.Segment{Data: make([]byte, 4096)}))
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := e.CPUs[0].Get("efer_mode"); !ok || v != test.want {
			t.Errorf("%s: %#x, want %#x", test.name, v, test.want)
		}
	}
}

// A kernel's own dump lists its image and all memory: what is twice is taken once.
func TestOverlap(t *testing.T) {
	one := func(n byte, size int) []byte { return bytes.Repeat([]byte{n}, size) }
	b := dumptest.ELF(nil, dumptest.Segment{Phys: 0x2000, Data: one(2, 0x1000)}, dumptest.Segment{Phys: 0x1000, Data: one(1, 0x3000)},
		dumptest.Segment{Phys: 0x3000, Data: one(3, 0x3000)})
	e, err := readELF(b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range e.Segments {
		got = append(got, fmt.Sprintf("%s %d", s.Range, b[s.Offset]))
	}
	if want := []string{"0x1000-0x3fff 1", "0x4000-0x5fff 3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// What is wrong in the notes is said, and the rest is there.
func TestDoubtfulNotes(t *testing.T) {
	change := func(n dumptest.Note, at int, v byte) dumptest.Note {
		n.Data = slices.Clone(n.Data)
		n.Data[at] = v
		return n
	}
	status, qemu := dumptest.Status(kernelCPU), dumptest.QEMU(kernelCPU)
	short := qemu
	short.Data = qemu.Data[:100]
	for _, test := range []struct {
		name  string
		notes []dumptest.Note
		want  string
	}{
		{"another version", []dumptest.Note{status, change(qemu, 0, 2)}, "version 2, version 1 is understood"},
		{"a size that is more than there is", []dumptest.Note{status, change(qemu, 5, 0x10)}, "it says 4280 bytes and has 440"},
		{"too short", []dumptest.Note{status, short}, "100 bytes, at least 432"},
		{"the two differ", []dumptest.Note{change(status, 112+16*8, 0x99), qemu}, "its two notes differ in rip"},
		{"one is missing", []dumptest.Note{status, status, qemu}, "notes of 2 CPUs, and QEMU's of 1"},
		{"a status of another size", []dumptest.Note{{Name: "CORE", Type: 1, Data: make([]byte, 8)}}, "NT_PRSTATUS of 8 bytes, not 336"},
	} {
		e, err := readELF(dumptest.ELF(dumptest.Notes(test.notes...), dumptest.Segment{Data: make([]byte, 4096)}))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if all := strings.Join(e.Problems, "; "); !strings.Contains(all, test.want) {
			t.Errorf("%s: problems %q, want %q", test.name, all, test.want)
		}
		if len(e.CPUs) == 0 || len(e.Segments) != 1 {
			t.Errorf("%s: %d CPUs, %d segments", test.name, len(e.CPUs), len(e.Segments))
		}
	}
}

// Memory that the file does not have any more is not in the segments.
func TestTruncatedELF(t *testing.T) {
	whole := anELF()
	headers := len(whole) - 0x5000
	for n := range len(whole) {
		e, err := readELF(whole[:n])
		switch {
		case n < headers && (err == nil || !errors.Is(err, dump.ErrCorrupt) && !errors.Is(err, dump.ErrForeign)):
			t.Fatalf("%#x of %#x bytes: error %v", n, len(whole), err)
		case n >= headers && err != nil:
			t.Fatalf("%#x of %#x bytes: %v", n, len(whole), err)
		case err == nil && !strings.Contains(strings.Join(e.Problems, "; "), "cut short"):
			t.Fatalf("%#x of %#x bytes: problems %q", n, len(whole), e.Problems)
		}
		if err == nil {
			for _, s := range e.Segments {
				if s.Offset+s.Present > uint64(n) && s.Present > 0 {
					t.Fatalf("%#x bytes: segment %+v", n, s)
				}
			}
		}
	}
}

func TestForeignELF(t *testing.T) {
	change := func(at int, v byte) []byte {
		b := anELF()
		b[at] = v
		return b
	}
	for name, test := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":          {nil, dump.ErrCorrupt},
		"text":           {bytes.Repeat([]byte("text"), 100), dump.ErrForeign},
		"32 bits":        {change(4, 1), dump.ErrUnsupported},
		"big-endian":     {change(5, 2), dump.ErrUnsupported},
		"a program":      {change(16, 2), dump.ErrForeign},
		"another one":    {change(18, 183), dump.ErrUnsupported},
		"no headers":     {change(56, 0), dump.ErrCorrupt},
		"headers of 9":   {change(54, 9), dump.ErrCorrupt},
		"no memory":      {dumptest.ELF(nil), dump.ErrCorrupt},
		"notes too long": {change(64+32+4, 1), dump.ErrCorrupt},
	} {
		if e, err := readELF(test.b); !errors.Is(err, test.want) || e != nil {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// An offset is in each error about the file's bytes.
func TestErrorsSayWhere(t *testing.T) {
	b := anELF()
	b[54] = 9
	if _, err := readELF(b); err == nil || !strings.Contains(err.Error(), "at 0x36") {
		t.Errorf("%v", err)
	}
	if _, err := readELF(anELF()[:70]); err == nil || !strings.Contains(err.Error(), "at 0x46: program headers: the file ends here") {
		t.Errorf("%v", err)
	}
}

func FuzzELF(f *testing.F) {
	f.Add(anELF())
	f.Add(dumptest.ELF(nil, dumptest.Segment{Phys: 1 << 40, Data: make([]byte, 100), MemSize: 1 << 30}))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := readELF(b)
		if (e == nil) == (err == nil) {
			t.Fatalf("%v with error %v", e, err)
		}
		if e == nil {
			return
		}
		for i, s := range e.Segments {
			if s.Range.Last < s.Range.First || s.Present > s.Range.Size() && s.Range.Size() != 0 ||
				s.Present > 0 && (s.Offset > uint64(len(b)) || s.Present > uint64(len(b))-s.Offset) {
				t.Fatalf("segment %+v of %d bytes", s, len(b))
			}
			if i > 0 && s.Range.First <= e.Segments[i-1].Range.Last {
				t.Fatalf("segments %+v", e.Segments)
			}
		}
	})
}
