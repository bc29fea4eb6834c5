package qemu

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"nestdbg/internal/arch"
	"nestdbg/internal/rsp"
)

// stubReg is one register of the stub's g packet.
type stubReg struct {
	name string
	size int // bytes
	reg  int // its index in arch.X86.Regs, -1 if it is not there
}

// Limits on the stub's target description; QEMU's for x86-64 is one file of 11 KiB.
const (
	maxTargetFiles = 16
	maxTargetFile  = 1 << 20
	maxStubRegs    = 4096
)

// readLayout learns which registers the g packet holds from the target description.
// Reading that also makes QEMU accept p and P (QEMU 7.2 gdbstub.c:handle_set_reg).
func (s *Stub) readLayout(ctx context.Context) error {
	var regs []stubReg
	files := []string{"target.xml"}
	for i := 0; i < len(files); i++ {
		text, err := s.targetFile(ctx, files[i])
		if err != nil {
			return err
		}
		r, includes, err := parseTarget(text)
		if err != nil {
			return fmt.Errorf("%w: %s: %s: %v", ErrCorrupt, s.c.what, files[i], err)
		}
		regs = append(regs, r...)
		files = append(files, includes...)
		if len(files) > maxTargetFiles || len(regs) > maxStubRegs {
			return fmt.Errorf("%w: %s: target description is too large", ErrCorrupt, s.c.what)
		}
	}
	s.regs = regs
	return nil
}

// targetFile reads a file of the target description (GDB manual, "General Query
// Packets", qXfer).
func (s *Stub) targetFile(ctx context.Context, name string) ([]byte, error) {
	const piece = 0xff0
	var text []byte
	for len(text) < maxTargetFile {
		reply, err := s.c.ask(ctx, "qXfer:features:read:%s:%x,%x", name, len(text), piece)
		if err != nil {
			return nil, err
		}
		if len(reply) == 0 || reply[0] != 'l' && (reply[0] != 'm' || len(reply) == 1) {
			return nil, fmt.Errorf("%w: %s: target description %s: %.40q", ErrCorrupt, s.c.what, name, reply)
		}
		text = append(text, reply[1:]...)
		if reply[0] == 'l' {
			return text, nil
		}
	}
	return nil, fmt.Errorf("%w: %s: target description %s does not end", ErrCorrupt, s.c.what, name)
}

// parseTarget returns the registers of one file in order, and the files that it
// includes (GDB manual, "Target Description Format").
func parseTarget(text []byte) (regs []stubReg, includes []string, err error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return regs, includes, nil
		}
		if err != nil {
			return nil, nil, err
		}
		e, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		attrs := map[string]string{}
		for _, a := range e.Attr {
			attrs[a.Name.Local] = a.Value
		}
		switch e.Name.Local {
		case "include":
			includes = append(includes, attrs["href"])
		case "reg":
			bits, err := strconv.Atoi(attrs["bitsize"])
			if err != nil || bits <= 0 || bits%8 != 0 || bits > 1<<16 {
				return nil, nil, fmt.Errorf("register %q of %q bits", attrs["name"], attrs["bitsize"])
			}
			r := stubReg{attrs["name"], bits / 8, -1}
			if i, ok := arch.X86.Index(r.name); ok && arch.X86.Regs[i].ByteLen() == r.size {
				r.reg = i
			}
			regs = append(regs, r)
		}
	}
}

// errArch is the limit of what this package knows about registers.
var errArch = errors.New("registers are known for x86-64 only")

// Registers reads the registers of a CPU, those that gdb knows. In code that is not
// 64-bit QEMU reports the low halves only and zeros for r8 to r15; whether a CPU is in
// such code is in its hflags, which only the device state has.
func (s *Stub) Registers(ctx context.Context, cpu int) (*arch.Registers, error) {
	if err := s.selectCPU(ctx, cpu); err != nil {
		return nil, err
	}
	reply, err := s.c.ask(ctx, "g")
	if err != nil {
		return nil, err
	}
	value, known, err := rsp.ParseRegisters(reply)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: registers: %w", ErrCorrupt, s.c.what, err)
	}
	out := arch.NewRegisters(arch.X86)
	at := 0
	for _, r := range s.regs {
		end := at + r.size
		if end > len(value) {
			return nil, fmt.Errorf("%w: %s: %d bytes of registers end within %s", ErrCorrupt, s.c.what, len(value), r.name)
		}
		if r.reg >= 0 && !slices.Contains(known[at:end], false) {
			if err := out.SetBytes(r.reg, value[at:end]); err != nil {
				return nil, err
			}
		}
		at = end
	}
	return out, nil
}

// WriteRegister sets a register of a CPU. reg is its index in arch.X86.Regs, value
// has its size and is little-endian. QEMU says OK to everything, so the register is
// read back; an error says what it holds if that is something else.
func (s *Stub) WriteRegister(ctx context.Context, cpu, reg int, value []byte) error {
	number := -1
	for i, r := range s.regs {
		if r.reg == reg && reg >= 0 {
			number = i
		}
	}
	if number < 0 {
		return fmt.Errorf("%s has no register number %d", s.c.what, reg)
	}
	r := s.regs[number]
	if len(value) != r.size {
		return fmt.Errorf("register %s has %d bytes, got %d", r.name, r.size, len(value))
	}
	if err := s.selectCPU(ctx, cpu); err != nil {
		return err
	}
	if err := s.c.command(ctx, "P%x=%x", number, value); err != nil {
		return fmt.Errorf("write register %s: %w", r.name, err)
	}
	reply, err := s.c.ask(ctx, "p%x", number)
	if err != nil {
		return err
	}
	back, err := rsp.DecodeHex(nil, reply)
	if err != nil {
		return fmt.Errorf("%w: %s: register %s: %w", ErrCorrupt, s.c.what, r.name, err)
	}
	if !bytes.Equal(back, value) {
		return fmt.Errorf("write register %s: it did not take the value and holds %x", r.name, back)
	}
	return nil
}

// selectCPU says which CPU g, p and P are about.
func (s *Stub) selectCPU(ctx context.Context, cpu int) error {
	switch {
	case s.running:
		return errRuns
	case s.machine.info.Arch != "x86_64":
		return fmt.Errorf("%w, this machine is %s", errArch, s.machine.info.Arch)
	case cpu < 0 || cpu >= len(s.threads):
		return fmt.Errorf("no CPU %d, there are %d", cpu, len(s.threads))
	case cpu == s.current:
		return nil
	}
	s.current = -1
	if err := s.c.command(ctx, "Hg%s", s.threads[cpu]); err != nil {
		return err
	}
	s.current = cpu
	return nil
}
