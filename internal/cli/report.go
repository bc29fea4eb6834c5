package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

// reportOptions are how a report is made and where it goes.
type reportOptions struct {
	html, force bool
	output      string
	bug         report.BugOptions
}

func (a *app) reportCommand() *cobra.Command {
	var o reportOptions
	c := &cobra.Command{
		Use: "report", Short: "Everything to attach to a bug: what died and where, stacks, logs, second stages", Args: noArgs,
		Long: `What one would attach to a bug, of a QEMU that runs and of whatever is left of one: the
tower and its versions; what each kernel says of itself in its log (panic, oops, lockup,
hung task); the stacks of every CPU, of the task that a trouble befell and of tasks that
are blocked (state D); each second stage; the end of each log. What cannot be told is
there as a line that says why.

A machine that runs is stopped once, for a fraction of a second, so that all of it
belongs together. --html is one page that needs nothing else; whatever a guest wrote is
text in it. The report holds what the guests logged: look at it before it leaves.`,
		Example: "  nestdbg report -o bug.txt\n  nestdbg report --html -o bug.html\n  nestdbg -t crash-dir report --json",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case o.html && a.json:
				return usagef("report takes one of --html and --json")
			case o.force && o.output == "":
				return usagef("--force is for -o FILE")
			case o.bug.LogLines < 0:
				return usagef("--lines is a number from 0 on")
			}
			return a.writeReport(c.Context(), o)
		},
	}
	c.Flags().BoolVar(&o.html, "html", false, "one HTML page that needs no other file")
	c.Flags().StringVarP(&o.output, "output", "o", "", "the file to write (default: standard output)")
	c.Flags().BoolVar(&o.force, "force", false, "replace a file that exists")
	c.Flags().IntVar(&o.bug.LogLines, "lines", 200, "records of the end of each log")
	return c
}

func (a *app) writeReport(ctx context.Context, o reportOptions) error {
	if o.output != "" {
		if err := checkFree(o.output, o.force); err != nil {
			return err
		}
	}
	r, err := a.bugReport(ctx, o.bug)
	if err != nil {
		return err
	}
	render := func(w io.Writer) error {
		switch {
		case o.html:
			return r.HTML(w)
		case a.json:
			return report.JSON(w, r)
		}
		r.Text(w)
		return nil
	}
	if o.output == "" {
		return render(a.out)
	}
	_, err = writeFile(ctx, o.output, o.force, render)
	return err
}

// bugReport makes a report of one moment.
func (a *app) bugReport(ctx context.Context, opt report.BugOptions) (r *report.BugReport, err error) {
	resume, ran, err := a.stand(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resume()) }()
	if err := a.look(ctx, session.Full); err != nil {
		return nil, err
	}
	st := a.status(ctx)
	st.Running = st.Running || ran
	r = report.NewBugReport(a.session, st, opt)
	r.Made, r.Nestdbg = time.Now().UTC().Truncate(time.Second), version()
	return r, nil
}

// version is what the build knows of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "of an unknown version"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v = fmt.Sprintf("%s, commit %.12s", v, s.Value)
		}
	}
	return v
}
