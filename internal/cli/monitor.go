package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"nestdbg/internal/linux"
	"nestdbg/internal/session"
)

// monitor answers gdb's "monitor": the commands of the command line, asked of
// the session that the server holds, for the machine of gdb's current inferior.
type monitor struct {
	app      *app // of the server
	debugger *session.Debugger
}

// Monitor implements gdbserver.Monitor.
func (m *monitor) Monitor(ctx context.Context, pid, tid int, command string, out io.Writer) error {
	if rest, ok := cutWord(command, "qemu"); ok {
		live, err := m.app.live()
		if err != nil {
			return err
		}
		text, err := live.HMP(ctx, rest)
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, strings.ReplaceAll(text, "\r\n", "\n"))
		return err
	}
	a := &app{in: strings.NewReader(""), out: out, errOut: out,
		target: m.app.target, session: m.app.session, debugger: m.debugger, symbols: m.app.symbols, images: m.app.images}
	root := a.root()
	a.thread = m.thread(pid, tid)
	a.machine = a.thread.machine // the root command has set it to its default
	root.Use, root.Long = "monitor", ""
	root.Short = "nestdbg's commands; what belongs to QEMU itself: monitor qemu TEXT"
	root.AddCommand(&cobra.Command{Use: "qemu TEXT", Short: "Hand a line to QEMU's own monitor", Run: func(*cobra.Command, []string) {}})
	root.AddCommand(a.foreignCommand(), a.tasksCommand())
	// Inside gdb the target is given, and the machine is that of the inferior.
	for _, f := range []string{"target", "symbols", "verbose", "vmcb", "vmcs", "second-stage", "cr3", "registers"} {
		root.PersistentFlags().Lookup(f).Hidden = true
	}
	root.PersistentFlags().Lookup("machine").DefValue = a.machine
	root.SetArgs(splitExamine(strings.Fields(command)))
	if err := root.ExecuteContext(ctx); err != nil {
		if _, shown := err.(exitStatus); !shown {
			fmt.Fprintln(out, err)
		}
	}
	return nil
}

// gdbThread is the thread that is selected in a gdb: a CPU, or a task. Without a
// machine there is none.
type gdbThread struct {
	machine string
	cpu     int         // -1 if it is not one of the machine's
	task    *linux.Task // nil if it is a CPU
}

func (m *monitor) thread(pid, tid int) gdbThread {
	t := gdbThread{cpu: -1}
	for _, x := range m.debugger.Tower().Machines {
		if m.debugger.Number(x) == pid {
			t.machine = x.Name
		}
	}
	if task, ok := m.debugger.TaskThread(pid, tid); ok {
		t.task = &task
	} else if _, c, err := m.debugger.Thread(pid, tid); err == nil {
		t.cpu = c.Index
	}
	return t
}

// cutWord cuts a first word off a line.
func cutWord(line, word string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(line, word)
	if !ok || rest != "" && rest[0] != ' ' {
		return "", false
	}
	return strings.TrimSpace(rest), true
}

// foreignCommand tells how many hits were passed unseen.
func (a *app) foreignCommand() *cobra.Command {
	return &cobra.Command{
		Use: "foreign", Short: "How many breakpoint hits were passed because they belonged to another machine", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(a.out, "%d foreign hits passed\n", a.debugger.Foreign())
			return nil
		},
	}
}
