package cli

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
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
	if !yes && a.debugger == nil && !a.confirm(ctx, fmt.Sprintf("write %d bytes at %#x of %s?", len(data), at.value, m.Name)) || ctx.Err() != nil {
		return errors.New("nothing was written")
	}
	d := a.debugger
	if d == nil {
		d = session.NewDebugger(a.session, a.target.OpenStub, a.log())
	}
	if err := a.writeStopped(ctx, d, m, one, at, data); err != nil {
		return err
	}
	return a.show(&report.Written{Machine: m.Name, Space: at.space(), Addr: report.Hex(at.value), Size: len(data)})
}

// writeStopped writes while the machine stands still, and lets it go on if it ran. From
// its stop on, an interruption comes too late: it would leave half of the bytes, and
// the machine stopped.
func (a *app) writeStopped(ctx context.Context, d *session.Debugger, m *machine.Machine, one *machine.CPU, at address, data []byte) (err error) {
	ctx = context.WithoutCancel(ctx)
	if d.Holds() {
		return writeTo(ctx, d, m, one, at, data)
	}
	if err := d.Take(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Release(ctx)) }()
	// The machine stands still only now: what the names meant must be looked up again.
	if m, err = a.session.Machine(m.Name); err != nil {
		return err
	}
	if one, err = a.cpu(m, one.Index); err != nil {
		return err
	}
	return writeTo(ctx, d, m, one, at, data)
}

func writeTo(ctx context.Context, d *session.Debugger, m *machine.Machine, c *machine.CPU, at address, data []byte) error {
	if at.physical {
		return d.WritePhys(ctx, m, data, mem.Phys(at.value))
	}
	return d.WriteVirt(ctx, m, c, data, mem.Virt(at.value))
}

// confirm asks the person, if there is one; a script means what it says. Whoever
// interrupts the question answers no.
func (a *app) confirm(ctx context.Context, question string) bool {
	f, ok := a.in.(*os.File)
	if !ok {
		return true
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return true
	}
	fmt.Fprintf(a.errOut, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // nothing ends a read of a terminal: it stays until the process ends
		text, _ := bufio.NewReader(f).ReadString('\n')
		answer <- text
	}()
	select {
	case text := <-answer:
		return strings.EqualFold(strings.TrimSpace(text), "y")
	case <-ctx.Done():
		fmt.Fprintln(a.errOut)
		return false
	}
}
