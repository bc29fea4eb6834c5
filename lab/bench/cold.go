package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	coldRounds  = 15
	coldTarget  = 150 * time.Millisecond
	coldPrivate = 100 << 20 // bytes
	// sampleEvery is how often the memory of a program is looked at, which takes 20 µs.
	sampleEvery = time.Millisecond
)

// measureCold times commands that ask L2's kernel, each in a process of its own,
// from the first instruction to the last: nothing is kept on disk between two.
func (b *bench) measureCold(ctx context.Context) (rows []row, err error) {
	var dmesg series
	for _, command := range []string{"ps", "lsmod", "dmesg"} {
		most := 0
		s, err := interleave(ctx, coldRounds, contender{command, func(ctx context.Context) (timing, error) {
			t, anonymous, err := b.runCold(ctx, fmt.Sprint(b.lab.PID), command)
			most = max(most, anonymous)
			return t, err
		}})
		if err != nil {
			return rows, err
		}
		dmesg = s[0] // the last one
		best := s[0].best()
		rows = append(rows, row{
			question: "nestdbg " + command + " of L2, from nothing",
			ours:     fmt.Sprintf("%s, %.1f MB", brief(best.wall), float64(most)/1e6),
			target:   fmt.Sprintf("< %s, %d MB", brief(coldTarget), coldPrivate>>20),
			verdict:  judge(best.wall < coldTarget && most < coldPrivate),
			notes: []string{
				"the memory is the most that was anonymous in any run, looked at every " + brief(sampleEvery),
				spread("nestdbg "+command, s[0]),
			},
		})
	}
	log, err := b.crashRow(ctx, dmesg)
	return append(rows, log), err
}

// runCold runs a command about L2 of a target and returns the most anonymous memory
// that it had, in bytes.
func (b *bench) runCold(ctx context.Context, target, command string) (t timing, anonymous int, err error) {
	var text strings.Builder
	cmd := exec.CommandContext(ctx, b.nestdbg, "-t", target, "-m", vm, command)
	cmd.Stdout, cmd.Stderr = &text, &text
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return t, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-time.After(sampleEvery):
			anonymous = max(anonymous, anonymousBytes(cmd.Process.Pid))
		}
	}
	t.wall = time.Since(begin)
	t.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	switch {
	case err != nil:
		return t, 0, fmt.Errorf("%w: %s", err, line(text.String()))
	case strings.Count(text.String(), "\n") < 2:
		return t, 0, fmt.Errorf("nestdbg %s says only %q", command, text.String())
	case anonymous == 0:
		return t, 0, errors.New("no sample of nestdbg's memory")
	}
	return t, anonymous, nil
}

// anonymousBytes is the anonymous memory of a process, which is its private memory
// but for what it wrote of its own data segment; 0 if it has ended.
func anonymousBytes(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\nRssAnon:")
	var kB int
	fmt.Sscan(rest, &kB)
	return kB << 10
}

// crashRounds is few, since crash needs seconds.
const crashRounds = 2

// crashRow compares nestdbg dmesg with crash's log of the same guest, on a dump of its
// memory and with the vendor's vmlinux: what a person would do without nestdbg.
func (b *bench) crashRow(ctx context.Context, ours series) (row, error) {
	r := row{question: "the log of L2, with crash", ours: brief(ours.best().wall)}
	if _, err := exec.LookPath("crash"); err != nil || b.symbols == "" {
		r.verdict = notMeasured
		r.notes = []string{`it needs Debian's package crash and the vendor's vmlinux ("nestdbg lab symbols")`}
		return r, nil
	}
	v, err := b.look(ctx)
	if err != nil {
		return r, err
	}
	defer v.close()
	m, err := v.Machine(vm)
	if err != nil {
		return r, err
	}
	k, err := v.Kernel(m)
	if err != nil {
		return r, err
	}
	core, script := filepath.Join(b.dir, "core"), filepath.Join(b.dir, "crash.in")
	defer os.Remove(core)
	if err := errors.Join(writeCore(core, m, k), os.WriteFile(script, []byte("log\nquit\n"), 0o600)); err != nil {
		return r, err
	}
	args := []string{"-s", fmt.Sprintf("--kaslr=%#x", k.Slide), "-i", script,
		filepath.Join(b.symbols, "boot", "vmlinux-"+k.Release), core}
	s, err := interleave(ctx, crashRounds, contender{"crash", func(ctx context.Context) (timing, error) {
		cmd := exec.CommandContext(ctx, "crash", args...)
		begin := time.Now()
		text, err := cmd.CombinedOutput()
		if err == nil && !strings.Contains(string(text), "Linux version "+k.Release) {
			err = errors.New("no log")
		}
		if err != nil {
			return timing{}, fmt.Errorf("%w: %s", err, line(string(text)))
		}
		state := cmd.ProcessState
		return timing{wall: time.Since(begin), cpu: state.UserTime() + state.SystemTime()}, nil
	}})
	if err != nil {
		return r, err
	}
	r.theirs = brief(s[0].best().wall) + ", crash log on a dump"
	r.ratio = fmt.Sprintf("%.0f", s[0].best().wall.Seconds()/ours.best().wall.Seconds())
	r.notes = []string{spread("nestdbg dmesg", ours), spread("crash", s[0]),
		fmt.Sprintf("ratio by processor time: %.0f; the dump, which nestdbg does without, was written before; "+
			"crash is told the slide, which it does not find by itself", s[0].best().cpu.Seconds()/ours.best().cpu.Seconds())}
	return r, nil
}
