package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"nestdbg/internal/session"
	"nestdbg/internal/target"
)

const (
	attachRounds = 9
	attachTarget = 200 * time.Millisecond
)

// prompt makes gdb say when it executes the first command of its own.
const prompt = `python import time; print("bench: prompt %d" % time.monotonic_ns())`

// measureAttach times "nestdbg gdb" up to gdb's first prompt and takes off what
// gdb needs by itself: to start, and to read the same files.
func (b *bench) measureAttach(ctx context.Context) ([]row, error) {
	made, err := b.attachRow(ctx, "attach to first prompt, symbols from memory", "")
	if err != nil {
		return nil, err
	}
	server, err := b.serverRow(ctx, "")
	if err != nil {
		return nil, err
	}
	rows := []row{made, server}
	if b.symbols == "" {
		return rows, nil
	}
	vendor, err := b.attachRow(ctx, "attach to first prompt, vmlinux", b.symbols)
	if err != nil {
		return rows, err
	}
	server, err = b.serverRow(ctx, b.symbols)
	return append(rows, vendor, server), err
}

// attachRow compares nestdbg, given a directory with symbols or "", with gdb.
func (b *bench) attachRow(ctx context.Context, question, symbols string) (row, error) {
	v, err := b.look(ctx)
	if err != nil {
		return row{}, err
	}
	defer v.close()
	files := newFiles(v.Session, symbols)
	defer files.Close()
	args := []string{"-t", fmt.Sprint(b.lab.PID)}
	if symbols != "" {
		args = append(args, "--symbols", symbols)
	}
	args = append(args, "gdb", "--", "-nx", "-batch", "-ex", prompt)
	alone := append([]string{"-nx", "-batch", "-ex", "set index-cache enabled on"}, sameFiles(v, files)...)
	alone = append(alone, "-ex", prompt)
	own := contender{"nestdbg gdb", func(ctx context.Context) (timing, error) { return toPrompt(ctx, b.nestdbg, args) }}
	gdb := contender{"gdb", func(ctx context.Context) (timing, error) { return toPrompt(ctx, "gdb", alone) }}
	// Once for gdb's cache of indexes, which takes 20 s to fill for a vmlinux.
	if _, err := interleave(ctx, 1, own, gdb); err != nil {
		return row{}, err
	}
	s, err := interleave(ctx, attachRounds, own, gdb)
	if err != nil {
		return row{}, err
	}
	more, median := s[0].best().minus(s[1].best()), s[0].median().minus(s[1].median())
	return row{
		question: question,
		ours:     brief(more.wall) + " more than gdb",
		theirs:   brief(s[1].best().wall) + ", gdb with the same files",
		target:   "< " + brief(attachTarget),
		verdict:  judge(more.wall < attachTarget),
		notes: []string{
			"from the start of the program to the first command that gdb executes after the start script; gdb alone " +
				"reads the same files and looks up the lines of the same addresses, but has nothing to unwind",
			spread("nestdbg gdb", s[0]), spread("gdb alone", s[1]),
			fmt.Sprintf("difference of medians %s; processor time of all processes up to their end: %s more",
				brief(median.wall), brief(more.cpu)),
		},
	}, nil
}

func newFiles(s *session.Session, symbols string) *session.Files {
	var dirs []string
	if symbols != "" {
		dirs = []string{symbols}
	}
	return session.NewFiles(s, dirs, nil, slog.New(slog.DiscardHandler))
}

// sameFiles are arguments that make gdb read by itself the files that nestdbg
// gives it, and look at the code that the first CPU of each machine executes.
func sameFiles(v *view, files *session.Files) (args []string) {
	do := func(format string, a ...any) { args = append(args, "-ex", fmt.Sprintf(format, a...)) }
	for i, m := range v.Tower().Machines {
		if i > 0 {
			do("add-inferior")
			do("inferior %d", i+1)
		}
		pid := v.Number(m)
		do("file %s", files.ExecFile(pid))
		for _, l := range files.Libraries(pid) {
			if len(l.Segments) > 0 { // linked where it runs
				do("add-symbol-file %s -o 0", l.Path)
			} else {
				do("add-symbol-file %s %#x", l.Path, l.Sections[0])
			}
		}
		slide, _ := files.Slide(pid)
		if pc, ok := m.CPUs[0].Regs.PC(); ok {
			do("info line *%#x", pc-slide)
		}
	}
	return args
}

// toPrompt runs gdb, or nestdbg that runs it, and returns the time to the prompt
// and the processor time to the end.
func toPrompt(ctx context.Context, program string, args []string) (timing, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	begin := monotonic()
	text, err := cmd.CombinedOutput()
	if err != nil {
		return timing{}, fmt.Errorf("%w: %s", err, text)
	}
	_, said, _ := strings.Cut(string(text), "bench: prompt ")
	var at time.Duration
	if n, _ := fmt.Sscan(said, (*int64)(&at)); n != 1 {
		return timing{}, fmt.Errorf("gdb did not come to a prompt: %s", text)
	}
	state := cmd.ProcessState // of the children that it waited for, too
	return timing{wall: at - begin, cpu: state.UserTime() + state.SystemTime()}, nil
}

// phases are the parts of an attach that are nestdbg's own, in their order.
var phases = [...]string{"find and open", "first look", "take the stub", "files for gdb"}

// serverRow times what nestdbg does for an attach, in this process.
func (b *bench) serverRow(ctx context.Context, symbols string) (row, error) {
	var parts [len(phases)]series
	var all series
	for range attachRounds {
		p, err := b.attachPhases(ctx, symbols)
		if err != nil {
			return row{}, err
		}
		var sum timing
		for i, t := range p {
			parts[i] = append(parts[i], t)
			sum.wall += t.wall
			sum.cpu += t.cpu
		}
		all = append(all, sum)
	}
	r := row{
		question: "the same, nestdbg's part alone",
		ours:     brief(all.best().wall),
		target:   "< " + brief(attachTarget),
		verdict:  judge(all.best().wall < attachTarget),
		notes:    []string{"in one process, without its start: QMP, look, stub, and what gdb asks for about kernels and modules", spread("all", all)},
	}
	for i, s := range parts {
		r.notes = append(r.notes, spread(phases[i], s))
	}
	return r, nil
}

// attachPhases attaches once, to all machines, and lets go.
func (b *bench) attachPhases(ctx context.Context, symbols string) (out [len(phases)]timing, err error) {
	var live *target.Live
	var s *session.Session
	var d *session.Debugger
	steps := [len(phases)]func() error{
		func() (err error) { live, err = target.Open(ctx, fmt.Sprint(b.lab.PID)); return err },
		func() error { s = session.New(live); _, err := s.Look(ctx, session.Full); return err },
		func() error {
			d = session.NewDebugger(s, live.OpenStub, slog.New(slog.DiscardHandler))
			return d.Take(ctx)
		},
		func() error { return giveFiles(s, symbols) },
	}
	for i, step := range steps {
		t, e := timedProcess(step)
		if out[i] = t; e != nil {
			err = fmt.Errorf("%s: %w", phases[i], e)
			break
		}
	}
	if d != nil {
		err = errors.Join(err, d.Release(ctx))
	}
	if live != nil {
		err = errors.Join(err, live.Close())
	}
	return out, err
}

// giveFiles makes what gdb reads at an attach.
func giveFiles(s *session.Session, symbols string) error {
	files := newFiles(s, symbols)
	files.Prepare(func() {}) // as "nestdbg gdb" does
	for _, m := range s.Tower().Machines {
		files.ExecFile(s.Number(m))
		files.Libraries(s.Number(m))
	}
	return files.Close()
}
