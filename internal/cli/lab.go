package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/lab"
	"nestdbg/lab/agent"
)

// newLabCommand is "nestdbg lab": real nested guests to play with.
func newLabCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Boot a real nested guest to play with",
		Long: `Boots Debian Linux with KVM under QEMU's emulation of AMD SVM (L1) and in it
one or more nested VMs (L2), without KVM on this host; with --depth 3 each of
these has a nested VM too (L3). Other kinds have another L1: a small hypervisor of
our own, or KVM for Intel in Bochs, which takes minutes and leaves its memory.
Needs Debian or a relative of it; "lab up" says which packages are missing.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newLabUpCommand(), newLabListCommand(), newLabDownCommand(),
		newLabConsoleCommand(), newLabSymbolsCommand(), newLabAgentCommand())
	return cmd
}

// newLabAgentCommand is what the lab's machines run as their init.
func newLabAgentCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "agent ROLE",
		Short:  "Run inside a machine of the lab",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return agent.Main(args) },
	}
}

// sizeFlag is a flag for a number of bytes.
type sizeFlag uint64

func (s *sizeFlag) String() string { return lab.FormatSize(uint64(*s)) }
func (s *sizeFlag) Type() string   { return "SIZE" }

func (s *sizeFlag) Set(text string) error {
	n, err := lab.ParseSize(text)
	*s = sizeFlag(n)
	return err
}

// labUp is the command line of "lab up".
type labUp struct {
	options          lab.Options
	memory, vmMemory sizeFlag
	gdb, wait, json  bool
}

func newLabUpCommand() *cobra.Command {
	u := &labUp{memory: 2 << 30, vmMemory: 256 << 20}
	o := &u.options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a lab",
		Example: `  nestdbg lab up
  nestdbg lab up --name two --vms 2 --vm-append nokaslr
  nestdbg lab up --depth 3
  nestdbg lab up --kind monitor --vms 2 --append crash=store
  nestdbg lab up --kind bochs
  nestdbg lab up --kernel linux-image-cloud-amd64/trixie
  nestdbg status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.Name, "name", lab.DefaultName, "name of the lab")
	f.StringVar(&o.Kind, "kind", lab.LinuxKind, "what L1 and its VMs run: linux, monitor: a small hypervisor of our own and a C program, or bochs: linux with KVM for Intel, in Bochs, of which the memory is left; bochs-monitor: the monitor there")
	f.IntVar(&o.VMs, "vms", 1, "number of nested VMs")
	f.IntVar(&o.CPUs, "cpus", 2, "CPUs of L1; with --kind monitor the default is 1")
	f.IntVar(&o.VMCPUs, "vm-cpus", 1, "CPUs of each VM")
	f.IntVar(&o.Depth, "depth", 2, "machines inside each other, L1 included; with 3 each VM has KVM and a VM, vm0.vm0 in vm0")
	f.Var(&u.memory, "memory", "memory of L1; with --kind monitor the default is 4G")
	f.Var(&u.vmMemory, "vm-memory", "memory of each VM of L1; with --depth 3 the default is 768M")
	f.StringVar(&o.L1Kernel, "l1-kernel", lab.DefaultKernel, "L1's kernel: package or package/suite, .deb files, or vmlinuz")
	f.StringVar(&o.Kernel, "kernel", lab.DefaultKernel, "L2's kernel: package or package/suite, .deb files, or vmlinuz; with --kind monitor there is none unless it is given")
	f.StringVar(&o.L1Modules, "l1-modules", "", "lib/modules/RELEASE of an --l1-kernel that is a vmlinuz")
	f.StringVar(&o.Modules, "modules", "", "lib/modules/RELEASE of a --kernel that is a vmlinuz")
	f.StringVar(&o.Append, "append", "", "add to L1's command line; lab/monitor/README.md says what the monitor takes")
	f.StringVar(&o.VMAppend, "vm-append", "", "add to each VM's kernel command line")
	f.StringVar(&o.CPUModel, "cpu-model", lab.DefaultCPUModel, "QEMU's -cpu for L1; with ,-la57 it has 4-level paging")
	f.BoolVar(&u.gdb, "gdb", true, "give QEMU a gdb server")
	f.BoolVar(&u.wait, "wait", true, "return when every machine is up")
	f.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long to wait for that; with --kind bochs the default is 20m")
	f.BoolVar(&u.json, "json", false, "describe the lab as JSON")
	return cmd
}

