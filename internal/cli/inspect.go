package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

// inspectCommands are the commands that look and change nothing about how the
// machine runs. They work from the command line and behind "monitor".
func (a *app) inspectCommands() []*cobra.Command {
	return append(a.kernelCommands(),
		a.statusCommand(), a.regsCommand(), a.examineCommand(), a.vtopCommand(), a.mapsCommand(), a.writeCommand(),
		a.vmcsCommand(), a.findCommand(), a.auditCommand(),
	)
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "The tower: QEMU, every machine, what each CPU does now; with -m of one machine", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.look(c.Context(), session.Full); err != nil {
				return err
			}
			st := a.status(c.Context())
			if c.Flags().Changed("machine") { // gdb's current inferior is no such wish
				m, err := a.session.Machine(a.machine)
				if err != nil {
					return err
				}
				st.Only(m.Name)
			}
			return a.show(st)
		},
	}
}

func (a *app) status(ctx context.Context) *report.Status {
	d := a.target.Describe()
	ram := report.RAM{Source: d.Source, File: d.File, Size: d.Size}
	var st *report.Status
	if info := d.QEMU; info != nil {
		q := &report.QEMU{Version: info.Version, Accel: info.Accel, PID: info.PID, Machine: info.MachineType,
			Name: info.Name, QMP: info.QMP.String()}
		if !info.Stub.IsZero() {
			q.Stub = info.Stub.String()
		}
		st = report.NewStatus(a.session, q, ram)
	} else {
		st = report.NewStatus(a.session, nil, ram)
		st.File = &report.File{Path: d.Path, Kind: d.Kind}
	}
	st.Problems = append(st.Problems, d.Problems...)
	return st
}

// cpuFlag adds --cpu to a command.
func cpuFlag(c *cobra.Command, index *int) {
	c.Flags().IntVar(index, "cpu", -1, "CPU of the machine (default: one that runs, else the first)")
}

// cpusOrOne are all CPUs of a machine, or the one that a person chose.
func (a *app) cpusOrOne(m *machine.Machine, index int) ([]*machine.CPU, error) {
	if index < 0 {
		return m.CPUs, nil
	}
	one, err := a.cpu(m, index)
	if err != nil {
		return nil, err
	}
	return []*machine.CPU{one}, nil
}

// cpu finds the CPU that a person chose, or a good one: in gdb that of the thread
// that is selected there.
func (a *app) cpu(m *machine.Machine, index int) (*machine.CPU, error) {
	if index < 0 && a.thread.machine == m.Name {
		if a.thread.task != nil {
			return nil, usagef("the thread selected in gdb is the task %d; say which CPU is meant with --cpu", a.thread.task.PID)
		}
		index = a.thread.cpu
	}
	if index >= 0 {
		if c, ok := m.CPU(index); ok {
			return c, nil
		}
		return nil, usagef("%s has no CPU %d; it has %d", m.Name, index, len(m.CPUs))
	}
	for _, c := range m.CPUs {
		if c.On >= 0 {
			return c, nil
		}
	}
	if len(m.CPUs) == 0 {
		return nil, fmt.Errorf("no CPU of %s is known", m.Name)
	}
	return m.CPUs[0], nil
}

func (a *app) regsCommand() *cobra.Command {
	var index int
	var all bool
	c := &cobra.Command{
		Use: "regs", Short: "Registers of every CPU of a machine, hidden ones included", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := a.lookAt(c.Context())
			if err != nil {
				return err
			}
			cpus, err := a.cpusOrOne(m, index)
			if err != nil {
				return err
			}
			return a.show(report.NewRegisters(m, cpus, all))
		},
	}
	c.Flags().IntVar(&index, "cpu", -1, "only this CPU of the machine")
	c.Flags().BoolVar(&all, "all", false, "floating point and vector registers too")
	return c
}

func (a *app) examineCommand() *cobra.Command {
	var index int
	c := &cobra.Command{
		Use:     "x [/FORMAT] ADDRESS",
		Short:   "Memory, in gdb's formats: x/16gx, x/s, x/8i",
		Example: "  nestdbg x/8i '$pc'\n  nestdbg -m l1 x/4gx pa:0x1000\n  nestdbg x/s linux_banner",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			text := ""
			if s, ok := strings.CutPrefix(args[0], "/"); ok {
				text, args = s, args[1:]
			}
			if len(args) != 1 {
				return usagef("x takes one address, after an optional format such as /16gx")
			}
			f, err := report.ParseFormat(text)
			if err != nil {
				return usageError{err}
			}
			return a.examine(c.Context(), index, f, args[0])
		},
	}
	cpuFlag(c, &index)
	return c
}

