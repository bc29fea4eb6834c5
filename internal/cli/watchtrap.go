package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
	"nestdbg/internal/watch"
)

// trapper holds QEMU's gdbstub for a watch, with a breakpoint at the last calls of every
// kernel: a machine that dies between two looks is kept before it is gone. It belongs to
// the watch's goroutine, but for Continue, which has one of its own. A nil trapper does
// nothing.
type trapper struct {
	w *watching
	d *session.Debugger

	held   bool // the stub is ours
	runs   bool // Continue is under way, and done will tell
	done   chan continued
	cancel context.CancelFunc // ends the wait

	places map[trapPlace]linux.LastCall
	rests  map[string]time.Time // by machine: until then its guests' ends are let pass
	told   string               // where breakpoints are
	hit    *session.Stop        // of a breakpoint, and nobody has judged it
	last   *session.Stop        // of a breakpoint, that has to be passed
	since  time.Time            // of the machine's stop
	asked  bool                 // the stop was asked for here
	// elsewhere says that somebody else stopped the machine; who makes it run is he.
	elsewhere bool
	said      string // what was said last about having no breakpoints
}

// trapPlace is a breakpoint of a trapper.
type trapPlace struct {
	machine string
	addr    uint64
}

// continued is the end of a Continue.
type continued struct {
	stop *session.Stop
	err  error
}

// interruptLimit bounds the wait for a stop that was asked for. QEMU's emulation can
// lose the request.
const interruptLimit = 10 * time.Second

func newTrapper(w *watching) *trapper {
	return &trapper{w: w, d: session.NewDebugger(w.session, w.live.OpenStub, w.log()), done: make(chan continued, 1), rests: make(map[string]time.Time)}
}

// place puts breakpoints where the kernels of a look have their last calls, if they are
// not there yet: that stops the machine for some milliseconds.
func (t *trapper) place(ctx context.Context, running bool, tower *machine.Tower) error {
	if t == nil || t.elsewhere || t.hit != nil || !t.held && !running {
		return nil
	}
	if want, _ := t.wanted(tower); maps.Equal(want, t.places) {
		return nil
	}
	if !t.held {
		if err := t.d.Take(ctx); err != nil {
			return t.without(ctx, err)
		}
		t.held, t.since = true, time.Now()
	} else if !t.stop(ctx) || t.hit != nil {
		return nil // the next look will do it
	}
	err := t.set(ctx, tower)
	t.resume(ctx)
	return err
}

// restTime is how long a hypervisor's breakpoint for its guests' ends rests after a hit. A
// CPU that has shut down is reset and can run into the next triple fault at once: a stop
// each time would leave its VMM no time to end it.
const restTime = 2 * time.Second

// wanted are the places of breakpoints. What is over needs none.
func (t *trapper) wanted(tower *machine.Tower) (map[trapPlace]linux.LastCall, []session.Breakpoint) {
	want := make(map[trapPlace]linux.LastCall)
	var list []session.Breakpoint
	for _, m := range tower.Machines {
		k, err := t.w.session.Kernel(m)
		if err != nil {
			continue
		}
		lives := func(g *machine.Machine) bool { return g.Parent == m && !t.w.watcher.Over(g.Name) }
		guests := slices.ContainsFunc(tower.Machines, lives) && time.Now().After(t.rests[m.Name])
		for _, c := range k.LastCalls() {
			if c.Guest && !guests || !c.Guest && t.w.watcher.Over(m.Name) {
				continue
			}
			want[trapPlace{m.Name, uint64(c.Addr)}] = c
			list = append(list, session.Breakpoint{Machine: m, Addr: uint64(c.Addr)})
		}
	}
	return want, list
}

// set sets the breakpoints that are wanted, of a machine that stands for it, and says
// where they are.
func (t *trapper) set(ctx context.Context, tower *machine.Tower) error {
	want, list := t.wanted(tower)
	if maps.Equal(want, t.places) {
		return nil
	}
	t.places = want
	if err := t.d.SetBreakpoints(ctx, list); err != nil {
		return t.without(ctx, err)
	}
	where := []string{}
	for p, c := range want {
		where = append(where, p.machine+" "+c.Function)
	}
	slices.Sort(where)
	text := cmp.Or(strings.Join(where, ", "), "none")
	if text == t.told {
		return nil
	}
	t.told = text
	return t.w.note("breakpoints are at: %s", text)
}

// without says once why there are no breakpoints, or not all.
func (t *trapper) without(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		t.said = ""
	case errors.Is(err, session.ErrGone):
		return err
	case err.Error() != t.said:
		t.said = err.Error()
		return t.w.note("not every kernel has its breakpoint on panic now; its log is watched all the same: %s", t.said)
	}
	return nil
}

