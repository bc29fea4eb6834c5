package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Target is the debugger as gdb's server wants it. monitor answers what a
// person types behind "monitor"; symbols may be nil.
func (d *Debugger) Target(symbols gdbserver.Symbols, monitor gdbserver.Monitor) gdbserver.Target {
	t := &target{Debugger: d}
	return gdbserver.Target{
		Core: t, Memory: t, Registers: t, Resume: t, Break: t, OSData: t,
		Symbols: symbols, Monitor: monitor,
	}
}

// target adapts a Debugger to the interfaces of gdbserver.
type target struct{ *Debugger }

// Processes implements gdbserver.Core.
func (t *target) Processes(context.Context) []int {
	var out []int
	for _, m := range t.Tower().Machines {
		out = append(out, t.Number(m))
	}
	return out
}

// Attach implements gdbserver.Core. The first one stops the machine.
func (t *target) Attach(ctx context.Context, pid int) error {
	if err := t.Take(ctx); err != nil {
		return err
	}
	for _, m := range t.Tower().Machines {
		if t.Number(m) == pid {
			t.attached[pid] = m.Name
			return nil
		}
	}
	return fmt.Errorf("there is no machine %d", pid)
}

// Detach implements gdbserver.Core. After the last one the machine runs on, if
// it ran before the first.
func (t *target) Detach(ctx context.Context, pid int) error {
	delete(t.attached, pid)
	t.traps.removeProcess(pid)
	if len(t.attached) == 0 {
		return t.Release(ctx)
	}
	return t.traps.sync(ctx, t.stub)
}

// Close implements gdbserver.Core.
func (t *target) Close() {
	if err := t.Release(context.Background()); err != nil && !errors.Is(err, ErrGone) {
		t.log.Error("the machine was not left as it was found", "error", err)
	}
}

// Threads implements gdbserver.Core.
func (t *target) Threads(ctx context.Context, pid int) ([]gdbserver.Thread, error) {
	unknown := t.Refresh(ctx)
	for _, m := range t.Tower().Machines {
		if t.Number(m) != pid {
			continue
		}
		if unknown != nil {
			return threadsOf(m, func(*machine.CPU) string { return unknown.Error() }), nil
		}
		tasks := t.taskStop(m)
		out := threadsOf(m, func(c *machine.CPU) string { return t.doing(m, c) + tasks.of(c) })
		if tasks != nil {
			out = append(out, tasks.threads...)
		}
		return out, nil
	}
	return nil, fmt.Errorf("machine %d is gone", pid)
}

// threadsOf are the CPUs of a machine, with what is said of each.
func threadsOf(m *machine.Machine, said func(*machine.CPU) string) (out []gdbserver.Thread) {
	for _, c := range m.CPUs {
		out = append(out, gdbserver.Thread{
			ID: c.Index + 1, Name: fmt.Sprintf("%s CPU %d", m.Name, c.Index), Extra: said(c), Core: c.On,
		})
	}
	return out
}

// doing says in a few words what a CPU does, for "info threads".
func (d *Debugger) doing(m *machine.Machine, c *machine.CPU) string {
	switch c.State {
	case machine.Hosting:
		if guest, cpu := d.Tower().Guest(c); cpu != nil && guest != m {
			return fmt.Sprintf("in %s CPU %d; registers from the %s", guest.Name, cpu.Index, c.Source)
		}
		return "in a guest; registers from the " + c.Source
	case machine.Parked:
		if c.Why != "" {
			return "parked after " + c.Why
		}
		return "parked"
	case machine.Lost:
		if _, known := c.Regs.PC(); known {
			return "lost; registers from the " + c.Source
		}
		return "lost: " + c.Source + "; the pc is none"
	case machine.Halted:
		return fmt.Sprintf("halted on L1 CPU %d", c.On)
	}
	if m.Parent == nil {
		return "running"
	}
	return fmt.Sprintf("running on L1 CPU %d", c.On)
}

