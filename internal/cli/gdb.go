package cli

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

// attachScript attaches machines that appear and removes those that end.
//
//go:embed gdb_attach.py
var attachScript string

func (a *app) gdbCommand() *cobra.Command {
	var program string
	c := &cobra.Command{
		Use:   "gdb [-- GDB-ARGUMENTS]",
		Short: "gdb on every machine: one inferior each, with symbols and breakpoints ready",
		RunE: func(c *cobra.Command, args []string) error {
			return a.gdb(c.Context(), program, args)
		},
	}
	a.debuginfodFlag(c)
	c.Flags().StringVar(&program, "gdb", "gdb", "the gdb to start")
	return c
}

func (a *app) gdb(ctx context.Context, program string, args []string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return usagef("no %s here: install gdb, or name one with --gdb (%w)", program, err)
	}
	if err := a.open(ctx); err != nil {
		return err
	}
	// gdb would say it in more words.
	if err := a.target.CheckStub(ctx); err != nil {
		return err
	}
	l, clean, err := listener("", false)
	if err != nil {
		return err
	}
	defer clean()
	s := newScripts(l.Addr().String())
	if err := s.writeInit(); err != nil {
		return err
	}
	// Ctrl-C ends the context that we were given, and is for gdb alone from here on.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	served := make(chan error, 1)
	go func() {
		files, err := a.prepareGDB(ctx, s)
		if err != nil {
			l.Close()
			stop() // gdb waits for an answer that will not come
			served <- err
			return
		}
		served <- a.accept(ctx, l, files)
	}()
	err = runGDB(ctx, path, append([]string{"-q", "-x", s.init}, args...))
	stop()
	return errors.Join(err, <-served)
}

// prepareGDB looks, while gdb starts, which takes it longer: it can connect at once,
// and is answered when the machines are known.
func (a *app) prepareGDB(ctx context.Context, s scripts) (files *session.Files, err error) {
	defer mem.Catch(&err)()
	err = a.look(ctx, session.Full)
	if err == nil {
		err = s.writeMachines(a.numbers())
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return a.newFiles(), nil // gdb has ended, or we were told to: that is no failure
	case err != nil:
		return nil, err
	}
	files = a.newFiles()
	if a.debuginfod { // its servers may keep us waiting
		settle()
	} else {
		files.Prepare(settle)
	}
	return files, nil
}

// numbers are the process numbers of the machines. gdb cannot attach to one without
// CPUs: a hypervisor that is not understood, of which there is only memory.
func (a *app) numbers() (out []int) {
	for _, m := range a.session.Tower().Machines {
		if len(m.CPUs) > 0 {
			out = append(out, a.session.Number(m))
		}
	}
	return out
}

// gdbGrace is what gdb gets to end by itself when we are told to.
const gdbGrace = 2 * time.Second

// runGDB runs gdb in the foreground until it ends, or ctx ends it.
func runGDB(ctx context.Context, path string, args []string) error {
	c := exec.CommandContext(ctx, path, args...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = gdbGrace
	err := c.Run()
	if ctx.Err() != nil {
		return nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Exited() {
			return exitStatus(ws.ExitStatus())
		}
	}
	return err
}

// scripts are what gdb executes first. The second is there when gdb gets its first
// answer.
type scripts struct{ socket, init, machines string }

func newScripts(socket string) scripts {
	dir := filepath.Dir(socket)
	return scripts{socket: socket, init: filepath.Join(dir, "init.gdb"), machines: filepath.Join(dir, "machines.gdb")}
}

// writeInit writes the script that connects. Each line is needed for a reason found
// by trying gdb 13 and 16:
//   - without auto-connect-native-target off, "attach 1" after a lost connection
//     would go for process 1 of this host;
//   - schedule-multiple on, because a guest can run only while its hypervisor does;
//   - an empty sysroot makes gdb open files itself instead of asking us for them;
//   - gdb's 2 s of patience are not enough for the first look at a machine whose
//     memory has to be searched;
//   - gdb 13 and 16 keep what they read of stacks and code across a resumption in
//     all inferiors but the current one, and show frames of the stop before.
func (s scripts) writeInit() error {
	text := "set confirm off\nset pagination off\n" +
		"set auto-connect-native-target off\nset schedule-multiple on\nset sysroot\n" +
		"set stack-cache off\nset code-cache off\nset remotetimeout 600\n" +
		"target extended-remote " + s.socket + "\nsource " + s.machines + "\n"
	return os.WriteFile(s.init, []byte(text), 0o600)
}

// writeMachines writes the script that attaches to the machines with these numbers:
//   - reading symbols for an attach can take longer than gdb's 2 s of patience, too;
//   - machines are attached, not found at connect, because gdb asks for registers
//     and symbol offsets per process only when it attaches;
//   - gdb does not say which thread is selected when it hands us a "monitor", and
//     tells us before only if it wants memory or registers that it does not know yet.
//     The hook reads a byte that nobody has, silently, so that it does;
//   - the index cache makes the second start with a vmlinux short, but gdb 13 takes
//     the line numbers of relocatable files, the modules, wrong from it.
func (s scripts) writeMachines(numbers []int) error {
	var b strings.Builder
	b.WriteString("set remotetimeout 30\nset index-cache enabled on\nset auto-solib-add off\n")
	for i, pid := range numbers {
		if i > 0 {
			fmt.Fprintf(&b, "add-inferior\ninferior %d\n", i+1)
		}
		fmt.Fprintf(&b, "attach %d\n", pid)
	}
	b.WriteString("set index-cache enabled off\nset auto-solib-add on\n")
	for i := range numbers {
		fmt.Fprintf(&b, "inferior %d\nsharedlibrary\n", i+1)
	}
	b.WriteString("define hook-monitor\n| output (char *) 1 | true\nend\n")
	b.WriteString("set confirm on\nset pagination on\n")
	fmt.Fprintf(&b, "python\n%s\nend\n", attachScript)
	return os.WriteFile(s.machines, []byte(b.String()), 0o600)
}
