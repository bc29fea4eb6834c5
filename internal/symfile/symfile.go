// Package symfile writes what is known about a running kernel as an ELF file
// that stock gdb (13 and later) opens: sections and symbols at their runtime
// addresses, call-frame information made from ORC, DWARF types made from BTF.
//
// The file holds no memory: its sections are SHT_NOBITS, so gdb reads code and
// data from the target. Load it with symbol-file or as a library when the target
// is a core file: through the "file" command gdb would take zeros from those
// sections for pages that the core lacks.
//
// Everything in the file comes from the memory of the machine that is debugged,
// so nothing in it is trusted: what gdb would choke on (cycles of types, members
// outside their structure, names with control characters) is left out, and said.
package symfile

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// ErrUnsupported is the class of everything this package cannot express.
var ErrUnsupported = errors.New("not supported in a symbol file")

// ErrCorrupt is the class of input that contradicts itself.
var ErrCorrupt = errors.New("corrupt input")

// File is a kernel, or one or several of its modules, at runtime addresses. It
// is written as ET_EXEC, so neither gdb nor the server has to relocate it: the
// slide for gdb's qOffsets is the difference to these addresses, normally zero, and the
// segment addresses for qXfer:libraries are those of the PT_LOADs.
type File struct {
	Arch *arch.Arch

	// BuildID is that of the kernel or module; nil if not known. A file without types
	// does not get it: gdb would look by it for one that has them, and find the
	// vendor's, which is not at run-time addresses.
	BuildID []byte

	// Sections become the first sections of the file, in this order, and one
	// PT_LOAD each, in this order too. So the address that the server answers in
	// "TextSeg=" is Sections[0].First. Those of a library have to ascend.
	Sections []Section

	// Base has the kernel's types when none of Units is the kernel, that is in the
	// file of a module. Only those are written that the units need by value; the
	// others are declarations, which gdb completes from the kernel's file by name.
	Base *Base

	// Units are the kernel and its modules. Without Base the first one is the
	// kernel, and the BTF of the others continues its BTF.
	Units []Unit

	// Ends are ranges of code of which nothing is known: a backtrace that comes
	// there ends. Left alone gdb would go on by guesses.
	Ends []mem.Range

	// Code reads the code that the symbols are in, or is nil. With it the arguments
	// of a function are shown behind instructions at its entry that leave them
	// alone, without it at its first instruction only. What cannot be read is taken
	// for other instructions.
	Code mem.VirtReader
}

// Section is a range of addresses that symbols can lie in.
type Section struct {
	Name        string
	First, Size uint64 // Size in bytes
	Exec, Write bool
}

// Unit is one thing that was linked by itself: a kernel or a module.
type Unit struct {
	Name      string // for people: gdb shows it as the file of a type
	BTF       []byte // raw, as in .BTF, nil if there is none; must not change during Write
	Symbols   []Symbol
	Variables []Variable
	// PerCPU is where symbols of per-CPU variables lie: what BTF says of those is said
	// of no other symbol. nil if there are none.
	PerCPU *mem.Range
	Unwind *orc.Table // nil if there is none
}

// Symbol is a name for an address. Size is in bytes, 0 if not known.
type Symbol struct {
	Name       string
	Addr, Size uint64
	Code       bool
	Local      bool
}

// Variable is a symbol whose type is known by other means than BTF, which knows
// only per-CPU variables. Type is an id in the BTF of the variable's unit, or in
// the BTF that it continues.
type Variable struct {
	Name string
	Addr uint64
	Type btf.ID

	Pointer bool   // it is a pointer to one of Type
	Array   bool   // it is an array of them, which BTF need not have as a type
	Count   uint32 // elements of the array, 0 if not known
}

// Problem is something that was left out of the file, and how often.
type Problem struct {
	Text  string // says what it was the first time
	Count int
}

func (p Problem) String() string {
	if p.Count == 1 {
		return p.Text
	}
	return fmt.Sprintf("%s (and %d more like it)", p.Text, p.Count-1)
}

// Write writes the file. What could not be expressed is left out and reported,
// sorted by the order in which it was met; an error means that nothing useful
// was written. It is ErrUnsupported for an architecture without DWARF numbers
// here, ErrCorrupt for sections that no ELF file can hold, otherwise it is the
// writer's.
func (f *File) Write(w io.Writer) ([]Problem, error) {
	out, err := f.write(w, false)
	if err != nil {
		return nil, err
	}
	return out.notes.problems, nil
}

// write is Write. With keep it notes what moves with the image.
func (f *File) write(w io.Writer, keep bool) (*writer, error) {
	machine, ok := machineOf(f.Arch)
	if !ok {
		return nil, fmt.Errorf("ELF file for this architecture: %w", ErrUnsupported)
	}
	if err := checkSections(f.Sections); err != nil {
		return nil, err
	}
	out := &writer{machine: machine, sections: f.Sections, places: newPlaces(f), notes: &notes{}}
	out.places.keep = keep
	var frames buffer
	var made sync.WaitGroup
	made.Go(func() { frames = out.places.frames(f.Units, f.Ends) }) // which needs nothing of the rest
	out.symbols(f.Units)
	described := out.describeUnits(f)
	made.Wait()
	if frames.len() > 0 {
		out.add(part{name: ".debug_frame", kind: shtProgbits, data: frames.b, moves: frames.moves, align: 8})
	}
	for _, p := range described {
		out.add(p)
	}
	if len(described) > 0 {
		out.buildID(f.BuildID)
	}
	return out, out.emit(w)
}
