package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
	"nestdbg/lab/agent"
)

// frozen is the lab standing still inside a process of L2 whose memory is known
// byte for byte.
type frozen struct {
	*bench
	view    *view
	machine *machine.Machine
	memory  *session.CPUMemory // of that process
	ranges  []patternRange
}

// patternRange is a mapping of the process.
type patternRange struct {
	addr     uint64
	size     int
	pageSize int
}

// whileFrozen makes a process of L2 fill 64 MiB and stops it at the moment at
// which it ends: then the CPU has its page tables, and nothing it did is undone
// yet. The machines run on when work is done.
func (b *bench) whileFrozen(ctx context.Context, work func(*frozen) ([]row, error)) (rows []row, err error) {
	text, err := b.ask(ctx, vm, "pattern")
	if err != nil {
		return nil, err
	}
	f := &frozen{bench: b, ranges: parsePattern(text)}
	exit, err := b.symbol(ctx, "do_exit")
	if err != nil {
		return nil, err
	}
	// A machine that nestdbg finds paused is paused again when it lets go.
	if err := b.monitor(ctx, "stop"); err != nil {
		return nil, err
	}
	awake := make(chan error, 1)
	go func() {
		_, err := b.lab.Ask(ctx, vm, "unpattern") // answered after thaw
		awake <- err
	}()
	defer func() { err = errors.Join(err, f.thaw(context.WithoutCancel(ctx), awake)) }()
	if err := f.stopAt(ctx, exit); err != nil {
		return nil, err
	}
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	return work(f)
}

// parsePattern reads the agent's description: see package agent.
func parsePattern(text string) []patternRange {
	var out []patternRange
	for line := range strings.Lines(text) {
		var r patternRange
		if n, _ := fmt.Sscanf(line, "range %v %d %d", &r.addr, &r.size, &r.pageSize); n == 3 {
			out = append(out, r)
		}
	}
	return out
}

// maxOthers bounds the processes of L2 that end before ours does.
const maxOthers = 200

// stopAt lets L2 run until the process with the pattern gets to an address.
func (f *frozen) stopAt(ctx context.Context, addr uint64) error {
	s, err := f.serve(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	c, err := attachNestdbg(s.socket, vmProcess)
	if err != nil {
		return err
	}
	defer c.close()
	first := f.ranges[0].addr
	for range maxOthers {
		if err := c.ok(fmt.Sprintf("Z0,%x,1", addr)); err != nil {
			return err
		}
		if err := c.resume("c"); err != nil {
			return err
		}
		word, err := c.read(first, 8)
		if err == nil && binary.LittleEndian.Uint64(word) == agent.PatternWord(first) {
			return c.ok(fmt.Sprintf("z0,%x,1", addr))
		}
		if err := c.ok(fmt.Sprintf("z0,%x,1", addr)); err != nil {
			return err
		}
		if err := c.resume("s:" + c.thread); err != nil {
			return err
		}
	}
	return fmt.Errorf("%d processes of %s ended, and none was ours", maxOthers, vm)
}

// open looks at the frozen machines in this process.
func (f *frozen) open(ctx context.Context) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	f.view = v
	if f.machine, err = v.Machine(vm); err != nil {
		return err
	}
	f.memory, err = v.VirtMemory(f.machine, f.machine.CPUs[0])
	if err != nil {
		return err
	}
	for _, r := range f.ranges {
		if err := f.check(r); err != nil {
			return err
		}
	}
	return nil
}

// check compares a range, as nestdbg reads it, with what the process wrote.
func (f *frozen) check(r patternRange) error {
	b := make([]byte, r.size)
	if _, err := f.memory.ReadVirt(b, mem.Virt(r.addr)); err != nil {
		return err
	}
	return checkPattern(b, r.addr)
}

// checkPattern compares memory that was at addr with the pattern.
func checkPattern(b []byte, addr uint64) error {
	for i := 0; i < len(b); i += 8 {
		got, want := binary.LittleEndian.Uint64(b[i:]), agent.PatternWord(addr+uint64(i))
		if got != want {
			return fmt.Errorf("L2 wrote %#x to %#x, and %#x was read", want, addr+uint64(i), got)
		}
	}
	return nil
}

// thaw lets the machines run on, and waits until the process has ended.
func (f *frozen) thaw(ctx context.Context, awake <-chan error) error {
	if f.view != nil {
		f.view.close()
	}
	if err := f.monitor(ctx, "cont"); err != nil {
		return err
	}
	select {
	case err := <-awake:
		return err
	case <-time.After(askLimit):
		return fmt.Errorf("%s does not run on", vm)
	}
}
