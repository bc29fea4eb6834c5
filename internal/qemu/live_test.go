package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/mem"
)

// These tests run a real QEMU without a guest: it stands still at its reset vector
// or executes its firmware.

// live is a QEMU that a test started.
type live struct {
	cmd *exec.Cmd
	dir string
	qmp string // path of its QMP socket
	out bytes.Buffer
}

// start runs QEMU, stopped, with a QMP socket and the arguments given. "DIR" in
// them is the test's directory.
func start(t *testing.T, args ...string) *live {
	t.Helper()
	return startWith(t, append([]string{"-qmp", "unix:DIR/qmp,server=on,wait=off"}, args...), nil)
}

func startWith(t *testing.T, args []string, files []*os.File) *live {
	t.Helper()
	// Socket paths have a limit that t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "nd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	q := &live{dir: dir, qmp: filepath.Join(dir, "qmp")}
	all := []string{"-S", "-nodefaults", "-no-user-config", "-display", "none"}
	for _, a := range args {
		all = append(all, strings.ReplaceAll(a, "DIR", dir))
	}
	q.cmd = exec.Command("qemu-system-x86_64", all...)
	q.cmd.Dir = dir
	q.cmd.ExtraFiles = files
	q.cmd.Stderr = &q.out
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.kill(t) })
	q.await(t)
	return q
}

// await waits until QEMU listens.
func (q *live) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if p, ok := proc.process(q.cmd.Process.Pid); ok && !p.QMP.IsZero() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("QEMU does not listen: %s", q.out.String())
}

func (q *live) kill(t *testing.T) {
	if q.cmd.ProcessState == nil {
		q.cmd.Process.Kill()
		q.cmd.Wait()
	}
}

