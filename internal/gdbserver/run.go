package gdbserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// run is the part of the engine's state that is about running machines.
type run struct {
	active      bool     // the client waits for a stop
	actions     []Action // what the client asked for last
	interrupted bool     // and that it wants it to end
	held        []Stop   // happened, but the client cannot be told yet; at most one per thread
	waiting     [][]byte // packets that came while active
	legacy      rsp.ThreadID
}

// Result is the outcome of Run, for Stopped.
type Result struct {
	stop Stop
	err  error
}

// Running reports whether the client waits for a stop: call Run, on any
// goroutine, and give its result to Stopped; Feed and Step what the client sends
// meanwhile, since it may interrupt.
func (e *Engine) Running() bool { return e.run.active }

// Run runs the machines until one has something to report. Preconditions:
// Running, and no other Run is at work.
func (e *Engine) Run(ctx context.Context) (r Result) {
	defer func() {
		if v := recover(); v != nil {
			r.err = &panicError{value: v, stack: debug.Stack()}
		}
	}()
	var actions []Action
	for _, s := range e.run.held {
		if !s.isExit() {
			actions = append(actions, Action{PID: s.PID, TID: s.TID, Hold: true})
		}
	}
	defer mem.Catch(&r.err)()
	r.stop, r.err = e.target.Resume.Resume(ctx, append(actions, e.run.actions...))
	return r
}

// panicError is a panic of a Resumer, carried to the goroutine of the engine.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// Stopped takes the result of Run and returns what to send. If the engine is
// still Running after it, the client was not told, and Run is due again.
func (e *Engine) Stopped(ctx context.Context, r Result) (out []byte) {
	e.out, e.reply = e.out[:0], e.reply[:0]
	defer func() {
		if v := recover(); v != nil {
			e.stopPanicked(&panicError{value: v, stack: debug.Stack()})
			out = e.out
		}
	}()
	if p, ok := r.err.(*panicError); ok {
		e.stopPanicked(p)
		return e.out
	}
	if r.err != nil {
		level := slog.LevelWarn
		if _, refused := errors.AsType[refusal](r.err); refused {
			level = slog.LevelDebug
		}
		e.log.Log(ctx, level, "gdb: running failed", "error", r.err)
		e.run.active = false
		if id, ok := e.resumedThread(); ok {
			e.stay(ctx, id, r.err.Error())
			e.send(e.reply)
		} else {
			e.send(textReply(r.err.Error()))
		}
		return e.out
	}
	if e.stopped(ctx, r.stop) {
		e.run.active = false
		e.send(e.reply)
	}
	return e.out
}

// stay answers a resumption that failed: the thread stands where it was, and the
// person reads why. An error in its place would leave the choice of the thread that
// stopped to gdb, and gdb 18 takes the first that there is.
func (e *Engine) stay(ctx context.Context, id rsp.ThreadID, why string) {
	e.deliver(ctx, Stop{PID: id.PID, TID: id.TID, Core: -1, Text: "[nestdbg: " + why + "]\n"})
}

func (e *Engine) stopPanicked(p *panicError) {
	e.log.Error("gdb: panic while running", "panic", fmt.Sprint(p.value), "stack", string(p.stack))
	e.run.active = false
	e.send([]byte(replyPanic))
}

// stopped decides whether the client may hear of s now, and if so writes the stop
// reply. The rules are gdb's bugs turned around; see the package comment.
func (e *Engine) stopped(ctx context.Context, s Stop) (told bool) {
	p := e.processes[s.PID]
	if p != nil && s.TID <= 0 {
		s.TID = p.threads[0].ID
	}
	switch {
	case s.Reason == Interrupted:
		// Told below, if the client did interrupt.
	case s.PID == 0:
		if id, ok := e.resumedThread(); ok {
			s.PID, s.TID = id.PID, id.TID
			e.deliver(ctx, s)
			return true
		}
	case p == nil || p.gone:
		e.log.Info("gdb: stop of a machine that is not attached", "machine", s.PID)
	case s.isExit():
		if e.resumesProcess(s.PID) && !e.loneStep() {
			e.deliver(ctx, s)
			return true
		}
		e.hold(s)
		s.Text = "" // told with the exit
		if e.resumesProcess(s.PID) {
			tid := e.run.actions[0].TID
			p.pretendStep(tid)
			e.deliver(ctx, Stop{PID: s.PID, TID: tid, Signal: sigTrap, Core: s.Core})
			return true
		}
	case !e.resumes(s.PID, s.TID):
		e.hold(s)
		s.Text = "" // told with the stop
	case !e.stepsOn(ctx, p, s):
		e.deliver(ctx, s)
		return true
	}
	// News do not wait for a stop that the client may hear of.
	e.print(s.Text)
	return e.run.interrupted && e.deliverInterrupt(ctx)
}

// gdb's numbers of signals (include/gdb/signals.def).
const (
	sigInt  = 2
	sigTrap = 5
	sigKill = 9
)

// deliverInterrupt answers an interrupt: with a resumed thread, whatever else
// happened.
func (e *Engine) deliverInterrupt(ctx context.Context) bool {
	id, ok := e.resumedThread()
	if !ok {
		id = e.general
	}
	e.deliver(ctx, Stop{PID: id.PID, TID: id.TID, Signal: sigInt, Core: -1})
	return true
}

