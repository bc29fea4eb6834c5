package cli

import (
	"github.com/spf13/cobra"

	"nestdbg/internal/report"
)

func (a *app) vmcsCommand() *cobra.Command {
	var index int
	var all bool
	c := &cobra.Command{
		Use: "vmcs", Aliases: []string{"vmcb"}, Short: "A guest's VMCB or VMCS: every field, its last exit, and the checks a VM entry would fail",
		Long: `Decodes the control block that a machine's CPU runs on, field by field, by the names of
the manual: flags by name, the last exit in words, and the conditions of a VM entry
that do not hold. Fields that are zero are left out of the text unless --all is given.
While a CPU is in the guest, the processor keeps much of this in itself: a note says so.`,
		Example: "  nestdbg vmcs -m vm0\n  nestdbg vmcs -m vm0 --cpu 1 --all",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := a.lookAt(c.Context())
			if err != nil {
				return err
			}
			if m.Parent == nil {
				return usagef("%s is QEMU's own machine and has no VMCB or VMCS; -m names a machine inside it", m.Name)
			}
			cpus, err := a.cpusOrOne(m, index)
			if err != nil {
				return err
			}
			r, err := report.NewControlBlocks(m, cpus, all)
			if err != nil {
				return err
			}
			return a.show(r)
		},
	}
	c.Flags().IntVar(&index, "cpu", -1, "only this CPU of the machine")
	c.Flags().BoolVar(&all, "all", false, "fields that are zero, too")
	return c
}