// resume lets the machine run on, unless it stands for somebody else or at a breakpoint
// that nobody has judged.
func (t *trapper) resume(ctx context.Context) {
	if t == nil || !t.held || t.runs || t.hit != nil || ctx.Err() != nil {
		return
	}
	if t.elsewhere {
		running, _, err := t.w.live.Status(ctx)
		if err != nil || !running {
			return
		}
		t.elsewhere = false // the debugger takes it back
	}
	ctx, t.cancel = context.WithCancel(ctx)
	stop := t.last
	t.runs, t.last = true, nil
	go func() {
		var c continued
		defer func() { t.done <- c }()
		defer mem.Catch(&c.err)()
		c.stop, c.err = t.d.ContinuePast(ctx, stop)
	}()
}

// stop stops the machine for whoever asks here, and reports whether it stands for him.
func (t *trapper) stop(ctx context.Context) bool {
	if t == nil || !t.held || t.elsewhere {
		return false
	}
	t.poll()
	if !t.runs {
		return t.held && !t.elsewhere
	}
	t.asked = true
	if err := t.d.Interrupt(); err != nil {
		return false
	}
	select {
	case c := <-t.done:
		t.take(c)
	case <-time.After(interruptLimit):
	case <-ctx.Done():
	}
	return t.held && !t.runs && !t.elsewhere
}

// stood is since when the machine stands for who asked stop.
func (t *trapper) stood(ctx context.Context) time.Time {
	if !t.stop(ctx) {
		return time.Time{}
	}
	return t.since
}

// poll takes the end of a Continue, if that has ended.
func (t *trapper) poll() {
	select {
	case c := <-t.done:
		t.take(c)
	default:
	}
}

// waits reports whether the machine has stopped at a breakpoint, as far as known: what a
// look shows of it then is of that, and found says more.
func (t *trapper) waits(running bool) bool {
	if t == nil {
		return false
	}
	t.poll()
	return t.hit != nil || t.runs && !running
}

// take takes the end of a Continue.
func (t *trapper) take(c continued) {
	t.cancel()
	t.d.ForgetInterrupt()
	t.runs, t.since = false, time.Now()
	switch {
	case c.err != nil:
		t.letGo()
		if !errors.Is(c.err, session.ErrGone) && !errors.Is(c.err, context.Canceled) { // the watch ends
			t.w.log().Warn("breakpoints on panic", "error", c.err)
		}
	case c.stop.Trap != nil:
		t.hit, t.last, t.asked = c.stop, c.stop, false
	case c.stop.Signal == trapSignal: // nobody else can have stopped it like that
	case c.stop.Signal == interruptSignal && t.asked:
		t.asked = false
	default:
		t.elsewhere = true
	}
}

// The signals of a stop that was asked for, here or by QMP, and of a breakpoint.
const (
	interruptSignal = 2
	trapSignal      = 5
)

// found are the incidents of a breakpoint that was hit since the last call. The machine
// stands then, until resume.
func (t *trapper) found(ctx context.Context) ([]watch.Incident, error) {
	if t == nil {
		return nil, nil
	}
	t.poll()
	stop := t.hit
	if t.hit = nil; stop == nil {
		return nil, nil
	}
	tower, err := t.w.session.Look(ctx, session.Full)
	if err != nil {
		return nil, err
	}
	found := t.judge(stop, tower)
	return found, t.set(ctx, tower)
}

// judge makes incidents of a breakpoint that was hit.
func (t *trapper) judge(stop *session.Stop, tower *machine.Tower) (out []watch.Incident) {
	call, known := t.places[trapPlace{stop.Machine.Name, stop.Trap.Addr}]
	k, err := t.w.session.Kernel(stop.Machine)
	if err != nil || !known {
		return nil
	}
	place, ok := k.Symbolize(call.Addr)
	switch {
	case !ok || place.Name != call.Function || place.Offset != 0:
		return nil // another kernel runs there now
	case !call.Guest:
		return t.w.watcher.Panics(stop.Machine.Name)
	}
	t.rests[stop.Machine.Name] = time.Now().Add(restTime)
	for _, m := range tower.Machines {
		if m.Parent != nil && m.Parent.Name == stop.Machine.Name && slices.ContainsFunc(m.CPUs, isShutDown) {
			out = append(out, t.w.watcher.ShutsDown(m.Name)...)
		}
	}
	return out
}

// letGo gives the stub back, and leaves the machine as it would be without a watch.
func (t *trapper) letGo() {
	if t == nil || !t.held {
		return
	}
	t.held, t.places, t.hit, t.last, t.asked = false, nil, nil, nil, false
	ctx, cancel := context.WithTimeout(context.Background(), letGoTime+interruptLimit)
	defer cancel()
	if t.runs {
		t.runs = false
		t.cancel()
		<-t.done
	}
	t.elsewhere = false
	if err := t.d.Release(ctx); err != nil && !errors.Is(err, session.ErrGone) {
		fmt.Fprintf(t.w.errOut, "nestdbg: the breakpoints on panic: %v\n", err)
	}
}
