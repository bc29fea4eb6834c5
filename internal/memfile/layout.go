package memfile

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Layout says where the bytes of a bare memory file lie in physical memory. QEMU puts
// what does not fit below the hole for devices behind 4 GiB (QEMU 7.2 hw/i386/pc.c:
// pc_memory_init, pc_q35.c and pc_piix.c: pc_init1).
type Layout struct {
	Name  string
	Below uint64 // bytes from address 0 on
	Above uint64 // address of the rest
}

func (l Layout) String() string {
	return fmt.Sprintf("%s,below4g=%#x,above4g=%#x", l.Name, l.Below, l.Above)
}

const (
	gib = 1 << 30
	// fourGiB is where memory goes on behind the hole, and farAbove where it does for
	// a machine so large that the processor's reserved addresses are in the way.
	fourGiB  = 4 * gib
	farAbove = 1 << 40
)

// machines are QEMU's, with the bytes that they put below 4 GiB of a size.
var machines = map[string]func(size uint64) uint64{
	"q35": func(size uint64) uint64 {
		if size >= 0xb0000000 {
			return 2 * gib
		}
		return size
	},
	"pc": func(size uint64) uint64 {
		if size >= 0xe0000000 {
			return 3 * gib
		}
		return size
	},
	"microvm": func(size uint64) uint64 { return min(size, 3*gib) },
	"flat":    func(size uint64) uint64 { return size },
}

// ParseLayout reads a layout as a person writes it: a machine type of QEMU and what
// differs from it, "q35", "pc-q35-7.2,below4g=2G", "flat".
func ParseLayout(text string) (*Layout, error) {
	words := strings.Split(text, ",")
	name := machineName(words[0])
	if machines[name] == nil {
		return nil, fmt.Errorf("layout %q: machine %q is none of q35, pc, microvm, flat", text, words[0])
	}
	l := &Layout{Name: name, Above: fourGiB}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		n, err := parseSize(value)
		if err != nil {
			return nil, fmt.Errorf("layout %q: %q: %w", text, w, err)
		}
		switch key {
		case "below4g":
			l.Below = n
		case "above4g":
			l.Above = n
		default:
			return nil, fmt.Errorf("layout %q: %q is neither below4g=SIZE nor above4g=ADDRESS", text, w)
		}
	}
	return l, nil
}

// machineName is the name here of a machine type of QEMU with its version.
func machineName(s string) string {
	switch {
	case s == "q35" || strings.HasPrefix(s, "pc-q35"):
		return "q35"
	case s == "pc" || strings.HasPrefix(s, "pc-i440fx"):
		return "pc"
	}
	return s
}

// parseSize reads a size in bytes, or with K, M, G, T.
func parseSize(s string) (uint64, error) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]&^0x20); i >= 0 && s[n-1] >= 'A' {
			shift, s = 10*(i+1), s[:n-1]
		}
	}
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil || bits.Len64(v)+shift > 64 || v<<shift%4096 != 0 {
		return 0, fmt.Errorf("not a size of whole pages such as 2G")
	}
	return v << shift, nil
}

// split is where a file of this size has its parts.
func (l *Layout) split(size uint64) (below, above uint64) {
	below = l.Below
	if below == 0 {
		below = machines[l.Name](size)
	}
	return min(below, size), l.Above
}

// openRaw takes the file for bare memory, on a person's word or if it is nothing else.
func (f *File) openRaw(l *Layout) error {
	if l == nil {
		if err := foreign(f.data[:min(headSize, f.size)]); err != nil {
			return err
		}
	}
	if f.size%4096 != 0 {
		return fmt.Errorf("at 0x0: neither a dump nor whole pages of memory (%#x bytes): %w", f.size, ErrForeign)
	}
	f.Kind, f.Arch = "bare memory", arch.X86
	given := l != nil
	if !given {
		found, why, err := f.findLayout()
		if err != nil {
			return err
		}
		l = found
		f.Problems = append(f.Problems, why...)
	}
	below, above := l.split(f.size)
	segments := []mem.Segment{{Data: f.data[:below]}, {Base: mem.Phys(above), Data: f.data[below:], FileOffset: below}}
	image, err := mem.NewImage(segments)
	if err != nil {
		return fmt.Errorf("layout %s: %w", l, err)
	}
	f.memory = image
	f.Kind += fmt.Sprintf(", layout %s with %#x bytes below 4 GiB", l.Name, below)
	if given {
		f.Kind += " as given"
	}
	return nil
}

// smallest is a file below which no machine can be told from any other bytes.
const smallest = 1 << 20

// findLayout finds how the machine saw the memory, and says what is to be said of it.
func (f *File) findLayout() (*Layout, []string, error) {
	if f.size < smallest {
		return nil, nil, fmt.Errorf("at 0x0: no dump, and %#x bytes are too few for a machine's memory: %w", f.size, ErrForeign)
	}
	l, at, ok := f.findE820(firmware)
	if !ok && machines["q35"](f.size) == f.size {
		// q35 has the largest hole: what has none there has none on any machine, unless
		// somebody asked for one.
		return &Layout{Name: "flat", Above: fourGiB}, nil, nil
	}
	if !ok {
		l, at, ok = f.findE820(f.size)
	}
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("a file of %#x bytes may have a hole below 4 GiB in physical memory, and nothing in it says "+
			"where: say it, as --layout q35 or --layout pc,below4g=3G: %w", f.size, ErrUnsupported)
	case l.Below == f.size:
		return l, nil, nil
	}
	return l, []string{fmt.Sprintf("the layout is that of the firmware's memory map at %#x of the file", at)}, nil
}
