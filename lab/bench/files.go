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

	"nestdbg/internal/target"
)

const (
	fileRounds  = 5
	diskRounds  = 2
	openRounds  = 9
	cpTarget    = 0.7
	qemuTarget  = 5.0
	openTarget  = 200 * time.Millisecond
	openPrivate = 150 << 20 // bytes
)

// measureFiles times what writes a machine to files and what opens those, while the
// machine stands still. The files are in memory, as QEMU's own is: a disk would be what
// is measured, as a row shows that compares a dump with QEMU's own, which writes the zeros too.
func (b *bench) measureFiles(ctx context.Context) (rows []row, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(b.lab.MemoryFile), "nd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := b.monitor(ctx, "stop"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.monitor(context.WithoutCancel(ctx), "cont")) }()
	if rows, err = b.writeRows(ctx, dir); err != nil {
		return rows, err
	}
	more, err := b.openRows(ctx, dir)
	return append(rows, more...), err
}

// writeRows compares saving and exporting with cp and with QEMU's own dump.
func (b *bench) writeRows(ctx context.Context, dir string) ([]row, error) {
	st, err := os.Stat(b.lab.MemoryFile)
	if err != nil {
		return nil, err
	}
	size := int(st.Size())
	out := func(name string) string { return filepath.Join(dir, name) }
	target := fmt.Sprint(b.lab.PID)
	export := func(format string) contender {
		return b.writer("export "+format, out("x"), b.nestdbg, "-t", target, "export", "vmcore", "-m", "l1", "--format", format, "-o", out("x"))
	}
	writers := []contender{
		b.writer("cp", out("x"), "cp", "--sparse=always", b.lab.MemoryFile, out("x")),
		b.writer("snapshot save", out("x"), b.nestdbg, "-t", target, "snapshot", "save", out("x")),
		export("elf"), export("raw"), export("kdump-zlib"), export("kdump-zstd"),
	}
	s, err := interleave(ctx, fileRounds, writers...)
	if err != nil {
		return nil, err
	}
	cp := s[0].best().wall
	rows := make([]row, 0, 2*len(writers))
	for i, w := range writers[1:] {
		own := s[i+1].best().wall
		r := row{
			question: fmt.Sprintf("%s of %d MiB", w.name, size>>20), ours: perSecond(size, own),
			theirs: perSecond(size, cp) + ", cp --sparse=always", ratio: fmt.Sprintf("%.2f", cp.Seconds()/own.Seconds()),
			notes: []string{spread("nestdbg, with its start", s[i+1]), spread("cp", s[0])},
		}
		if compressed := i >= 3; !compressed {
			r.target, r.verdict = fmt.Sprintf(">= %.1f", cpTarget), judge(cp.Seconds()/own.Seconds() >= cpTarget)
		}
		rows = append(rows, r)
	}
	memory, err := b.dumpRow(ctx, dir, fmt.Sprintf("the same, export elf of %d MiB", size>>20), size, fileRounds)
	if err != nil {
		return rows, err
	}
	memory.target, memory.verdict = fmt.Sprintf(">= %.0f", qemuTarget), judge(memory.value >= qemuTarget)
	disk, err := b.dumpRow(ctx, b.dir, "the same to a disk", size, diskRounds)
	if err != nil {
		return rows, err
	}
	// QEMU's own is what is opened later.
	return append(rows, memory.row, disk.row), b.monitor(ctx, "dump-guest-memory "+out("elf"))
}

// valuedRow is a row and the ratio in it.
type valuedRow struct {
	row
	value float64
}