// open attaches by PID.
func (q *live) open(t *testing.T) *Machine {
	t.Helper()
	ctx := deadline(t, 10*time.Second)
	target, err := Find(ctx, fmt.Sprint(q.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(ctx, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func openStub(t *testing.T, m *Machine) *Stub {
	t.Helper()
	s, err := m.OpenStub(deadline(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// backend is the arguments for a machine whose memory is a backend of this kind.
func backend(machine, size, object string) []string {
	return []string{"-M", machine, "-m", size, "-object", object + ",id=ram0,size=" + size, "-machine", "memory-backend=ram0"}
}

func TestMemorySources(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		args   []string
		source string // with PID for the process; an alternative for those who are not root
		file   bool
	}{
		{"file", backend("q35", "64M", "memory-backend-file,share=on,mem-path=DIR/ram"), "shared file DIR/ram", true},
		{"deleted", backend("q35", "64M", "memory-backend-file,share=on,mem-path=DIR"), "deleted file of process PID through /proc/PID/fd/", true},
		{"memfd", backend("q35", "64M", "memory-backend-memfd,share=on"), "memfd of process PID through /proc/PID/fd/", true},
		{"shared anonymous", backend("q35", "64M", "memory-backend-ram,share=on"), "shared memory of process PID through /proc/PID/map_files/|process_vm_readv of process PID|" +
			"memfd of process PID through /proc/PID/fd/", true}, // the last with QEMU 10
		{"private file", backend("q35", "64M", "memory-backend-file,share=off,mem-path=DIR/ram"), "process_vm_readv of process PID", false},
		{"anonymous", []string{"-M", "q35", "-m", "64M"}, "process_vm_readv of process PID", false},
		{"microvm 5G", backend("microvm", "5G", "memory-backend-file,share=on,mem-path=DIR/ram"), "shared file DIR/ram", true},
		{"pc 5G", backend("pc", "5G", "memory-backend-memfd,share=on"), "memfd of process PID through", true},
		{"q35 5G", backend("q35", "5G", "memory-backend-file,share=on,mem-path=DIR/ram"), "shared file DIR/ram", true},
		{"q35 5G private", []string{"-M", "q35", "-m", "5G"}, "process_vm_readv of process PID", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := start(t, tt.args...)
			m := q.open(t)
			if p := m.Problems(); len(p) > 0 {
				t.Errorf("problems: %q", p)
			}
			want := strings.NewReplacer("DIR", q.dir, "PID", fmt.Sprint(q.cmd.Process.Pid)).Replace(tt.source)
			got := m.RAM().Source()
			if !slices.ContainsFunc(strings.Split(want, "|"), func(w string) bool { return strings.HasPrefix(got, w) }) {
				t.Errorf("source %q, want %q", got, want)
			}
			if hasFile := m.RAM().File() != ""; hasFile != (tt.file && !strings.HasPrefix(got, "process_vm_readv")) {
				t.Errorf("file %q", m.RAM().File())
			}
			checkEdges(t, m)
		})
	}
}

// TestSavedMemory: memory is private and QEMU's process cannot be seen. Then QEMU writes
// it; nothing is left behind, also of a QEMU that has ended.
func TestSavedMemory(t *testing.T) {
	t.Parallel()
	q := start(t, "-M", "q35", "-m", "5G")
	m, err := Open(deadline(t, 10*time.Second), &Target{QMP: Address{"unix", q.qmp}})
	if err != nil {
		t.Fatal(err)
	}
	if got := m.RAM().Source(); got != "QMP pmemsave, which is slow" || m.RAM().File() != "" {
		t.Errorf("source %q, file %q", got, m.RAM().File())
	}
	if p := fmt.Sprint(m.Problems()); !strings.Contains(p, "share=on") {
		t.Errorf("problems: %s", p)
	}
	checkEdges(t, m)
	large := make([]byte, 2*maxSaved+5)
	if n, err := m.RAM().ReadPhys(large, 0x100000); n != len(large) || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	called := false
	m.BeforeStop(func(context.Context) { called = true })
	if err := m.StopMachine(deadline(t, 5*time.Second)); err != nil || called {
		t.Errorf("%v, memory was read while the monitor was in use: %v", err, called)
	}
	dir := m.ram.parts[0].saved.dir
	q.kill(t)
	if n, err := m.RAM().ReadPhys(large[:8], 0x100000); err == nil || errors.Is(err, mem.ErrFault) {
		t.Errorf("of a QEMU that has ended: %d bytes, %v", n, err)
	}
	m.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("left is %s, %v", dir, err)
	}
}

// checkEdges writes different bytes at both ends of every range of RAM through the
// stub and reads them back, and looks for them in the file.
func checkEdges(t *testing.T, m *Machine) {
	t.Helper()
	ctx := deadline(t, 20*time.Second)
	s := openStub(t, m)
	defer s.Close(ctx)
	ranges := m.RAM().PhysRanges()
	if len(ranges) < 2 {
		t.Fatalf("ranges %v", ranges)
	}
	for i, r := range ranges {
		for j, at := range []mem.Phys{mem.Phys(r.First), mem.Phys(r.Last - 7)} {
			want := fmt.Appendf(nil, "edge %d%d!", i, j)
			if err := s.WritePhys(ctx, at, want); err != nil {
				t.Fatal(err)
			}
			checkBytes(t, m, s, at, want)
		}
		if n, err := m.RAM().ReadPhys(make([]byte, 9), mem.Phys(r.Last-7)); i == len(ranges)-1 && (n != 8 || !errors.Is(err, mem.ErrNoRAM)) {
			t.Errorf("read across the end at %#x: %d, %v", r.Last, n, err)
		}
	}
	var size uint64
	for _, r := range m.RAM().PopulatedRanges() {
		size += r.Size()
	}
	if m.RAM().File() != "" && (size == 0 || size > 8<<20) {
		t.Errorf("%#x bytes are populated", size)
	}
}

func checkBytes(t *testing.T, m *Machine, s *Stub, at mem.Phys, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	for name, r := range map[string]mem.PhysReader{"RAM": m.RAM(), "stub": s} {
		if n, err := r.ReadPhys(got, at); n != len(want) || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s at %#x: %q, %d, %v; want %q", name, at, got, n, err, want)
		}
	}
	if m.RAM().File() == "" {
		return
	}
	offset, ok := m.RAM().FileOffset(at)
	f, err := os.Open(m.RAM().File())
	if err != nil || !ok {
		t.Fatalf("file offset of %#x: %v, %v", at, ok, err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, int64(offset)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("file at %#x, offset %#x: %q, %v; want %q", at, offset, got, err, want)
	}
}

// TestSeveralBackends: two NUMA nodes and a DIMM, each from another source.
func TestSeveralBackends(t *testing.T) {
	t.Parallel()
	q := start(t, "-M", "q35", "-m", "3G,slots=1,maxmem=4G", "-smp", "2",
		"-object", "memory-backend-ram,id=n0,size=2560M", "-numa", "node,memdev=n0,cpus=0",
		"-object", "memory-backend-memfd,id=n1,size=512M,share=on", "-numa", "node,memdev=n1,cpus=1",
		"-object", "memory-backend-file,id=d0,size=256M,share=on,mem-path=DIR/dimm", "-device", "pc-dimm,memdev=d0")
	m := q.open(t)
	if p := m.Problems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
	source := m.RAM().Source()
	for _, want := range []string{"process_vm_readv", "memfd", "shared file " + q.dir + "/dimm"} {
		if !strings.Contains(source, want) {
			t.Errorf("source %q lacks %q", source, want)
		}
	}
	if f := m.RAM().File(); f != "" {
		t.Errorf("one file %q for all", f)
	}
	if _, ok := m.RAM().FileOffset(0x1000); ok {
		t.Error("an offset in no file")
	}
	if got, want := m.RAM().Size(), uint64(3<<30+256<<20); got != want {
		t.Errorf("size %#x, want %#x", got, want)
	}
	checkEdges(t, m)
}

// TestMachineWithoutAnything has neither memory nor a CPU.
func TestMachineWithoutAnything(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "none").open(t)
	if i := m.Info(); i.CPUs != 0 || i.MachineType != "none-machine" || i.Accel != "tcg" || i.Arch != "x86_64" {
		t.Errorf("%+v", i)
	}
	if _, err := m.RAM().ReadPhys(make([]byte, 1), 0); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("read: %v", err)
	}
	if s, err := m.OpenStub(deadline(t, 5*time.Second)); err == nil {
		t.Errorf("stub %+v of no CPU", s)
	}
	if _, err := m.HMP(deadline(t, 5*time.Second), "info version"); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestPhysBits: what was asked for, and what QEMU takes where nothing was.
func TestPhysBits(t *testing.T) {
	t.Parallel()
	for cpu, want := range map[string]uint{"qemu64": 40, "qemu64,phys-bits=44": 44} {
		if i := start(t, "-M", "q35", "-m", "64M", "-cpu", cpu).open(t).Info(); i.PhysBits != want {
			t.Errorf("%s: %d, want %d", cpu, i.PhysBits, want)
		}
	}
}
