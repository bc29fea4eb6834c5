package linux

import (
	"encoding/binary"
	"fmt"
	"strings"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// lostStack is how much of a kernel stack is searched, THREAD_SIZE without KASAN
// (Linux 6.1 arch/x86/include/asm/page_64_types.h).
const lostStack = 16 << 10

// Lost is what can be made of the stack of a task that ran on a CPU whose registers
// are lost. Its stack pointer is not known, so that all frames are guesses: the
// longest chain of calls that leads to the end of the stack and in which each call is
// of the function before, as far as it says. What was called from a true frame and
// had returned already may still stand there: the innermost frames may be old.
// The method is ours. ErrNotFound if no chain holds.
func (u *Unwinder) Lost(task *Task) ([]Frame, error) {
	if task.Stack == 0 {
		return nil, fmt.Errorf("task %d has no stack: %w", task.PID, ErrNotFound)
	}
	b := make([]byte, lostStack)
	n, err := u.k.space.ReadVirt(b, task.Stack)
	if n == 0 && err != nil {
		return nil, fmt.Errorf("stack of task %d: %w", task.PID, err)
	}
	var best []Frame
	jumps := make(jumpCache)
	for at := 0; at+8 <= n; at += 8 {
		pc := binary.LittleEndian.Uint64(b[at:])
		if _, returns := u.callBefore(pc); !returns {
			continue
		}
		var s orc.State
		s.Set(orc.IP, pc)
		s.Set(orc.SP, uint64(task.Stack)+uint64(at)+8)
		frames, err := u.walk(s)
		if err != nil || !endsAt(frames, task.Stack+lostStack, task.MM != 0) {
			continue
		}
		if frames = u.chained(frames, jumps); len(frames) > len(best) {
			best = frames
		}
	}
	if len(best) < lostLeast {
		return nil, fmt.Errorf("stack of task %d: no chain of calls leads to its end: %w", task.PID, ErrNotFound)
	}
	for i := range best {
		best[i].Guess = true
	}
	return best, nil
}

// lostLeast is how many frames a chain has at least: two can be chance.
const lostLeast = 3

// lostTop is how far from the end of a stack the last kernel frame begins at most: the
// registers of user mode are there, or the first frame of a thread.
const lostTop = 512

// endsAt reports whether a chain goes to the end of the stack, in user mode or not.
func endsAt(frames []Frame, end mem.Virt, user bool) bool {
	last := len(frames) - 1
	if last < 0 || frames[last].User != user {
		return false
	}
	if user {
		if !frames[last].Exact { // an address of user mode that is not in saved registers
			return false
		}
		last--
	}
	return last >= 0 && frames[last].SP <= end && end-frames[last].SP <= lostTop
}

// chained is the outer part of a chain in which each frame stands behind a call of the
// one before, or of a function that jumps on to it at its end. Whom an indirect call
// calls is not known, and is believed.
func (u *Unwinder) chained(frames []Frame, jumps jumpCache) []Frame {
	for i := len(frames) - 2; i >= 0; i-- {
		next := &frames[i+1]
		if next.User || next.Exact {
			continue
		}
		target, returns := u.callBefore(uint64(next.PC))
		place, known := frames[i].Symbolize(u.k)
		if !returns || !known {
			return frames[i+1:]
		}
		if at := mem.Virt(target); target == 0 || at >= u.thunkFirst && at < u.thunkEnd {
			continue
		}
		name, _, _ := strings.Cut(place.Name, ".") // of a function, not of its cold part
		if !u.reaches(target, name, jumpHops, jumps) {
			return frames[i+1:]
		}
	}
	return frames
}

// jumpHops is how many jumps at the ends of functions are followed: a system call is
// reached by two.
const jumpHops = 2

// jumpCache has where each function that was looked at jumps to.
type jumpCache map[uint64][]uint64

// reaches reports whether a call of target leads into the function of a name.
func (u *Unwinder) reaches(target uint64, name string, hops int, jumps jumpCache) bool {
	to, known := u.k.Symbolize(mem.Virt(target))
	if !known {
		return false
	}
	if own, _, _ := strings.Cut(to.Name, "."); own == name {
		return true
	}
	if hops == 0 {
		return false
	}
	list, ok := jumps[target]
	if !ok {
		list = u.jumps(target, to.Size-to.Offset)
		jumps[target] = list
	}
	for _, t := range list {
		if u.reaches(t, name, hops-1, jumps) {
			return true
		}
	}
	return false
}

// jumpsMost bounds the code of a function that is searched for jumps.
const jumpsMost = 8 << 10

// jumps are the places outside of a function that its direct jumps lead to. Bytes that
// only look like one lead to no function, or to one that is not asked for.
func (u *Unwinder) jumps(begin, size uint64) (out []uint64) {
	code := make([]byte, min(size, jumpsMost))
	n, _ := u.k.space.ReadVirt(code, mem.Virt(begin))
	seen := make(map[uint64]bool)
	for i := 0; i+u.k.layout.jumpMax <= n; i++ {
		t, ok := u.k.layout.jumpAt(code[i:], begin+uint64(i))
		if !ok || t >= begin && t < begin+size || seen[t] || !u.isText(t) && u.module(mem.Virt(t)) == nil {
			continue
		}
		if p, known := u.k.Symbolize(mem.Virt(t)); known && p.Offset == 0 {
			seen[t] = true
			out = append(out, t)
		}
	}
	return out
}

// x86JumpAt decodes JMP rel32 (Intel SDM Vol. 2, "JMP").
func x86JumpAt(code []byte, pc uint64) (target uint64, ok bool) {
	const jmp = 0xe9
	if code[0] != jmp {
		return 0, false
	}
	return pc + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(code[1:])))), true
}
