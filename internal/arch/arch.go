// Package arch describes processor architectures as data: which registers
// there are, how gdb sees them, what a breakpoint looks like.
package arch

import "fmt"

// Reg is one register of an architecture. Registers that gdb does not know
// (a nested page-table root, the state of an interrupt flag) are in the same
// table: a debugger for nested machines needs them like any other.
type Reg struct {
	Name string
	Bits int
	Kind Kind
}

// Kind groups registers for people.
type Kind int

// The kinds of register.
const (
	General Kind = iota // general purpose, instruction pointer, flags
	Segment             // selectors and bases
	System              // control registers, MSRs, descriptor tables
	Float               // x87, SSE and their control words
	Hidden              // known from the device state only, never shown to gdb
	Implied             // what other registers of the CPU say of one that is not known; never shown
)

// Arch is one architecture. Values are shared and must not be changed.
type Arch struct {
	Name    string // as in "machines" of a status report
	GDBName string // as in gdb's "set architecture"
	Regs    []Reg  // a register's number in Registers is its index here
	GDB     []int  // the registers of gdb's 'g' packet, in its order
	PC      int
	SP      int
	// Flags is the register with the bit that lets interrupts in, and Interrupts that
	// bit.
	Flags      int
	Interrupts uint64

	// TargetXML is the target description that gdb gets; its registers are GDB.
	TargetXML string

	// Disassemble decodes the instruction at the start of code, which stands at
	// pc. name renders an address as a symbol, or "" if it has none; it may be nil.
	Disassemble func(code []byte, pc uint64, name func(uint64) string) (text string, size int, err error)
	// GuestEntry are the instructions that enter a nested guest.
	GuestEntry [][]byte
	// MaxInsn is the length of the longest instruction, in bytes.
	MaxInsn int

	byName map[string]int
	offset []int // of each register in Registers.bytes
	size   int
}

// finish computes the derived tables; every architecture's variable calls it.
func (a Arch) finish() *Arch {
	a.byName = make(map[string]int, len(a.Regs))
	a.offset = make([]int, len(a.Regs))
	for i, r := range a.Regs {
		if _, twice := a.byName[r.Name]; twice {
			panic("register named twice: " + r.Name)
		}
		a.byName[r.Name] = i
		a.offset[i] = a.size
		a.size += r.ByteLen()
	}
	return &a
}

// ByteLen is the register's size in bytes.
func (r Reg) ByteLen() int { return (r.Bits + 7) / 8 }

// Index returns the number of the register with this name.
func (a *Arch) Index(name string) (int, bool) {
	i, ok := a.byName[name]
	return i, ok
}

// Registers is the state of one CPU, each register known or not. What is not
// known is never zero: it is absent. The zero value knows nothing and has no
// architecture; use NewRegisters.
type Registers struct {
	arch    *Arch
	bytes   []byte
	known   []bool
	control []byte
}

// NewRegisters returns a state in which nothing is known.
func NewRegisters(a *Arch) *Registers {
	return &Registers{arch: a, bytes: make([]byte, a.size), known: make([]bool, len(a.Regs))}
}

// Arch is the architecture these registers belong to.
func (r *Registers) Arch() *Arch { return r.arch }

// Clone returns an independent copy.
func (r *Registers) Clone() *Registers {
	c := *r
	c.bytes = append([]byte(nil), r.bytes...)
	c.known = append([]bool(nil), r.known...)
	return &c
}

// Known reports whether register i has a value.
func (r *Registers) Known(i int) bool { return r.known[i] }

// Bytes returns register i in little-endian order, or nil if it is not known.
// The slice is valid until the next change.
func (r *Registers) Bytes(i int) []byte {
	if !r.known[i] {
		return nil
	}
	o := r.arch.offset[i]
	return r.bytes[o : o+r.arch.Regs[i].ByteLen()]
}

// SetBytes sets register i from little-endian bytes of its size.
func (r *Registers) SetBytes(i int, b []byte) error {
	if want := r.arch.Regs[i].ByteLen(); len(b) != want {
		return fmt.Errorf("register %s has %d bytes, got %d", r.arch.Regs[i].Name, want, len(b))
	}
	copy(r.bytes[r.arch.offset[i]:], b)
	r.known[i] = true
	return nil
}

// Forget makes the named registers unknown.
func (r *Registers) Forget(names ...string) {
	for _, n := range names {
		if i, ok := r.arch.byName[n]; ok {
			r.known[i] = false
		}
	}
}

// Get returns the value of a register of at most 64 bits by name. ok is false
// if the architecture has no such register or its value is not known.
func (r *Registers) Get(name string) (v uint64, ok bool) {
	i, ok := r.arch.byName[name]
	if !ok || !r.known[i] || r.arch.Regs[i].Bits > 64 {
		return 0, false
	}
	b := r.Bytes(i)
	for k := len(b) - 1; k >= 0; k-- {
		v = v<<8 | uint64(b[k])
	}
	return v, true
}

// Set gives a register of at most 64 bits a value; bits beyond its size are
// dropped. A name that the architecture does not have is our bug, so it panics.
func (r *Registers) Set(name string, v uint64) {
	i, ok := r.arch.byName[name]
	if !ok {
		panic("no register " + name + " in " + r.arch.Name)
	}
	o := r.arch.offset[i]
	for k := range r.arch.Regs[i].ByteLen() {
		r.bytes[o+k] = byte(v)
		v >>= 8
	}
	r.known[i] = true
}

// SetControlBlock keeps the page of the control block that the CPU has active, as the
// CPU knows it; nil if it has none, or leaves it in memory. The page is not copied.
func (r *Registers) SetControlBlock(page []byte) { r.control = page }

// ControlBlock is what SetControlBlock was given last. It must not be changed.
func (r *Registers) ControlBlock() []byte { return r.control }

// PC is the program counter, if known.
func (r *Registers) PC() (uint64, bool) { return r.Get(r.arch.Regs[r.arch.PC].Name) }

// TakesInterrupts reports whether a CPU with these registers takes interrupts; known
// is false if they do not say.
func (r *Registers) TakesInterrupts() (takes, known bool) {
	flags, known := r.Get(r.arch.Regs[r.arch.Flags].Name)
	return flags&r.arch.Interrupts != 0, known
}

// SP is the stack pointer, if known.
func (r *Registers) SP() (uint64, bool) { return r.Get(r.arch.Regs[r.arch.SP].Name) }
