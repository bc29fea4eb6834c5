package symfile

import (
	"bytes"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
)

// movedKernel is a kernel with something of everything, moved by delta.
func movedKernel(t *testing.T, delta uint64) *File {
	kernel, _ := kernelAndModule()
	proto := kernel.add("", btf.FuncProto, 1, 1, kernel.name("n"), 1)
	kernel.add("work", btf.Func, 0, proto)
	at := text + delta
	u := Unit{Name: "vmlinux", BTF: kernel.bytes(), PerCPU: &mem.Range{First: 0x100, Last: 0x1ff},
		Variables: []Variable{{Name: "init_task", Addr: at + 0x1800, Type: 4}, {Name: "per_cpu", Addr: 0x100, Type: 1}},
		Symbols: []Symbol{{Name: "per_cpu", Addr: 0x100}, {Name: "work", Addr: at, Size: 0x40, Code: true},
			{Name: "_etext", Addr: at + 0x1000}, {Name: "init_task", Addr: at + 0x1800}, {Name: "_end", Addr: at + 0x2000}, {Name: "behind", Addr: at + 0x400000}},
		Unwind: orcTable(t, at+0x80, orcRow{pc: at, register: 5, offset: 8, typeSignal: 2}, orcRow{pc: at + 0x41, register: 5, offset: 16, typeSignal: 2})}
	return &File{Arch: arch.X86, BuildID: []byte{1, 2}, Code: codeBytes{at: at, b: []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55}}, Units: []Unit{u},
		Sections: []Section{{Name: ".text", First: at, Size: 0x1000, Exec: true}, {Name: ".data", First: at + 0x1000, Size: 0x1000}},
		Ends:     []mem.Range{{First: 0, Last: 1<<47 - 1}}}
}

// codeBytes is code at an address.
type codeBytes struct {
	at uint64
	b  []byte
}

func (c codeBytes) ReadVirt(p []byte, a mem.Virt) (int, error) {
	if n := uint64(a) - c.at; n < uint64(len(c.b)) {
		return copy(p, c.b[n:]), mem.ErrNoRAM
	}
	return 0, mem.ErrNoRAM
}

// TestCopy: a copy of the same kernel elsewhere is to the byte what would be written anew.
func TestCopy(t *testing.T) {
	var first, whole bytes.Buffer
	file := movedKernel(t, 0)
	c, problems, err := file.WriteCopy(&first)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if _, err := file.Write(&whole); err != nil || !bytes.Equal(first.Bytes(), whole.Bytes()) {
		t.Errorf("with a copy another file is written, %v", err)
	}
	_, module := kernelAndModule()
	sound := base(t, file.Units[0].BTF)
	var withCopy, withOwn bytes.Buffer
	for out, b := range map[*bytes.Buffer]*Base{&withCopy: c.Base(), &withOwn: sound} {
		m := File{Arch: arch.X86, Base: b, Units: []Unit{{Name: "m", BTF: module.bytes()}}}
		if problems, err := m.Write(out); err != nil || len(problems) > 0 {
			t.Fatal(problems, err)
		}
	}
	if !bytes.Equal(withCopy.Bytes(), withOwn.Bytes()) {
		t.Error("a module's file differs with the copy's types")
	}
	for _, delta := range []uint64{0, 0x1000000, 0x3e000000, ^uint64(0x1fffff)} {
		var fresh, copied bytes.Buffer
		if _, err := movedKernel(t, delta).Write(&fresh); err != nil {
			t.Fatal(err)
		}
		same, problems, err := c.Again(movedKernel(t, delta), &copied)
		if !same || err != nil || len(problems) > 0 || !bytes.Equal(copied.Bytes(), fresh.Bytes()) {
			t.Errorf("moved by %#x: %v, %v, %v, equal %v", delta, same, problems, err, bytes.Equal(copied.Bytes(), fresh.Bytes()))
		}
	}
}

// TestCopyOfAnother: what differs in more than its place is no copy.
func TestCopyOfAnother(t *testing.T) {
	var b bytes.Buffer
	c, _, err := movedKernel(t, 0).WriteCopy(&b)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(f *File, u *Unit){
		"build id":        func(f *File, _ *Unit) { f.BuildID = []byte{1, 3} },
		"no build id":     func(f *File, _ *Unit) { f.BuildID = nil },
		"section":         func(f *File, _ *Unit) { f.Sections[1].First += 8 },
		"sections":        func(f *File, _ *Unit) { f.Sections = f.Sections[:1] },
		"symbol moved":    func(_ *File, u *Unit) { u.Symbols[1].Addr += 8 },
		"symbol renamed":  func(_ *File, u *Unit) { u.Symbols[1].Name = "walk" },
		"per-CPU symbol":  func(_ *File, u *Unit) { u.Symbols[0].Addr += 8 },
		"per-CPU range":   func(_ *File, u *Unit) { u.PerCPU = nil },
		"variable":        func(_ *File, u *Unit) { u.Variables[0].Type = 1 },
		"types":           func(_ *File, u *Unit) { u.BTF = append(bytes.Clone(u.BTF), 0) },
		"no unwind table": func(_ *File, u *Unit) { u.Unwind = nil },
		"code":            func(f *File, _ *Unit) { f.Code = codeBytes{} },
		"ends":            func(f *File, _ *Unit) { f.Ends = nil },
		"another unit":    func(f *File, _ *Unit) { f.Units = append(f.Units, Unit{}) },
	} {
		f := movedKernel(t, 0x1000)
		change(f, &f.Units[0])
		b.Reset()
		if same, _, err := c.Again(f, &b); same || err != nil || b.Len() > 0 {
			t.Errorf("%s: %v, %v, %d bytes", what, same, err, b.Len())
		}
	}
}
