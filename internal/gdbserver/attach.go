package gdbserver

import (
	"bytes"
	"context"
	"slices"

	"nestdbg/internal/rsp"
)

// extendedMode serves "!". It comes before "?".
func (e *Engine) extendedMode(context.Context, []byte) error {
	e.client.extended = true
	return e.ok()
}

// haltReason serves "?". An extended client is told that nothing runs, so that it
// attaches each machine itself: gdb reads the target description, the load address
// and the libraries only of machines it attached.
func (e *Engine) haltReason(ctx context.Context, _ []byte) error {
	if e.client.extended && e.general.PID == 0 {
		e.reply = append(e.reply, "W00"...)
		return nil
	}
	if _, _, err := e.current(ctx); err != nil {
		return err
	}
	e.attachedStop()
	return nil
}

// attachedStop is the stop reply for a machine that was found standing still.
func (e *Engine) attachedStop() {
	e.reply = append(e.reply, "T05thread:"...)
	e.appendID(e.general)
	e.reply = append(e.reply, ';')
}

// attachProcess serves vAttach;PID. The machine's first thread becomes current,
// though gdb then sends Hgp0.0, which means "any": it must be one of this machine.
func (e *Engine) attachProcess(ctx context.Context, args []byte) error {
	pid, err := parsePID(args)
	if err != nil {
		return err
	}
	if e.processes[pid] != nil {
		// gdb would have two inferiors with one number.
		return refuse("machine %d is already attached", pid)
	}
	if !slices.Contains(e.target.Core.Processes(ctx), pid) {
		return refuse("there is no machine %d", pid)
	}
	if _, err := e.attach(ctx, pid); err != nil {
		e.log.Warn("gdb: attach", "machine", pid, "error", err)
		return refuse("%v", err)
	}
	e.attachedStop()
	return nil
}

// parsePID parses ";PID".
func parsePID(args []byte) (int, error) {
	digits, ok := bytes.CutPrefix(args, []byte(";"))
	v, err := rsp.ParseHex(digits)
	if !ok || err != nil || v == 0 || v > 1<<30 {
		return 0, errBadPacket
	}
	return int(v), nil
}

// detach serves "D", which means everything, and "D;PID".
func (e *Engine) detach(ctx context.Context, args []byte) error {
	pids := e.attached()
	if len(args) > 0 {
		pid, err := parsePID(args)
		if err != nil {
			return err
		}
		if e.processes[pid] == nil {
			return errNoProcess
		}
		pids = []int{pid}
	}
	for _, pid := range pids {
		if err := e.forget(ctx, pid); err != nil {
			return err
		}
	}
	return e.ok()
}

// kill serves vKill;PID, which gdb sends for "kill", but also when a person
// attaches another machine in an inferior that has one.
func (e *Engine) kill(context.Context, []byte) error {
	return refuse("machines are not killed from here; use detach")
}

// disconnect serves "k": the client goes, the machines stay. It has no reply.
func (e *Engine) disconnect(context.Context, []byte) error {
	e.closed = true
	return nil
}

// ok is the reply to what is done and has nothing to tell.
func (e *Engine) ok() error {
	e.reply = append(e.reply, "OK"...)
	return nil
}
