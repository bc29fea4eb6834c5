package cexpr

import (
	"iter"

	"nestdbg/internal/mem"
)

// Env is what an expression is about. A nil part is something that is not known
// here, and what needs it is an error that says so.
type Env struct {
	Types     Types
	Symbols   Symbols
	Memory    mem.VirtReader
	PerCPU    func(cpu int) (offset uint64, err error) // what a CPU adds to the address of its own copy
	Registers func(name string) (uint64, error)        // by name, without "$"
	Helpers   map[string]Helper
}

// Types finds types by name. Named and Enumerator give an ErrNotFound if there is none; what an
// *Error among those says about why is told to the person.
type Types interface {
	// Named returns the types of this name, which are several when parts of a program
	// use a name differently. The keyword is struct, union, enum, or empty for
	// typedefs and basic types. A name may say which part of the program it is of:
	// "kvm_amd::foo".
	Named(keyword, name string) ([]*Type, error)

	// Note is what somebody should know who gets the first of those types: that other
	// parts of the program have another of this name; else "".
	Note(keyword, name string) string

	// Enumerator finds the enumeration that has this name, and its value.
	Enumerator(name string) (*Type, uint64, error)

	// Names are all names of this kind of type, to find near ones for a message.
	Names(keyword string) iter.Seq[string]
}

// Symbols finds variables and functions. It gives an ErrNotFound, as Types does, if
// there is none of that name, and another error if there are several and it is not clear which is
// meant.
type Symbols interface {
	Variable(name string) (Variable, error)
}

// Variable is what a symbol stands for.
type Variable struct {
	Addr   uint64
	Type   *Type  // nil if it is not known
	PerCPU bool   // each CPU has its own: Addr is what PerCPU's offset is added to
	Note   string // what the answer rests on, if it is more than the program's own word
}

// Helper is a function of the debugger that expressions call by name. It may add
// Notes to what it is given.
type Helper struct {
	Usage string // how it is called, for messages and help: "current([CPU])"
	Call  func(args []Value) (Value, error)
}
