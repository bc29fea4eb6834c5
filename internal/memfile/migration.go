package memfile

import (
	"cmp"
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/vmstate"
)

// streamArch is the architecture of machines whose streams are read. A stream does not
// say which it is.
var streamArch = arch.X86

// openMigration opens what QEMU wrote for a migration into a file: RAM, one record a
// page or each page at its place, and the state of the devices behind it.
func (f *File) openMigration(given *Layout) error {
	s, err := vmstate.ParseMigration(f.data, streamArch)
	if err != nil {
		return err
	}
	f.Kind, f.Arch, f.Problems = "migration stream", streamArch, s.Problems
	if s.MachineType != "" {
		f.Kind += " of " + s.MachineType
	}
	f.CPUs, f.DeviceState = s.CPUs, len(s.CPUs) > 0
	for i, r := range f.CPUs {
		if r == nil {
			f.CPUs[i] = arch.NewRegisters(f.Arch)
		}
	}
	block, err := f.mainBlock(s.RAM)
	if err != nil {
		return err
	}
	layout, err := f.streamLayout(block, s.MachineType, given)
	if err != nil {
		return err
	}
	m := &streamed{block: block}
	m.below, m.above = layout.split(block.Size)
	m.known, m.populated = m.ranges(block.Ranges()), m.ranges(block.Populated())
	f.memory = m
	if missing := block.Size - f.Size(); missing > 0 {
		f.Problems = append(f.Problems, fmt.Sprintf("%#x bytes of the machine's memory are not in the file", missing))
	}
	return nil
}

// largestDevice is more than what devices have as RAM of their own: firmware, tables,
// video memory.
const largestDevice = 256 << 20

// mainBlock is the block of the machine's memory. Its name is anybody's choice: it is
// the one that the firmware's map in it is of, or else the largest. Memory that can be
// plugged may be more than what a machine begins with.
func (f *File) mainBlock(ram *vmstate.RAM) (*vmstate.RAMBlock, error) {
	if len(ram.Blocks) == 0 {
		return nil, fmt.Errorf("a state of devices without RAM: %w", ErrForeign)
	}
	// From the largest on: what a guest writes into a device's is none of the firmware's.
	bySize := slices.SortedStableFunc(slices.Values(ram.Blocks), func(a, b *vmstate.RAMBlock) int { return cmp.Compare(b.Size, a.Size) })
	block := bySize[0]
	for _, b := range bySize {
		if _, ok := firmwareLayout(b); ok {
			block = b
			break
		}
	}
	for _, b := range ram.Blocks {
		if b != block && b.Size >= largestDevice {
			f.Problems = append(f.Problems, fmt.Sprintf("where the %#x bytes of %.40q lie in physical memory is not known: they cannot be read", b.Size, b.Name))
		}
	}
	if len(block.Ranges()) == 0 {
		return nil, fmt.Errorf("the stream lists %#x bytes of %.40q and has none of them, as with x-ignore-shared: "+
			"name the machine's memory file instead: %w", block.Size, block.Name, ErrUnsupported)
	}
	return block, nil
}

// firmwareLayout is the layout by a map in the first MiB of a block.
func firmwareLayout(block *vmstate.RAMBlock) (*Layout, bool) {
	low := make([]byte, 0, firmware)
	for len(low) < cap(low) {
		b := block.Slice(uint64(len(low)))
		if b == nil {
			b = make([]byte, pageSize)
		}
		low = append(low, b[:min(len(b), cap(low)-len(low))]...)
	}
	l, _, ok := searchE820(low, mem.Range{Last: uint64(len(low)) - 1}, block.Size)
	return l, ok
}

// streamLayout says where the block's bytes lie, by the person's word, the firmware's
// map, or the machine's type.
func (f *File) streamLayout(block *vmstate.RAMBlock, machine string, given *Layout) (*Layout, error) {
	if given != nil {
		return given, nil
	}
	name := machineName(machine)
	rule := machines[name]
	l, ok := firmwareLayout(block)
	switch {
	case ok:
		return l, nil
	case rule != nil && rule(block.Size) == block.Size:
		return &Layout{Name: name, Above: fourGiB}, nil
	case rule != nil:
		f.Problems = append(f.Problems, fmt.Sprintf("the layout is that of any %s: the firmware's map is not there", machine))
		return &Layout{Name: name, Above: fourGiB}, nil
	}
	return nil, fmt.Errorf("where %#x bytes of a machine %.40q lie is not known: say it, as --layout q35: %w", block.Size, machine, ErrUnsupported)
}

// streamed is memory in a stream: its pages lie there one by one. What belongs behind
// the hole follows in the block what lies below it.
type streamed struct {
	block        *vmstate.RAMBlock
	below, above uint64
	// known is what the stream tells, and populated what of it is not zero: a look asks
	// often, and the block has to look at each page.
	known, populated []mem.Range
}

// at is the address in the block of a physical address.
func (m *streamed) at(a mem.Phys) (uint64, bool) {
	switch n := uint64(a); {
	case n < m.below:
		return n, true
	case n >= m.above && n-m.above < m.block.Size-m.below:
		return m.below + (n - m.above), true
	}
	return 0, false
}

// ranges are physical ranges of ranges of the block.
func (m *streamed) ranges(in []mem.Range) []mem.Range {
	var out []mem.Range
	for _, r := range in {
		if r.First < m.below {
			out = append(out, mem.Range{First: r.First, Last: min(r.Last, m.below-1)})
		}
		if r.Last >= m.below {
			shift := m.above - m.below
			out = append(out, mem.Range{First: max(r.First, m.below) + shift, Last: r.Last + shift})
		}
	}
	return out
}

// PhysRanges implements mem.PhysRanger.
func (m *streamed) PhysRanges() []mem.Range { return slices.Clone(m.known) }

// FileOffset implements memory.
func (m *streamed) FileOffset(a mem.Phys) (uint64, bool) {
	at, ok := m.at(a)
	if !ok {
		return 0, false
	}
	return m.block.Offset(at)
}

// SlicePhys implements mem.PhysSlicer, up to the end of a page.
func (m *streamed) SlicePhys(a mem.Phys, max int) []byte {
	at, ok := m.at(a)
	if !ok || max <= 0 {
		return nil
	}
	b := m.block.Slice(at)
	return b[:min(len(b), max):min(len(b), max)]
}

// ReadPhys implements mem.PhysReader.
func (m *streamed) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := 0
	for n < len(p) {
		b := m.SlicePhys(a+mem.Phys(n), len(p)-n)
		if len(b) == 0 {
			err := mem.ErrNoRAM
			if _, ok := m.at(a + mem.Phys(n)); ok {
				err = errCut
			}
			return n, &mem.FaultError{Space: "physical memory", Addr: uint64(a) + uint64(n), Err: err}
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

// errCut is the reason why a page cannot be read that the machine had.
var errCut = fmt.Errorf("the stream ends before this page")
