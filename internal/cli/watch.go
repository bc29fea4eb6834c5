package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/report"
	"nestdbg/internal/session"
	"nestdbg/internal/snapshot"
	"nestdbg/internal/target"
	"nestdbg/internal/watch"
)

// watchOptions are what a person wants watched and kept.
type watchOptions struct {
	on    string
	save  string
	keep  int
	hang  time.Duration
	lines int
	hold  bool
	trap  bool
	watch watch.Options
}

func (a *app) watchCommand() *cobra.Command {
	var o watchOptions
	c := &cobra.Command{
		Use: "watch --save DIR", Short: "Wait for a crash, a reset, an end or a hang, and keep the machine as it was then", Args: noArgs,
		Long: `Runs beside QEMU until it is interrupted, notices when a machine of the tower dies, and
keeps it: a snapshot in a new directory under DIR, with report.txt and report.html. It
prints what happened, the backtraces of every layer and the last lines of every log.

  crash     a kernel panics or oopses, or a guest ends without having said so (its VMM was
            killed, a triple fault); QEMU says GUEST_PANICKED, stops its machine because of
            an error, or is killed
  reset     a kernel says that it restarts, a guest starts anew, QEMU says RESET
  shutdown  a kernel says that it powers down, QEMU says SHUTDOWN
  hang      a kernel says lockup, stall or hung task; QEMU says WATCHDOG; a kernel's clock
            stands for --hang-after while not all of its CPUs wait for an interrupt

Kernels are watched by their own logs in memory, ten times a second, without a stop; the
machine is stopped only to be kept, and runs on. While L1 is no Linux, guests are looked
for once a minute, which stops it for a millisecond.

A guest that reboots at once when it panics, or that ends with a triple fault, can be gone
before its log is read. --trap holds QEMU's gdbstub, with a breakpoint on panic in every
kernel, and in L1 on KVM's function for a guest's CPU that has shut down. The machine is
kept as it stands there, before the panic is in the log. That costs a stop of some
milliseconds whenever a kernel comes or goes, and under QEMU's emulation the code on the
pages of the breakpoints is slower. The gdbstub serves one client: gdb, "nestdbg gdb" and
"nestdbg serve" have to wait for the watch's end; and if somebody else has it, the watch
goes on without, until it is free.

QEMU's events come over its QMP socket, which is held for them and left to whoever else
wants it. QEMU says RESET when the machine is reset already, and ends with a machine that
shuts down, unless it was started with -no-reboot -no-shutdown; the start of a watch says
what is missing. --hold makes QEMU do so for the time of the watch (QMP set-action): the
machine stands until it is kept, and then goes the way it wanted to. A nestdbg that is
killed cannot put that back.

Beyond --keep the oldest go, and on a full disk one more, to make room; what a watch that
was killed left half-done goes when the next begins. Nobody else's files are touched.

When QEMU ends, its memory is kept if it was in a shared file, whatever became of the
file's name; and the watch waits for the next QEMU that -t describes. With a PID it ends.`,
		Example: "  nestdbg watch --save crashes\n  nestdbg -t /run/qmp watch --on crash,hang --save crashes --keep 3 --hold\n" +
			"  nestdbg -t crashes/20260102T030405Z-crash-vm0 dmesg",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return a.watch(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.on, "on", "crash,reset,shutdown,hang", "what to watch for")
	f.StringVar(&o.save, "save", "", "the directory to keep machines in")
	f.IntVar(&o.keep, "keep", 10, "how many machines to keep there, the newest, of those that watches have kept; 0 for all")
	f.DurationVar(&o.hang, "hang-after", 30*time.Second, "how long a machine may make no progress")
	f.IntVar(&o.lines, "lines", 15, "lines of each log that are printed")
	f.BoolVar(&o.trap, "trap", false, "hold QEMU's gdbstub, with a breakpoint on panic in every kernel and on KVM's end of a guest's CPU")
	f.BoolVar(&o.hold, "hold", false, "make QEMU stop its machine, where it would reset it or end, until it is kept")
	return c
}

func (o *watchOptions) check() (err error) {
	switch {
	case o.save == "":
		return usagef("watch needs --save DIR")
	case o.keep < 0 || o.lines < 0:
		return usagef("--keep and --lines are numbers from 0 on")
	case o.hang < time.Second:
		return usagef("--hang-after is at least 1s")
	}
	o.watch.HangAfter = o.hang
	if o.watch.Classes, err = watch.ParseClasses(o.on); err != nil {
		return usageError{err}
	}
	if o.trap && !slices.Contains(o.watch.Classes, watch.Crash) {
		return usagef("--trap is for crashes, and --on %s leaves them out", o.on)
	}
	return nil
}

// findEvery is how often a QEMU that is not there is looked for.
const findEvery = 500 * time.Millisecond

// watch watches one QEMU after the other, until ctx ends.
func (a *app) watch(ctx context.Context, o watchOptions) error {
	if err := os.MkdirAll(o.save, 0o700); err != nil {
		return err
	}
	if err := snapshot.Sweep(o.save, watchName.MatchString); err != nil {
		return err
	}
	_, err := strconv.Atoi(a.targetSpec)
	onlyOne := err == nil // a PID is that of one process
	for first := true; ; first = false {
		t, err := a.awaitQEMU(ctx, onlyOne || first)
		if err != nil || t == nil {
			return err
		}
		a.target, a.session = t, session.New(t)
		w := &watching{app: a, opt: o, live: t, watcher: watch.New(o.watch), logs: map[string]*watchedLog{}, ids: map[string]uint64{}}
		err = w.run(ctx)
		a.target, a.session = nil, nil
		if err = errors.Join(err, t.Close()); err != nil || onlyOne || ctx.Err() != nil {
			return err
		}
		if err := a.note("waiting for the next QEMU"); err != nil {
			return err
		}
	}
}

// awaitQEMU opens the QEMU that the person described; if it is not there it waits,
// unless it must be there. It returns nil when ctx ends.
func (a *app) awaitQEMU(ctx context.Context, must bool) (*target.Live, error) {
	for {
		t, err := target.Recognise(ctx, a.targetSpec, target.Options{Layout: a.layout})
		if err == nil {
			live, ok := t.(*target.Live)
			if !ok {
				d := t.Describe()
				return nil, errors.Join(fmt.Errorf("%w: %s (%s)", session.ErrDead, d.Path, d.Kind), t.Close())
			}
			return live, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case must:
			return nil, err
		}
		// One that starts has no sockets yet, and one that ends has no files any more.
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(findEvery):
		}
	}
}

