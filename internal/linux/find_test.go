package linux

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// checkFound compares what Find says with what the fake is.
func checkFound(t *testing.T, f *fake, k *Kernel, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "6.1.0-fake" || k.Banner != fakeBanner {
		t.Errorf("release %q, banner %q", k.Release, k.Banner)
	}
	if k.TextVA != fakeText || k.TextPA != fakeImagePA || k.Size != fakeImage {
		t.Errorf("image at %#x, %#x, %#x bytes", k.TextVA, k.TextPA, k.Size)
	}
	if k.Root != f.root {
		t.Errorf("root %#x, want %#x; problems %q", k.Root, f.root, k.Problems)
	}
	if want := uint64(fakeText - 0xffffffff81000000); k.Slide != want {
		t.Errorf("slide %#x, want %#x", k.Slide, want)
	}
	if want := int64(fakeImagePA - 0x1a000000); k.PhysBase != want {
		t.Errorf("phys_base %#x, want %#x", k.PhysBase, want)
	}
}

func TestFind(t *testing.T) {
	const bannerAt = fakeImagePA + fakeBannerAt
	tests := []struct {
		name    string
		prepare func(f *fake)
		change  func(f *fake, src *Source)
		buildID string
		info    bool // VMCOREINFO is there
	}{
		{name: "kernel root", info: true},
		{name: "no build id in VMCOREINFO", info: true, buildID: strings.Repeat("ab", 20),
			prepare: func(f *fake) { f.buildID = false }},
		{name: "memory only", info: true, change: func(_ *fake, src *Source) { src.CPUs = nil }},
		{name: "memory only, note form", info: true, change: func(f *fake, src *Source) {
			src.CPUs = nil
			// The page is the last of the heap.
			page := f.ram[f.heap-pageSize : f.heap]
			text := strings.TrimRight(string(page), "\x00")
			clear(page)
			copy(page, "\x0b\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00VMCOREINFO\x00\x00"+text)
		}},
		{name: "no VMCOREINFO", buildID: strings.Repeat("ab", 20), change: func(f *fake, _ *Source) {
			clear(f.ram[f.heap-pageSize : f.heap])
		}},
		{name: "VMCOREINFO of another boot", buildID: strings.Repeat("ab", 20), change: func(f *fake, _ *Source) {
			page := f.ram[f.heap-pageSize : f.heap]
			copy(page, strings.Replace(string(page), "phys_base)=-", "phys_base)=+", 1))
		}},
		{name: "root of user mode", info: true, change: func(f *fake, src *Source) {
			// The kernel's root must be at an even page, the user's is behind it and empty.
			clear(f.ram[f.root+pageSize:][:pageSize])
			src.CPUs[0].Set("cr3", uint64(f.root)+pageSize)
		}},
		{name: "another CPU is in firmware", info: true, change: func(_ *fake, src *Source) {
			cpu := arch.NewRegisters(arch.X86)
			cpu.Set("cr3", 0x1000)
			src.CPUs = append([]*arch.Registers{cpu, arch.NewRegisters(arch.X86), nil}, src.CPUs...)
		}},
		{name: "log and file copies of a banner", info: true, change: func(f *fake, _ *Source) {
			copy(f.ram[bannerAt-0x800:], "Linux version 9.9.9 without newline\x00")
			copy(f.ram[bannerAt-0x400:], "Linux version %s\n\x00")
		}},
		{name: "not sliceable", info: true, change: func(f *fake, src *Source) {
			src.Phys = memtest.NewCounting(f.ram)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, fakeCore)
			if tt.prepare != nil {
				tt.prepare(f)
			}
			if tt.name == "root of user mode" {
				f.moveTables()
			}
			src := f.finish()
			if tt.change != nil {
				tt.change(f, &src)
			}
			k, err := Find(src)
			checkFound(t, f, k, err)
			want := tt.buildID
			if want == "" {
				want = strings.Repeat("cd", 20)
			}
			if k.BuildID != want {
				t.Errorf("build id %s, want %s", k.BuildID, want)
			}
			if (k.VMCoreInfo != nil) != tt.info {
				t.Errorf("VMCOREINFO %v; problems %q", k.VMCoreInfo, k.Problems)
			}
		})
	}
}

// TestFindBesideStrayEntry: a page-table entry was overwritten, and below the image
// something is mapped that looks as if one began there.
func TestFindBesideStrayEntry(t *testing.T) {
	f := newFake(t, fakeCore)
	src := f.finish()
	const large, index = 1 << 7, fakeText >> 21 & 511
	tables, spoiled := f.ram[f.root:][:16*pageSize], false
	for page := 0; page < len(tables); page += pageSize {
		entry := binary.LittleEndian.Uint64(tables[page+8*index:])
		if entry&^0x1fffff == fakeImagePA && entry&large != 0 {
			binary.LittleEndian.PutUint64(tables[page+8*(index-9):], entry-fakeImagePA+2<<21)
			spoiled = true
		}
	}
	k, err := Find(src)
	if checkFound(t, f, k, err); !spoiled {
		t.Error("no entry for the image")
	}
}

