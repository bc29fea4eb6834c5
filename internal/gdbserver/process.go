package gdbserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/rsp"
)

// process is one attached machine. What the target said last is kept: gdb asks
// for the registers of a machine whose exit it has not been told yet.
type process struct {
	pid     int
	arch    *arch.Arch
	threads []Thread
	last    map[int]*arch.Registers // by thread
	gone    bool                    // its exit is held
}

// attach makes the machine known to the client.
func (e *Engine) attach(ctx context.Context, pid int) (*process, error) {
	if err := e.target.Core.Attach(ctx, pid); err != nil {
		return nil, err
	}
	p := &process{pid: pid, last: make(map[int]*arch.Registers)}
	if _, err := e.listThreads(ctx, p); err != nil {
		return nil, fmt.Errorf("attached, but without threads: %w", errors.Join(err, e.target.Core.Detach(ctx, pid)))
	}
	e.begun = true
	e.processes[pid] = p
	e.general = rsp.ThreadID{PID: pid, TID: p.threads[0].ID}
	return p, nil
}

// forget drops a machine that was detached or has ended.
func (e *Engine) forget(ctx context.Context, pid int) error {
	delete(e.processes, pid)
	for b := range e.breaks {
		if b.pid == pid {
			delete(e.breaks, b)
		}
	}
	e.run.dropHeld(func(s Stop) bool { return s.PID == pid })
	if e.general.PID == pid {
		e.general = rsp.ThreadID{}
		if p := e.firstProcess(); p != nil {
			e.general = rsp.ThreadID{PID: p.pid, TID: p.threads[0].ID}
		}
	}
	return e.target.Core.Detach(ctx, pid)
}

// firstProcess is the attached machine with the lowest number, or nil.
func (e *Engine) firstProcess() *process {
	pids := e.attached()
	if len(pids) == 0 {
		return nil
	}
	return e.processes[pids[0]]
}

// current returns the machine and thread that packets without an id mean. A
// client that does not speak extended-remote has one from the start.
func (e *Engine) current(ctx context.Context) (*process, int, error) {
	if !e.begun && !e.client.extended {
		if _, err := e.attach(ctx, e.opts.Process); err != nil {
			return nil, 0, err
		}
	}
	p := e.processes[e.general.PID]
	if p == nil {
		return nil, 0, errNoProcess
	}
	return p, e.general.TID, nil
}

// listThreads asks the target for the threads of an attached machine.
func (e *Engine) listThreads(ctx context.Context, p *process) ([]Thread, error) {
	if p.gone {
		return p.threads, nil
	}
	threads, err := e.target.Core.Threads(ctx, p.pid)
	if err != nil {
		return nil, err
	}
	if len(threads) == 0 {
		return nil, fmt.Errorf("machine %d has no threads", p.pid)
	}
	p.threads = threads
	return threads, nil
}

// findThread resolves an id, which may leave the process or the thread open, to
// one thread of an attached machine.
func (e *Engine) findThread(ctx context.Context, id rsp.ThreadID) (rsp.ThreadID, error) {
	p, tid, err := e.current(ctx)
	if id.PID > 0 {
		p, tid, err = e.processes[id.PID], e.general.TID, nil
		if p == nil {
			err = errNoProcess
		}
	}
	if err != nil {
		return rsp.ThreadID{}, err
	}
	if id.TID <= 0 && p.pid == e.general.PID {
		return rsp.ThreadID{PID: p.pid, TID: tid}, nil
	}
	threads, err := e.listThreads(ctx, p)
	if err != nil {
		return rsp.ThreadID{}, err
	}
	for _, t := range threads {
		if id.TID <= 0 || t.ID == id.TID {
			return rsp.ThreadID{PID: p.pid, TID: t.ID}, nil
		}
	}
	return rsp.ThreadID{}, fmt.Errorf("%w: no thread %v", errBadPacket, id)
}

// registers reads a thread's registers; of a machine that is gone, the last ones.
func (e *Engine) registers(ctx context.Context, p *process, tid int) (*arch.Registers, error) {
	if p.gone {
		if r := p.last[tid]; r != nil {
			return r, nil
		}
		if p.arch != nil {
			return arch.NewRegisters(p.arch), nil
		}
		return nil, errNoProcess
	}
	r, err := e.target.Core.Registers(ctx, p.pid, tid)
	if err != nil {
		return nil, err
	}
	p.arch = r.Arch()
	p.last[tid] = r
	return r, nil
}

// pretendStep makes the last registers of a machine that is gone look as if the
// thread had stepped. With the PC still on the breakpoint that gdb steps over, gdb
// reports that breakpoint again, and then steps over it again.
func (p *process) pretendStep(tid int) {
	r := p.last[tid]
	if r == nil {
		return
	}
	if pc, ok := r.PC(); ok {
		r.Set(p.arch.Regs[p.arch.PC].Name, pc+1)
	}
}

// appendID appends a thread id in the form agreed on with the client.
func (e *Engine) appendID(id rsp.ThreadID) {
	e.reply = id.Append(e.reply, e.client.multiprocess)
}

// attached lists the attached machines in ascending order.
func (e *Engine) attached() []int { return slices.Sorted(maps.Keys(e.processes)) }