// Registers implements gdbserver.Core.
func (t *target) Registers(ctx context.Context, pid, tid int) (*arch.Registers, error) {
	if err := t.Refresh(ctx); err != nil {
		return unknownRegisters(arch.NewRegisters(t.backend.Arch())), nil // the threads say why
	}
	if m, s, task := t.task(pid, tid); task != nil {
		return t.registersOf(m, s, task).Clone(), nil
	}
	_, c, err := t.Thread(pid, tid)
	if err != nil {
		return nil, err
	}
	regs := c.Regs.Clone()
	if _, known := regs.PC(); !known && c.State == machine.Lost {
		return unknownRegisters(regs), nil // doing says what it is
	}
	return regs, nil
}

// unknownRegisters gives registers without a program counter one that leads nowhere:
// gdb 13 gives up on a machine whose thread has none, and takes no more commands if it
// gets an error instead of registers.
func unknownRegisters(regs *arch.Registers) *arch.Registers {
	regs.Set(regs.Arch().Regs[regs.Arch().PC].Name, ^uint64(0))
	return regs
}

// ReadMemory implements gdbserver.Core.
func (t *target) ReadMemory(ctx context.Context, pid, tid int, p []byte, addr uint64) (int, error) {
	_, v, err := t.memoryAt(ctx, pid, tid)
	if err != nil {
		return 0, &mem.FaultError{Space: fmt.Sprintf("virtual memory of machine %d", pid), Addr: addr, Err: err}
	}
	return v.ReadVirt(p, mem.Virt(addr))
}

// memoryAt is the virtual memory that a thread sees.
func (t *target) memoryAt(ctx context.Context, pid, tid int) (*machine.Machine, *CPUMemory, error) {
	if err := t.Refresh(ctx); err != nil {
		return nil, nil, err
	}
	if m, s, task := t.task(pid, tid); task != nil {
		return m, t.memoryOf(m, s, task), nil
	}
	m, c, err := t.Thread(pid, tid)
	if err != nil {
		return nil, nil, err
	}
	v, err := t.VirtMemory(m, c)
	return m, v, err
}

// WriteMemory implements gdbserver.MemoryWriter.
func (t *target) WriteMemory(ctx context.Context, pid, tid int, addr uint64, p []byte) error {
	m, v, err := t.memoryAt(ctx, pid, tid)
	if err != nil {
		return err
	}
	return refused(t.writeThrough(ctx, m, v, p, addr))
}

// refused lets gdb's person read why a file cannot do what was asked.
func refused(err error) error {
	if errors.Is(err, ErrDead) {
		return gdbserver.Refuse("%v", err)
	}
	return err
}

// WriteRegister implements gdbserver.RegisterWriter. Only what executes on a
// CPU now has registers that a debugger can set; those of a parked CPU are in
// the hypervisor's hands, which would overwrite them at the next entry.
func (t *target) WriteRegister(ctx context.Context, pid, tid, reg int, value []byte) error {
	if _, _, task := t.task(pid, tid); task != nil {
		return gdbserver.Refuse("task %s does not run: its registers cannot be written", taskText(&task.task))
	}
	m, c, err := t.thread(ctx, pid, tid)
	if err != nil {
		return err
	}
	if c.State != machine.Running && c.State != machine.Halted {
		return gdbserver.Refuse("%s CPU %d is %s: its registers can be written only while it runs on a CPU",
			m.Name, c.Index, c.State)
	}
	if err := t.stub.WriteRegister(ctx, c.On, reg, value); err != nil {
		return refused(err)
	}
	return c.Regs.SetBytes(reg, value)
}

// Set implements gdbserver.Breaker.
func (t *target) Set(ctx context.Context, pid int, kind gdbserver.BreakKind, addr uint64, size int) error {
	return refused(t.traps.add(ctx, t.stub, pid, Trap{TrapKind(kind), addr, size}))
}

// Clear implements gdbserver.Breaker.
func (t *target) Clear(_ context.Context, pid int, kind gdbserver.BreakKind, addr uint64, size int) error {
	t.traps.remove(pid, Trap{TrapKind(kind), addr, size})
	return nil
}

// Interrupt implements gdbserver.Resumer.
func (t *target) Interrupt() {
	if err := t.Debugger.Interrupt(); err != nil {
		t.log.Error("interrupt", "error", err)
	}
}

