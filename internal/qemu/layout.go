package qemu

import (
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/mem"
)

// block is one piece of RAM that QEMU allocated as a whole, and where the machine
// sees it.
type block struct {
	name   string
	size   uint64 // bytes
	shared bool   // query-memdev says so
	ranges []blockRange
}

// blockRange is where a part of a block appears in physical memory.
type blockRange struct {
	span   mem.Range
	offset uint64 // of span.First in the block
}

// memdev is a memory backend, as query-memdev shows it.
type memdev struct {
	ID    string `json:"id"`
	Size  uint64 `json:"size"`
	Share bool   `json:"share"`
}

// memorySize is what query-memory-size-summary shows, bytes.
type memorySize struct {
	Base    uint64 `json:"base-memory"`
	Plugged uint64 `json:"plugged-memory"`
}

// layoutOf joins what QEMU says about its memory in three ways. Where they
// disagree, the problems say how; the FlatView is what is used.
func layoutOf(v flatView, devs []memdev, total memorySize) ([]block, []Problem) {
	var problems []Problem
	problem := func(format string, a ...any) {
		problems = append(problems, Problem(fmt.Sprintf(format, a...)))
	}
	var blocks []block
	for _, d := range devs {
		if d.ID != "" {
			blocks = append(blocks, block{name: d.ID, size: d.Size, shared: d.Share})
		}
	}
	if len(blocks) == 0 {
		problem("QEMU names no memory backends: every RAM region is taken for memory")
		blocks = anonymousBlocks(v)
	}
	for _, r := range v.ranges {
		i := slices.IndexFunc(blocks, func(b block) bool { return b.owns(r) })
		if i < 0 {
			continue // the RAM of a device, or its ROM
		}
		b := &blocks[i]
		if end := r.offset + r.span.Size(); end > b.size || end <= r.offset {
			problem("%s of memory backend %s ends behind its %#x bytes; left out", r.span, b.name, b.size)
			continue
		}
		b.add(blockRange{r.span, r.offset})
	}
	blocks, hidden := visibleBlocks(blocks)
	problems = append(problems, hidden...)
	problems = append(problems, checkTotal(blocks, total)...)
	return blocks, problems
}

// owns reports whether the range is bytes of the block. Old machine types name a
// block by its whole path.
func (b block) owns(r flatRange) bool {
	return r.isMemory() && (r.name == b.name || r.name == "/objects/"+b.name)
}

// add appends a range behind those that are there. Neighbours become one: whether
// the CPU may write there now makes no difference here.
func (b *block) add(r blockRange) {
	if n := len(b.ranges); n > 0 {
		last := &b.ranges[n-1]
		if last.span.Last+1 == r.span.First && last.offset+last.span.Size() == r.offset {
			last.span.Last = r.span.Last
			return
		}
	}
	b.ranges = append(b.ranges, r)
}

// anonymousBlocks makes a block of every RAM region, for machines whose memory has
// no backend.
func anonymousBlocks(v flatView) []block {
	var out []block
	for _, r := range v.ranges {
		if r.kind != "ram" {
			continue
		}
		end := r.offset + r.span.Size()
		i := slices.IndexFunc(out, func(b block) bool { return b.name == r.name })
		if i < 0 {
			out = append(out, block{name: r.name, size: end})
		} else {
			out[i].size = max(out[i].size, end)
		}
	}
	return out
}

// hiddenLimit is how much of a block may be invisible without a word: the ranges
// below 1 MiB that a PC's firmware and VGA lie over.
const hiddenLimit = 1 << 20

func visibleBlocks(blocks []block) ([]block, []Problem) {
	var problems []Problem
	out := blocks[:0]
	for _, b := range blocks {
		var seen uint64
		for _, r := range b.ranges {
			seen += r.span.Size()
		}
		if seen == 0 {
			problems = append(problems, Problem("memory backend "+b.name+" is not visible to the machine"))
			continue
		}
		if seen+hiddenLimit < b.size {
			problems = append(problems, Problem(fmt.Sprintf(
				"%#x of the %#x bytes of memory backend %s are not visible to the machine", b.size-seen, b.size, b.name)))
		}
		out = append(out, b)
	}
	return out, problems
}

func checkTotal(blocks []block, total memorySize) []Problem {
	var sum uint64
	names := make([]string, len(blocks))
	for i, b := range blocks {
		sum += b.size
		names[i] = b.name
	}
	if want := total.Base + total.Plugged; sum != want {
		return []Problem{Problem(fmt.Sprintf("QEMU says that the machine has %#x bytes of RAM, but its backends (%s) have %#x",
			want, strings.Join(names, ", "), sum))}
	}
	return nil
}
