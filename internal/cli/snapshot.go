package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/report"
	"nestdbg/internal/snapshot"
	"nestdbg/internal/target"
)

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Short: "Keep a machine as files, and look at what is kept",
		Long: `Keeps QEMU's machine as files: RAM, the state of the devices with the registers of
every CPU, and a manifest with checksums. All commands that look at a machine work
on a snapshot too: nestdbg -t DIR status.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no snapshot %q; %s --help lists them", args[0], c.CommandPath())
			}
			return c.Help()
		},
	}
	c.AddCommand(a.snapshotSaveCommand(), a.snapshotInfoCommand(), a.snapshotVerifyCommand())
	return c
}

func (a *app) snapshotSaveCommand() *cobra.Command {
	var live bool
	c := &cobra.Command{
		Use:   "save DIR",
		Short: "Take a snapshot of a running or stopped machine",
		Long: `Writes a snapshot into the new directory DIR. A running machine is stopped while its
memory is copied, and runs on. With --live it is stopped for the registers only, some
milliseconds: the pages are then of different moments, and the snapshot says so.
Pages of zeros take no room. What is interrupted leaves nothing behind.`,
		Example: "  nestdbg snapshot save before\n  nestdbg -t before ps -m vm0",
		Args:    oneArg("the directory to make"),
		RunE:    func(c *cobra.Command, args []string) error { return a.saveSnapshot(c.Context(), args[0], live) },
	}
	c.Flags().BoolVar(&live, "live", false, "let the machine run on while its memory is copied")
	return c
}

func (a *app) saveSnapshot(ctx context.Context, dir string, live bool) error {
	if err := a.open(ctx); err != nil {
		return err
	}
	running, err := a.live()
	if err != nil {
		return err
	}
	opt := target.SaveOptions{Nestdbg: version(), Live: live, Expect: a.session.ExpectStop}
	if isTerminal(os.Stderr) {
		p := &percent{app: a, name: dir}
		defer p.clear()
		opt.Progress = p.show
	}
	m, err := running.Save(ctx, dir, opt)
	if errors.Is(err, os.ErrExist) {
		return usagef("%s exists; a snapshot is a new directory", dir)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", dir, err)
	}
	return a.show(report.NewSnapshot(dir, m))
}

// percent says on a terminal how far something is.
type percent struct {
	*app
	name string
	wait bool // say nothing of what is done within progressAfter

	mu    sync.Mutex
	begun time.Time // guarded by mu
	shown time.Time // guarded by mu
}

// progressAfter is how long something may take without a word.
const progressAfter = 500 * time.Millisecond

func (p *percent) show(done, all uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.begun.IsZero() {
		p.begun = now
	}
	if now.Sub(p.shown) >= progressEvery && (!p.wait || now.Sub(p.begun) >= progressAfter) {
		p.shown = now
		fmt.Fprintf(p.errOut, "\r\x1b[K%s: %d %%", p.name, done*100/max(all, 1))
	}
}

// clear leaves the line as it was before.
func (p *percent) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shown.IsZero() {
		fmt.Fprint(p.errOut, "\r\x1b[K")
	}
}

func (a *app) snapshotInfoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "info DIR", Short: "Say what a snapshot is of, and how it was taken",
		Args: oneArg("the snapshot's directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSnapshot(args[0], func(_ *snapshot.Snapshot, r *report.Snapshot) error { return a.show(r) })
		},
	}
}

func (a *app) snapshotVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify DIR", Short: "Check every checksum of a snapshot",
		Long: `Reads the whole snapshot and checks it. The exit status is 1 if something is damaged;
what is not damaged can be looked at all the same.`,
		Args: oneArg("the snapshot's directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSnapshot(args[0], func(s *snapshot.Snapshot, r *report.Snapshot) error {
				r.Check(s.Verify())
				if err := a.show(r); err != nil {
					return err
				}
				if len(r.Damaged) > 0 {
					return exitStatus(exitFailed)
				}
				return nil
			})
		},
	}
}

// withSnapshot opens a snapshot for f.
func (a *app) withSnapshot(dir string, f func(*snapshot.Snapshot, *report.Snapshot) error) error {
	s, err := snapshot.Open(dir)
	if errors.Is(err, snapshot.ErrNone) || errors.Is(err, os.ErrNotExist) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	defer s.Close()
	return f(s, report.NewSnapshot(dir, s.Manifest))
}
