package gdbserver

import (
	"bytes"
	"context"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/rsp"
)

// readRegisters serves "g".
func (e *Engine) readRegisters(ctx context.Context, _ []byte) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	regs, err := e.registers(ctx, p, tid)
	if err != nil {
		return err
	}
	for _, i := range p.arch.GDB {
		e.appendRegister(regs, i)
	}
	return nil
}

// appendRegister appends a register's value, or 'x' for one that is not known:
// gdb then shows <unavailable>.
func (e *Engine) appendRegister(regs *arch.Registers, i int) {
	if b := regs.Bytes(i); b != nil {
		e.reply = rsp.AppendHex(e.reply, b)
		return
	}
	for range regs.Arch().Regs[i].ByteLen() {
		e.reply = append(e.reply, "xx"...)
	}
}

// readRegister serves "pN"; N counts in the order of the target description.
func (e *Engine) readRegister(ctx context.Context, args []byte) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	regs, err := e.registers(ctx, p, tid)
	if err != nil {
		return err
	}
	i, err := registerNumber(p.arch, args)
	if err != nil {
		return err
	}
	e.appendRegister(regs, i)
	return nil
}

// registerNumber turns gdb's number of a register into its index.
func registerNumber(a *arch.Arch, digits []byte) (int, error) {
	n, err := rsp.ParseHex(digits)
	if err != nil {
		return 0, err
	}
	if n >= uint64(len(a.GDB)) {
		return 0, fmt.Errorf("%w: no register %d", errBadPacket, n)
	}
	return a.GDB[n], nil
}

// writeRegister serves "PN=HEX".
func (e *Engine) writeRegister(ctx context.Context, args []byte) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	regs, err := e.registers(ctx, p, tid)
	if err != nil {
		return err
	}
	number, digits, _ := bytes.Cut(args, []byte("="))
	i, err := registerNumber(p.arch, number)
	if err != nil {
		return err
	}
	value, err := rsp.DecodeHex(nil, digits)
	if err != nil {
		return err
	}
	if err := e.setRegister(ctx, p, tid, regs, i, value); err != nil {
		return err
	}
	return e.ok()
}

// writeRegisters serves "GHEX". Only registers that differ are written: clients
// send them all to change one, and not every register can be written.
func (e *Engine) writeRegisters(ctx context.Context, args []byte) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	regs, err := e.registers(ctx, p, tid)
	if err != nil {
		return err
	}
	value, known, err := rsp.ParseRegisters(args)
	if err != nil {
		return err
	}
	for _, i := range p.arch.GDB {
		n := p.arch.Regs[i].ByteLen()
		if len(value) < n {
			return fmt.Errorf("%w: %d bytes missing", errBadPacket, n-len(value))
		}
		if allTrue(known[:n]) && !bytes.Equal(value[:n], regs.Bytes(i)) {
			if err := e.setRegister(ctx, p, tid, regs, i, value[:n]); err != nil {
				return err
			}
		}
		value, known = value[n:], known[n:]
	}
	return e.ok()
}

func allTrue(b []bool) bool {
	for _, v := range b {
		if !v {
			return false
		}
	}
	return true
}

// setRegister writes one register of a thread whose registers were read before.
func (e *Engine) setRegister(ctx context.Context, p *process, tid int, regs *arch.Registers, i int, value []byte) error {
	if p.gone {
		return errNoProcess
	}
	if want := p.arch.Regs[i].ByteLen(); len(value) != want {
		return fmt.Errorf("%w: register %s has %d bytes", errBadPacket, p.arch.Regs[i].Name, want)
	}
	if err := e.target.Registers.WriteRegister(ctx, p.pid, tid, i, value); err != nil {
		return err
	}
	if i == p.arch.PC {
		// The thread is no longer where its held breakpoint was.
		e.run.dropHeld(func(s Stop) bool { return s.PID == p.pid && s.TID == tid && s.isBreakpoint() })
	}
	return nil
}
