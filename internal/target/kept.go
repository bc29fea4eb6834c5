package target

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
	"nestdbg/internal/snapshot"
	"nestdbg/internal/vmstate"
)

// Kept is a machine in a snapshot: it stands still, and all that QEMU knew of it is
// there.
type Kept struct {
	still
	dir  string
	snap *snapshot.Snapshot
	arch *arch.Arch
	cpus []*arch.Registers
}

func openSnapshot(dir string) (*Kept, error) {
	s, err := snapshot.Open(dir)
	if err != nil {
		return nil, err
	}
	k := &Kept{dir: dir, snap: s}
	k.still.what = fmt.Sprintf("%s (snapshot)", dir)
	var ok bool
	if k.arch, ok = architectures[s.Manifest.Machine.Arch]; !ok {
		return nil, errors.Join(fmt.Errorf("%s: machines of architecture %.20q are not supported", dir, s.Manifest.Machine.Arch), s.Close())
	}
	if s.Manifest.DevicesLost != "" {
		return k, nil
	}
	state, err := vmstate.Parse(s.Devices, k.arch)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: device state: %w", dir, err), s.Close())
	}
	k.cpus = state.CPUs
	return k, nil
}

// Close implements Target.
func (k *Kept) Close() error { return k.snap.Close() }

// Arch implements session.Backend.
func (k *Kept) Arch() *arch.Arch { return k.arch }

// Memory implements session.Backend.
func (k *Kept) Memory() machine.PhysMemory { return k.snap }

// PhysBits implements session.Sized.
func (k *Kept) PhysBits() uint { return k.snap.Manifest.Machine.PhysBits }

// CPUs implements session.Backend.
func (k *Kept) CPUs(context.Context) ([]*arch.Registers, error) {
	var out []*arch.Registers
	for _, r := range k.cpus {
		out = append(out, r.Clone())
	}
	return out, nil
}

// Describe implements Target.
func (k *Kept) Describe() Description {
	m := k.snap.Manifest
	d := Description{
		Kind: "snapshot of " + m.Created.Format(time.RFC3339) + ", QEMU " + m.Machine.Version, Path: k.dir,
		Source: "snapshot " + k.dir, File: k.snap.File(), Size: m.RAMSize,
	}
	if m.DevicesLost != "" {
		d.Problems = append(d.Problems, "it has no registers: "+m.DevicesLost)
	}
	if m.Live {
		d.Problems = append(d.Problems, "memory was copied while the machine ran: pages are of different moments, "+
			"and none may be as the registers knew it")
	}
	return d
}

// FileOffset implements Target.
func (k *Kept) FileOffset(a mem.Phys) (uint64, bool) { return k.snap.FileOffset(a) }

// still is what all targets that cannot run have in common.
type still struct{ what string }

// Running implements session.Backend.
func (still) Running(context.Context) (bool, error) { return false, nil }

// CheckStub implements Target.
func (still) CheckStub(context.Context) error { return nil }

// WaitEnd implements Target: what is dead does not end.
func (still) WaitEnd(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// OpenStub implements Target.
func (s still) OpenStub(context.Context) (session.Stub, error) {
	return deadStub{fmt.Errorf("%w: %s", session.ErrDead, s.what)}, nil
}
