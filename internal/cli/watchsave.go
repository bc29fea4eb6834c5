package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"nestdbg/internal/report"
	"nestdbg/internal/session"
	"nestdbg/internal/snapshot"
	"nestdbg/internal/target"
	"nestdbg/internal/watch"
)

// happened keeps the machine and says what happened, if anything did. Only what
// cannot be said is an error.
func (w *watching) happened(ctx context.Context, found []watch.Incident, gone bool) error {
	if found = slices.Compact(found); len(found) == 0 { // firmware may reset twice
		return nil
	}
	r := &report.Watched{Time: now()}
	for _, i := range found {
		r.Incidents = append(r.Incidents, report.Incident{Class: i.Class.String(), Machine: i.Machine, What: i.What, Late: i.Late})
	}
	dir := w.freeName(r)
	err := w.withRoom(func() error {
		m, err := w.keepMachine(ctx, dir, gone)
		if err == nil && m.DevicesLost != "" {
			r.Error = "it has no registers: " + m.DevicesLost
		}
		return err
	})
	w.watcher.Stood()
	if err == nil {
		r.Saved = dir
		err = w.finish(ctx, r)
	}
	addError(r, err)
	if err := w.showLine(r); err != nil {
		return err
	}
	if r.Saved == "" || w.opt.keep == 0 {
		return nil
	}
	if _, err := prune(w.opt.save, w.opt.keep); err != nil {
		return w.note("remove what is old: %v", err)
	}
	return nil
}

func addError(r *report.Watched, err error) {
	if err != nil {
		r.Error = strings.TrimPrefix(r.Error+"; "+err.Error(), "; ")
	}
}

// withRoom does what needs room on the disk, and if there is none, once more when the
// oldest of what was kept has gone, which would have to go then anyway.
func (w *watching) withRoom(do func() error) error {
	err := do()
	if !errors.Is(err, syscall.ENOSPC) || w.opt.keep == 0 {
		return err
	}
	n, pruneErr := prune(w.opt.save, w.opt.keep-1)
	if n == 0 {
		return errors.Join(err, pruneErr)
	}
	return do() // what could not be removed is said when it is tried again
}

// finish marks what was kept as the watch's own, before anything can go wrong that would
// leave it there for ever, and puts the reports beside it.
func (w *watching) finish(ctx context.Context, r *report.Watched) error {
	if err := w.withRoom(func() error { return mark(r) }); err != nil {
		return err
	}
	err := w.describe(ctx, r.Saved, r)
	addError(r, err)
	bare := *r
	bare.Report = nil // it is in files of its own
	addError(r, mark(&bare))
	return nil
}

// mark writes what happened into the directory where the machine is kept, whoever wants
// the watch to end meanwhile.
func mark(r *report.Watched) error {
	_, err := writeFile(context.Background(), filepath.Join(r.Saved, markFile), true, func(out io.Writer) error { return report.JSON(out, r) })
	return err
}

// keepMachine takes a snapshot, and if QEMU does not let it, of the memory alone.
func (w *watching) keepMachine(ctx context.Context, dir string, gone bool) (*snapshot.Manifest, error) {
	why := errors.New("QEMU had ended")
	if !gone {
		m, err := w.live.Save(ctx, dir, target.SaveOptions{Nestdbg: version(), Expect: w.session.ExpectStop, Stood: w.trap.stood(ctx),
			Done: func() { w.trap.resume(ctx) }})
		w.trap.resume(ctx) // if it did not come to that
		if err == nil || ctx.Err() != nil || errors.Is(err, syscall.ENOSPC) {
			return m, err
		}
		gone, why = errors.Is(err, session.ErrGone), err
	}
	if w.live.Describe().File == "" {
		return nil, fmt.Errorf("memory was QEMU's own: %w", why)
	}
	m, err := w.live.SaveMemory(ctx, dir, version(), why.Error(), !gone)
	if err != nil {
		return nil, errors.Join(why, err)
	}
	return m, nil
}

