package session

import (
	"context"
	"errors"
	"fmt"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// CPUMemory is the virtual memory that one CPU of a machine sees. Where its own
// page tables end and the machine runs a kernel that was found, the kernel's
// tables are asked too: a CPU in user mode may run on tables that leave the
// kernel out (page-table isolation).
type CPUMemory struct {
	spaces []translator
	name   string
}

type translator interface {
	mem.VirtReader
	Translate(addr uint64) (phys mem.Phys, contiguous uint64, err error)
}

// VirtMemory is the virtual memory of c. It fails only if neither the CPU's
// page-table root nor a kernel is known.
func (s *Session) VirtMemory(m *machine.Machine, c *machine.CPU) (*CPUMemory, error) {
	v := &CPUMemory{name: "virtual memory of " + m.Name}
	var err error
	if c != nil {
		own, e := m.Space(c)
		if e == nil {
			v.spaces = append(v.spaces, own)
		}
		err = e
	}
	if k, e := s.Kernel(m); e == nil {
		v.spaces = append(v.spaces, k.Space())
	}
	if len(v.spaces) == 0 {
		return nil, errors.Join(errors.New("no page tables are known"), err)
	}
	return v, nil
}

// ReadVirt implements mem.VirtReader. Each page is read as Translate finds it: a
// read that had to fall back for one page asks the CPU's own tables again for
// the next.
func (v *CPUMemory) ReadVirt(p []byte, a mem.Virt) (int, error) {
	n, err := v.spaces[0].ReadVirt(p, a)
	for n < len(p) {
		k := v.readFallback(p[n:], a+mem.Virt(n))
		if k == 0 {
			return n, err
		}
		if n += k; n < len(p) {
			k, err = v.spaces[0].ReadVirt(p[n:], a+mem.Virt(n))
			n += k
		}
	}
	return n, nil
}

// readFallback reads what lies together at an address that the first tables do
// not map.
func (v *CPUMemory) readFallback(p []byte, a mem.Virt) int {
	for _, s := range v.spaces[1:] {
		_, together, err := s.Translate(uint64(a))
		if err != nil {
			continue
		}
		if n, _ := s.ReadVirt(p[:min(uint64(len(p)), together)], a); n > 0 {
			return n
		}
	}
	return 0 // the error is that of the CPU's own tables
}

// Translate finds the physical address behind a virtual one.
func (v *CPUMemory) Translate(addr uint64) (mem.Phys, uint64, error) {
	var first error
	for _, s := range v.spaces {
		pa, n, err := s.Translate(addr)
		if err == nil {
			return pa, n, nil
		}
		if first == nil {
			first = err
		}
	}
	return 0, 0, first
}

// RootPhys follows a physical address of m down to QEMU's own machine, to write there.
// contiguous is how many bytes from there on lie together at every stage.
func RootPhys(m *machine.Machine, a mem.Phys) (pa mem.Phys, contiguous uint64, err error) {
	contiguous = ^uint64(0)
	for ; m.Parent != nil; m = m.Parent {
		next, n, err := m.ToParentToWrite(a)
		if err != nil {
			return 0, 0, err
		}
		a, contiguous = next, min(contiguous, n)
	}
	return a, contiguous, nil
}

// writeVirt writes virtual memory through the stub, page by page. It checks
// the whole range first, so that a write is whole or not at all, short of the
// machine disappearing.
func (d *Debugger) writeVirt(ctx context.Context, m *machine.Machine, c *machine.CPU, p []byte, addr uint64) error {
	v, err := d.VirtMemory(m, c)
	if err != nil {
		return err
	}
	return d.writeThrough(ctx, m, v, p, addr)
}

// writeThrough is writeVirt where v leads.
func (d *Debugger) writeThrough(ctx context.Context, m *machine.Machine, v *CPUMemory, p []byte, addr uint64) error {
	pieces, err := d.pieces(m, p, addr, v.Translate)
	if err != nil {
		return err
	}
	return d.writePieces(ctx, m, pieces)
}

// WritePhys writes physical memory of m through the stub.
func (d *Debugger) WritePhys(ctx context.Context, m *machine.Machine, p []byte, a mem.Phys) error {
	same := func(addr uint64) (mem.Phys, uint64, error) { return mem.Phys(addr), ^uint64(0) - addr, nil }
	pieces, err := d.pieces(m, p, uint64(a), same)
	if err != nil {
		return err
	}
	return d.writePieces(ctx, m, pieces)
}

// WriteVirt writes virtual memory of m, as its CPU c sees it, through the stub.
func (d *Debugger) WriteVirt(ctx context.Context, m *machine.Machine, c *machine.CPU, p []byte, a mem.Virt) error {
	return d.writeVirt(ctx, m, c, p, uint64(a))
}

// errNotHeld is about what only one who controls the machine can do.
var errNotHeld = errors.New("no machine is attached, so this debugger does not control QEMU")

type piece struct {
	at   mem.Phys // in QEMU's machine
	data []byte
}

// pieces cuts a write into parts that are contiguous in QEMU's machine.
func (d *Debugger) pieces(m *machine.Machine, p []byte, addr uint64,
	translate func(uint64) (mem.Phys, uint64, error)) ([]piece, error) {
	var out []piece
	for len(p) > 0 {
		pa, n, err := translate(addr)
		if err != nil {
			return nil, err
		}
		root, k, err := RootPhys(m, pa)
		if err != nil {
			return nil, err
		}
		n = min(n, k, uint64(len(p)))
		if n == 0 {
			return nil, fmt.Errorf("no bytes at %#x", addr)
		}
		// The stub takes a write to nowhere for done.
		var probe [1]byte
		for _, a := range []mem.Phys{root, root + mem.Phys(n) - 1} {
			if _, err := d.backend.Memory().ReadPhys(probe[:], a); err != nil {
				return nil, err
			}
		}
		out = append(out, piece{root, p[:n]})
		p, addr = p[n:], addr+n
	}
	return out, nil
}

func (d *Debugger) writePieces(ctx context.Context, m *machine.Machine, pieces []piece) error {
	if !d.Holds() {
		return errNotHeld
	}
	for _, x := range pieces {
		if err := d.stub.WritePhys(ctx, x.at, x.data); err != nil {
			return fmt.Errorf("write to %s: %w", m.Name, err)
		}
	}
	// What was written may have been a page table.
	for t := range d.Tower().Machines {
		d.Tower().Machines[t].Forget()
	}
	return nil
}
