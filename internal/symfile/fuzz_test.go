package symfile

import (
	"bytes"
	"debug/elf"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/orc"
)

// FuzzWrite gives the writer types, names, addresses and an ORC table of anyone's
// making. Whatever it is, the file must be one that debug/elf and debug/dwarf can
// read, with every reference leading to a type.
func FuzzWrite(f *testing.F) {
	kernel, module := kernelAndModule()
	f.Add(kernel.types.b, module.types.b, "run", uint64(0xffffffffc0000000), uint64(9),
		[]byte{}, []byte{})
	f.Add(kernel.types.b, []byte{}, "run\x1b", uint64(text), uint64(0),
		[]byte{0, 0, 0, 0, 8, 0, 0, 0}, []byte{8, 0, 0, 0, 5, 2, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, kernelTypes, moduleTypes []byte, name string, addr, size uint64,
		ip, unwind []byte) {
		b := rawBTF{types: buffer{b: kernelTypes}, strings: kernel.strings}
		m := rawBTF{types: buffer{b: moduleTypes}, strings: module.strings}
		kernel, module := b.bytes(), m.bytes()
		table, err := orc.New(ip, unwind, addr, orc.V3)
		if err != nil {
			table = nil
		}
		units := []Unit{
			{Name: name, BTF: kernel, Unwind: table,
				Symbols: []Symbol{{Name: name, Addr: addr, Size: size, Code: true}}},
			{Name: "m", BTF: module, Symbols: []Symbol{{Name: name, Addr: addr + size, Code: true}},
				Variables: []Variable{{Name: name, Addr: addr, Type: 1}}},
		}
		checkReadable(t, &File{Arch: arch.X86, Sections: testSections, Units: units})
		if base, _, err := NewBase(kernel); err == nil {
			checkReadable(t, &File{Arch: arch.X86, Base: base, Units: units[1:]})
		}
	})
}

func checkReadable(t *testing.T, f *File) {
	var b bytes.Buffer
	if _, err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	e, err := elf.NewFile(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if e.Section(".debug_info") == nil {
		return
	}
	if _, _, err := entries(e); err != nil {
		t.Fatal(err)
	}
}
