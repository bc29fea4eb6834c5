package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
)

const (
	scanRounds = 9
	scanTarget = 0.5
)

// measureScan compares the search of L1's memory for guests, with no knowledge of the
// hypervisor, with reading the same mapped file word by word. Both count the time of all
// processors, so the ratio is one core's.
func (b *bench) measureScan(ctx context.Context) ([]row, error) {
	v, err := b.look(ctx)
	if err != nil {
		return nil, err
	}
	defer v.close()
	l1 := v.Tower().Machines[0]
	ranges := v.live.RAM().PopulatedRanges()
	size := 0
	for _, r := range ranges {
		size += int(r.Size())
	}
	alone := &machine.Tower{Machines: []*machine.Machine{l1}}
	found := 0
	scan := func() error {
		all, _ := nested.Find(alone, nested.Options{})
		found = len(all)
		return nil
	}
	var sum uint64
	read := func() error {
		for _, r := range ranges {
			for a := r.First; a < r.Last; {
				b := l1.Phys.SlicePhys(mem.Phys(a), int(r.Last-a+1))
				if len(b) < 8 {
					return fmt.Errorf("no bytes at %#x", a)
				}
				for o := 0; o+8 <= len(b); o += 8 {
					sum += binary.LittleEndian.Uint64(b[o:])
				}
				a += uint64(len(b))
			}
		}
		return nil
	}
	contenders := []contender{{"scan", timed(scan)}, {"read", timed(read)}}
	if _, err := interleave(ctx, 1, contenders...); err != nil { // once to have all pages in place
		return nil, err
	}
	runtime.GC()
	s, err := interleave(ctx, scanRounds, contenders...)
	if err != nil {
		return nil, err
	}
	ours, theirs := s[0].best(), s[1].best()
	ratio := theirs.cpu.Seconds() / ours.cpu.Seconds()
	return []row{{
		question: fmt.Sprintf("search of %d MiB of L1 for guests, a core", size>>20),
		ours:     perSecond(size, ours.cpu),
		theirs:   perSecond(size, theirs.cpu) + ", reading it",
		ratio:    fmt.Sprintf("%.2f", ratio),
		target:   fmt.Sprintf(">= %.1f", scanTarget),
		verdict:  judge(ratio >= scanTarget),
		notes: []string{
			"control blocks, host save areas and second stages, judged; by processor time, while all processors search; " +
				"reading is the sum of all words of the file as it is mapped, holes left out by both",
			spread("search", s[0]), spread("reading", s[1]),
			fmt.Sprintf("%d candidates; by the wall clock the search took %s", found, brief(ours.wall)),
		},
	}}, nil
}
