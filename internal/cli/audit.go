package cli

import (
	"github.com/spf13/cobra"

	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

func (a *app) auditCommand() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "audit", Short: "Who reaches what: memory that machines share, hypervisors' own pages in reach of guests",
		Long: `Follows the second stages of all machines, as a processor does, and says which memory two
of them reach; which pages of a hypervisor a machine inside it reaches that should be
the hypervisor's alone (page tables, VMCB or VMCS with its permission maps, host save
areas, tables of second stages, its kernel if that is known), and how; and what a
machine may both write and execute. Addresses are physical.`,
		Example: "  nestdbg audit\n  nestdbg audit --json --limit 0",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.look(c.Context(), session.Full); err != nil {
				return err
			}
			return a.show(report.NewAudit(a.session, limit))
		},
	}
	c.Flags().IntVar(&limit, "limit", 20, "at most this many ranges in each place; 0 for all")
	return c
}
