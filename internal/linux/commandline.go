package linux

import (
	"bytes"
	"fmt"

	"nestdbg/internal/mem"
)

// commandLineMax bounds the arguments of a process that are read, bytes.
const commandLineMax = 128 << 10

// CommandLine is the arguments of a task's process as they are in its own memory, byte
// for byte, and as /proc/PID/cmdline has them. Threads of the kernel have none, nor has
// who ended. With an error the arguments are those that could be read, the last perhaps
// in part.
func (k *Kernel) CommandLine(task *Task) ([]string, error) {
	if task.MM == 0 || task.Kernel {
		return nil, nil
	}
	b, err := k.argumentBytes(task)
	if err != nil {
		err = fmt.Errorf("arguments of task %d: %w", task.PID, err)
	}
	return splitArguments(b), err
}

// argumentBytes reads what is in front of arg_end, or the title that a program put there
// (Linux 6.1 fs/proc/base.c:get_mm_cmdline): it wrote over the NUL of the last argument,
// and may have gone on over its environment, for a page at most.
func (k *Kernel) argumentBytes(task *Task) ([]byte, error) {
	t, err := k.Types()
	if err != nil {
		return nil, err
	}
	s := newShape(t, "mm_struct")
	first, end := s.need("arg_start"), s.need("arg_end")
	envFirst, envEnd := s.need("env_start"), s.need("env_end")
	rec, err := s.read(k.space, task.MM)
	if err != nil {
		return nil, err
	}
	size := rec.uint(end) - rec.uint(first)
	switch {
	case size == 0:
		return nil, nil
	case rec.uint(end) < rec.uint(first):
		return nil, fmt.Errorf("from %#x to %#x: %w", rec.uint(first), rec.uint(end), ErrCorrupt)
	}
	space, err := k.UserSpace(task.MM)
	if err != nil {
		return nil, err
	}
	var last [1]byte
	if _, err := space.ReadVirt(last[:], rec.virt(end)-1); err == nil && last[0] != 0 {
		room := size
		if rec.uint(envFirst) == rec.uint(end) && rec.uint(envEnd) > rec.uint(envFirst) {
			room = rec.uint(envEnd) - rec.uint(first)
		}
		title, err := readFront(space, rec.virt(first), min(room, pageSize))
		if i := bytes.IndexByte(title, 0); i >= 0 {
			return title[:i], nil
		}
		return title, err
	}
	b, err := readFront(space, rec.virt(first), min(size, commandLineMax))
	if err == nil && size > commandLineMax {
		err = fmt.Errorf("only %#x of %#x bytes are read", commandLineMax, size)
	}
	return b, err
}

// readFront reads bytes, or those in front of what cannot be read.
func readFront(r mem.VirtReader, a mem.Virt, size uint64) ([]byte, error) {
	b := make([]byte, size)
	n, err := r.ReadVirt(b, a)
	return b[:n], err
}

// splitArguments splits at NULs: each argument ends with one, empty ones too.
func splitArguments(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	var out []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		out = append(out, string(arg))
	}
	return out
}
