// Package kernelfile makes the ELF files that gdb gets about a running Linux
// kernel from what the kernel itself has in memory.
package kernelfile

import (
	"errors"
	"fmt"
	"io"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/symfile"
)

// nowhere is an address at which no kernel ever has anything: in the hole
// between the two canonical halves of x86-64's address space.
const nowhere = uint64(0x4000_0000_0000_0000)

// Frames writes call-frame information alone, made from the unwind tables of the
// kernel and its modules. A vendor's vmlinux has none for assembly: without
// this, gdb guesses at the entry code and at the code that enters a guest, and
// shows return addresses that never were. The file has one section, which
// covers nothing, so it takes no symbol away from any other file. A backtrace
// that leaves the kernel ends with the user program's address: how that program
// came there is not in these tables.
func Frames(k *linux.Kernel, w io.Writer) (problems []string, err error) {
	core, err := k.Unwind()
	if err != nil {
		return nil, err
	}
	f := &symfile.File{
		Arch:     k.Arch(),
		Sections: []symfile.Section{{Name: ".text", First: nowhere, Size: 1, Exec: true}},
		Units:    []symfile.Unit{{Name: "kernel", Unwind: core}},
		Ends:     []mem.Range{k.UserRange()},
	}
	modules, found, err := k.Modules()
	for _, p := range found {
		problems = append(problems, fmt.Sprintf("%s: %v", p.What, p.Err))
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	for i := range modules {
		m := &modules[i]
		t, err := k.ModuleUnwind(m)
		if errors.Is(err, linux.ErrNotFound) {
			continue
		}
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		f.Units = append(f.Units, symfile.Unit{Name: m.Name, Unwind: t})
	}
	left, err := f.Write(w)
	return append(problems, texts(left)...), err
}
