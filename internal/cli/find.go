package cli

import (
	"github.com/spf13/cobra"

	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

func (a *app) findCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "find", Short: "Search memory for guests: control blocks and second stages, with evidence and a score",
		Long: `Searches the memory of every machine for what a guest is known by: VMCBs and VMCSs, and
second stages of which no control block is known. Nothing need be known of the
hypervisor. Each candidate comes with what speaks for it (+) and against it (-), and a
score of ours from 0 to 100 that only ranks. "executing", "live" and "given" are guests
that "status" has too; "entry fails" is one that a CPU names and that breaks the rules of
a VM entry (vmcs says which); "possible" is a second stage to be tried with
--second-stage; with --all also "stale", what has the form and cannot be in use, and host
save areas.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.look(c.Context(), session.Full); err != nil {
				return err
			}
			found, problems, err := a.session.Find(c.Context(), a.blind)
			if err != nil {
				return err
			}
			return a.show(report.NewFound(found, problems, all))
		},
	}
	c.Flags().BoolVar(&all, "all", false, "what cannot be in use, too")
	c.Flags().BoolVar(&a.blind, "blind", false, "do not use what the hypervisor's own kernel says of its guests")
	return c
}
