package cli

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/report"
)

// kernelCommands ask the Linux kernel of a machine, through its memory.
func (a *app) kernelCommands() []*cobra.Command {
	return []*cobra.Command{
		a.dmesgCommand(), a.psCommand(), a.currentCommand(), a.lsmodCommand(), a.symCommand(), a.btCommand(),
		a.printCommand(), a.structCommand(),
	}
}

// kernelAt looks, and finds the kernel of the machine that the person means.
func (a *app) kernelAt(ctx context.Context) (*machine.Machine, *linux.Kernel, error) {
	m, err := a.lookAt(ctx)
	if err != nil {
		return nil, nil, err
	}
	k, err := a.session.Kernel(m)
	return m, k, err
}

// kernelAside is kernelAt for questions that need no registers of one moment: a
// machine that runs is not stopped for them, where that would be a risk to it.
func (a *app) kernelAside(ctx context.Context) (*machine.Machine, *linux.Kernel, error) {
	if err := a.open(ctx); err != nil {
		return nil, nil, err
	}
	if !a.stands() {
		if _, err := a.session.LookAside(ctx); err != nil {
			return nil, nil, err
		}
		m, err := a.session.Machine(a.machine)
		if err == nil {
			if k, err := a.session.Kernel(m); err == nil {
				return m, k, nil
			}
		}
	}
	return a.kernelAt(ctx) // a look at one moment may find more
}

func (a *app) psCommand() *cobra.Command {
	var threads bool
	c := &cobra.Command{
		Use: "ps", Short: "Tasks of a machine's kernel, with command lines",
		Long: `Tasks of a machine's kernel, with command lines.

A command line is what the process has in its memory. Where not all of that could be read,
or it is longer than 128 KiB, it is marked "(cut)"; with --json, command_error says why.
A name in brackets is that of a task without one, as of a thread of the kernel. In JSON
a byte that is no UTF-8 is a lone surrogate, which Python's os.fsencode turns back.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, k, err := a.kernelAside(c.Context())
			if err != nil {
				return err
			}
			r, err := report.NewTasks(m.Name, k, threads)
			if err != nil {
				return err
			}
			return a.show(r)
		},
	}
	c.Flags().BoolVarP(&threads, "threads", "T", false, "every thread of every process")
	return c
}

func (a *app) lsmodCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lsmod", Short: "Modules of a machine's kernel: size, place, state, build id, users", Args: noArgs,
		Long: `Modules of a machine's kernel, in its own order, with what /proc/modules says of them:
the letters of a module that taints the kernel are behind its state, and USED BY is how
often it is needed and by which modules.`,
		RunE: func(c *cobra.Command, _ []string) error {
			m, k, err := a.kernelAside(c.Context())
			if err != nil {
				return err
			}
			r, err := report.NewModules(m.Name, k)
			if err != nil {
				return err
			}
			return a.show(r)
		},
	}
}

func (a *app) symCommand() *cobra.Command {
	var index int
	c := &cobra.Command{
		Use: "sym NAME|ADDRESS", Short: "A symbol's address, or an address's symbol, in kernel and modules",
		Example: "  nestdbg sym schedule\n  nestdbg sym 0xffffffff81234567\n  nestdbg sym '$pc'",
		Args:    oneArg("a name or an address"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.open(c.Context()); err != nil {
				return err
			}
			look := a.kernelAside
			if strings.Contains(args[0], "$") || len(a.images.byMachine) > 0 { // a register, or perhaps no kernel
				look = a.kernelAt
			}
			m, k, err := look(c.Context())
			if m != nil && len(a.images.of(m)) > 0 {
				r, ok, errImage := a.imageReport(m, index, args[0])
				if ok {
					return a.show(r)
				}
				err = errors.Join(errImage, err)
			}
			if err != nil {
				return err
			}
			if !looksNumeric(args[0]) {
				if r := report.NewSymbols(m.Name, k, args[0]); len(r.Symbols) > 0 {
					return a.show(r)
				}
			}
			one, err := a.cpu(m, index)
			if err != nil {
				return err
			}
			at, err := a.resolve(m, one, args[0])
			switch {
			case err != nil:
				return err
			case at.physical:
				return usagef("symbols have virtual addresses, not %s", args[0])
			}
			r := report.NewPlace(m.Name, k, at.value)
			if len(r.Symbols) == 0 {
				return usagef("%s belongs to no symbol of %s%s", report.Hex(at.value), m.Name, linux.Unread(k.SymbolProblems()))
			}
			return a.show(r)
		},
	}
	cpuFlag(c, &index)
	return c
}

func (a *app) btCommand() *cobra.Command {
	var index int
	var all bool
	c := &cobra.Command{
		Use: "bt [PID]", Short: "Backtrace of a CPU, of a task, or of everything",
		Long: `Backtrace of a CPU, of the task PID, or with --all of every CPU and every task, by the
kernel's own unwind tables, through interrupts and exceptions down to user mode. A
frame that no table leads to is marked with "?".

A machine that runs is stopped for some milliseconds, so that registers and stacks
belong together.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			pid := -1
			if len(args) == 1 {
				var err error
				if pid, err = strconv.Atoi(args[0]); err != nil || pid < 0 {
					return usagef("bt takes the number of a task, not %q", args[0])
				}
			}
			if chosen := (pid >= 0) || c.Flags().Changed("cpu"); all && chosen || pid >= 0 && c.Flags().Changed("cpu") {
				return usagef("bt takes one of PID, --cpu and --all")
			}
			if t := a.thread.task; t != nil && !all && pid < 0 && !c.Flags().Changed("cpu") {
				pid = t.PID
			}
			r, err := a.backtraces(c.Context(), func(m *machine.Machine, b *report.Backtracer) error {
				switch {
				case all:
					return b.All()
				case pid >= 0:
					return b.Task(pid)
				}
				one, err := a.cpu(m, index)
				if err == nil {
					b.CPU(one)
				}
				return err
			})
			var none *report.NoTaskError
			switch {
			case errors.As(err, &none):
				return usageError{err}
			case err != nil:
				return err
			}
			return a.show(r)
		},
	}
	cpuFlag(c, &index)
	c.Flags().BoolVar(&all, "all", false, "every CPU and every task")
	return c
}

// backtraces collects backtraces while the machine stands still.
func (a *app) backtraces(ctx context.Context,
	collect func(*machine.Machine, *report.Backtracer) error) (r *report.Backtraces, err error) {
	resume, _, err := a.stand(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resume()) }()
	m, k, err := a.kernelAt(ctx)
	if err != nil {
		return nil, err
	}
	b := report.NewBacktracer(m, k, k.Unwinder())
	if err := collect(m, b); err != nil {
		return nil, err
	}
	return b.Report(), nil
}

// stand stops a machine that runs until resume is called, for questions about one
// moment. It is stopped once, before the first look: each stop is a risk under
// QEMU's emulation (session.Peeker), and a look takes a tenth of a second at most.
func (a *app) stand(ctx context.Context) (resume func() error, ran bool, err error) {
	nothing := func() error { return nil }
	if err := a.open(ctx); err != nil {
		return nil, false, err
	}
	if a.stands() {
		return nothing, false, nil
	}
	ran, err = a.target.Running(ctx)
	if err != nil || !ran {
		return nothing, false, err
	}
	live, err := a.live()
	if err != nil {
		return nil, false, err
	}
	a.session.ExpectStop(ctx)
	resume, err = live.Pause(ctx)
	return resume, true, err
}
