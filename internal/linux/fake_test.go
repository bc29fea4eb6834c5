package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/kallsyms/kallsymstest"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// A fake machine: 16 MiB of RAM, of which the kernel image takes 4 MiB.
const (
	fakeRAMSize = 16 << 20
	fakeHeap    = 1 << 20 // physical; allocations grow up from here
	fakeImagePA = 8 << 20
	fakeImage   = 4 << 20            // size
	fakeText    = 0xffffffff9a000000 // virtual
	fakeDirect  = 0xffff888000000000 // where all RAM is mapped

	// Offsets in the image.
	fakeBannerAt = 0x50000
	fakeNotesAt  = 0x51000
	fakeBTFAt    = 0x60000
	fakeDataAt   = 0x200000
	fakeTablesAt = 0x300000 // page tables; the first is the kernel's root
)

const fakeBanner = "Linux version 6.1.0-fake (someone@somewhere) (gcc) #1 SMP"

// fakeRAM is memory as one slice.
type fakeRAM []byte

func (m fakeRAM) SlicePhys(a mem.Phys, limit int) []byte {
	if a >= mem.Phys(len(m)) {
		return nil
	}
	b := m[a:]
	return b[:min(len(b), limit)]
}

func (m fakeRAM) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := copy(p, m.SlicePhys(a, len(p)))
	if n < len(p) {
		return n, &mem.FaultError{Space: "fake", Addr: uint64(a) + uint64(n), Err: mem.ErrNoRAM}
	}
	return n, nil
}

func (m fakeRAM) WritePhys(p []byte, a mem.Phys) (int, error) { return copy(m[a:], p), nil }

// fake is a machine with a kernel in it, built piece by piece.
type fake struct {
	t       testing.TB
	ram     fakeRAM
	types   *fakeTypes
	heap    mem.Phys
	data    uint64 // next free offset of the image's variables
	symbols map[string]uint64
	root    mem.Phys
	info    map[string]string // lines added to VMCOREINFO
	config  kallsymstest.Config
	buildID bool   // VMCOREINFO has one
	without string // what the kernel was built without, of "types", "symbols", "variables" and "info"

	hints     bool   // VMCOREINFO says where kallsyms is
	hintError uint64 // and is wrong by so much

	moduleSymbolsOf map[string][]fakeSymbol
	next            mem.Virt // where variables of modules go
}

type fakeSymbol struct {
	name string
	addr uint64
	kind byte
	size uint64
}

func newFake(t testing.TB, types string) *fake {
	f := &fake{t: t, ram: make(fakeRAM, fakeRAMSize), types: parseFakeTypes(t, types), heap: fakeHeap,
		data: fakeDataAt, symbols: map[string]uint64{}, info: map[string]string{},
		config: kallsymstest.Configs()[4], buildID: true, moduleSymbolsOf: map[string][]fakeSymbol{}}
	frames := pagingtest.NewFrames(mem.Range{First: fakeImagePA + fakeTablesAt, Last: fakeImagePA + fakeTablesAt + 1<<16 - 1}, 0)
	tables := pagingtest.New(paging.X86FourLevel.Name, f.ram, frames)
	f.root = tables.Root()
	all := tables.Express(paging.Perm(0xff))
	for off := uint64(0); off < fakeImage; off += 2 << 20 {
		tables.Map(fakeText+off, mem.Phys(fakeImagePA+off), 2<<20, all)
	}
	for off := uint64(0); off < fakeRAMSize; off += 2 << 20 {
		tables.Map(fakeDirect+off, mem.Phys(off), 2<<20, all)
	}
	return f
}

// object is a structure in the fake's memory.
type object struct {
	f    *fake
	kind string
	pa   mem.Phys
	va   uint64
}

// alloc takes n bytes of RAM, at a multiple of align.
func (f *fake) alloc(n, align uint64) object {
	f.heap = (f.heap + mem.Phys(align) - 1) &^ mem.Phys(align-1)
	o := object{f: f, pa: f.heap, va: fakeDirect + uint64(f.heap)}
	f.heap += mem.Phys(n)
	if f.heap > fakeImagePA {
		f.t.Fatal("the fake's heap is full")
	}
	return o
}

