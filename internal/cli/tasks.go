package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"nestdbg/internal/report"
)

// currentCommand is what $lx_current() is to a gdb with the kernel's scripts.
func (a *app) currentCommand() *cobra.Command {
	return &cobra.Command{
		Use: "current [CPU]", Short: "The task that each CPU of a machine runs, or one of them",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			index := -1
			if len(args) == 1 {
				var err error
				if index, err = strconv.Atoi(args[0]); err != nil || index < 0 {
					return usagef("current takes the number of a CPU, not %q", args[0])
				}
			}
			m, k, err := a.kernelAt(c.Context())
			if err != nil {
				return err
			}
			cpus, err := a.cpusOrOne(m, index)
			if err != nil {
				return err
			}
			return a.show(report.NewCurrent(m, cpus, k))
		},
	}
}

// tasksCommand shows and hides the tasks of the current inferior's kernel.
func (a *app) tasksCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tasks [on|off]", Short: "Show every task of this machine's kernel as a thread, with registers and stack",
		Long: `Every task of this machine's kernel that runs on no CPU becomes a thread of gdb's, named
"comm (pid)", until "tasks off": info threads, thread apply all bt, and memory as the
task sees it. Its number is 10000000 + PID. Such a thread cannot be stepped or resumed,
and only the registers that a task saves when it sleeps are known.`,
		Args: cobra.MaximumNArgs(1), ValidArgs: []string{"on", "off"},
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.lookAt(c.Context())
			if err != nil {
				return err
			}
			switch {
			case len(args) == 0:
				state := map[bool]string{true: "on", false: "off"}[a.debugger.ShowsTasks(m)]
				fmt.Fprintf(a.out, "tasks of %s are %s\n", m.Name, state)
				return nil
			case args[0] != "on" && args[0] != "off":
				return usagef("tasks takes on or off, not %q", args[0])
			}
			count, problems, err := a.debugger.ShowTasks(m, args[0] == "on")
			for _, p := range problems {
				fmt.Fprintf(a.out, "not read: %s\n", p)
			}
			if err != nil || args[0] == "off" {
				return err
			}
			fmt.Fprintf(a.out, "%d tasks of %s are threads now; gdb sees them at \"info threads\"\n", count, m.Name)
			return nil
		},
	}
}