// hold keeps a stop for later.
func (e *Engine) hold(s Stop) {
	if s.isExit() {
		e.processes[s.PID].gone = true
		e.run.dropHeld(func(h Stop) bool { return h.PID == s.PID })
	}
	for _, h := range e.run.held {
		if h.PID == s.PID && h.TID == s.TID {
			e.log.Warn("gdb: a second stop of a frozen thread", "machine", s.PID, "thread", s.TID)
			return
		}
	}
	e.run.held = append(e.run.held, s)
}

// dropHeld forgets the held stops that match.
func (r *run) dropHeld(match func(Stop) bool) {
	var kept []Stop
	for _, s := range r.held {
		if !match(s) {
			kept = append(kept, s)
		}
	}
	r.held = kept
}

// takeHeld returns the oldest held stop that the client's actions cover.
func (e *Engine) takeHeld() (Stop, bool) {
	for i, s := range e.run.held {
		if e.resumes(s.PID, s.TID) || s.isExit() && e.resumesProcess(s.PID) {
			e.run.held = append(e.run.held[:i:i], e.run.held[i+1:]...)
			return s, true
		}
	}
	return Stop{}, false
}

// covers reports whether the action is about the thread; a tid of -1 stands for
// any of the process.
func (a Action) covers(pid, tid int) bool {
	return (a.PID == rsp.All || a.PID == pid) && (a.TID == rsp.All || tid == rsp.All || a.TID == tid)
}

// action returns the action that counts for a thread.
func (e *Engine) action(pid, tid int) (Action, bool) {
	for _, a := range e.run.actions {
		if a.covers(pid, tid) {
			return a, true
		}
	}
	return Action{}, false
}

// resumes reports whether the client resumed the thread.
func (e *Engine) resumes(pid, tid int) bool {
	a, ok := e.action(pid, tid)
	return ok && !a.Hold
}

// resumesProcess reports whether the client resumed any thread of the process.
func (e *Engine) resumesProcess(pid int) bool {
	for _, a := range e.run.actions {
		if !a.Hold && a.covers(pid, rsp.All) {
			return true
		}
	}
	return false
}

// loneStep reports whether one thread was stepped and no other resumed: gdb
// steps over one of its breakpoints.
func (e *Engine) loneStep() bool {
	a := e.run.actions
	return len(a) == 1 && a[0].Step && a[0].PID > 0 && a[0].TID > 0
}

// resumedThread picks a thread that the client resumed, the current one if it was.
func (e *Engine) resumedThread() (rsp.ThreadID, bool) {
	g := e.general
	p := e.processes[g.PID]
	if p != nil && !p.gone && e.resumes(g.PID, g.TID) && !p.inert(g.TID) {
		return g, true
	}
	for _, pid := range append([]int{g.PID}, e.attached()...) {
		p := e.processes[pid]
		if p == nil || p.gone {
			continue
		}
		for _, t := range p.threads {
			if !t.Inert && e.resumes(pid, t.ID) {
				return rsp.ThreadID{PID: pid, TID: t.ID}, true
			}
		}
	}
	return rsp.ThreadID{}, false
}

// inert reports whether a thread cannot run. One that the list does not have any
// more was inert: vCPUs stay as long as their machine.
func (p *process) inert(tid int) bool {
	i := slices.IndexFunc(p.threads, func(t Thread) bool { return t.ID == tid })
	return i < 0 || p.threads[i].Inert
}

// resumesInert returns an inert thread that the client wants resumed by itself.
func (e *Engine) resumesInert() (rsp.ThreadID, bool) {
	for _, a := range e.run.actions {
		if a.Hold || a.PID <= 0 || a.TID <= 0 {
			continue
		}
		if p := e.processes[a.PID]; p != nil && p.inert(a.TID) {
			return rsp.ThreadID{PID: a.PID, TID: a.TID}, true
		}
	}
	return rsp.ThreadID{}, false
}

// stepsOn reports whether a stop is no more than one step within a range that the
// client wants stepped through. A breakpoint in the range ends it: the next step
// would pass it silently.
func (e *Engine) stepsOn(ctx context.Context, p *process, s Stop) bool {
	a, _ := e.action(s.PID, s.TID)
	if !a.Step || a.RangeLast == 0 || s.Reason != None || s.Signal != sigTrap || s.Text != "" {
		return false
	}
	regs, err := e.registers(ctx, p, s.TID)
	if err != nil {
		return false
	}
	pc, ok := regs.PC()
	return ok && a.RangeFirst <= pc && pc <= a.RangeLast && !e.breakAt(s.PID, pc)
}

// interrupt serves the byte 0x03. One that comes when nothing runs crossed a stop
// on the way; gdb takes that stop for the answer.
func (e *Engine) interrupt() {
	if e.run.active && !e.run.interrupted {
		e.run.interrupted = true
		e.target.Resume.Interrupt()
	}
}

// postpone keeps a packet that came while the machines run until they stop. No
// known client sends one.
func (e *Engine) postpone(payload []byte) {
	const most = 64
	if string(payload) == "k" {
		e.closed = true
		return
	}
	if len(e.run.waiting) >= most || len(payload) > 4096 {
		e.log.Warn("gdb: client does not wait for the stop")
		e.closed = true
		return
	}
	e.run.waiting = append(e.run.waiting, append([]byte(nil), payload...))
}
