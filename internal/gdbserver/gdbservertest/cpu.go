package gdbservertest

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
)

// Interrupt implements gdbserver.Resumer.
func (f *Fake) Interrupt() {
	f.Lock()
	defer f.Unlock()
	select {
	case <-f.interrupt:
	default:
		close(f.interrupt)
	}
}

// Resume implements gdbserver.Resumer: the threads take turns, an instruction
// each, until one has something to report.
func (f *Fake) Resume(ctx context.Context, actions []gdbserver.Action) (gdbserver.Stop, error) {
	f.Lock()
	err := f.called("resume", "%s", Actions(actions))
	interrupted, hook := f.interrupt, f.OnResume
	f.Unlock()
	if err != nil {
		return gdbserver.Stop{}, err
	}
	defer func() {
		f.Lock()
		defer f.Unlock()
		select {
		case <-f.interrupt:
			f.interrupt = make(chan struct{})
		default:
		}
	}()
	if hook != nil {
		return hook(actions, interrupted)
	}
	for {
		for range 1000 {
			if s, ok := f.turn(actions); ok {
				return s, nil
			}
		}
		select {
		case <-interrupted:
			return gdbserver.Stop{Reason: gdbserver.Interrupted, Signal: 2}, nil
		case <-ctx.Done():
			return gdbserver.Stop{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// Actions renders actions as vCont would.
func Actions(actions []gdbserver.Action) (s string) {
	for _, a := range actions {
		verb := "c"
		switch {
		case a.Hold:
			verb = "t"
		case a.RangeLast != 0:
			verb = fmt.Sprintf("r%x,%x", a.RangeFirst, a.RangeLast+1)
		case a.Step:
			verb = "s"
		}
		if a.Signal != 0 {
			verb += fmt.Sprintf("!%x", a.Signal)
		}
		s += fmt.Sprintf(";%s:%d.%d", verb, a.PID, a.TID)
	}
	return s
}

// turn lets every thread that may run execute one instruction.
func (f *Fake) turn(actions []gdbserver.Action) (gdbserver.Stop, bool) {
	f.Lock()
	defer f.Unlock()
	for pid := 1; pid <= 9; pid++ {
		m := f.Machines[pid]
		if m == nil {
			continue
		}
		for i := range m.CPUs {
			a := actionFor(actions, pid, i+1)
			if a == nil && !f.RunAll || a != nil && a.Hold {
				continue
			}
			if s, ok := f.execute(m, i+1, a != nil && a.Step); ok {
				return s, true
			}
		}
	}
	return gdbserver.Stop{}, false
}

func actionFor(actions []gdbserver.Action, pid, tid int) *gdbserver.Action {
	for i, a := range actions {
		if (a.PID == -1 || a.PID == pid) && (a.TID == -1 || a.TID == tid) {
			return &actions[i]
		}
	}
	return nil
}

// execute runs one instruction of a thread. A breakpoint on the instruction
// behind it counts at once, as in a machine that stops before executing it.
func (f *Fake) execute(m *Machine, tid int, step bool) (gdbserver.Stop, bool) {
	r := m.CPUs[tid-1]
	stop := gdbserver.Stop{PID: m.PID, TID: tid, Signal: 5, Core: tid - 1}
	before, _ := r.Get("rip")
	if !m.instruction(r) {
		stop.Signal = 4 // SIGILL
		return stop, true
	}
	pc, _ := r.Get("rip")
	if pc != before && !step {
		for kind, reason := range []gdbserver.Reason{gdbserver.SwBreak, gdbserver.HwBreak} {
			if f.Breaks[fmt.Sprintf("%d %d %#x 1", m.PID, kind, pc)] > 0 {
				stop.Reason = reason
				return stop, true
			}
		}
	}
	return stop, step
}

// instruction executes nop, short jmp, call and ret.
func (m *Machine) instruction(r *arch.Registers) bool {
	pc, _ := r.Get("rip")
	sp, _ := r.Get("rsp")
	code := m.slice(pc, 5)
	if len(code) == 0 {
		return false
	}
	switch {
	case code[0] == 0x90:
		r.Set("rip", pc+1)
	case code[0] == 0xeb && len(code) > 1:
		r.Set("rip", pc+2+uint64(int8(code[1])))
	case code[0] == 0xe8 && len(code) > 4 && len(m.slice(sp-8, 8)) == 8:
		binary.LittleEndian.PutUint64(m.slice(sp-8, 8), pc+5)
		r.Set("rsp", sp-8)
		r.Set("rip", pc+5+uint64(int32(binary.LittleEndian.Uint32(code[1:]))))
	case code[0] == 0xc3 && len(m.slice(sp, 8)) == 8:
		r.Set("rip", binary.LittleEndian.Uint64(m.slice(sp, 8)))
		r.Set("rsp", sp+8)
	default:
		return false
	}
	return true
}