func (u *labUp) run(cmd *cobra.Command) error {
	o := u.options
	o.Memory, o.VMMemory = uint64(u.memory), uint64(u.vmMemory)
	// What is not asked for, kind and depth decide.
	for flag, clear := range map[string]func(){
		"cpus": func() { o.CPUs = 0 }, "vm-cpus": func() { o.VMCPUs = 0 },
		"memory": func() { o.Memory = 0 }, "vm-memory": func() { o.VMMemory = 0 },
		"timeout":   func() { o.Timeout = 0 },
		"l1-kernel": func() { o.L1Kernel = "" }, "kernel": func() { o.Kernel = "" },
	} {
		if !cmd.Flags().Changed(flag) {
			clear()
		}
	}
	o.NoGDB, o.NoWait = !u.gdb, !u.wait
	if o.VMs == 0 {
		o.VMs = lab.NoVMs
	}
	if isTerminal(os.Stderr) {
		o.Progress = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text) }
	}
	l, err := lab.Up(cmd.Context(), o)
	var boot *lab.BootError
	if errors.As(err, &boot) {
		fmt.Fprint(cmd.ErrOrStderr(), boot.Tail)
	}
	var option *lab.OptionError
	if errors.As(err, &option) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if u.json {
		return printLabJSON(cmd.OutOrStdout(), l)
	}
	return printLab(cmd.OutOrStdout(), l)
}

// printLab says what was started and how long it took.
func printLab(w io.Writer, l *lab.Lab) error {
	if l.Over {
		fmt.Fprintf(w, "lab %s is over; its memory is left: nestdbg status -t %s\n", l.Name, l.MemoryFile)
	} else {
		fmt.Fprintf(w, "lab %s is up: QEMU %d, %s\n", l.Name, l.PID, l.Dir)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range l.Machines {
		if m.Image != "" {
			fmt.Fprintf(t, "%s\t%s\n", m.Name, strings.TrimPrefix(m.Symbols(), m.Name+"="))
			continue
		}
		if m.BootSeconds == 0 && m.Release != "" {
			fmt.Fprintf(t, "%s\tLinux %s\n", m.Name, m.Release)
			continue
		}
		if m.Release == "" {
			fmt.Fprintf(t, "%s\tbooting Linux %s\n", m.Name, m.Kernel.Release)
			continue
		}
		fmt.Fprintf(t, "%s\tLinux %s\tuserspace after %.1f s\n", m.Name, m.Release, m.BootSeconds)
	}
	return t.Flush()
}

func printLabJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(v)
}

// isTerminal reports whether f is a character device, which a terminal is and
// neither a file nor a pipe.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func newLabListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the labs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := lab.List("")
			if err != nil {
				return err
			}
			if asJSON {
				return printLabJSON(cmd.OutOrStdout(), append([]*lab.Lab{}, labs...))
			}
			return printLabs(cmd.OutOrStdout(), labs)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printLabs(w io.Writer, labs []*lab.Lab) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tPID\tMACHINES\tQMP")
	for _, l := range labs {
		state := "dead"
		switch {
		case l.Running:
			state = "running"
		case l.Over:
			state = "over"
		case l.Incomplete:
			state = "incomplete"
		}
		var names []string
		for _, m := range l.Machines {
			names = append(names, m.Name)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", l.Name, state, l.PID, strings.Join(names, ","), l.QMPPath)
	}
	return t.Flush()
}

func newLabDownCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down [NAME]",
		Short: "End a lab and remove what it left",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return usagef("give either a name or --all")
			}
			labs, err := labsToEnd(all, args)
			for _, l := range labs {
				err = errors.Join(err, l.Down(cmd.Context()))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all labs")
	return cmd
}