// dumpRow compares an export to a directory with QEMU's dump to the same place. nestdbg
// waits until the file is on the disk, if it is on one; QEMU does not.
func (b *bench) dumpRow(ctx context.Context, dir, question string, size, rounds int) (valuedRow, error) {
	path := filepath.Join(dir, "core")
	export := b.writer("export elf", path, b.nestdbg, "-t", fmt.Sprint(b.lab.PID), "export", "vmcore", "-m", "l1", "-o", path)
	s, err := interleave(ctx, rounds, export, contender{"dump-guest-memory", func(ctx context.Context) (timing, error) {
		begin := time.Now()
		if err := b.monitor(ctx, "dump-guest-memory "+path); err != nil {
			return timing{}, err
		}
		return timing{wall: time.Since(begin)}, os.Remove(path)
	}})
	if err != nil {
		return valuedRow{}, err
	}
	own, qemu := s[0].best().wall, s[1].best().wall
	r := valuedRow{value: qemu.Seconds() / own.Seconds()}
	r.row = row{
		question: question, ours: perSecond(size, own), theirs: perSecond(size, qemu) + ", QEMU's dump-guest-memory",
		ratio: fmt.Sprintf("%.1f", r.value),
		notes: []string{spread("nestdbg, until it is written", s[0]), spread("QEMU, to ELF", s[1])},
	}
	return r, nil
}

// writer is a command that writes what is removed afterwards.
func (b *bench) writer(name, path, program string, args ...string) contender {
	return contender{name, func(ctx context.Context) (timing, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		begin := time.Now()
		text, err := cmd.CombinedOutput()
		if err != nil {
			return timing{}, fmt.Errorf("%w: %s", err, line(string(text)))
		}
		t := timing{wall: time.Since(begin), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
		return t, os.RemoveAll(path)
	}}
}

// migrate has QEMU write a migration to a file, which it goes on with by itself.
func (b *bench) migrate(ctx context.Context, path string) error {
	live, err := target.Open(ctx, fmt.Sprint(b.lab.PID))
	if err != nil {
		return err
	}
	defer live.Close()
	if _, err := live.HMP(ctx, "migrate -d \"exec:cat > '"+path+"'\""); err != nil {
		return err
	}
	for {
		text, err := live.HMP(ctx, "info migrate")
		switch {
		case err != nil:
			return err
		case strings.Contains(text, "Migration status: completed"):
			return nil
		case strings.Contains(text, "Migration status: failed"):
			return fmt.Errorf("the migration failed: %s", text)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// openRows times the first answer of a file of each kind. QEMU's ELF is there already.
func (b *bench) openRows(ctx context.Context, dir string) ([]row, error) {
	out := func(name string) string { return filepath.Join(dir, name) }
	run := func(program string, args ...string) error {
		text, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, line(string(text)))
		}
		return nil
	}
	target := fmt.Sprint(b.lab.PID)
	err := errors.Join(
		run("cp", "--sparse=always", b.lab.MemoryFile, out("memory file")),
		run(b.nestdbg, "-t", target, "snapshot", "save", out("snapshot")),
		run(b.nestdbg, "-t", target, "export", "vmcore", "-m", "l1", "--format", "kdump-zstd", "-o", out("kdump-zstd")),
		b.monitor(ctx, "dump-guest-memory -z "+out("kdump-zlib")),
		b.monitor(ctx, "migrate_set_parameter max-bandwidth 100G"),
		b.migrate(ctx, out("migration")),
	)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, kind := range []string{"memory file", "elf", "snapshot", "migration", "kdump-zstd", "kdump-zlib"} {
		most := 0
		s, err := interleave(ctx, openRounds, contender{kind, func(ctx context.Context) (timing, error) {
			t, anonymous, err := b.runCold(ctx, out(kind), "dmesg")
			most = max(most, anonymous)
			return t, err
		}})
		if err != nil {
			return rows, err
		}
		best := s[0].best()
		rows = append(rows, row{
			question: "dmesg of L2, from a " + kind,
			ours:     fmt.Sprintf("%s, %.1f MB", brief(best.wall), float64(most)/1e6),
			target:   fmt.Sprintf("< %s, %d MB", brief(openTarget), openPrivate>>20),
			verdict:  judge(best.wall < openTarget && most < openPrivate),
			notes:    []string{spread("nestdbg dmesg", s[0])},
		})
	}
	return rows, nil
}
