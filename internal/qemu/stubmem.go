package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// stubChunk is how many bytes of memory travel in a packet. QEMU's packets have
// room for 4096 characters, two for each byte and some for the address.
const stubChunk = 2000

// ReadPhys implements mem.PhysReader, for the case that RAM cannot be read any
// other way: 14 MB/s at best. Unlike other readers it is for one goroutine. The
// stub itself answers zeros where nothing is, so only RAM is asked for.
func (s *Stub) ReadPhys(p []byte, a mem.Phys) (int, error) {
	ctx := context.Background() // every packet has a bound of its own
	n := 0
	err := s.physMode(ctx, func() error {
		for n < len(p) {
			size := min(stubChunk, len(p)-n, s.ramLeft(a+mem.Phys(n)))
			if size == 0 {
				return &mem.FaultError{Space: "physical memory", Addr: uint64(a) + uint64(n), Err: mem.ErrNoRAM}
			}
			if err := s.readChunk(ctx, p[n:n+size], uint64(a)+uint64(n)); err != nil {
				return err
			}
			n += size
		}
		return nil
	})
	return n, err
}

// WritePhys writes physical memory through QEMU, so that it drops code it has
// translated from there. What is written is read back: QEMU is silent about memory
// that is read-only at the moment, as a PC's below 1 MiB may be.
func (s *Stub) WritePhys(ctx context.Context, a mem.Phys, p []byte) error {
	return s.physMode(ctx, func() error {
		back := make([]byte, stubChunk)
		for n := 0; n < len(p); {
			at := uint64(a) + uint64(n)
			size := min(stubChunk, len(p)-n, s.ramLeft(mem.Phys(at)))
			if size == 0 {
				return &mem.FaultError{Space: "physical memory", Addr: at, Err: mem.ErrNoRAM}
			}
			chunk := p[n : n+size]
			if err := s.c.command(ctx, "M%x,%x:%x", at, size, chunk); err != nil {
				return fmt.Errorf("write %#x: %w", at, err)
			}
			if err := s.readChunk(ctx, back[:size], at); err != nil {
				return err
			}
			if !bytes.Equal(back[:size], chunk) {
				err := errors.New("the machine does not let it be written")
				return &mem.FaultError{Space: "physical memory", Addr: at, Err: err}
			}
			n += size
		}
		return nil
	})
}

// physMode switches the stub to physical addresses for the time of f. The mode is
// the whole stub's and would outlive the connection.
func (s *Stub) physMode(ctx context.Context, f func() error) error {
	if s.running {
		return errRuns
	}
	if err := s.c.command(ctx, "Qqemu.PhyMemMode:1"); err != nil {
		return err
	}
	err := f()
	back := s.c.command(context.WithoutCancel(ctx), "Qqemu.PhyMemMode:0")
	return errors.Join(err, back)
}

// ramLeft is the number of bytes of RAM from a on, at most a chunk.
func (s *Stub) ramLeft(a mem.Phys) int {
	for _, r := range s.machine.ram.ranges {
		if r.Contains(uint64(a)) {
			return int(min(r.Last-uint64(a), stubChunk-1)) + 1
		}
	}
	return 0
}

func (s *Stub) readChunk(ctx context.Context, p []byte, a uint64) error {
	reply, err := s.c.ask(ctx, "m%x,%x", a, len(p))
	if err != nil {
		return err
	}
	b, err := rsp.DecodeHex(nil, reply)
	if err != nil || len(b) != len(p) {
		return fmt.Errorf("%w: %s: %d bytes at %#x: %.40q", ErrCorrupt, s.c.what, len(p), a, reply)
	}
	copy(p, b)
	return nil
}
