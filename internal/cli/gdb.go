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
	if err := a.look(ctx, session.Full); err != nil {
		return err
	}
	// gdb would say it in more words.
	if err := a.live.CheckStub(ctx); err != nil {
		return err
	}
	l, clean, err := listener("", false)
	if err != nil {
		return err
	}
	defer clean()
	script := filepath.Join(filepath.Dir(l.Addr().String()), "init.gdb")
	if err := a.writeScript(script, l.Addr().String()); err != nil {
		return err
	}
	// Ctrl-C ends the context that we were given, and is for gdb alone from here on.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	served := make(chan error, 1)
	go func() {
		files := a.newFiles()
		if !a.debuginfod { // its servers may keep us waiting
			// gdb takes a while to start. It can connect already, and is answered
			// when this is done.
			files.Prepare(ctx)
		}
		served <- a.accept(ctx, l, files)
	}()
	err = runGDB(ctx, path, append([]string{"-q", "-x", script}, args...))
	stop()
	return errors.Join(err, <-served)
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

// writeScript writes what gdb executes first. Each line is needed for a reason
// found by trying gdb 13 and 16:
//   - without auto-connect-native-target off, "attach 1" after a lost connection
//     would go for process 1 of this host;
//   - schedule-multiple on, because a guest can run only while its hypervisor does;
//   - an empty sysroot makes gdb open files itself instead of asking us for them;
//   - reading symbols for an attach can take longer than gdb's 2 s of patience;
//   - gdb 13 and 16 keep what they read of stacks and code across a resumption in
//     all inferiors but the current one, and show frames of the stop before;
//   - machines are attached, not found at connect, because gdb asks for registers
//     and symbol offsets per process only when it attaches;
//   - gdb does not say which thread is selected when it hands us a "monitor", and
//     tells us before only if it wants memory or registers that it does not know yet.
//     The hook reads a byte that nobody has, silently, so that it does;
//   - the index cache makes the second start with a vmlinux short, but gdb 13 takes
//     the line numbers of relocatable files, the modules, wrong from it.
func (a *app) writeScript(path, socket string) error {
	var b strings.Builder
	b.WriteString("set confirm off\nset pagination off\n" +
		"set auto-connect-native-target off\nset schedule-multiple on\nset sysroot\nset remotetimeout 30\n" +
		"set stack-cache off\nset code-cache off\n" +
		"set index-cache enabled on\nset auto-solib-add off\n")
	fmt.Fprintf(&b, "target extended-remote %s\n", socket)
	machines := a.session.Tower().Machines
	for i, m := range machines {
		if i > 0 {
			fmt.Fprintf(&b, "add-inferior\ninferior %d\n", i+1)
		}
		fmt.Fprintf(&b, "attach %d\n", a.session.Number(m))
	}
	b.WriteString("set index-cache enabled off\nset auto-solib-add on\n")
	for i := range machines {
		fmt.Fprintf(&b, "inferior %d\nsharedlibrary\n", i+1)
	}
	b.WriteString("define hook-monitor\n| output (char *) 1 | true\nend\n")
	b.WriteString("set confirm on\nset pagination on\n")
	fmt.Fprintf(&b, "python\n%s\nend\n", attachScript)
	return os.WriteFile(path, []byte(b.String()), 0o600)
}
