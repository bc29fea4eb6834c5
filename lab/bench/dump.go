package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

const (
	// stubBytes is how much QEMU's stub has to read: enough to be exact, little
	// enough not to take all day.
	stubBytes  = 8 << 20
	dumpRounds = 5
	dumpTarget = 5.0
)

//go:embed dump.py
var dumpScript string

// piece is a range of addresses and what L2 has there.
type piece struct {
	addr uint64
	want []byte
}

func (p piece) end() uint64 { return p.addr + uint64(len(p.want)) }

// total is the size of pieces in bytes.
func total(pieces []piece) (size int) {
	for _, p := range pieces {
		size += len(p.want)
	}
	return size
}

// measureDump compares gdb's "dump binary memory" of L2's virtual memory through
// nestdbg with the same command on L1's virtual memory through QEMU's own stub.
func (f *frozen) measureDump(ctx context.Context) ([]row, error) {
	low, err := f.lowMemory()
	if err != nil {
		return nil, err
	}
	process, err := f.processMemory()
	if err != nil {
		return nil, err
	}
	inL1, err := f.inL1(stubBytes)
	if err != nil {
		return nil, err
	}
	of := func(pieces []piece) func(context.Context) (timing, error) {
		return func(ctx context.Context) (timing, error) { return f.dumpOwn(ctx, pieces) }
	}
	s, err := interleave(ctx, dumpRounds,
		contender{"gdb on nestdbg, low memory", of(low)},
		contender{"gdb on nestdbg, a process", of(process)},
		contender{"gdb on QEMU's stub", func(ctx context.Context) (timing, error) { return f.dumpStub(ctx, inL1) }})
	if err != nil {
		return nil, err
	}
	zeros := 100 * bytes.Count(low[0].want, []byte{0}) / len(low[0].want)
	rows := []row{
		dumpRow(fmt.Sprintf("gdb reads %d MiB of L2, low memory", total(low)>>20), total(low), s[0], s[2]),
		dumpRow(fmt.Sprintf("gdb reads %d MiB of L2, a process", total(process)>>20), total(process), s[1], s[2]),
	}
	rows[0].note(fmt.Sprintf("gdb's dump binary memory, timed inside gdb; L2: its kernel's map of all memory from 1 MiB on, "+
		"%d %% of the bytes are zero; L1: %d MiB of its kernel's map of all memory", zeros, stubBytes>>20))
	rows[1].note("the same; L2: a process, half in 4 KiB pages and half in 2 MiB pages, in which hardly a byte is like " +
		"the one before it")
	memory, err := f.privateMemory(f.smapsPath())
	return append(rows, memory), err
}

func dumpRow(question string, size int, own, stub series) row {
	ratio := func(a, b time.Duration) float64 {
		return float64(size) / a.Seconds() / (stubBytes / b.Seconds())
	}
	ours, theirs := own.best(), stub.best()
	return row{
		question: question,
		ours:     perSecond(size, ours.wall),
		theirs:   perSecond(stubBytes, theirs.wall) + ", QEMU's stub on L1",
		ratio:    fmt.Sprintf("%.2f", ratio(ours.wall, theirs.wall)),
		target:   fmt.Sprintf(">= %.0f", dumpTarget),
		verdict:  judge(ratio(ours.wall, theirs.wall) >= dumpTarget),
		notes: []string{
			spread("nestdbg", own), spread("QEMU's stub", stub),
			fmt.Sprintf("ratio by processor time (gdb and server): %.2f; by medians of the wall clock: %.2f",
				ratio(ours.cpu, theirs.cpu), ratio(own.median().wall, stub.median().wall)),
			fmt.Sprintf("gdb alone uses %s of a processor for a MiB from nestdbg, %s for one from QEMU's stub",
				brief(ours.gdb/time.Duration(size>>20)), brief(theirs.gdb/time.Duration(stubBytes>>20))),
		},
	}
}

