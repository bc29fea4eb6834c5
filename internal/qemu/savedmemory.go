package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"nestdbg/internal/mem"
)

// savedMemory reads physical memory by having QEMU write it to a file (QMP pmemsave).
// That is what is left when memory is private and QEMU's process may not be looked into,
// as with Yama's ptrace_scope or from another PID namespace. QEMU has to be able to
// write into a directory of ours. A read takes a third of a millisecond.
type savedMemory struct {
	monitor *monitor
	dir     string
	mu      sync.Mutex // one read at a time uses the file
}

func newSavedMemory(m *monitor) (*savedMemory, error) {
	dir, err := os.MkdirTemp("", "nestdbg-") // mode 0700
	return &savedMemory{monitor: m, dir: dir}, err
}

func (s *savedMemory) close() { os.RemoveAll(s.dir) }

// maxSaved bounds one answer of QEMU's, whose machine waits for it.
const maxSaved = 1 << 20

// read reads up to maxSaved bytes at a, which must be RAM.
func (s *savedMemory) read(p []byte, a mem.Phys) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = p[:min(len(p), maxSaved)]
	path := filepath.Join(s.dir, "memory")
	args := map[string]any{"val": uint64(a), "size": len(p), "filename": path}
	if err := s.monitor.ask(context.Background(), "pmemsave", args, nil); err != nil {
		return 0, fmt.Errorf("read %d bytes at %#x: %w", len(p), uint64(a), err)
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("QMP pmemsave: QEMU wrote it elsewhere: %w", err)
	}
	defer f.Close()
	if n, err := io.ReadFull(f, p); err != nil {
		return 0, fmt.Errorf("%w: QMP pmemsave wrote %d bytes of %d: %v", ErrCorrupt, n, len(p), err)
	}
	return len(p), nil
}

// readSaved makes a part that cannot be read otherwise one that QEMU writes, if it does.
func (m *Machine) readSaved(p *ramPart) {
	s, err := newSavedMemory(m.monitor)
	if err == nil {
		var probe [1]byte
		if _, err = s.read(probe[:], mem.Phys(p.ranges[0].span.First)); err == nil {
			p.saved, p.source, p.err = s, "QMP pmemsave, which is slow", nil
			return
		}
		s.close()
	}
	p.err = errors.Join(p.err, err)
}
