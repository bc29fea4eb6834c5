package main

import (
	"context"
	"fmt"
	"time"
)

// wordRounds and wordReads: how often single words are read, and how many.
const (
	wordRounds = 6
	wordReads  = 8000
)

// measureWords compares what gdb's "x/1gx" costs the two servers: 8 bytes, one
// question at a time.
func (f *frozen) measureWords(ctx context.Context) ([]row, error) {
	pieces, err := f.inL1(stubBytes)
	if err != nil {
		return nil, err
	}
	own := contender{"nestdbg", f.wordsOwn}
	stub := contender{"QEMU's stub", func(context.Context) (timing, error) { return f.wordsStub(pieces[0]) }}
	s, err := interleave(ctx, wordRounds, own, stub)
	if err != nil {
		return nil, err
	}
	ours, theirs := s[0].best().per(wordReads), s[1].best().per(wordReads)
	return []row{{
		question: "single words of L2 a second (x/1gx)",
		ours:     fmt.Sprintf("%.0f/s", rate(ours.wall)),
		theirs:   fmt.Sprintf("%.0f/s, QEMU's stub on L1", rate(theirs.wall)),
		ratio:    fmt.Sprintf("%.2f", rate(ours.wall)/rate(theirs.wall)),
		notes: []string{
			fmt.Sprintf("packets m ADDR,8 of a client that does nothing else, %d in a row", wordReads),
			spread("nestdbg", s[0]), spread("QEMU's stub", s[1]),
			fmt.Sprintf("processor time of the server alone: %s for a word, QEMU's stub %s", brief(ours.cpu), brief(theirs.cpu)),
		},
	}}, nil
}

func (f *frozen) wordsOwn(ctx context.Context) (timing, error) {
	s, err := f.serve(ctx)
	if err != nil {
		return timing{}, err
	}
	defer s.stop()
	c, err := attachNestdbg(s.socket, vmProcess)
	if err != nil {
		return timing{}, err
	}
	defer c.close()
	r := f.ranges[0]
	return readWords(c, r.addr, r.size, s.pid())
}

func (f *frozen) wordsStub(p piece) (timing, error) {
	c, err := attachStub(f.lab.GDBPath)
	if err != nil {
		return timing{}, err
	}
	defer c.close()
	cpu, err := f.inL1CPU()
	if err != nil {
		return timing{}, err
	}
	if err := c.ok(fmt.Sprintf("Hgp1.%x", cpu+1)); err != nil {
		return timing{}, err
	}
	return readWords(c, p.addr, len(p.want), f.lab.PID)
}

// readWords reads from all over a range.
func readWords(c *client, addr uint64, size, server int) (timing, error) {
	const stride = 4096 + 8
	k, err := startClock(server)
	if err != nil {
		return timing{}, err
	}
	for i := range wordReads {
		if _, err := c.read(addr+uint64(i*stride%(size-8)&^7), 8); err != nil {
			return timing{}, err
		}
	}
	t, err := k.stop()
	if err != nil {
		return timing{}, err
	}
	time.Sleep(retryPause) // for whoever attaches next
	return t, nil
}
