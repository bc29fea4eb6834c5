package cli

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

func (a *app) writeCommand() *cobra.Command {
	var index int
	var yes bool
	c := &cobra.Command{
		Use:   "write ADDRESS BYTES...",
		Short: "Write bytes to virtual or physical memory of a machine, through QEMU",
		Long: `Write bytes, in hexadecimal and in memory order, to memory of a machine. The write
goes through QEMU's gdbstub, so that code which QEMU has translated is noticed; the
machine stands still for it and then goes on as it was. On a terminal it asks first.`,
		Example: "  nestdbg -m vm0 write pa:0x1000 de ad be ef",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := hex.DecodeString(strings.Join(args[1:], ""))
			if err != nil {
				return usagef("bytes must be pairs of hexadecimal digits: %w", err)
			}
			return a.write(c.Context(), index, args[0], data, yes)
		},
	}
	cpuFlag(c, &index)
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

func (a *app) write(ctx context.Context, index int, where string, data []byte, yes bool) error {
	m, err := a.lookAt(ctx)
	if err != nil {
		return err
	}
	if _, err := a.live(); err != nil {
		return err
	}
	one, err := a.cpu(m, index)
	if err != nil {
		return err
	}
	at, err := a.resolve(m, one, where)
	if err != nil {
		return err
	}
	if !yes && a.debugger == nil && !a.confirm(fmt.Sprintf("write %d bytes at %#x of %s?", len(data), at.value, m.Name)) {
		return fmt.Errorf("nothing was written")
	}
	if a.debugger != nil {
		return writeTo(ctx, a.debugger, m, one, at, data)
	}
	d := session.NewDebugger(a.session, a.target.OpenStub, a.log())
	if err := d.Take(ctx); err != nil {
		return err
	}
	// The machine stands still only now: what the names meant must be looked up again.
	m, err = a.session.Machine(m.Name)
	if err == nil {
		one, err = a.cpu(m, one.Index)
	}
	if err == nil {
		err = writeTo(ctx, d, m, one, at, data)
	}
	if e := d.Release(ctx); err == nil {
		err = e
	}
	return err
}

func writeTo(ctx context.Context, d *session.Debugger, m *machine.Machine, c *machine.CPU, at address, data []byte) error {
	if at.physical {
		return d.WritePhys(ctx, m, data, mem.Phys(at.value))
	}
	return d.WriteVirt(ctx, m, c, data, mem.Virt(at.value))
}

// confirm asks the person, if there is one; a script means what it says.
func (a *app) confirm(question string) bool {
	f, ok := a.in.(*os.File)
	if !ok {
		return true
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return true
	}
	fmt.Fprintf(a.errOut, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(f).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}
