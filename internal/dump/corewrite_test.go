package dump

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// newCore is memory of two pieces, two CPUs and a kernel.
func newCore() (*Core, *memtest.Memory) {
	ranges := []mem.Range{{First: 0x1000, Last: 0x3fff}, {First: 1 << 32, Last: 1<<32 + 0x1fff}}
	ram := memtest.NewMemory(ranges...)
	ram.Put(0x1000, []byte("first"))
	ram.Put(1<<32+0x1ffc, []byte("last"))
	c := &Core{
		Arch: arch.X86, Ranges: ranges, Memory: ram, VMCoreInfo: []byte("OSRELEASE=6.1\n"),
		Direct: 0xff11000000000000,
		Image:  &Image{Virt: 0xffffffff81000000, Phys: mem.Range{First: 0x2000, Last: 0x2fff}},
	}
	for i := range 2 {
		r := arch.NewRegisters(arch.X86)
		for n, reg := range arch.X86.Regs {
			if reg.Kind == arch.General {
				r.Set(reg.Name, uint64(0x1000*(i+1)+n))
			}
		}
		r.Set("cr3", 0x5000)
		r.Set("fs_base", 0x77)
		for _, s := range []string{"cs", "ss", "ds", "es", "fs", "gs"} {
			r.Set(s, 0x10)
		}
		r.Set("gs_base", 0xffff888000000000)
		c.CPUs = append(c.CPUs, r)
	}
	return c, ram
}

// TestCoreIsReadAgain: what is written is what ReadELF finds.
func TestCoreIsReadAgain(t *testing.T) {
	c, ram := newCore()
	var file fileOf
	out, err := c.WriteELF(t.Context(), &file, CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(file.b) != int(out.Size) {
		t.Errorf("%d bytes of %d", len(file.b), out.Size)
	}
	t.Log(out.Problems)
	e, err := ReadELF(bytes.NewReader(file.b), uint64(len(file.b)))
	if err != nil {
		t.Fatal(err)
	}
	if string(e.VMCoreInfo) != "OSRELEASE=6.1\n" || len(e.CPUs) != 2 || !e.QEMU {
		t.Errorf("%q, %d CPUs, %v", e.VMCoreInfo, len(e.CPUs), e.Problems)
	}
	for i, r := range e.CPUs {
		for _, name := range []string{"rax", "r15", "rip", "rsp", "eflags", "cs", "cr3", "fs_base", "gs_base"} {
			got, ok := r.Get(name)
			if want, _ := c.CPUs[i].Get(name); !ok || got != want {
				t.Errorf("CPU %d: %s is %#x, %v, want %#x", i, name, got, ok, want)
			}
		}
	}
	total := uint64(0)
	for _, s := range e.Segments {
		want := make([]byte, s.Range.Size())
		ram.ReadPhys(want, mem.Phys(s.Range.First))
		if got := file.b[s.Offset : s.Offset+s.Range.Size()]; !bytes.Equal(got, want) {
			t.Errorf("memory at %#x differs", s.Range.First)
		}
		total += s.Range.Size()
	}
	if total != 0x5000 {
		t.Errorf("%#x bytes of memory", total)
	}
}

// TestCoreSaysWhatIsMissing: unknown registers and memory that went away are told.
func TestCoreSaysWhatIsMissing(t *testing.T) {
	c, ram := newCore()
	c.CPUs[1].Forget("r12")
	c.Memory = memtest.FailNth(ram, 1)
	out, err := c.WriteELF(t.Context(), &fileOf{}, CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(out.Problems, "\n"); !strings.Contains(text, "CPU 1: r12") || !strings.Contains(text, "4096 bytes of memory could not be read") {
		t.Errorf("%q", text)
	}
}

// TestCoreOfManyPieces: as many pieces as e_phnum can count and more, up to a bound.
func TestCoreOfManyPieces(t *testing.T) {
	c, _ := newCore()
	c.Image = nil
	ram := memtest.NewMemory()
	ram.Put(0, []byte("first"))
	c.Memory, c.Populated = ram, []mem.Range{{First: 0, Last: pageSize - 1}}
	pieces := func(n int) {
		c.Ranges = make([]mem.Range, n)
		for i := range c.Ranges {
			c.Ranges[i] = mem.Range{First: uint64(i) * 2 * pageSize, Last: uint64(i)*2*pageSize + pageSize - 1}
		}
	}
	for _, n := range []int{headersElse - 2, headersElse - 1, headersElse + 1} {
		pieces(n)
		var file fileOf
		out, err := c.WriteELF(t.Context(), &file, CopyOptions{})
		if err != nil {
			t.Errorf("%d pieces: %v", n, err)
			continue
		}
		e, err := ReadELF(bytes.NewReader(file.b), uint64(out.Size))
		if err != nil || len(e.Segments) != n || len(e.CPUs) != 2 || string(file.b[e.Segments[0].Offset:][:5]) != "first" {
			t.Errorf("%d pieces: %v", n, err)
		}
	}
	pieces(maxHeaders)
	if out, err := c.WriteELF(t.Context(), &fileOf{}, CopyOptions{}); !errors.Is(err, ErrTooManyRanges) {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestPopulated: what is said to be zero is not read, and the rest is as it was.
func TestPopulated(t *testing.T) {
	c, ram := newCore()
	c.Ranges = c.Ranges[:1]
	ram.Put(0x2ffc, []byte("zero, for all one is told"))
	c.Populated = []mem.Range{{First: 0x1000, Last: 0x1fff}, {First: 0x3000, Last: 0x7fff}}
	var asked []mem.Range
	c.Memory = readerFunc(func(p []byte, a mem.Phys) (int, error) {
		asked = append(asked, mem.Range{First: uint64(a), Last: uint64(a) + uint64(len(p)) - 1})
		return ram.ReadPhys(p, a)
	})
	got := bytes.Repeat([]byte{7}, 0x3000)
	if lost := c.ReadPages(got, 0x1000); len(lost) > 0 || len(mem.Subtract(asked, c.Populated)) > 0 {
		t.Errorf("%d pages lost, asked for %v", len(lost), asked)
	}
	want := make([]byte, 0x3000)
	ram.ReadPhys(want, 0x1000)
	clear(want[0x1000:0x2000])
	if !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
}

type readerFunc func(p []byte, a mem.Phys) (int, error)

func (f readerFunc) ReadPhys(p []byte, a mem.Phys) (int, error) { return f(p, a) }