func labsToEnd(all bool, args []string) ([]*lab.Lab, error) {
	if all {
		return lab.List("")
	}
	l, err := openLab(args)
	if err != nil {
		return nil, err
	}
	return []*lab.Lab{l}, nil
}

// openLab finds the lab that args name, or the default one. When there is none
// of that name the error lists those that there are.
func openLab(args []string) (*lab.Lab, error) {
	name := lab.DefaultName
	if len(args) > 0 {
		name = args[0]
	}
	l, err := lab.Open("", name)
	if !errors.Is(err, lab.ErrNotFound) {
		return l, err
	}
	labs, errList := lab.List("")
	if errList != nil || len(labs) == 0 {
		return nil, usagef("%w; there is none: nestdbg lab up", err)
	}
	var names []string
	for _, l := range labs {
		names = append(names, l.Name)
	}
	return nil, usagef("%w; there are: %s", err, strings.Join(names, ", "))
}

func newLabConsoleCommand() *cobra.Command {
	var request string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "console [NAME] [l1|vmN|vmN.vm0]",
		Short: "Use a machine's console, or ask its agent",
		Long: `Connects the terminal with the console of a machine, where a shell waits;
Ctrl-] leaves. With --command it asks the machine's agent instead and prints the
answer: ping, kallsyms, modules, tasks (pid tgid ppid state comm), kmsg, clock,
stack PID, cat FILE, exec COMMAND, pattern, unpattern, crash, reboot, poweroff;
in a machine with VMs also vm list, vm start N [reboots], vm kill N.`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			machine, names := splitMachine(args)
			l, err := openLab(names)
			if err != nil {
				return err
			}
			if request == "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "console of %s in lab %s; Ctrl-] leaves\n", machine, l.Name)
				return machineError(l.Console(cmd.Context(), machine, os.Stdin, cmd.OutOrStdout()))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			answer, err := l.Ask(ctx, machine, request)
			if err != nil {
				return machineError(err)
			}
			_, err = cmd.OutOrStdout().Write(answer)
			return err
		},
	}
	cmd.Flags().StringVar(&request, "command", "", "send this request and print the answer")
	cmd.Flags().DurationVar(&timeout, "timeout", 90*time.Second, "how long to wait for the answer")
	return cmd
}

// machineError makes a machine that the lab does not have wrong usage.
func machineError(err error) error {
	if errors.Is(err, lab.ErrNotFound) {
		return usageError{err}
	}
	return err
}

// splitMachine takes the machine from the arguments [NAME] [MACHINE]; a single
// argument that looks like a machine is one. Without one it is vm0.
func splitMachine(args []string) (machine string, names []string) {
	if n := len(args); n > 0 && (n == 2 || lab.IsMachineName(args[0])) {
		return args[n-1], args[:n-1]
	}
	return "vm0", args
}

func newLabSymbolsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "symbols [NAME]",
		Short: "Get the debug symbols of a lab's kernels",
		Long: `Downloads the debug symbols of the kernels of a lab (about 300 MB each, once)
and prints the directory that holds them, for --symbols: one line per kernel. For
what is no kernel it prints MACHINE=ELF@BASE, for --symbols too.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(args)
			if err != nil {
				return err
			}
			return printSymbols(cmd, l)
		},
	}
}

func printSymbols(cmd *cobra.Command, l *lab.Lab) error {
	progress := func(string) {}
	if isTerminal(os.Stderr) {
		progress = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text) }
	}
	var printed []string
	for _, m := range l.Machines {
		if m.Image != "" {
			fmt.Fprintln(cmd.OutOrStdout(), m.Symbols())
			continue
		}
		dir, err := l.SymbolsDir(cmd.Context(), m.Name, "", progress)
		if err != nil {
			return err
		}
		if !slices.Contains(printed, dir) {
			printed = append(printed, dir)
			fmt.Fprintln(cmd.OutOrStdout(), dir)
		}
	}
	return nil
}