// processMemory is the pattern.
func (f *frozen) processMemory() (out []piece, err error) {
	for _, r := range f.ranges {
		p := piece{r.addr, make([]byte, r.size)}
		if _, err := f.memory.ReadVirt(p.want, mem.Virt(r.addr)); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// lowMemory is L2's memory from 1 MiB on as far as the second stage has it, which
// KVM fills when L2 touches it, in the map that L2's kernel has of all memory.
func (f *frozen) lowMemory() ([]piece, error) {
	const first, most = 1 << 20, 64 << 20
	base, err := f.directMap(f.machine)
	if err != nil {
		return nil, err
	}
	want := make([]byte, most)
	n, err := f.machine.Phys.ReadPhys(want, first)
	if n &^= 1<<20 - 1; n == 0 {
		return nil, fmt.Errorf("low memory of %s: %w", vm, err)
	}
	return []piece{{base + first, want[:n]}}, nil
}

// directMap is where a machine's kernel has all its physical memory.
func (f *frozen) directMap(m *machine.Machine) (uint64, error) {
	k, err := f.view.Kernel(m)
	if err != nil {
		return 0, err
	}
	at, ok := k.Lookup("page_offset_base") // Linux 6.1 arch/x86/include/asm/page_64.h
	if !ok {
		return 0, fmt.Errorf("%s has no symbol page_offset_base", m.Name)
	}
	return mem.VirtUint64(k.Space(), at)
}

// inL1 finds size bytes of the pattern in L1's map of all its memory.
func (f *frozen) inL1(size int) (out []piece, err error) {
	base, err := f.directMap(f.machine.Parent)
	if err != nil {
		return nil, err
	}
	e := f.inFile(func(_ uint64, l1 mem.Phys, n int) bool {
		p := piece{base + uint64(l1), make([]byte, min(n, size))}
		if _, err = f.machine.Parent.Phys.ReadPhys(p.want, l1); err != nil {
			return false
		}
		out = append(out, p)
		size -= len(p.want)
		return size > 0
	})
	return out, errors.Join(err, e)
}

// inFile calls do for the pieces of the pattern that lie together in QEMU's
// machine, in the order of their addresses in L2, until it returns false.
func (f *frozen) inFile(do func(addr uint64, l1 mem.Phys, size int) bool) error {
	for _, r := range f.ranges {
		for addr := r.addr; addr < r.addr+uint64(r.size); {
			pa, n, err := f.memory.Translate(addr)
			if err != nil {
				return err
			}
			l1, k, err := session.RootPhys(f.machine, pa)
			if err != nil {
				return err
			}
			n = min(n, k, r.addr+uint64(r.size)-addr)
			if !do(addr, l1, int(n)) {
				return nil
			}
			addr += n
		}
	}
	return nil
}

func (f *frozen) smapsPath() string { return filepath.Join(f.dir, "smaps") }

// dumpOwn dumps memory of L2 through "nestdbg gdb", and afterwards takes down how
// much memory nestdbg has, with gdb still attached.
func (f *frozen) dumpOwn(ctx context.Context, pieces []piece) (timing, error) {
	out := filepath.Join(f.dir, "l2.bin")
	args := []string{"-t", fmt.Sprint(f.lab.PID), "gdb", "--", "-nx", "-batch",
		"-ex", fmt.Sprintf("inferior %d", vmProcess),
		"-x", f.script(),
		"-ex", "python import os",
		"-ex", dumpCommand("os.getppid()", out, pieces),
		"-ex", "info sharedlibrary", // what is made for gdb counts too
		"-ex", fmt.Sprintf("python bench_copy('/proc/%%d/smaps' %% os.getppid(), %q)", f.smapsPath())}
	return dump(exec.CommandContext(ctx, f.nestdbg, args...), out, pieces)
}

// dumpStub dumps pieces of L1 through QEMU's own stub and leaves it as it was.
func (f *frozen) dumpStub(ctx context.Context, pieces []piece) (timing, error) {
	out := filepath.Join(f.dir, "l1.bin")
	cpu, err := f.inL1CPU()
	if err != nil {
		return timing{}, err
	}
	args := []string{"-nx", "-batch", "-x", f.script(),
		"-ex", "target remote " + f.lab.GDBPath,
		"-ex", fmt.Sprintf("thread %d", cpu+1),
		"-ex", dumpCommand(fmt.Sprint(f.lab.PID), out, pieces),
		"-ex", "disconnect"} // detaching would let the machine run
	return dump(exec.CommandContext(ctx, "gdb", args...), out, pieces)
}

// inL1CPU is a CPU that executes L1's own code: QEMU's stub reads with the page
// tables of the CPU it is asked about, as if they stood in L1's memory.
func (f *frozen) inL1CPU() (int, error) {
	for _, c := range f.machine.Parent.CPUs {
		if c.State != machine.Hosting {
			return c.Index, nil
		}
	}
	return 0, errors.New("no CPU is in L1: QEMU's stub cannot read its memory")
}

// script is the file with dumpScript.
func (f *frozen) script() string { return filepath.Join(f.dir, "dump.py") }

func dumpCommand(server, path string, pieces []piece) string {
	var list strings.Builder
	for _, p := range pieces {
		fmt.Fprintf(&list, "(%#x, %#x), ", p.addr, p.end())
	}
	return fmt.Sprintf("python bench_dump(%s, %q, [%s])", server, path, &list)
}

// dump runs gdb, checks what it wrote and returns how long it said that it took.
func dump(gdb *exec.Cmd, path string, pieces []piece) (timing, error) {
	text, err := gdb.CombinedOutput()
	if err != nil {
		return timing{}, fmt.Errorf("%w: %s", err, text)
	}
	_, said, _ := strings.Cut(string(text), "bench: dump ")
	var t timing
	var server time.Duration
	if n, _ := fmt.Sscan(said, (*int64)(&t.wall), (*int64)(&t.gdb), (*int64)(&server)); n != 3 {
		return timing{}, fmt.Errorf("gdb did not say how long it took: %s", text)
	}
	t.cpu = t.gdb + server
	b, err := os.ReadFile(path)
	if err != nil {
		return timing{}, err
	}
	for _, p := range pieces {
		rest, ok := bytes.CutPrefix(b, p.want)
		if !ok {
			return timing{}, fmt.Errorf("gdb read something else at %#x than L2 has there: %s", p.addr, text)
		}
		b = rest
	}
	return t, os.Remove(path)
}
