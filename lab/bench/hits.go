package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	hitRounds = 4
	// hitTime is how long breakpoints are hit in each round.
	hitTime = 1500 * time.Millisecond
)

// busyFunction is a function of L2 that busyCommand makes run all the time.
const (
	busyFunction = "vfs_read"
	busyCommand  = "exec dd if=/dev/zero of=/dev/null bs=1 >/dev/null 2>&1 & echo $!"
)

// measureHits times breakpoints on a function of L2. One that was set for L1 at
// the same address is foreign: nestdbg has to pass each hit unseen.
func (b *bench) measureHits(ctx context.Context) (rows []row, err error) {
	addr, err := b.symbol(ctx, busyFunction)
	if err != nil {
		return nil, err
	}
	pid, err := b.ask(ctx, vm, busyCommand)
	if err != nil {
		return nil, err
	}
	defer func() {
		_, e := b.ask(ctx, vm, "exec kill "+strings.TrimSpace(pid))
		err = errors.Join(err, e)
	}()
	both := []int{l1Process, vmProcess}
	at := func(hits func(*client, uint64, ...int) (timing, error)) work {
		return func(c *client, pids ...int) (timing, error) { return hits(c, addr, pids...) }
	}
	s, err := interleave(ctx, hitRounds,
		contender{"foreign hits", func(ctx context.Context) (timing, error) { return b.onNestdbg(ctx, both, at(foreignHits)) }},
		contender{"hits", func(ctx context.Context) (timing, error) { return b.onNestdbg(ctx, both, at(ownHits)) }},
		contender{"hits of QEMU's stub", func(context.Context) (timing, error) { return b.onRunningStub(ctx, at(plainHits)) }})
	if err != nil {
		return nil, err
	}
	foreign, own, stub := s[0].median(), s[1].median(), s[2].median()
	return []row{{
		question: "a foreign breakpoint hit, passed unseen",
		ours:     brief(foreign.wall),
		theirs:   brief(own.wall) + ", a hit that is told",
		ratio:    fmt.Sprintf("%.2f", foreign.wall.Seconds()/own.wall.Seconds()),
		notes: []string{
			fmt.Sprintf("medians; breakpoint of L1 at the address of %s of L2, which runs there all the time; a hit and "+
				"what L2 does between two of them", busyFunction),
			spread("foreign", s[0]),
		},
	}, {
		question: "a hit that is told, and stepped over",
		ours:     brief(own.wall),
		theirs:   brief(stub.wall) + ", QEMU's stub",
		ratio:    fmt.Sprintf("%.1f", own.wall.Seconds()/stub.wall.Seconds()),
		notes: []string{
			"medians; the packets of gdb's continue from a breakpoint to the next hit: z0, step, Z0, continue, g after each stop",
			spread("nestdbg", s[1]), spread("QEMU's stub", s[2]),
		},
	}}, nil
}

// onRunningStub is onStub for a machine that runs, and runs on afterwards: QEMU's
// stub leaves it standing when its client is gone.
func (b *bench) onRunningStub(ctx context.Context, w work) (timing, error) {
	t, err := b.onStub(w)
	return t, errors.Join(err, b.monitor(ctx, "cont"))
}

// foreignHits lets a breakpoint of L1 be hit by L2 and counts.
func foreignHits(c *client, addr uint64, pids ...int) (timing, error) {
	if err := c.ok("Hgp1.1", fmt.Sprintf("Z0,%x,1", addr)); err != nil {
		return timing{}, err
	}
	k, err := startClock(pids...)
	if err != nil {
		return timing{}, err
	}
	if err := c.send("vCont;c"); err != nil {
		return timing{}, err
	}
	time.Sleep(hitTime)
	if err := c.interrupt(); err != nil {
		return timing{}, err
	}
	if err := c.wait(stopLimit); err != nil {
		return timing{}, err
	}
	t, err := k.stop()
	if err != nil {
		return timing{}, err
	}
	if err := c.ok("qRcmd," + hex.EncodeToString([]byte("foreign"))); err != nil {
		return timing{}, err
	}
	var count int
	if n, _ := fmt.Sscan(c.console.String(), &count); n != 1 || count == 0 {
		return timing{}, fmt.Errorf("no foreign hits: %q", c.console.String())
	}
	return t.per(count), c.ok(fmt.Sprintf("z0,%x,1", addr))
}

// ownHits lets L2 hit a breakpoint of its own.
func ownHits(c *client, addr uint64, pids ...int) (timing, error) {
	if err := c.ok(fmt.Sprintf("Hgp%x.1", vmProcess)); err != nil {
		return timing{}, err
	}
	return plainHits(c, addr, pids...)
}

// plainHits does what gdb does for a breakpoint that is continued each time.
func plainHits(c *client, addr uint64, pids ...int) (timing, error) {
	set, clear := fmt.Sprintf("Z0,%x,1", addr), fmt.Sprintf("z0,%x,1", addr)
	if err := runTo(c, addr); err != nil {
		return timing{}, err
	}
	k, err := startClock(pids...)
	if err != nil {
		return timing{}, err
	}
	count := 0
	for begin := time.Now(); time.Since(begin) < hitTime; count++ {
		if err := c.resume("s:" + c.thread); err != nil {
			return timing{}, err
		}
		if _, err := c.pc(); err != nil {
			return timing{}, err
		}
		if err := c.ok(set); err != nil {
			return timing{}, err
		}
		if err := c.resume("c"); err != nil {
			return timing{}, err
		}
		if pc, err := c.pc(); err != nil || pc != addr {
			return timing{}, fmt.Errorf("stop at %#x, want %#x: %w", pc, addr, err)
		}
		if err := c.ok(clear); err != nil {
			return timing{}, err
		}
	}
	t, err := k.stop()
	return t.per(count), err
}