// note says something about the watch itself.
func (a *app) note(format string, args ...any) error {
	return a.showLine(&report.Note{Time: now(), Note: fmt.Sprintf(format, args...)})
}

// showLine shows a report; in JSON as one line.
func (a *app) showLine(r report.Report) error {
	if a.json {
		return json.NewEncoder(a.out).Encode(r)
	}
	r.Text(a.out)
	return nil
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// watching is the watch over one QEMU.
type watching struct {
	*app
	opt     watchOptions
	live    *target.Live
	watcher *watch.Watcher
	logs    map[string]*watchedLog // by machine
	ids     map[string]uint64      // of machines, what the hypervisor knows them by

	own     target.Endings // what QEMU did before --hold
	held    bool
	known   bool          // machines were looked at
	nextDue time.Time     // of the next look
	trouble string        // what was said last about being unable to ask
	deaf    bool          // somebody else had QEMU's socket until now
	busy    time.Time     // until then nothing is asked
	blind   time.Duration // between looks, while no kernel is known
	stands  int           // steps in a row in which the machine stood, and why was not known
	trap    *trapper      // nil without --trap
}

const (
	// watchEvery is how often logs are read; an event of QEMU's is heard at once.
	watchEvery = 100 * time.Millisecond
	// lookEvery is how often machines are looked for, at most; and lookShare times as
	// long as a look takes there is none.
	lookEvery = time.Second
	lookShare = 20
	// blindPause is how rare looks become while no kernel is found: each of them stops
	// the machine then, which under QEMU's emulation can cost a guest.
	blindPause = time.Minute
	// busyPause is how long QEMU is not asked after somebody else kept its socket: it
	// takes seconds to find that out, in which no log is read.
	busyPause = 5 * time.Second
)

// run watches until QEMU or ctx ends.
func (w *watching) run(ctx context.Context) error {
	defer w.live.Unlisten()
	if err := w.begin(ctx); err != nil {
		return err
	}
	defer w.letGo()
	if w.opt.trap {
		w.trap = newTrapper(w)
	}
	defer w.trap.letGo()
	for ctx.Err() == nil {
		found, err := w.step(ctx)
		if errors.Is(err, session.ErrGone) {
			// Its last words may have come with an answer to something else.
			found = append(append(found, w.late(ctx)...), w.watcher.Ended(w.deaf)...)
			if err := w.happened(ctx, found, true); err != nil {
				return err
			}
			return w.note("QEMU, process %d, has ended", w.live.Info().PID)
		}
		if err := w.cannot(ctx, err); err != nil {
			return err
		}
		if err := w.happened(ctx, found, false); err != nil {
			return err
		}
		w.trap.resume(ctx)
		if err := w.goOn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step waits a little for QEMU's events, and looks at logs and machines.
func (w *watching) step(ctx context.Context) (found []watch.Incident, err error) {
	if time.Now().Before(w.busy) {
		select {
		case <-ctx.Done():
		case <-time.After(watchEvery):
		}
		trapped, err := w.trap.found(ctx)
		return append(w.readLogs(), trapped...), err
	}
	defer func() {
		if target.IsBusy(err) {
			w.busy, w.deaf = time.Now().Add(busyPause), true
		}
	}()
	heard, err := w.live.Events(ctx, watchEvery)
	w.deaf = heard.Missed
	// What a kernel says goes before what QEMU says of it, also when QEMU is gone: its
	// memory is still mapped here.
	trapped, trapErr := w.trap.found(ctx)
	err = errors.Join(err, trapErr)
	found = append(append(w.readLogs(), trapped...), w.events(heard)...)
	if errors.Is(err, session.ErrGone) || target.IsBusy(err) || time.Now().Before(w.nextDue) {
		return found, err
	}
	begin := time.Now()
	more, lookErr := w.look(ctx)
	w.nextDue = time.Now().Add(max(w.pause(), lookShare*time.Since(begin)))
	return append(found, more...), errors.Join(err, lookErr)
}

// pause is how long there is no look, after one.
func (w *watching) pause() time.Duration {
	if len(w.logs) > 0 {
		w.blind = 0
		return lookEvery
	}
	w.blind = min(max(2*w.blind, lookEvery), blindPause)
	return w.blind
}

// events takes what QEMU said.
func (w *watching) events(heard target.Heard) (found []watch.Incident) {
	if heard.Missed {
		w.nextDue = time.Time{}
	}
	for _, e := range heard.Events {
		switch e.Name {
		case "RESET":
			clear(w.logs)
			w.blind = 0
			fallthrough
		case "STOP", "RESUME", "SHUTDOWN":
			w.nextDue = time.Time{}
		}
		found = append(found, w.watcher.Event(e.Name, e.Data)...)
	}
	return found
}

// late takes the events that came with an answer to something else.
func (w *watching) late(ctx context.Context) []watch.Incident {
	heard, _ := w.live.Events(ctx, 0) // the next step meets the error, too
	w.deaf = w.deaf || heard.Missed
	return w.events(heard)
}

// cannot says once why QEMU or its machine cannot be asked; memory is watched all the
// same. It waits a little, where Events did not.
func (w *watching) cannot(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil || time.Now().Before(w.busy) && err == nil:
		return nil
	case err == nil:
		w.trouble = ""
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(watchEvery):
	}
	if text := err.Error(); text != w.trouble {
		w.trouble = text
		return w.note("cannot ask now, and go on: %s", text)
	}
	return nil
}

// begin says what is watched, and how QEMU should have been started.
func (w *watching) begin(ctx context.Context) error {
	info, e := w.live.Info(), w.live.Endings()
	if err := w.note("watching QEMU %s, process %d, for %s; keeping what happens in %s", info.Version, info.PID, w.opt.on, w.opt.save); err != nil {
		return err
	}
	var notes []string
	if w.live.Describe().File == "" {
		notes = append(notes, "memory is QEMU's own and goes with it; start QEMU with -object memory-backend-file,id=ram,share=on,mem-path=FILE,size=SIZE -machine memory-backend=ram")
	}
	if w.opt.hold {
		if err := w.hold(ctx, e); err != nil {
			return err
		}
	}
	if e.Reboot != "shutdown" && !w.held {
		notes = append(notes, "a reset loses registers, and firmware overwrites memory, before QEMU says so; start QEMU with -no-reboot, or watch with --hold")
	}
	if e.Shutdown != "pause" && !w.held {
		notes = append(notes, "QEMU ends with its machine, and registers with it; start QEMU with -no-shutdown, or watch with --hold")
	}
	for _, n := range notes {
		if err := w.note("%s", n); err != nil {
			return err
		}
	}
	return nil
}

// hold makes QEMU stop its machine where it would reset it or end.
func (w *watching) hold(ctx context.Context, own target.Endings) error {
	if own.Reboot == "" {
		return usagef("--hold has to know QEMU's command line, to put back what it changes")
	}
	if err := w.live.SetEndings(ctx, target.Endings{Reboot: "shutdown", Shutdown: "pause"}); err != nil {
		return err
	}
	w.own, w.held = own, true
	return nil
}

// letGo puts back what --hold changed.
func (w *watching) letGo() {
	if !w.held {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), letGoTime)
	defer cancel()
	if err := w.live.SetEndings(ctx, w.own); err != nil && !errors.Is(err, session.ErrGone) {
		fmt.Fprintf(w.errOut, "nestdbg: put back what QEMU does at a reset: %v\n", err)
	}
}

// letGoTime bounds what is done after the end.
const letGoTime = 10 * time.Second

// goOn lets a machine that --hold stopped at its end go the way it wanted to.
func (w *watching) goOn(ctx context.Context) error {
	if !w.held || time.Now().Before(w.busy) {
		return nil
	}
	_, state, err := w.live.Status(ctx)
	if err != nil {
		return nil // the next step meets it, too
	}
	if state != "shutdown" {
		w.stands = 0
		return nil
	}
	reset, known := w.watcher.WasReset()
	switch {
	case !known:
		if w.stands++; w.stands != 2 { // the event may be on its way, and once is enough
			return nil
		}
		return w.note("the machine stands, held; somebody else had QEMU's socket, so whether it wanted a reset or its end is not known: it is left so (QMP system_reset and cont, or quit)")
	case reset && w.own.Reboot == "reset":
		return w.reset(ctx)
	case w.own.Shutdown == "poweroff":
		return w.live.Quit(ctx)
	}
	return nil
}

// reset resets a machine that was held before its reset.
func (w *watching) reset(ctx context.Context) error {
	if err := w.live.SetEndings(ctx, w.own); err != nil {
		return err
	}
	w.watcher.Resumed()
	clear(w.logs)
	if err := w.live.Reset(ctx); err != nil {
		return err
	}
	return w.live.SetEndings(ctx, target.Endings{Reboot: "shutdown", Shutdown: "pause"})
}