// describe reports on what was kept, and puts the reports beside it.
func (w *watching) describe(ctx context.Context, dir string, r *report.Watched) error {
	full, names, err := w.reportOn(ctx, dir, keptLines)
	if err != nil {
		return err
	}
	// A machine's number depends on which were there when it was found.
	for i := range r.Incidents {
		if name, ok := names[w.ids[r.Incidents[i].Machine]]; ok {
			r.Incidents[i].Machine = name
		}
	}
	if !strings.HasPrefix(filepath.Base(dir), keptName(r)) {
		to := w.freeName(r)
		if err := os.Rename(dir, to); err != nil {
			return err
		}
		dir, r.Saved = to, to
	}
	full.Reason = r.Lines()
	for name, write := range map[string]func(io.Writer) error{
		"report.txt":  func(out io.Writer) error { full.Text(out); return nil },
		"report.html": full.HTML,
	} {
		if _, err := writeFile(ctx, filepath.Join(dir, name), false, write); err != nil {
			return err
		}
	}
	r.Report, _, err = w.reportOn(ctx, dir, w.opt.lines)
	return err
}

// keptLines are the lines of each log in the report that is kept.
const keptLines = 500

// reportOn reports on a snapshot, where everything is of one moment, and returns the
// names of the machines there, by what the hypervisor knows them by.
func (w *watching) reportOn(ctx context.Context, dir string, lines int) (r *report.BugReport, names map[uint64]string, err error) {
	on := &app{in: w.in, out: w.out, errOut: w.errOut, targetSpec: dir}
	if err := on.open(ctx); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, on.target.Close()) }()
	if r, err = on.bugReport(ctx, report.BugOptions{LogLines: lines}); err != nil {
		return nil, nil, err
	}
	names = make(map[uint64]string)
	for _, m := range on.session.Tower().Machines {
		if m.ID != 0 {
			names[m.ID] = m.Name
		}
	}
	return r, names, nil
}

// What a watch keeps is named by its time, so that names are in that order, and has a
// file that says that it is a watch's.
const (
	watchTime = "20060102T150405Z"
	markFile  = "watch.json"
)

var watchName = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-(crash|reset|shutdown|hang)-(l1|qemu|vm[0-9]+(\.vm[0-9]+)*)(-[0-9]+)?$`)

// keptName is the name of what is kept of incidents.
func keptName(r *report.Watched) string {
	return fmt.Sprintf("%s-%s-%s", r.Time.Format(watchTime), r.Incidents[0].Class, r.Incidents[0].Machine)
}

// freeName is a path for what is kept that nobody has.
func (w *watching) freeName(r *report.Watched) string {
	return freeName(filepath.Join(w.opt.save, keptName(r)))
}

// freeName is a name that nobody has.
func freeName(base string) string {
	name := base
	for i := 2; ; i++ {
		if _, err := os.Lstat(name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, i)
	}
}

// watchFiles are all that is in a directory of a watch's own, but for what writeFile
// leaves of one that it was killed at.
var watchFiles = []string{"manifest.json", "ram", "ram.crc32c", "devices", markFile, "report.txt", "report.html"}

// prune removes all but the newest keep directories of watches, and says how many those
// are. What somebody else put there stays: directories of other names or without the
// mark, and what is more in one of ours, with an error.
func prune(dir string, keep int) (removed int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var own []string
	for _, e := range entries {
		if !e.IsDir() || !watchName.MatchString(e.Name()) {
			continue
		}
		if st, err := os.Lstat(filepath.Join(dir, e.Name(), markFile)); err == nil && st.Mode().IsRegular() {
			own = append(own, e.Name())
		}
	}
	slices.Sort(own)
	var errs []error
	for len(own) > keep {
		err := removeKept(filepath.Join(dir, own[0]))
		if err == nil {
			removed++
		}
		errs = append(errs, err)
		own = own[1:]
	}
	return removed, errors.Join(errs...)
}

// removeKept removes a directory of a watch's own. The mark goes last: what could not
// be removed is tried again.
func removeKept(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if m := unfinished.FindStringSubmatch(name); m != nil {
			name = m[1]
		}
		if !slices.Contains(watchFiles, name) {
			return fmt.Errorf("%s stays: %s in it is not the watch's", dir, e.Name())
		}
	}
	for _, e := range entries {
		if e.Name() == markFile {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(filepath.Join(dir, markFile)), os.Remove(dir))
}
