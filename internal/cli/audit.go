package cli

import (
	"github.com/spf13/cobra"

	"nestdbg/internal/mem"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

func (a *app) auditCommand() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "audit", Short: "Who reaches what: memory that machines share, hypervisors' own pages in reach of guests",
		Long: `Follows the second stages of all machines, as a processor does, and says which memory two
of them reach; which pages of a hypervisor a machine inside it reaches that should be
the hypervisor's alone (page tables, VMCB or VMCS and what its controls make a processor
use, host save areas, tables of second stages, its kernel or what --symbols says is
loaded in it), and how; and what a machine may both write and execute. It is what second
stages map now: of a guest of KVM, the pages that it has touched. Addresses are
physical.`,
		Example: "  nestdbg audit\n  nestdbg audit --json --limit 0",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.look(c.Context(), session.Full); err != nil {
				return err
			}
			images, err := a.images.ranges()
			if err != nil {
				return err
			}
			return a.show(report.NewAudit(a.session, images, limit))
		},
	}
	c.Flags().IntVar(&limit, "limit", 20, "at most this many ranges in each place; 0 for all")
	return c
}

// ranges are the virtual addresses of images, by machine.
func (i *images) ranges() (map[string][]mem.Range, error) {
	out := make(map[string][]mem.Range)
	if i == nil {
		return out, nil
	}
	for name, list := range i.byMachine {
		for _, image := range list {
			segments, err := image.Segments()
			if err != nil {
				return nil, err
			}
			for _, s := range segments {
				out[name] = append(out[name], mem.Range{First: s[0], Last: s[1]})
			}
		}
	}
	return out, nil
}
