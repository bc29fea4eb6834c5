package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"nestdbg/internal/mem"
)

// flatRange is one line of a FlatView: addresses and what answers there.
type flatRange struct {
	span   mem.Range
	kind   string // "ram", "rom", "romd", "ramd", "i/o"
	name   string // of the memory region; for RAM that of its backend
	offset uint64 // of span.First in the region, bytes
}

// isMemory reports whether the range is bytes of a RAM block. rom is RAM that the
// CPU may only read now, as between 0xc0000 and 0xfffff of a PC; romd is flash that
// reads like memory. ramd belongs to a device.
func (r flatRange) isMemory() bool { return r.kind == "ram" || r.kind == "rom" || r.kind == "romd" }

// flatView is what several address spaces of the machine look like.
type flatView struct {
	spaces []string
	ranges []flatRange // ascending, not overlapping
}

// maxFlatRanges is far above what machines have; a large one shows 200.
const maxFlatRanges = 1 << 16

// parseMtree parses the text of HMP "info mtree -f":
//
//	FlatView #0
//	 AS "memory", root: system
//	 AS "cpu-memory-0", root: system
//	 Root memory region: system
//	  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
//	  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM
//
// Any other line is an error: a layout that is only half understood is worse than
// none. Source: QEMU 7.2 softmmu/memory.c:mtree_print_flatview.
func parseMtree(text string) ([]flatView, error) {
	var views []flatView
	total := 0
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		bad := func(why string) error {
			return fmt.Errorf("%w: info mtree line %d: %s: %.100q", ErrCorrupt, i+1, why, line)
		}
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "FlatView #") {
			views = append(views, flatView{})
			continue
		}
		if len(views) == 0 {
			return nil, bad("no FlatView before it")
		}
		v := &views[len(views)-1]
		switch {
		case strings.HasPrefix(line, ` AS "`):
			name, _, ok := strings.Cut(line[5:], `"`)
			if !ok {
				return nil, bad("address space without a name")
			}
			v.spaces = append(v.spaces, name)
		case strings.HasPrefix(line, " Root memory region: "), line == "  No rendered FlatView":
		default:
			r, why := parseFlatRange(line)
			if total++; why == "" && total > maxFlatRanges {
				why = "too many ranges"
			}
			if n := len(v.ranges); why == "" && n > 0 && r.span.First <= v.ranges[n-1].span.Last {
				why = "ranges overlap"
			}
			if why != "" {
				return nil, bad(why)
			}
			v.ranges = append(v.ranges, r)
		}
	}
	return views, nil
}

// parseFlatRange parses one range; why is empty if it is one.
func parseFlatRange(line string) (r flatRange, why string) {
	rest, ok := strings.CutPrefix(line, "  ")
	const digits = 16
	if !ok || len(rest) < 2*digits+1 || rest[digits] != '-' {
		return r, "not a range"
	}
	first, err1 := strconv.ParseUint(rest[:digits], 16, 64)
	last, err2 := strconv.ParseUint(rest[digits+1:2*digits+1], 16, 64)
	if err1 != nil || err2 != nil || first > last {
		return r, "bad addresses"
	}
	attrs, name, ok := strings.Cut(rest[2*digits+1:], "): ")
	attrs, ok2 := strings.CutPrefix(attrs, " (prio ")
	prio, kind, ok3 := strings.Cut(attrs, ", ")
	if _, err := strconv.Atoi(prio); err != nil || !ok || !ok2 || !ok3 {
		return r, "bad attributes"
	}
	r.span = mem.Range{First: first, Last: last}
	r.kind = strings.TrimPrefix(kind, "nv-") // non-volatile
	r.name, r.offset = cutOffset(name)
	if r.name == "" {
		return r, "no name"
	}
	if r.offset+(last-first) < r.offset {
		return r, "offset too large"
	}
	return r, ""
}

// cutOffset cuts " @00000000c0000000" from the end, and behind it the name of the
// accelerator that knows this range (" KVM").
func cutOffset(name string) (string, uint64) {
	name = strings.TrimSuffix(name, " KVM")
	i := strings.LastIndex(name, " @")
	if i < 0 || len(name)-i != len(" @")+16 {
		return name, 0
	}
	offset, err := strconv.ParseUint(name[i+2:], 16, 64)
	if err != nil {
		return name, 0
	}
	return name[:i], offset
}

// cpuView picks the view of memory that CPUs have outside of system management
// mode.
func cpuView(views []flatView) (flatView, error) {
	for _, want := range []string{"memory", "cpu-memory-0"} {
		for _, v := range views {
			for _, s := range v.spaces {
				if s == want {
					return v, nil
				}
			}
		}
	}
	return flatView{}, fmt.Errorf("%w: info mtree shows no address space of the CPUs", ErrCorrupt)
}