// A CPU about to enter a guest has the guest's LSTAR already; another vouches for
// the kernel. If none does, the person is told.
func TestTextRegisters(t *testing.T) {
	const inside, outside = fakeText + 0x80, fakeText - 0x1000
	for _, c := range []struct {
		lstar    []uint64
		problems int
	}{{[]uint64{inside}, 0}, {[]uint64{inside, outside}, 0}, {[]uint64{outside, 0}, 1}, {[]uint64{outside, outside}, 2}} {
		src := newFake(t, fakeCore).finish()
		root, _ := src.CPUs[0].Get("cr3")
		src.CPUs = nil
		for _, v := range c.lstar {
			cpu := arch.NewRegisters(arch.X86)
			cpu.Set("cr3", root)
			cpu.Set("lstar", v)
			src.CPUs = append(src.CPUs, cpu)
		}
		k, err := Find(src)
		if err != nil || len(k.Problems) != c.problems {
			t.Errorf("%#x: %v, problems %q, want %d", c.lstar, err, k.Problems, c.problems)
		}
	}
}

// moveTables gives the root table the page behind it too, as page-table isolation has it.
func (f *fake) moveTables() {
	root := f.ram[f.root:][:pageSize]
	f.root = fakeImagePA + fakeTablesAt + 1<<16
	copy(f.ram[f.root:], root)
}

func TestFindAmbiguous(t *testing.T) {
	f := newFake(t, fakeCore)
	src := f.finish()
	// A second CPU on tables that map the same image elsewhere too.
	other := mem.Phys(fakeImagePA + fakeTablesAt + 1<<16)
	copy(f.ram[other:], f.ram[f.root:][:pageSize])
	pdpt := other + pageSize
	copy(f.ram[pdpt:], f.ram[f.entry(other, 511):][:pageSize])
	f.setEntry(other, 511, pdpt)
	pd := pdpt + pageSize
	f.setEntry(pdpt, 510, pd)
	old := f.entry(f.entry(f.root, 511), 510)
	copy(f.ram[pd+8:], f.ram[old:][:pageSize-8]) // everything 2 MiB higher
	cpu := arch.NewRegisters(arch.X86)
	cpu.Set("cr3", uint64(other))
	src.CPUs = append(src.CPUs, cpu)
	_, err := Find(src)
	var ambiguous *AmbiguousError
	if !errors.As(err, &ambiguous) || len(ambiguous.Contenders) != 2 || !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v, want two contenders", err)
	}
	for _, c := range ambiguous.Contenders {
		cpu.Set("cr3", uint64(c.Root))
		src.CPUs = []*arch.Registers{cpu}
		k, err := Find(src)
		if err != nil || k.TextVA != c.TextVA {
			t.Errorf("with the root of %v: %v", c, err)
		}
	}
}

// entry is the table that an entry points to.
func (f *fake) entry(table mem.Phys, i int) mem.Phys {
	v, _ := mem.Uint64(f.ram, table+mem.Phys(8*i))
	return mem.Phys(v & 0x000ffffffffff000)
}

func (f *fake) setEntry(table mem.Phys, i int, to mem.Phys) {
	for b := 1; b < 6; b++ {
		f.ram[table+mem.Phys(8*i+b)] = byte(to >> (8 * b))
	}
}

func TestFindNothing(t *testing.T) {
	empty := make(fakeRAM, 1<<20)
	cpu := arch.NewRegisters(arch.X86)
	cpu.Set("cr3", 0x1000)
	for name, src := range map[string]Source{
		"no memory":     {Arch: arch.X86, Phys: fakeRAM{}, Space: fakeSpaces(fakeRAM{})},
		"empty memory":  {Arch: arch.X86, Phys: empty, Ranges: ranges(0, 1<<20-1), Space: fakeSpaces(empty)},
		"all addresses": {Arch: arch.X86, Phys: fakeRAM{}, Ranges: ranges(^uint64(0)-8191, ^uint64(0)), Space: fakeSpaces(fakeRAM{})},
		"empty tables":  {Arch: arch.X86, Phys: empty, CPUs: []*arch.Registers{cpu}, Space: fakeSpaces(empty)},
		"no space": {Arch: arch.X86, Phys: empty, CPUs: []*arch.Registers{cpu},
			Space: func(mem.Phys) (AddressSpace, error) { return nil, errors.New("no") }},
	} {
		if _, err := Find(src); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
	}
	if _, err := Find(Source{Arch: &arch.Arch{Name: "vax"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown architecture: %v", err)
	}
}

// TestFindFaults lets each read of physical memory fail once.
func TestFindFaults(t *testing.T) {
	f := newFake(t, fakeCore)
	src := f.finish()
	for n := 0; ; n++ {
		failing := memtest.FailNth(f.ram, n)
		src.Phys, src.Space = failing, fakeSpaces(failing)
		k, err := Find(src)
		if !failing.Reached() {
			checkFound(t, f, k, err)
			break
		}
		if err == nil && (k.Release != "6.1.0-fake" || k.TextVA != fakeText || k.TextPA != fakeImagePA) {
			t.Fatalf("read %d failed and gave a wrong answer: %+v", n, k)
		}
		if n >= 60 { // each costs a search; from here on they are larger and larger steps apart
			n += n / 4
		}
	}
}

func TestSymbols(t *testing.T) {
	for name, prepare := range map[string]func(f *fake){
		"searched":    func(*fake) {},
		"hints":       func(f *fake) { f.hints = true },
		"wrong hints": func(f *fake) { f.hints, f.hintError = true, 16 },
	} {
		f := newFake(t, fakeCore)
		prepare(f)
		k := f.find()
		table, err := k.Symbols()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if sym, ok := table.Lookup("linux_banner"); !ok || sym.Addr != fakeText+fakeBannerAt {
			t.Errorf("%s: linux_banner is %+v, %v", name, sym, ok)
		}
	}
}