// make allocates a structure.
func (f *fake) make(kind string) object {
	o := f.alloc(uint64(f.types.size(kind)), 64)
	o.kind = kind
	return o
}

// variable reserves n bytes in the image under a symbol.
func (f *fake) variable(name string, n uint64) object {
	o := object{f: f, pa: mem.Phys(fakeImagePA + f.data), va: fakeText + f.data}
	f.symbols[name] = o.va
	f.data += (n + 15) &^ 15
	return o
}

// at is the address of a member.
func (o object) at(path string) uint64 { return o.va + uint64(o.f.types.offset(o.kind, path)) }

// set stores a number in a member of its size.
func (o object) set(path string, v uint64) object {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(o.f.ram[o.pa+mem.Phys(o.f.types.offset(o.kind, path)):], b[:o.f.types.sizeOf(o.kind, path)])
	return o
}

// text stores bytes in a member.
func (o object) text(path, s string) object {
	copy(o.f.ram[o.pa+mem.Phys(o.f.types.offset(o.kind, path)):], s)
	return o
}

// put64 stores a word at an offset of an object without type.
func (o object) put64(off, v uint64) object {
	binary.LittleEndian.PutUint64(o.f.ram[uint64(o.pa)+off:], v)
	return o
}

func (o object) put(off uint64, b []byte) { copy(o.f.ram[uint64(o.pa)+off:], b) }

// link makes a list of a head and nodes, by their addresses.
func (f *fake) link(addrs ...uint64) {
	for i, a := range addrs {
		next := addrs[(i+1)%len(addrs)]
		f.poke(a, next)
		f.poke(next+8, a)
	}
}

// poke stores a word at a kernel address.
func (f *fake) poke(va, v uint64) {
	binary.LittleEndian.PutUint64(f.ram[f.physOf(va):], v)
}

// poke16 stores two bytes at a kernel address.
func (f *fake) poke16(va uint64, v uint16) {
	binary.LittleEndian.PutUint16(f.ram[f.physOf(va):], v)
}

func (f *fake) peek16(va uint64) uint16 { return binary.LittleEndian.Uint16(f.ram[f.physOf(va):]) }

func (f *fake) physOf(va uint64) uint64 {
	if va-fakeText < fakeImage {
		return va - fakeText + fakeImagePA
	}
	return va - fakeDirect
}

// finish writes what depends on all the rest: symbols, types, VMCOREINFO.
func (f *fake) finish() Source {
	image := f.ram[fakeImagePA:][:fakeImage]
	copy(image[fakeBannerAt:], fakeBanner+"\n\x00")
	copy(image[fakeNotesAt:], "\x04\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00Foo\x00data"+
		string(gnuBuildID)+strings.Repeat("\xab", buildIDSize))
	raw := f.types.marshal(f.t)
	if !f.lacks("types") {
		copy(image[fakeBTFAt:], raw)
	}
	for name, at := range map[string]uint64{
		"linux_banner": fakeBannerAt, "__start_notes": fakeNotesAt, "__stop_notes": fakeNotesAt + 56,
		"__start_BTF": fakeBTFAt, "__stop_BTF": fakeBTFAt + uint64(len(raw)),
		"init_top_pgt": uint64(f.root) - fakeImagePA, "_end": fakeImage,
	} {
		f.symbols[name] = fakeText + at
	}
	if f.lacks("types") {
		delete(f.symbols, "__start_BTF")
		delete(f.symbols, "__stop_BTF")
	}
	tables := f.kallsyms()
	if !f.lacks("symbols") {
		copy(image, tables.Bytes)
	}
	if f.hints {
		for name, a := range map[string]uint64{"names": tables.Names, "num_syms": tables.NumSyms,
			"token_table": tables.TokenTable, "token_index": tables.TokenIndex,
			"offsets": tables.Offsets, "relative_base": tables.RelativeBase} {
			f.info["SYMBOL(kallsyms_"+name+")"] = hexText(a + f.hintError)
		}
	}

	if !f.lacks("info") {
		page := f.alloc(pageSize, pageSize)
		f.variable("vmcoreinfo_data", 8).put64(0, page.va)
		page.put(0, []byte(f.vmcoreinfo()))
	}

	cpu := arch.NewRegisters(arch.X86)
	cpu.Set("cr3", uint64(f.root)|5) // with a PCID
	return Source{Arch: arch.X86, Phys: f.ram, CPUs: []*arch.Registers{cpu},
		Ranges: ranges(0, fakeRAMSize-1), Space: fakeSpaces(f.ram)}
}