func (a *app) examine(ctx context.Context, index int, f report.Format, where string) error {
	m, err := a.lookAt(ctx)
	if err != nil {
		return err
	}
	one, err := a.cpu(m, index)
	if err != nil {
		return err
	}
	at, err := a.resolve(m, one, where)
	if err != nil {
		return err
	}
	r := &report.Memory{Machine: m.Name, Space: at.space()}
	e := report.Examiner{Arch: m.Arch}
	if at.physical {
		e.Read = func(p []byte, addr uint64) (int, error) { return m.Phys.ReadPhys(p, mem.Phys(addr)) }
	} else {
		v, err := a.session.VirtMemory(m, one)
		if err != nil {
			return err
		}
		e.Read = func(p []byte, addr uint64) (int, error) { return v.ReadVirt(p, mem.Virt(addr)) }
		k, _ := a.session.Kernel(m)
		e.Symbol = func(addr uint64) string { return report.Symbol(k, addr) }
	}
	e.Examine(r, f, at.value)
	if len(r.Lines) == 0 && !a.json {
		return usagef("%s", r.Fault)
	}
	if err := a.show(r); err != nil {
		return err
	}
	if len(r.Lines) == 0 {
		return exitStatus(exitUsage)
	}
	return nil
}

func (a *app) vtopCommand() *cobra.Command {
	var index int
	var access string
	var fault bool
	c := &cobra.Command{
		Use: "vtop ADDRESS", Short: "Every page-table entry of both stages behind an address, and which is at fault",
		Long: `Follows an address through all stages, entry by entry. Where it leads nowhere, or does
not permit --access, it says which entry of which stage is at fault and what is wrong
with it. With --fault the address is that of the fault of the second stage with which
the guest left last.`,
		Example: "  nestdbg vtop -m vm0 linux_banner\n  nestdbg vtop -m vm0 pa:0xfee00000 --access w\n  nestdbg vtop -m vm0 --fault",
		Args: func(c *cobra.Command, args []string) error {
			if fault {
				return noArgs(c, args)
			}
			return oneArg("an address")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.lookAt(c.Context())
			if err != nil {
				return err
			}
			one, err := a.cpu(m, index)
			if err != nil {
				return err
			}
			if fault {
				v, err := report.NewFault(m, one, a.target.FileOffset)
				if err != nil {
					return usageError{err}
				}
				return a.show(v)
			}
			return a.vtop(m, one, args[0], access)
		},
	}
	cpuFlag(c, &index)
	c.Flags().StringVar(&access, "access", "", "r, w, x or several: what all stages have to permit")
	c.Flags().BoolVar(&fault, "fault", false, "the fault of the second stage that the CPU left its guest with")
	return c
}

func (a *app) vtop(m *machine.Machine, one *machine.CPU, where, access string) error {
	perm, err := parseAccess(access)
	if err != nil {
		return err
	}
	at, err := a.resolve(m, one, where)
	if err != nil {
		return err
	}
	offset := a.target.FileOffset
	if at.physical {
		return a.showVTop(report.NewPTopAccess(m, mem.Phys(at.value), perm, offset))
	}
	space, err := m.Space(one)
	if err != nil {
		return err
	}
	return a.showVTop(report.NewVTopAccess(m, space, at.value, perm, offset))
}

// parseAccess reads "r", "w", "x" or several of them.
func parseAccess(text string) (p paging.Perm, err error) {
	for _, c := range text {
		switch c {
		case 'r':
			p |= paging.Read
		case 'w':
			p |= paging.Write
		case 'x':
			p |= paging.Exec
		default:
			return 0, usagef("--access is made of r, w and x, not %q", text)
		}
	}
	return p, nil
}

// showVTop shows a walk; one that ends early answers a question that could not
// be answered.
func (a *app) showVTop(v *report.VTop) error {
	if err := a.show(v); err != nil {
		return err
	}
	if v.Fault != "" {
		return exitStatus(exitUsage)
	}
	return nil
}

func (a *app) mapsCommand() *cobra.Command {
	var index, stage, limit int
	c := &cobra.Command{
		Use: "maps [FIRST [LAST]]", Short: "A machine's address space as ranges: virtual, physical, parent's physical",
		Args: cobra.MaximumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.lookAt(c.Context())
			if err != nil {
				return err
			}
			one, err := a.cpu(m, index)
			if err != nil {
				return err
			}
			space, err := stageSpace(m, one, stage)
			if err != nil {
				return err
			}
			in := mem.Range{Last: ^uint64(0)}
			for i, text := range args {
				at, err := a.resolve(m, one, text)
				if err != nil {
					return err
				}
				*[]*uint64{&in.First, &in.Last}[i] = at.value
			}
			return a.show(report.NewMaps(m, space, stage, in, limit))
		},
	}
	cpuFlag(c, &index)
	c.Flags().IntVar(&stage, "stage", 1, "1: the machine's own page tables; 2: the second stage alone")
	c.Flags().IntVar(&limit, "limit", 2000, "at most this many ranges; 0 for all")
	return c
}

func stageSpace(m *machine.Machine, c *machine.CPU, stage int) (*paging.Space, error) {
	switch {
	case stage == 1:
		return m.Space(c)
	case stage != 2:
		return nil, usagef("--stage is 1 or 2, not %d", stage)
	case m.Second == nil:
		return nil, usagef("%s is QEMU's own machine and has no second stage", m.Name)
	}
	return m.Second.Space, nil
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, got %q", c.Name(), args)
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s takes %s, got %d arguments", c.Name(), what, len(args))
		}
		return nil
	}
}