// Resume implements gdbserver.Resumer.
func (t *target) Resume(ctx context.Context, actions []gdbserver.Action) (gdbserver.Stop, error) {
	if stop, gone := t.vanished(actions); gone {
		return stop, nil
	}
	before := t.Names()
	stop, err := t.act(ctx, actions)
	if err != nil {
		if t.stale && !errors.Is(err, ErrGone) {
			err = fmt.Errorf("%w; no registers are known now, \"maintenance flush register-cache\" asks for them again", err)
		}
		return gdbserver.Stop{}, refused(err)
	}
	if stop.Outside && stop.Machine == nil {
		// The server says so and asks again: for all that gdb knows the machine runs.
		return gdbserver.Stop{Reason: gdbserver.Interrupted, Text: outsideNote, Core: -1}, nil
	}
	effort := Full
	if slices.ContainsFunc(actions, func(a gdbserver.Action) bool { return a.Step }) {
		// Machines start and end while everything runs, not within a step; but the
		// registers of a parked CPU are with its hypervisor.
		effort = Glance
		for _, m := range t.Tower().Machines {
			if slices.ContainsFunc(m.CPUs, func(c *machine.CPU) bool { return c.State == machine.Parked }) {
				effort = Quick
			}
		}
	}
	if effort != Glance {
		if _, err := t.look(ctx, effort); err != nil {
			return gdbserver.Stop{}, err
		}
	}
	out := t.told(stop, before)
	if t.nestedAlone(actions) {
		out.Text += lockNote
	}
	if effort == Full {
		out.Text += t.crossCheck(ctx, max(out.Core, 0))
	}
	return out, nil
}

// lockNote is what gdb's person reads where scheduler-locking cannot be done.
const lockNote = "[nestdbg: everything ran: only a CPU of L1 can run alone, with scheduler-locking; " +
	"a CPU of a nested machine needs its hypervisor]\n"

// locked reports whether gdb wants CPUs to run alone ("set scheduler-locking on"): each
// is named, and none of them steps.
func locked(actions []gdbserver.Action) bool {
	named := 0
	for _, a := range actions {
		switch {
		case a.Hold:
		case a.Step || a.PID <= 0 || a.TID <= 0:
			return false
		default:
			named++
		}
	}
	return named > 0
}

// lock lets only the CPUs of QEMU's machine run that the actions name. If they are a
// nested machine's, everything runs: its hypervisor and its VMM are not to be told apart
// from what else does. One that waits for a CPU that stands still waits until the person
// interrupts.
func (t *target) lock(ctx context.Context, actions []gdbserver.Action) error {
	alone := make(map[int]bool)
	for _, a := range actions {
		if a.Hold {
			continue
		}
		m, c, err := t.thread(ctx, a.PID, a.TID)
		if err != nil {
			return err
		}
		if m.Parent != nil {
			return nil
		}
		alone[c.On] = true
	}
	for _, c := range t.Tower().Machines[0].CPUs {
		if !alone[c.On] && !slices.Contains(t.frozen, c.On) {
			t.frozen = append(t.frozen, c.On)
		}
	}
	return nil
}

// nestedAlone reports whether gdb wanted a CPU to run alone that cannot.
func (t *target) nestedAlone(actions []gdbserver.Action) bool {
	return locked(actions) && slices.ContainsFunc(actions, func(a gdbserver.Action) bool {
		return !a.Hold && a.PID != t.Number(t.Tower().Machines[0])
	})
}

// act does what the actions ask for: one step, or running.
func (t *target) act(ctx context.Context, actions []gdbserver.Action) (*Stop, error) {
	t.frozen = nil
	others := false
	for _, a := range actions {
		others = others || !a.Step && !a.Hold
		if _, c, err := t.Thread(a.PID, a.TID); a.Hold && err == nil && c.On >= 0 {
			t.frozen = append(t.frozen, c.On)
		}
	}
	for _, a := range actions {
		if !a.Step {
			continue
		}
		if t.outside != nil {
			return t.ranOn(ctx, a.PID, max(a.TID, 1))
		}
		m, c, err := t.thread(ctx, a.PID, max(a.TID, 1))
		if err != nil {
			return nil, err
		}
		return t.Step(ctx, m, c, others)
	}
	if locked(actions) {
		if err := t.lock(ctx, actions); err != nil {
			return nil, err
		}
	}
	return t.Continue(ctx)
}

