// Package cli is the command line: it opens a target, asks the session and
// renders reports. gdb's "monitor" runs the same commands on the session that
// the gdb server holds.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
)

// The exit statuses of nestdbg.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Run executes a command line and returns the exit status.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, errOut: errOut}
	root := a.root()
	root.AddCommand(a.serveCommand(), a.gdbCommand(), a.exportCommand(), a.snapshotCommand(), a.reportCommand(), a.watchCommand(), newLabCommand())
	checkArgs(root)
	root.SetArgs(splitExamine(args))
	err := execute(ctx, root)
	a.close()
	if err == nil {
		return exitDone
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	fmt.Fprintf(errOut, "nestdbg: %v\n", err)
	if isUsage(err) {
		return exitUsage
	}
	return exitFailed
}

// execute runs a command, which reads files that others may shorten meanwhile.
func execute(ctx context.Context, c *cobra.Command) (err error) {
	defer mem.Catch(&err)()
	return c.ExecuteContext(ctx)
}

// exitStatus is the end of a program that was started for the person, whose
// status becomes ours.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a question that cannot be asked like that.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// checkArgs makes arguments that a command of the tree refuses wrong usage.
func checkArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil || isUsage(err) {
				return err
			}
			return usagef("%s: %w; usage: %s", c.Name(), err, c.UseLine())
		}
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

// isUsage reports whether the person's words are what is wrong: the command
// line, a machine that does not exist, an address that does not translate, a
// target that cannot be used as it is.
func isUsage(err error) bool {
	var usage usageError
	var unknown *session.UnknownMachineError
	var assumed *session.AssumptionError
	return errors.As(err, &usage) || errors.As(err, &unknown) || errors.As(err, &assumed) || errors.Is(err, session.ErrDead) ||
		errors.Is(err, mem.ErrFault) || target.IsUsage(err)
}

// examineWord is gdb's spelling of the command x with its format.
var examineWord = regexp.MustCompile(`^x/[0-9]*[a-z]*$`)

// splitExamine turns gdb's spellings "x/16gx" and "p/x" into a command and its
// format, and keeps expressions apart from options.
func splitExamine(args []string) []string {
	if split, ok := splitPrint(args); ok {
		return split
	}
	for i, s := range args {
		value := i > 0 && slices.Contains(append([]string{"-t", "--target", "-m", "--machine", "--symbols"}, hintFlags...), args[i-1])
		if s == "--" {
			break
		}
		if examineWord.MatchString(s) && !value {
			return slices.Concat(args[:i], []string{"x", s[1:]}, args[i+1:])
		}
	}
	return args
}

// app is one invocation: its flags, and the target once it is open.
type app struct {
	in          io.Reader
	out, errOut io.Writer

	targetSpec string
	layout     string
	machine    string
	json       bool
	symbols    []string
	images     *images // what symbols names; nil before it is parsed
	hints      hints
	blind      bool
	debuginfod bool
	verbose    bool

	target target.Target
	// session is what is looked at; for "monitor" it is the gdb server's.
	session  *session.Session
	debugger *session.Debugger // only for "monitor"
	thread   gdbThread         // the same
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "nestdbg",
		Short: "Debug nested guests: the virtual machines inside a machine that QEMU runs",
		Long: `nestdbg debugs every layer of a machine that QEMU runs: the hypervisor in it (l1)
and the guests of that hypervisor (vm0, vm1, ...), with memory through both stages
of page tables, registers, symbols with KASLR on, breakpoints that belong to one
machine, and stock gdb in front. QEMU, gdb, hypervisor and guests are unmodified.
What is left of such a machine after a crash answers the same commands: -t FILE.

Addresses are virtual, in hexadecimal; "pa:0x1000" is physical; "schedule+0x10" is
a symbol; "$pc" and other registers of the chosen CPU work too.`,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; %s --help lists them", args[0], c.Use)
			}
			return c.Help()
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	c.SetIn(a.in)
	c.SetOut(a.out)
	c.SetErr(a.errOut)
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := c.PersistentFlags()
	f.StringVarP(&a.targetSpec, "target", "t", "", "QEMU's PID or QMP socket (default: the only QEMU of this user), or a file: "+
		"an ELF or kdump-compressed dump, a migration in a file, a QEMU's memory")
	f.StringVar(&a.layout, "layout", "", "where a memory file's bytes lie, if they do not say: q35, pc, microvm, flat; with ,below4g=SIZE")
	f.StringVarP(&a.machine, "machine", "m", "", "machine: l1, vm0, vm1, ... (default: the only nested machine)")
	f.BoolVar(&a.json, "json", false, "answer in JSON")
	f.StringArrayVar(&a.symbols, "symbols", nil, "directory with debug information, searched first; or MACHINE=ELF[@BASE], "+
		"a file that is loaded in a machine, its first segment at BASE if that is not where it was linked (repeatable)")
	a.hints.flags(c)
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say what is being done, on standard error")
	c.AddCommand(a.inspectCommands()...)
	return c
}

// log writes to standard error, and only what matters unless asked for more.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: level}))
}

// lookGCPercent lets the heap grow to 16 MB before the first collection.
const lookGCPercent = 400

// open opens the target without looking at it.
func (a *app) open(ctx context.Context) error {
	if a.session != nil {
		return nil
	}
	named, err := parseSymbols(a.symbols)
	if err != nil {
		return err
	}
	a.images = named
	// Most runs end before a collection pays: a cold look makes some 10 MB.
	debug.SetGCPercent(lookGCPercent)
	t, err := target.Recognise(ctx, a.targetSpec, target.Options{Layout: a.layout})
	if err != nil {
		return err
	}
	a.target, a.session = t, session.New(t)
	return a.assume(ctx)
}

// stands reports whether the machine stands still because the gdb server has control
// of it. A server that nobody has attached anything with, or no longer, has none.
func (a *app) stands() bool { return a.debugger != nil && a.debugger.Holds() }

// look opens the target and looks at it, unless the gdb server did with success and
// nothing ran since.
func (a *app) look(ctx context.Context, effort session.Effort) error {
	if err := a.open(ctx); err != nil {
		return err
	}
	if a.stands() {
		return a.debugger.Refresh(ctx)
	}
	_, err := a.session.Look(ctx, effort)
	if err == nil {
		err = ctx.Err() // a search of memory ends early then, and what it found is not all
	}
	return err
}

// lookAt is look, and the machine that the person means.
func (a *app) lookAt(ctx context.Context) (*machine.Machine, error) {
	if err := a.look(ctx, session.Full); err != nil {
		return nil, err
	}
	return a.session.Machine(a.machine)
}

// close lets go of the target. For "monitor" it is the server's.
func (a *app) close() {
	if a.target != nil && a.debugger == nil {
		if err := a.target.Close(); err != nil {
			fmt.Fprintf(a.errOut, "nestdbg: %v\n", err)
		}
	}
}

// live is the target as a QEMU that runs, for what only that can do.
func (a *app) live() (*target.Live, error) {
	if l, ok := a.target.(*target.Live); ok {
		return l, nil
	}
	d := a.target.Describe()
	return nil, fmt.Errorf("%w: %s (%s)", session.ErrDead, d.Path, d.Kind)
}

// show renders a report as the person wants it.
func (a *app) show(r report.Report) error {
	if a.json {
		return report.JSON(a.out, r)
	}
	r.Text(a.out)
	return nil
}
