package gdbserver

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"nestdbg/internal/rsp"
)

// contActions serves vCont?. gdb uses vCont only if both c and C are there.
func (e *Engine) contActions(context.Context, []byte) error {
	e.reply = append(e.reply, "vCont;c;C;s;S;t;r"...)
	return nil
}

// cont serves "vCont;ACTION[:ID];...".
func (e *Engine) cont(ctx context.Context, args []byte) error {
	const most = 1000
	args, ok := bytes.CutPrefix(args, []byte(";"))
	if !ok || bytes.Count(args, []byte(";")) >= most {
		return errBadPacket
	}
	var actions []Action
	for text := range bytes.SplitSeq(args, []byte(";")) {
		a, err := e.parseAction(text)
		if err != nil {
			return err
		}
		actions = append(actions, a)
	}
	return e.resume(ctx, actions)
}

// parseAction parses one action with the threads it is for. 't' leaves threads
// where they are, and so hides them from the actions behind it.
func (e *Engine) parseAction(text []byte) (Action, error) {
	verb, id, hasID := bytes.Cut(text, []byte(":"))
	if len(verb) == 0 {
		return Action{}, errBadPacket
	}
	a := Action{PID: rsp.All, TID: rsp.All}
	var err error
	rest := verb[1:]
	switch verb[0] {
	case 'c':
	case 's':
		a.Step = true
	case 't':
		a.Hold = true
	case 'C', 'S':
		a.Step = verb[0] == 'S'
		a.Signal, err = parseSignal(rest)
		rest = nil
	case 'r':
		a.Step = true
		a.RangeFirst, a.RangeLast, err = parseRange(rest)
		rest = nil
	default:
		return Action{}, errBadPacket
	}
	if err != nil || len(rest) > 0 {
		return Action{}, errBadPacket
	}
	if hasID {
		a.PID, a.TID, err = e.parseActionID(string(id))
	}
	return a, err
}

// parseActionID parses the threads of an action. lldb leaves the process out, and
// means the current one.
func (e *Engine) parseActionID(s string) (pid, tid int, err error) {
	id, err := rsp.ParseThreadID(s, e.client.multiprocess)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case id.PID == rsp.Any && id.TID == rsp.All:
		return rsp.All, rsp.All, nil
	case id.PID == rsp.Any:
		id.PID = e.general.PID
	}
	if id.TID == rsp.Any {
		id.TID = rsp.All
	}
	return id.PID, id.TID, nil
}

func parseSignal(digits []byte) (int, error) {
	n, err := strconv.ParseUint(string(digits), 16, 8)
	return int(n), err
}

// parseRange parses "START,END", END excluded. An empty range is one step.
func parseRange(text []byte) (first, last uint64, err error) {
	a, b, _ := bytes.Cut(text, []byte(","))
	if first, err = rsp.ParseHex(a); err != nil {
		return 0, 0, err
	}
	end, err := rsp.ParseHex(b)
	if err != nil || end <= first {
		return 0, 0, err
	}
	return first, end - 1, nil
}

// legacyResume serves c, s, C and S, for clients without vCont. The thread to
// step is the one of Hc, or else the current one; all others run.
func legacyResume(verb byte) handler {
	return func(e *Engine, ctx context.Context, args []byte) error {
		everything := Action{PID: rsp.All, TID: rsp.All}
		if verb == 'C' || verb == 'S' {
			signal, err := parseSignal(args)
			if err != nil {
				return errBadPacket
			}
			everything.Signal = signal
		} else if len(args) > 0 {
			return fmt.Errorf("%w: resuming at an address; set the PC first", errBadPacket)
		}
		if verb == 'c' || verb == 'C' {
			return e.resume(ctx, []Action{everything})
		}
		if _, _, err := e.current(ctx); err != nil {
			return err
		}
		id := e.general
		if e.run.legacy.TID > 0 {
			id.TID = e.run.legacy.TID
		}
		if e.run.legacy.PID > 0 {
			id.PID = e.run.legacy.PID
		}
		step := Action{PID: id.PID, TID: id.TID, Step: true, Signal: everything.Signal}
		return e.resume(ctx, []Action{step, {PID: rsp.All, TID: rsp.All}})
	}
}

// resume sets the machines running, or delivers a stop that was held for this.
func (e *Engine) resume(ctx context.Context, actions []Action) error {
	const dead = "nothing can run here: this is not a live machine"
	if _, _, err := e.current(ctx); err != nil {
		if e.target.Resume == nil {
			return refuse(dead)
		}
		return err
	}
	if e.target.Resume == nil {
		e.stay(ctx, e.general, dead)
		return nil
	}
	e.run.actions, e.run.interrupted = actions, false
	if id, ok := e.resumesInert(); ok {
		e.stay(ctx, id, fmt.Sprintf("thread %d.%d does not run now, so it cannot be stepped or resumed; select the thread of a CPU",
			id.PID, id.TID))
		return nil
	}
	if s, ok := e.takeHeld(); ok {
		e.deliver(ctx, s)
		return nil
	}
	if _, ok := e.resumedThread(); ok {
		e.run.active = true
		return nil
	}
	if !e.client.noResumed {
		return fmt.Errorf("%w: no such threads to resume", errBadPacket)
	}
	e.reply = append(e.reply, 'N')
	return nil
}
