package linux

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/mem"
)

// symbolCache keeps the symbol table once it was found. A failure is kept for a
// while only: a kernel that is still booting has its table a moment later.
type symbolCache struct {
	mu    sync.Mutex
	table *kallsyms.Table // guarded by mu
	err   error           // of the last search, if it failed; guarded by mu
	until time.Time       // for which err is the answer; guarded by mu
}

// failureRest is for how many times as long as a search took its failure is the
// answer. A search that fails has read the whole image, and a single question looks
// up a dozen symbols.
const failureRest = 10

// Symbols is the kernel's own symbol table, without its modules.
func (k *Kernel) Symbols() (*kallsyms.Table, error) {
	k.symbols.mu.Lock()
	defer k.symbols.mu.Unlock()
	if k.symbols.table != nil {
		return k.symbols.table, nil
	}
	begin := time.Now()
	if begin.Before(k.symbols.until) {
		return nil, k.symbols.err
	}
	table, err := k.readSymbols()
	if err != nil {
		end := time.Now()
		k.symbols.err = fmt.Errorf("symbols of %s: %w", k.Release, err)
		k.symbols.until = end.Add(failureRest * end.Sub(begin))
		return nil, k.symbols.err
	}
	k.symbols.table, k.symbols.err = table, nil
	return table, nil
}

// readSymbols reads the tables where VMCOREINFO says they are (Linux 6.0), and
// searches the image otherwise or if that does not hold.
func (k *Kernel) readSymbols() (*kallsyms.Table, error) {
	hints, ok := k.symbolHints()
	hintErr := error(nil)
	if ok {
		table, err := kallsyms.Read(k.space, hints)
		if err == nil {
			return table, nil
		}
		hintErr = fmt.Errorf("where VMCOREINFO says: %w", err)
	}
	image, unread := k.image.contents()
	table, err := kallsyms.Find(image, uint64(k.TextVA))
	switch {
	case err != nil && len(unread) > 0:
		err = fmt.Errorf("%d pages of the kernel's image cannot be read: %w", len(unread), err)
	case errors.Is(err, kallsyms.ErrNotFound):
		err = &MissingError{What: "symbol table", Option: optionSymbols, Err: err}
	}
	if err != nil {
		return nil, errors.Join(hintErr, err)
	}
	return table, nil
}

// symbolHints are the addresses of the tables in VMCOREINFO, if it has them.
func (k *Kernel) symbolHints() (kallsyms.Hints, bool) {
	at := func(name string) uint64 {
		a, _ := k.VMCoreInfo.Symbol(name)
		return uint64(a)
	}
	h := kallsyms.Hints{
		Names: at("kallsyms_names"), NumSyms: at("kallsyms_num_syms"),
		TokenTable: at("kallsyms_token_table"), TokenIndex: at("kallsyms_token_index"),
		Offsets: at("kallsyms_offsets"), RelativeBase: at("kallsyms_relative_base"),
		Addresses: at("kallsyms_addresses"), Stext: at("_stext"),
	}
	return h, h.Names != 0 && h.NumSyms != 0 && h.TokenTable != 0 && h.TokenIndex != 0
}

// Lookup is the address of a symbol of the kernel, or else of a module. Of
// several with one name it is the lowest of the kernel; see Symbols for all.
func (k *Kernel) Lookup(name string) (mem.Virt, bool) {
	if a, ok := k.lookupCore(name); ok {
		return a, true
	}
	set, err := k.moduleSet()
	if err != nil {
		return 0, false
	}
	for i := range set.list {
		if a, ok := k.lookupModule(&set.list[i], name); ok {
			return a, true
		}
	}
	return 0, false
}

// lookupCore is Lookup without modules.
func (k *Kernel) lookupCore(name string) (mem.Virt, bool) {
	table, err := k.Symbols()
	if err != nil {
		return 0, false
	}
	sym, ok := table.Lookup(name)
	return mem.Virt(sym.Addr), ok
}

// Place is what an address belongs to.
type Place struct {
	Name   string // the symbol
	Module string // "" for the kernel itself
	Offset uint64 // of the address from the symbol, in bytes
	Size   uint64 // of the symbol: up to the next one if its own is not recorded; 0 if unknown
}

// String writes a place as the kernel's backtraces do, without the size.
func (p Place) String() string {
	s := fmt.Sprintf("%s+%#x", p.Name, p.Offset)
	if p.Module != "" {
		s += " [" + p.Module + "]"
	}
	return s
}

// Symbolize names what an address belongs to, in the kernel or a module.
func (k *Kernel) Symbolize(a mem.Virt) (Place, bool) {
	if k.image.contains(uint64(a)) {
		table, err := k.Symbols()
		if err != nil {
			return Place{}, false
		}
		sym, off, ok := table.At(uint64(a))
		if !ok {
			return Place{}, false
		}
		size, _ := table.Size(sym.Addr)
		return Place{Name: sym.Name, Offset: off, Size: size}, true
	}
	set, err := k.moduleSet()
	if err != nil {
		return Place{}, false
	}
	for i := range set.list {
		if m := &set.list[i]; m.Contains(a) {
			return k.symbolizeModule(m, a)
		}
	}
	return Place{}, false
}

// contents returns the whole image, without a copy where memory allows it, and the
// offsets of the pages that could not be read. Those are zero, which is not what
// they hold.
func (im *image) contents() (b []byte, unread []uint64) {
	if s, ok := im.phys.(mem.PhysSlicer); ok {
		if b := s.SlicePhys(im.pa, int(im.size)); uint64(len(b)) == im.size {
			return b, nil
		}
	}
	b = make([]byte, im.size)
	for off := uint64(0); off < im.size; {
		n, err := im.phys.ReadPhys(b[off:], im.pa+mem.Phys(off))
		off += uint64(n)
		if err != nil {
			page := off &^ (pageSize - 1)
			clear(b[off:min(page+pageSize, im.size)])
			unread = append(unread, page)
			off = page + pageSize
		}
	}
	return b, unread
}

// errUnread is why a page is missing in what contents returned.
var errUnread = errors.New("it could not be read when the kernel's image was searched")

// unreadIn returns the fault of a page that contents could not read and that an
// extent of the image touches, nil if there is none.
func (im *image) unreadIn(unread []uint64, first, size uint64) error {
	for _, page := range unread {
		if page+pageSize > first && page < first+size {
			return &mem.FaultError{Space: "the kernel's image", Addr: uint64(im.va) + page, Err: errUnread}
		}
	}
	return nil
}
