// Package cexpr is the language in which people ask a debugger for data: C
// expressions, as gdb takes them, over the types and the memory of one program.
//
//	init_task.comm
//	((struct task_struct *)0xffff888003a4c000)->mm->pgd
//	per_cpu(runqueues, 1).curr->pid + 1
//	container_of(init_task.tasks.next, struct task_struct, tasks)->comm
//
// Parse makes a tree of a text and needs neither memory nor types, but for one
// question: whether a name is a typedef. Evaluate asks an Env for types, symbols and
// memory, and gives a Value, which stands for an object in memory and reads it
// only when it is asked to, or for a number that was computed.
//
// There is no assignment and no call of a function of the program: an expression
// changes nothing. Integers follow C's promotions, conversions and widths in the
// LP64 model, which every architecture of 64-bit Linux has. What C leaves undefined, a shift
// by the width or a division by zero, is an error here.
//
// Both the text and the types are taken as hostile: nesting, lengths and the
// types that are followed are bounded.
package cexpr

import (
	"errors"
	"fmt"
)

// ErrNotFound is the class of "no such name": a symbol, a type, a member.
var ErrNotFound = errors.New("not found")

// ErrCorrupt is the class of types that cannot be: a structure within itself, a
// member outside its structure.
var ErrCorrupt = errors.New("inconsistent types")

// Error is an expression that has no value because of how it is written. Memory
// that cannot be read is a mem.ErrFault instead.
type Error struct {
	Pos int // bytes from the start of the text; -1 if no place is to blame
	Msg string
	Err error // the class; may be nil

	// notType is a name that stands where only a type makes sense.
	notType string
}

func (e *Error) Error() string { return e.Msg }

func (e *Error) Unwrap() error { return e.Err }

func errorAt(pos int, format string, args ...any) *Error {
	return &Error{Pos: pos, Msg: fmt.Sprintf(format, args...)}
}

// Bounds of a text.
const (
	maxText  = 16 << 10 // bytes
	maxDepth = 200      // parentheses, operators and declarators within each other
	maxName  = 512      // bytes; KSYM_NAME_LEN, Linux 6.1
)
