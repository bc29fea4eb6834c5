package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	stepRounds = 4
	stepCount  = 250
	exitCount  = 25
	// exitReach is how far behind the start of msrFunction its WRMSR is, in
	// instructions, at most.
	exitReach = 20
)

// msrFunction is a function of L2 that runs often, for its timer and for each
// interrupt, and in it an instruction that leaves for L1: KVM intercepts WRMSR.
const msrFunction = "native_write_msr"

// wrmsr is that instruction.
var wrmsr = []byte{0x0f, 0x30}

// measureSteps times single instructions of L2: most stay there, some leave for
// L1 and have to be followed.
func (b *bench) measureSteps(ctx context.Context) (rows []row, err error) {
	addr, err := b.symbol(ctx, msrFunction)
	if err != nil {
		return nil, err
	}
	if err := b.monitor(ctx, "stop"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.monitor(ctx, "cont")) }()
	var steps [3]series // one entry for each step
	into := func(i int, others string) work {
		return func(c *client, pids ...int) (timing, error) {
			each, all, err := stepAt(c, addr, others, pids...)
			steps[i] = append(steps[i], each...)
			return all, err
		}
	}
	own := func(w work) func(context.Context) (timing, error) {
		return func(ctx context.Context) (timing, error) { return b.onNestdbg(ctx, []int{vmProcess}, w) }
	}
	rounds, err := interleave(ctx, stepRounds,
		contender{"nestdbg", own(into(0, ";c"))},
		contender{"nestdbg, others frozen", own(into(1, ""))},
		contender{"QEMU's stub", func(context.Context) (timing, error) { return b.onStub(into(2, "")) }})
	if err != nil {
		return nil, err
	}
	var exits series
	_, err = b.onNestdbg(ctx, []int{vmProcess}, func(c *client, pids ...int) (t timing, err error) {
		exits, err = stepExits(c, addr, pids...)
		return t, err
	})
	if err != nil {
		return nil, err
	}
	return stepRows(steps, rounds, exits), nil
}

// stepRows makes the rows of single steps, of which there were some rounds, and of
// steps that leave L2.
func stepRows(steps [3]series, rounds []series, exits series) []row {
	all, alone, stub := steps[0].median().wall, steps[1].median().wall, steps[2].median().wall
	processors := func(s series) string { return brief(s.median().per(stepCount).cpu) }
	return []row{{
		question: "single steps in L2, as gdb asks for them",
		ours:     fmt.Sprintf("%.0f/s", rate(all)),
		theirs:   fmt.Sprintf("%.0f/s, QEMU's stub", rate(stub)),
		ratio:    fmt.Sprintf("%.2f", rate(all)/rate(stub)),
		notes: []string{
			fmt.Sprintf("medians of a step and g, from %s on; gdb lets the other CPU run meanwhile, in QEMU's stub it "+
				"stands still", msrFunction),
			spread("nestdbg", steps[0]), spread("QEMU's stub", steps[2]),
			fmt.Sprintf("processor time of server and QEMU for a step, exits from L2 included: %s; QEMU's stub, which does "+
				"not follow them, %s", processors(rounds[0]), processors(rounds[2])),
		},
	}, {
		question: "single steps in L2, scheduler-locking on",
		ours:     fmt.Sprintf("%.0f/s", rate(alone)),
		theirs:   fmt.Sprintf("%.0f/s, QEMU's stub", rate(stub)),
		ratio:    fmt.Sprintf("%.2f", rate(alone)/rate(stub)),
		notes: []string{"the same, the other CPU stands still for both", spread("nestdbg", steps[1]),
			"processor time of server and QEMU for a step, exits from L2 included: " + processors(rounds[1])},
	}, {
		question: "a step that leaves L2 and comes back",
		ours:     brief(exits.median().wall),
		theirs:   brief(all) + ", a step that stays",
		ratio:    fmt.Sprintf("%.1f", exits.median().wall.Seconds()/all.Seconds()),
		notes: []string{"medians; WRMSR to the local APIC: the exit, KVM's handling of it in L1, the next entry",
			spread("WRMSR", exits)},
	}}
}

// work is something that a client does. pids are the processes that do something
// for it.
type work func(c *client, pids ...int) (timing, error)

// onNestdbg works on a new "nestdbg serve" with machines attached.
func (b *bench) onNestdbg(ctx context.Context, attach []int, w work) (timing, error) {
	s, err := b.serve(ctx)
	if err != nil {
		return timing{}, err
	}
	defer s.stop()
	c, err := attachNestdbg(s.socket, attach...)
	if err != nil {
		return timing{}, err
	}
	defer c.close()
	return w(c, s.pid(), b.lab.PID)
}

// onStub works on QEMU's own stub.
func (b *bench) onStub(w work) (timing, error) {
	c, err := attachStub(b.lab.GDBPath)
	if err != nil {
		return timing{}, err
	}
	defer time.Sleep(retryPause) // for whoever attaches next
	defer c.close()
	return w(c, b.lab.PID)
}

// runTo lets everything run until somebody gets to addr, who is then c.thread.
func runTo(c *client, addr uint64) error {
	set, clear := fmt.Sprintf("Z0,%x,1", addr), fmt.Sprintf("z0,%x,1", addr)
	if err := c.ok(set); err != nil {
		return err
	}
	if err := c.resume("c"); err != nil {
		return err
	}
	return c.ok(clear)
}

// stepAt times steps from addr on, each and all together. others is what the other
// threads do meanwhile.
func stepAt(c *client, addr uint64, others string, pids ...int) (each series, all timing, err error) {
	if err := runTo(c, addr); err != nil {
		return nil, timing{}, err
	}
	step := "s:" + c.thread + others
	k, err := startClock(pids...)
	if err != nil {
		return nil, timing{}, err
	}
	for range stepCount {
		begin := time.Now()
		if err := c.resume(step); err != nil {
			return nil, timing{}, err
		}
		if _, err := c.pc(); err != nil {
			return nil, timing{}, err
		}
		each = append(each, timing{wall: time.Since(begin)})
	}
	all, err = k.stop()
	return each, all, err
}

// stepExits steps over WRMSR in msrFunction, which is at addr, several times.
func stepExits(c *client, addr uint64, pids ...int) (series, error) {
	var out series
	for len(out) < exitCount {
		if err := runTo(c, addr); err != nil {
			return nil, err
		}
		t, err := stepExit(c, addr, pids...)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// stepExit steps from pc on until WRMSR is done, and times that.
func stepExit(c *client, pc uint64, pids ...int) (timing, error) {
	for range exitReach {
		code, err := c.read(pc, len(wrmsr))
		if err != nil {
			return timing{}, err
		}
		k, err := startClock(pids...)
		if err != nil {
			return timing{}, err
		}
		if err := c.resume("s:" + c.thread + ";c"); err != nil {
			return timing{}, err
		}
		t, err := k.stop()
		if err != nil || bytes.Equal(code, wrmsr) {
			return t, err
		}
		if pc, err = c.pc(); err != nil {
			return timing{}, err
		}
	}
	return timing{}, fmt.Errorf("no WRMSR in the first %d instructions of %s", exitReach, msrFunction)
}
