package memfile_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/dump/dumptest"
	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
	"nestdbg/internal/vmstate/vmstatetest"
)

// hostileKinds are small files of every kind with the same memory: two pages of text
// among pages of zeros. Bare memory has more of these.
func hostileKinds() map[string][]byte {
	page := func(text string) []byte { return bytes.Repeat([]byte(text), 1024) }
	zero := make([]byte, 4096)
	notes := dumptest.Notes(dumptest.CPU(map[string]uint64{"rip": 0x1234, "cr3": 0x1000})...)
	memory := slices.Concat(zero, page("page"), zero, page("last"))
	kdump := func(m dumptest.Method) []byte {
		var pages []dumptest.Page
		for n := range uint64(4) {
			pages = append(pages, dumptest.Page{Number: n, Data: memory[n*4096:][:4096], Method: m})
		}
		return dumptest.Kdump(64, notes, pages...)
	}
	blocks, pages := someRAM()
	return map[string][]byte{
		bareMemory:   append(bytes.Clone(memory), make([]byte, 1<<20)...),
		"ELF":        dumptest.ELF(notes, dumptest.Segment{Data: memory[:0x2000]}, dumptest.Segment{Phys: 0x2000, Data: memory[0x2000:]}),
		"kdump-zlib": kdump(dumptest.Zlib), "kdump-zstd": kdump(dumptest.Zstd), "kdump-lzo": kdump(dumptest.LZO),
		"kdump-snappy": kdump(dumptest.Snappy), "flattened": dumptest.Flatten(kdump(dumptest.Zlib), 1000),
		"migration": cpuOf(vmstatetest.NewMigration("pc-q35-7.2").RAM(blocks, pages...)),
		"mapped":    cpuOf(vmstatetest.NewMigration("pc-q35-7.2", "mapped-ram").MappedRAM(4096, blocks, pages[1], pages[3])),
	}
}

// bareMemory is the kind of which nobody can tell whether it is whole.
const bareMemory = "bare memory"

// damages are what happens to files. Each makes another of the file every time.
var damages = map[string]func(r *rand.Rand, b []byte) []byte{
	"cut short": func(r *rand.Rand, b []byte) []byte { return b[:1+r.IntN(len(b)-1)] },
	"a bit flipped": func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		return b
	},
	// The headers are where most bits mean something.
	"a bit of a header flipped": func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(min(len(b), 600))] ^= 1 << r.IntN(8)
		return b
	},
	"a word is all ones": func(r *rand.Rand, b []byte) []byte {
		at := r.IntN(len(b) - 8)
		copy(b[at:], "\xff\xff\xff\xff\xff\xff\xff\xff"[:1+r.IntN(8)])
		return b
	},
	"shuffled": func(r *rand.Rand, b []byte) []byte {
		const piece = 512
		for range 1 + r.IntN(3) {
			x, y := r.IntN(len(b)/piece)*piece, r.IntN(len(b)/piece)*piece
			p := bytes.Clone(b[x : x+piece])
			copy(b[x:], b[y:y+piece])
			copy(b[y:], p)
		}
		return b
	},
	"foreign behind its signature": func(r *rand.Rand, b []byte) []byte {
		for i := 16; i < len(b); i++ {
			b[i] = byte(r.Uint32())
		}
		return b
	},
}

// hostileRounds is how many files of each kind there are of each damage.
const hostileRounds = 170

// TestHostileFiles: more than 1000 damaged files of each kind are an error of one line
// that says where, or memory whose pages are those of the machine or cannot be read.
// The forms whose pages have no checksum may have other bytes in them, never more or
// fewer than were asked for.
func TestHostileFiles(t *testing.T) {
	for kind, whole := range hostileKinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "file")
			opened := 0
			for name, damage := range damages {
				r := rand.New(rand.NewPCG(3, 4))
				for range hostileRounds {
					b := damage(r, bytes.Clone(whole))
					if err := os.WriteFile(path, b, 0o600); err != nil {
						t.Fatal(err)
					}
					f, err := memfile.Open(path, memfile.Options{})
					if err != nil {
						checkHostileError(t, name, err, b)
						continue
					}
					opened++
					checkHostileMemory(t, name, f, name == "cut short" && kind != bareMemory)
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				}
			}
			if opened < hostileRounds/2 {
				t.Errorf("%d of %d files are opened", opened, len(damages)*hostileRounds)
			}
		})
	}
}

// checkHostileError: one line, and where in the file the trouble is, unless the file is
// none of its kind any more.
func checkHostileError(t *testing.T, name string, err error, b []byte) {
	t.Helper()
	text := err.Error()
	if strings.Contains(text, "\n") || len(text) > 400 {
		t.Errorf("%s: not a line: %q", name, text)
	}
	if !strings.Contains(text, "0x") && !strings.Contains(text, "section") {
		t.Errorf("%s, %d bytes: no place in %q", name, len(b), text)
	}
}

// checkHostileMemory reads all that there is, and of a file that was only cut short
// wants every page to be the machine's.
func checkHostileMemory(t *testing.T, name string, f *memfile.File, exact bool) {
	t.Helper()
	want := map[uint64]string{0x1000: "page", 0x3000: "last"}
	ranges := f.PhysRanges()
	if exact && len(f.Problems) == 0 && len(ranges) > 0 && fmt.Sprint(ranges) != "[0x0-0x3fff]" {
		t.Errorf("%s: memory %v and no word about the rest", name, ranges)
	}
	page := make([]byte, 4096)
	for i, r := range ranges {
		if i == 16 {
			break
		}
		for at, k := r.First, 0; at <= r.Last && k < 16; at, k = at+4096, k+1 {
			n, err := f.ReadPhys(page, mem.Phys(at))
			if n < len(page) != (err != nil) {
				t.Fatalf("%s: %d bytes with %v", name, n, err)
			}
			text := want[at&^4095]
			if text == "" {
				text = "\x00\x00\x00\x00"
			}
			if whole := at%4096 == 0 && err == nil; exact && whole && !bytes.Equal(page, bytes.Repeat([]byte(text), 1024)) {
				t.Fatalf("%s: page %#x is another", name, at)
			}
		}
	}
	f.PopulatedRanges()
	if len(f.CPUs) > 8192 {
		t.Errorf("%s: %d CPUs", name, len(f.CPUs))
	}
}
