package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

const (
	bulkRounds = 25
	bulkTarget = 0.7
)

// fragment is a part of the pattern in QEMU's memory file.
type fragment struct{ offset, size int }

// measureBulk compares reads of L2's virtual memory inside the process with a plain
// copy out of the same file, mapped as nestdbg maps it: of as many bytes that lie
// together, and of the very same bytes from their known places.
func (f *frozen) measureBulk(ctx context.Context) ([]row, error) {
	fragments, size, err := f.fragments()
	if err != nil {
		return nil, err
	}
	file, unmap, err := mapShared(f.lab.MemoryFile)
	if err != nil {
		return nil, err
	}
	defer unmap()
	start := min(fragments[0].offset, len(file)-size)
	out := make([]byte, size)
	read := func() error {
		at := 0
		for _, r := range f.ranges {
			if _, err := f.memory.ReadVirt(out[at:at+r.size], mem.Virt(r.addr)); err != nil {
				return err
			}
			at += r.size
		}
		return nil
	}
	together := func() error { copy(out, file[start:start+size]); return nil }
	scattered := func() error {
		at := 0
		for _, p := range fragments {
			at += copy(out[at:], file[p.offset:p.offset+p.size])
		}
		return nil
	}
	s, err := compareCopies(ctx, read, together, scattered)
	if err != nil {
		return nil, err
	}
	return bulkRows(s, size, len(fragments)), nil
}

// compareCopies times three ways to fill the same memory.
func compareCopies(ctx context.Context, read, together, scattered func() error) ([]series, error) {
	contenders := []contender{
		{"read of virtual memory", timed(read)}, {"memcpy", timed(together)}, {"memcpy of the pages", timed(scattered)},
	}
	// Once to have all pages in place and all caches warm.
	if _, err := interleave(ctx, 1, contenders...); err != nil {
		return nil, err
	}
	runtime.GC() // now, and not while something is measured
	return interleave(ctx, bulkRounds, contenders...)
}

// timed measures work of this process: nestdbg reads with several threads.
func timed(work func() error) func(context.Context) (timing, error) {
	return func(context.Context) (timing, error) { return timedProcess(work) }
}

func bulkRows(s []series, size, fragments int) []row {
	ours := s[0].best()
	var rows []row
	for i, what := range []string{"memcpy", "memcpy of the same pages"} {
		theirs := s[i+1].best()
		ratio := theirs.wall.Seconds() / ours.wall.Seconds()
		median := s[i+1].median().wall.Seconds() / s[0].median().wall.Seconds()
		rows = append(rows, row{
			question: fmt.Sprintf("bulk read of %d MiB of L2, virtual", size>>20),
			ours:     perSecond(size, ours.wall),
			theirs:   perSecond(size, theirs.wall) + ", " + what,
			ratio:    fmt.Sprintf("%.2f", ratio),
			target:   fmt.Sprintf(">= %.1f", bulkTarget),
			verdict:  judge(ratio >= bulkTarget),
			notes: []string{
				spread("nestdbg", s[0]), spread(what, s[i+1]),
				fmt.Sprintf("ratio by processor time: %.2f; by medians of the wall clock: %.2f",
					theirs.cpu.Seconds()/ours.cpu.Seconds(), median),
			},
		})
	}
	rows[0].note("in the process, no gdb: session.CPUMemory.ReadVirt into the same buffer; the file is mapped once more " +
		"for the copies, which one thread makes, as memcpy does; nestdbg uses all processors; all pages were touched before")
	rows[1].note(fmt.Sprintf("the same bytes from %d places that are known beforehand", fragments))
	return rows
}

// fragments lists where the pattern is in QEMU's memory file.
func (f *frozen) fragments() (out []fragment, size int, err error) {
	ram, missing := f.view.live.RAM(), errors.New("memory of the pattern is in no file")
	err = f.inFile(func(_ uint64, l1 mem.Phys, n int) bool {
		offset, ok := ram.FileOffset(l1)
		if !ok {
			return false
		}
		at := fragment{int(offset), n}
		if last := len(out) - 1; last >= 0 && out[last].offset+out[last].size == at.offset {
			out[last].size += n
		} else {
			out = append(out, at)
		}
		size += n
		return true
	})
	want := 0
	for _, r := range f.ranges {
		want += r.size
	}
	if err == nil && size != want {
		err = missing
	}
	return out, size, err
}

// mapShared maps a whole file for reading.
func mapShared(path string) (b []byte, unmap func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err = unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", path, err)
	}
	return b, func() { unix.Munmap(b) }, nil
}
