package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

func (a *app) dmesgCommand() *cobra.Command {
	var follow, decode bool
	var levels, facilities string
	c := &cobra.Command{
		Use: "dmesg", Short: "The log of a machine's kernel; -w follows it while the machine runs", Args: noArgs,
		Example: "  nestdbg dmesg -m l1\n  nestdbg dmesg --level err,warn -x\n  nestdbg dmesg -w",
		RunE: func(c *cobra.Command, _ []string) error {
			filter, err := report.NewLogFilter(levels, facilities)
			if err != nil {
				return usageError{err}
			}
			if follow && a.debugger != nil {
				return usagef("the machine stands still while gdb is asked; follow its log from a command line")
			}
			m, k, err := a.kernelAside(c.Context())
			if err != nil {
				return err
			}
			if follow {
				f := follower{app: a, machine: m, kernel: k, filter: filter, decode: decode, told: map[string]bool{}}
				return f.run(c.Context())
			}
			log, err := k.Log()
			if err != nil {
				return err
			}
			batch, err := log.Read()
			if err != nil {
				return err
			}
			return a.show(report.NewLog(m.Name, batch, filter, decode))
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "w", false, "go on with what the kernel logs from now on; with --json one record per line")
	c.Flags().BoolVarP(&decode, "decode", "x", false, "facility and level in front of each record")
	c.Flags().StringVarP(&levels, "level", "l", "", `only these levels: "err,warn"; "err+" is err and more severe`)
	c.Flags().StringVarP(&facilities, "facility", "f", "", `only these facilities: "kern,daemon"`)
	return c
}

// follower shows a log as it grows. It reads memory only, and looks again, without
// stopping the machine if that can be helped, when memory no longer fits what was
// known, as when a guest was started anew, and when the log was quiet for a while: a
// guest that was reset leaves the old kernel in memory, with its log.
type follower struct {
	app     *app
	machine *machine.Machine
	kernel  *linux.Kernel
	filter  report.LogFilter
	decode  bool

	log     *linux.Log // nil until found and after a failure
	next    uint64
	started bool
	polls   int
	missed  int             // checks in a row that did not find the machine
	told    map[string]bool // problems that were shown
	heard   time.Time       // when the last record came, or the last look at a quiet machine
}

const (
	followEvery = 200 * time.Millisecond
	// After a failure it is slower: a look at a machine that boots costs more.
	followAgain = time.Second
	// followPatience is how long a machine may be gone, as while it boots again.
	followPatience = 30 * time.Second
	// toldMax bounds what is remembered as shown.
	toldMax = 10000
	// Every so many polls the hypervisor is asked whether the machine still exists,
	// by its memory: what a guest that has ended left there reads as before.
	aliveEvery = 5
	// followQuiet is how long a log may be quiet before it is asked whose it is.
	followQuiet = 5 * time.Second
)

// run shows what there is and what comes, until ctx ends.
func (f *follower) run(ctx context.Context) error {
	for well := time.Now(); ; {
		pause := followEvery
		batch, err := f.poll(ctx)
		switch {
		case err == nil:
			well = time.Now()
			if err := f.show(batch); err != nil {
				return err
			}
		case !f.started || errors.Is(err, session.ErrGone):
			return err
		default:
			if again := f.again(ctx, err); time.Since(well) > followPatience || errors.Is(again, session.ErrGone) {
				return errors.Join(err, again)
			}
			pause = followAgain
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// poll reads what is new.
func (f *follower) poll(ctx context.Context) (linux.LogBatch, error) {
	// Memory that is mapped outlives QEMU.
	live, err := f.app.live()
	if err != nil {
		return linux.LogBatch{}, err
	}
	if pid := live.Info().PID; errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return linux.LogBatch{}, fmt.Errorf("QEMU, process %d, has ended: %w", pid, session.ErrGone)
	}
	// Page tables of every stage may have changed since.
	for m := f.machine; m != nil; m = m.Parent {
		m.Forget()
	}
	if f.polls++; f.polls%aliveEvery == 0 {
		if err := f.alive(); err != nil {
			return linux.LogBatch{}, err
		}
	}
	if !f.kernel.Runs(nil) {
		return linux.LogBatch{}, fmt.Errorf("the kernel of %s is not where it was", f.machine.Name)
	}
	if f.log == nil {
		if f.log, err = f.kernel.Log(); err != nil {
			return linux.LogBatch{}, err
		}
	}
	batch, err := f.log.Since(f.next)
	if err != nil {
		return batch, err
	}
	if len(batch.Records) > 0 || f.heard.IsZero() {
		f.heard = time.Now()
	} else if time.Since(f.heard) > followQuiet {
		f.heard = time.Now()
		if err := f.stillRuns(ctx); err != nil {
			return linux.LogBatch{}, err
		}
	}
	if !f.started && len(batch.Lost) > 0 && batch.Lost[0].From == 0 {
		batch.Lost = batch.Lost[1:] // gone before anybody followed
	}
	f.started, f.next = true, batch.Next
	// A record that cannot be read is met again until there is one behind it.
	batch.Problems = slices.DeleteFunc(batch.Problems, func(p linux.LogProblem) bool { return f.told[p.Error()] })
	if len(f.told) > toldMax {
		clear(f.told)
	}
	for _, p := range batch.Problems {
		f.told[p.Error()] = true
	}
	return batch, nil
}

// stillRuns looks at the CPUs: is this the kernel that they run?
func (f *follower) stillRuns(ctx context.Context) error {
	if _, err := f.app.session.LookAside(ctx); err != nil {
		return err
	}
	m, err := f.app.session.Machine(f.machine.Name)
	if err != nil {
		return err
	}
	if k, err := f.app.session.Kernel(m); err != nil || k != f.kernel {
		return errors.Join(fmt.Errorf("%s runs another kernel than before", m.Name), err)
	}
	f.machine = m
	return nil
}

// alive asks the kernel that the machine is a guest of for it, by the hypervisor's
// own object, and that kernel's own host likewise. A host that cannot be asked is no
// reason to stop, nor is one list of a running machine that lacks it.
func (f *follower) alive() error {
	for m := f.machine; m.Parent != nil; m = m.Parent {
		k, err := f.app.session.Kernel(m.Parent)
		if err != nil {
			continue
		}
		vms, problems, err := k.KVMs()
		if err != nil || len(problems) > 0 || m.ID < 1<<63 { // a control block's physical address
			continue
		}
		if slices.ContainsFunc(vms, func(vm linux.VM) bool { return uint64(vm.Addr) == m.ID }) {
			f.missed = 0
		} else if f.missed++; f.missed >= 2 {
			return fmt.Errorf("%s has ended: %w", m.Name, session.ErrGone)
		}
	}
	return nil
}

// again looks at the machine anew. A log that ends before what was seen, or another
// kernel, is one that started anew.
func (f *follower) again(ctx context.Context, why error) error {
	f.log = nil
	if _, err := f.app.session.LookAside(ctx); err != nil {
		return err
	}
	m, err := f.app.session.Machine(f.machine.Name)
	if err != nil {
		return err
	}
	k, err := f.app.session.Kernel(m)
	if err != nil {
		return err
	}
	if k != f.kernel || errors.Is(why, linux.ErrLogAhead) {
		f.next = 0
	}
	f.machine, f.kernel = m, k
	return nil
}

// show writes a batch; in JSON one object per line.
func (f *follower) show(b linux.LogBatch) error {
	r := report.NewLog(f.machine.Name, b, f.filter, f.decode)
	if r.Empty() {
		return nil
	}
	if !f.app.json {
		r.Text(f.app.out)
		return nil
	}
	out := json.NewEncoder(f.app.out)
	for i := range r.Lost {
		if err := out.Encode(map[string]any{"lost": &r.Lost[i]}); err != nil {
			return err
		}
	}
	for i := range r.Records {
		if err := out.Encode(&r.Records[i]); err != nil {
			return err
		}
	}
	for _, p := range r.Problems {
		if err := out.Encode(map[string]any{"problem": p}); err != nil {
			return err
		}
	}
	return nil
}