func fakeSpaces(phys mem.PhysReader) func(mem.Phys) (AddressSpace, error) {
	return func(root mem.Phys) (AddressSpace, error) {
		format := paging.X86FourLevel
		return paging.NewSpace("fake", format, phys, format.Root(uint64(root))), nil
	}
}

// kallsyms packs the symbols, with many more between them.
func (f *fake) kallsyms() *kallsymstest.Image {
	var list []kallsymstest.Symbol
	for _, s := range kallsymstest.Symbols(700, fakeText, true) {
		if s.Name != "_end" && !f.hides(s.Type) {
			list = append(list, s)
		}
	}
	for name, a := range f.symbols {
		if f.hides('D') {
			break
		}
		kind := byte('D')
		if a < fakeText {
			kind = 'A' // of each CPU
		}
		list = append(list, kallsymstest.Symbol{Name: name, Addr: a, Type: kind})
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Addr < list[j].Addr })
	return kallsymstest.Build(list, fakeText, f.config)
}

func (f *fake) lacks(what string) bool { return slices.Contains(strings.Fields(f.without), what) }

// hides reports whether the kernel's table leaves out symbols of a type.
func (f *fake) hides(kind byte) bool {
	return f.lacks("variables") && strings.IndexByte("dDbB", kind) >= 0
}

func (f *fake) vmcoreinfo() string {
	var b strings.Builder
	fmt.Fprintf(&b, "OSRELEASE=6.1.0-fake\n")
	if f.buildID {
		fmt.Fprintf(&b, "BUILD-ID=%s\n", strings.Repeat("cd", buildIDSize))
	}
	fmt.Fprintf(&b, "SYMBOL(_stext)=%x\nSYMBOL(init_top_pgt)=%x\nNUMBER(phys_base)=%d\nKERNELOFFSET=%x\n",
		uint64(fakeText), f.symbols["init_top_pgt"], int64(fakeImagePA-(fakeText-0xffffffff80000000)),
		uint64(fakeText-0xffffffff81000000))
	for _, key := range slices.Sorted(maps.Keys(f.info)) {
		fmt.Fprintf(&b, "%s=%s\n", key, f.info[key])
	}
	return b.String()
}

// find finds the fake's kernel.
func (f *fake) find() *Kernel {
	f.t.Helper()
	k, err := Find(f.finish())
	if err != nil {
		f.t.Fatal(err)
	}
	return k
}

// cstring puts a string in memory.
func (f *fake) cstring(s string) uint64 {
	o := f.alloc(uint64(len(s)+1), 1)
	o.put(0, append([]byte(s), 0))
	return o.va
}

// elfSymbols makes the tables of a struct mod_kallsyms.
func (f *fake) elfSymbols(list []fakeSymbol) (symtab, strtab, typetab uint64) {
	syms, types := make([]byte, elfSymSize), []byte{0} // the first is undefined
	names := []byte{0}
	for _, s := range list {
		e := binary.LittleEndian.AppendUint32(nil, uint32(len(names)))
		e = append(e, s.kind, 0, 1, 0)
		e = binary.LittleEndian.AppendUint64(e, s.addr)
		syms = append(syms, binary.LittleEndian.AppendUint64(e, s.size)...)
		types = append(types, s.kind)
		names = append(append(names, s.name...), 0)
	}
	place := func(b []byte) uint64 {
		o := f.alloc(uint64(len(b)), 8)
		o.put(0, b)
		return o.va
	}
	return place(syms), place(bytes.Clone(names)), place(types)
}

func hexText(v uint64) string { return fmt.Sprintf("%x", v) }

// ranges is one range to search.
func ranges(first, last uint64) func() []mem.Range {
	return func() []mem.Range { return []mem.Range{{First: first, Last: last}} }
}