// ranOn ends a step during which somebody else stopped the machine: when they have let
// it run, the CPU is elsewhere.
func (t *target) ranOn(ctx context.Context, pid, tid int) (*Stop, error) {
	interrupted, err := t.awaitOutside(ctx)
	if err != nil {
		return nil, err
	}
	if interrupted {
		t.interrupt.take()
	}
	m, c, err := t.thread(ctx, pid, tid)
	if err != nil {
		return nil, err
	}
	return &Stop{Machine: m, CPU: c, Signal: signalInterrupt, Outside: !interrupted}, nil
}

// vanished answers for a machine that ended since gdb attached to it: at the
// first resumption that covers it, when gdb expects nothing else of it.
func (t *target) vanished(actions []gdbserver.Action) (gdbserver.Stop, bool) {
	for pid, name := range t.attached {
		if _, ok := t.Tower().Machine(name); ok {
			continue
		}
		for _, a := range actions {
			if a.PID == pid || a.PID == -1 {
				delete(t.attached, pid)
				return gdbserver.Stop{PID: pid, Reason: gdbserver.Exited}, true
			}
		}
	}
	return gdbserver.Stop{}, false
}

// told is a stop in gdb's terms, with news of machines that came or went.
func (t *target) told(stop *Stop, before []string) gdbserver.Stop {
	out := gdbserver.Stop{Signal: stop.Signal, Core: -1, Text: t.news(before)}
	if stop.CPU != nil {
		if _, there := t.Tower().Machine(stop.Machine.Name); !there {
			// It ended while everything ran: the stop is told of what its CPU does now.
			gone := stop.CPU
			stop = &Stop{Signal: stop.Signal}
			stop.Machine, stop.CPU = t.Tower().At(max(gone.On, 0))
		}
	}
	if stop.CPU != nil {
		out.PID, out.TID, out.Core = t.Number(stop.Machine), stop.CPU.Index+1, max(stop.CPU.On, 0)
	}
	switch {
	case stop.Signal == signalInterrupt && !stop.Outside:
		out.Reason = gdbserver.Interrupted
	case stop.Trap == nil:
		out.Reason = gdbserver.None
	case stop.Trap.Kind.watches():
		out.Reason, out.Access, out.Addr = gdbserver.Watch, gdbserver.BreakKind(stop.Trap.Kind), stop.Addr
	case stop.Trap.Kind == TrapHardware:
		out.Reason = gdbserver.HwBreak
	default:
		out.Reason = gdbserver.SwBreak
	}
	return out
}

func (t *target) news(before []string) string {
	var b strings.Builder
	now := t.Names()
	for _, n := range now {
		if !slices.Contains(before, n) {
			fmt.Fprintf(&b, "[nestdbg: new machine %s]\n", n)
		}
	}
	for _, n := range before {
		if !slices.Contains(now, n) {
			fmt.Fprintf(&b, "[nestdbg: machine %s ended]\n", n)
		}
	}
	return b.String()
}

// Tables implements gdbserver.OSData: "info os machines" and "info os vcpus".
func (t *target) Tables(context.Context) ([]gdbserver.OSTable, error) {
	machines := gdbserver.OSTable{Name: "machines", Title: "Machines", Description: "The tower of machines",
		Columns: []string{"process", "name", "level", "parent", "second-stage"}}
	vcpus := gdbserver.OSTable{Name: "vcpus", Title: "Virtual CPUs", Description: "The CPUs of every machine",
		Columns: []string{"machine", "cpu", "doing"}}
	for _, m := range t.Tower().Machines {
		parent, second := "", ""
		if m.Parent != nil {
			parent, second = m.Parent.Name, fmt.Sprintf("%s %#x", m.Second.Kind, m.Second.Space.Root())
		}
		machines.Rows = append(machines.Rows,
			[]string{fmt.Sprint(t.Number(m)), m.Name, fmt.Sprint(m.Level), parent, second})
		for _, c := range m.CPUs {
			vcpus.Rows = append(vcpus.Rows, []string{m.Name, fmt.Sprint(c.Index), t.doing(m, c)})
		}
	}
	return []gdbserver.OSTable{machines, vcpus}, nil
}
