package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/report"
	"nestdbg/internal/watch"
)

// watchedLog is the log of one machine's kernel.
type watchedLog struct {
	machine *machine.Machine
	kernel  *linux.Kernel
	where   string // what tells the kernel from another
	lives   int    // how often the log began anew under the same kernel

	log   *linux.Log // nil until it was found
	next  uint64
	fresh bool // what comes was written while the watch was on
	began bool
}

// identity tells one life of a kernel from another.
func (l *watchedLog) identity() string { return fmt.Sprintf("%s life %d", l.where, l.lives) }

// kernelPlace is where a kernel is, and which it is.
func kernelPlace(k *linux.Kernel) string {
	return fmt.Sprintf("%s at %#x %#x", k.BuildID, uint64(k.TextVA), uint64(k.TextPA))
}

// readLogs reads what is new in the logs. It reads memory and nothing else.
func (w *watching) readLogs() (found []watch.Incident) {
	forgotten := map[*machine.Machine]bool{}
	for name, l := range w.logs {
		for m := l.machine; m != nil && !forgotten[m]; m = m.Parent {
			m.Forget() // page tables of every stage may have changed since
			forgotten[m] = true
		}
		batch, err := l.read()
		switch {
		case errors.Is(err, linux.ErrLogAhead):
			l.lives++
			l.next, l.fresh, l.log = 0, true, nil
			w.nextDue = time.Time{}
			continue
		case err != nil:
			l.log = nil
			w.nextDue = sooner(w.nextDue, watchEvery) // the next look finds out
			continue
		}
		found = append(found, w.watcher.Log(name, batch.Records, l.fresh)...)
		l.fresh, l.began = true, true
	}
	return found
}

// sooner is a time that is not later than in d from now.
func sooner(t time.Time, d time.Duration) time.Time {
	if soon := time.Now().Add(d); t.After(soon) {
		return soon
	}
	return t
}

// read reads what is new.
func (l *watchedLog) read() (batch linux.LogBatch, err error) {
	if !l.kernel.Runs(nil) {
		return batch, fmt.Errorf("the kernel of %s is not where it was", l.machine.Name)
	}
	if l.log == nil {
		if l.log, err = l.kernel.Log(); err != nil {
			return batch, err
		}
	}
	if batch, err = l.log.Since(l.next); err == nil {
		l.next = batch.Next
	}
	return batch, err
}

// look looks which machines there are and what they do, without a stop where that is
// possible.
func (w *watching) look(ctx context.Context) ([]watch.Incident, error) {
	tower, err := w.session.LookAside(ctx)
	if err != nil {
		return nil, err
	}
	running, state, err := w.live.Status(ctx)
	if err != nil {
		return nil, err
	}
	if w.trap.waits(running) {
		return nil, nil
	}
	// The event says more than the state that came of it.
	found := append(w.late(ctx), w.watcher.State(state)...)
	var seen []watch.Machine
	faulted := map[uint64]bool{}
	for _, m := range tower.Machines {
		w.faults(m, faulted)
	}
	for _, m := range tower.Machines {
		seen = append(seen, w.seen(m, faulted))
		w.ids[m.Name] = m.ID
	}
	for name := range w.logs {
		if !slices.ContainsFunc(tower.Machines, func(m *machine.Machine) bool { return m.Name == name }) {
			delete(w.logs, name)
		}
	}
	w.known = true
	return append(found, w.watcher.Look(time.Now(), running, seen)...), w.trap.place(ctx, running, tower)
}

// faults adds the guests of m of which KVM has told the VMM that they have shut down, by
// what it knows them by.
func (w *watching) faults(m *machine.Machine, faulted map[uint64]bool) {
	k, err := w.session.Kernel(m)
	if err != nil {
		return
	}
	vms, _, err := k.KVMs()
	if err != nil {
		return // it has no guests
	}
	for _, vm := range vms {
		for _, v := range vm.VCPUs {
			if down, err := k.VCPUShutDown(v.Addr); err == nil && down {
				faulted[uint64(vm.Addr)] = true
			}
		}
	}
}

// seen is what a look shows of one machine; its log is read from now on.
func (w *watching) seen(m *machine.Machine, faulted map[uint64]bool) watch.Machine {
	out := watch.Machine{Name: m.Name}
	if faulted[m.ID] {
		out.Faulted = "its VMM's kvm_run"
	}
	for _, c := range m.CPUs {
		if isShutDown(c) {
			out.Faulted = "its control block"
		}
	}
	k, err := w.session.Kernel(m)
	if err != nil {
		return out // it starts, or is no Linux
	}
	where, l := kernelPlace(k), w.logs[m.Name]
	if l == nil || l.where != where {
		// A kernel that was not there at the first look was started since.
		l = &watchedLog{where: where, fresh: w.known}
		w.logs[m.Name] = l
	}
	if l.kernel != k {
		l.kernel, l.log = k, nil
	}
	l.machine = m
	out.Kernel = l.identity()
	if clock, err := k.Jiffies(); err == nil {
		out.Clock = &clock
	}
	for _, c := range m.CPUs {
		out.CPUs = append(out.CPUs, seenCPU(c, k))
	}
	return out
}

// isShutDown reports whether a CPU has shut down, by the reason for its exit in the
// words of AMD's manual and of Intel's.
func isShutDown(c *machine.CPU) bool {
	return c.State == machine.Parked && (c.Why == "shutdown" || c.Why == "triple fault")
}

// seenCPU is what a look shows of a CPU. One that waits was last seen to execute HLT;
// whether it takes interrupts is believed if its flags are known.
func seenCPU(c *machine.CPU, k *linux.Kernel) watch.CPU {
	out := watch.CPU{Waits: c.State == machine.Halted || c.State == machine.Parked && c.Why == "HLT"}
	if takes, known := c.Regs.TakesInterrupts(); known && out.Waits {
		out.Deaf = !takes
	}
	if pc, ok := c.Regs.PC(); ok {
		out.Where = fmt.Sprintf("at %#x", pc)
		if s := report.Symbol(k, pc); s != "" {
			out.Where = "at " + s
		}
		if c.Why != "" {
			out.Where += " after " + c.Why
		}
	}
	return out
}
