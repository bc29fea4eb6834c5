package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/mem"
)

// layouts are the machines in testdata/mtree: their backends, and where those are
// in physical memory: range, backend and offset in it.
var layouts = map[string]struct {
	devs  []memdev
	total memorySize
	want  string
}{
	"q35-2g": {[]memdev{{"pc.ram", 2 << 30, false}}, memorySize{2 << 30, 0},
		"0x0-0xbffff pc.ram 0x0, 0x100000-0x7fffffff pc.ram 0x100000"},
	"q35-5g": {[]memdev{{"pc.ram", 5 << 30, false}}, memorySize{5 << 30, 0},
		"0x0-0xbffff pc.ram 0x0, 0x100000-0x7fffffff pc.ram 0x100000, 0x100000000-0x1bfffffff pc.ram 0x80000000"},
	"pc-5g": {[]memdev{{"pc.ram", 5 << 30, false}}, memorySize{5 << 30, 0},
		"0x0-0xbffff pc.ram 0x0, 0x100000-0xbfffffff pc.ram 0x100000, 0x100000000-0x17fffffff pc.ram 0xc0000000"},
	"microvm-5g": {[]memdev{{"microvm.ram", 5 << 30, false}}, memorySize{5 << 30, 0},
		"0x0-0xeffff microvm.ram 0x0, 0x100000-0xbfffffff microvm.ram 0x100000, 0x100000000-0x17fffffff microvm.ram 0xc0000000"},
	"virt-1g": {[]memdev{{"mach-virt.ram", 1 << 30, false}}, memorySize{1 << 30, 0},
		"0x40000000-0x7fffffff mach-virt.ram 0x0"},
	// Two NUMA nodes of 2560 MiB and a DIMM of 256 MiB.
	"numa": {[]memdev{{"n1", 2560 << 20, true}, {"d0", 256 << 20, false}, {"n0", 2560 << 20, false}}, memorySize{5 << 30, 256 << 20},
		"0x120000000-0x1bfffffff n1 0x0, 0x1c0000000-0x1cfffffff d0 0x0, " +
			"0x0-0xbffff n0 0x0, 0x100000-0x7fffffff n0 0x100000, 0x100000000-0x11fffffff n0 0x80000000"},
	// After the firmware has run: C0000 to FFFFF are RAM, some of it read-only.
	"q35-booted": {[]memdev{{"pc.ram", 2 << 30, true}}, memorySize{2 << 30, 0}, "0x0-0x7fffffff pc.ram 0x0"},
}

func TestLayouts(t *testing.T) {
	files, err := filepath.Glob("testdata/mtree/*.txt")
	if err != nil || len(files) != len(layouts) {
		t.Fatalf("%d files for %d machines, %v", len(files), len(layouts), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			l := layouts[name]
			got, problems := describeLayout(t, string(text), l.devs, l.total)
			if got != l.want || len(problems) > 0 {
				t.Errorf("got  %s\nwant %s\nproblems %q", got, l.want, problems)
			}
			// As QEMU sends it, and with the marks of an accelerator.
			text = []byte(strings.ReplaceAll(string(text), "\n", "\r\n"))
			kvm := strings.NewReplacer("ram\r", "ram KVM\r", "0000\r", "0000 KVM\r", "n0\r", "n0 KVM\r").Replace(string(text))
			if again, _ := describeLayout(t, kvm, l.devs, l.total); again != got {
				t.Errorf("with KVM: %s", again)
			}
		})
	}
}

func describeLayout(t *testing.T, text string, devs []memdev, total memorySize) (string, []Problem) {
	t.Helper()
	views, err := parseMtree(text)
	if err != nil {
		t.Fatal(err)
	}
	v, err := cpuView(views)
	if err != nil {
		t.Fatal(err)
	}
	blocks, problems := layoutOf(v, devs, total)
	var out []string
	for _, b := range blocks {
		for _, r := range b.ranges {
			out = append(out, fmt.Sprintf("%s %s %#x", r.span, b.name, r.offset))
		}
	}
	return strings.Join(out, ", "), problems
}

func TestLayoutProblems(t *testing.T) {
	const text = "FlatView #0\n AS \"cpu-memory-0\", root: system\n Root memory region: system\n" +
		"  0000000000000000-0000000000ffffff (prio 0, ram): /objects/ram0\n" +
		"  0000000001000000-0000000001ffffff (prio -1, nv-ram): ram1 @0000000001000000\n" +
		"  0000000003000000-0000000003ffffff (prio 0, i/o): ram0\n" +
		"  0000000004000000-0000000004ffffff (prio 0, ramd): ram0\n\n"
	const mb = 1 << 20
	tests := []struct {
		name          string
		devs          []memdev
		total         memorySize
		want, problem string
	}{
		{"agrees", []memdev{{"ram0", 16 * mb, true}}, memorySize{16 * mb, 0}, "0x0-0xffffff ram0 0x0", ""},
		{"other total", []memdev{{"ram0", 16 * mb, true}}, memorySize{8 * mb, 4 * mb}, "0x0-0xffffff ram0 0x0", "0xc00000 bytes of RAM, but"},
		{"too short", []memdev{{"ram0", 8 * mb, true}}, memorySize{8 * mb, 0}, "", "ends behind"},
		{"hidden", []memdev{{"ram0", 18 * mb, true}}, memorySize{18 * mb, 0}, "0x0-0xffffff ram0 0x0", "0x200000 of the 0x1200000 bytes"},
		{"invisible", []memdev{{"ram0", 16 * mb, true}, {"x", 1, true}}, memorySize{16 * mb, 0}, "0x0-0xffffff ram0 0x0", "x is not visible"},
		{"no backends", []memdev{{"", 16 * mb, true}}, memorySize{48 * mb, 0},
			"0x0-0xffffff /objects/ram0 0x0, 0x1000000-0x1ffffff ram1 0x1000000", "names no memory backends"},
	}
	for _, tt := range tests {
		got, problems := describeLayout(t, text, tt.devs, tt.total)
		if got != tt.want {
			t.Errorf("%s: %s", tt.name, got)
		}
		if all := fmt.Sprint(problems); !strings.Contains(all, tt.problem) || tt.problem == "" && len(problems) > 0 {
			t.Errorf("%s: problems %s", tt.name, all)
		}
	}
}

func TestMtreeRefuses(t *testing.T) {
	const head = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n"
	const line = "  0000000000001000-0000000000001fff (prio 0, ram): a\n"
	for name, text := range map[string]string{
		"no view":       line,
		"not a line":    head + "unknown command: 'info'\n",
		"digits":        head + "  000000000000100-0000000000001fff (prio 0, ram): a\n",
		"not hex":       head + "  000000000000g000-0000000000001fff (prio 0, ram): a\n",
		"backward":      head + "  0000000000001000-0000000000000fff (prio 0, ram): a\n",
		"no prio":       head + "  0000000000001000-0000000000001fff (ram): a\n",
		"no name":       head + "  0000000000001000-0000000000001fff (prio 0, ram): \n",
		"cut":           head + "  0000000000001000-0000000000001fff (prio 0, ram)",
		"overlap":       head + line + line,
		"huge offset":   head + "  0000000000000000-0000000000001fff (prio 0, ram): a @ffffffffffffffff\n",
		"unnamed space": "FlatView #0\n AS \"memory\n",
		"too many":      head + manyRanges(maxFlatRanges+1),
	} {
		if v, err := parseMtree(text); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, len(v), err)
		}
	}
	views, err := parseMtree("FlatView #0\n AS \"I/O\", root: io\n Root memory region: (none)\n  No rendered FlatView\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cpuView(views); !errors.Is(err, ErrCorrupt) {
		t.Errorf("view of no CPU: %v", err)
	}
}

func manyRanges(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  %016x-%016x (prio 0, ram): a\n", i, i)
	}
	return b.String()
}

func TestParseHVA(t *testing.T) {
	for text, want := range map[string]uint64{
		`"Host virtual address for 0x1000 (pc.ram) is 0x7f6338000000\r\n"`:          0x7f6338000000,
		`"Host virtual address for 0x1000 (/objects/pc.ram) is 0x7f6338000000\r\n"`: 0x7f6338000000,
		`"Host virtual address for 0x1000 (pc.rom) is 0x7f6338000000\r\n"`:          0,
		`"Host virtual address for 0x1000 (pc.ram) is (nil)\r\n"`:                   0,
		`"No memory is mapped at address 0x1000\r\n"`:                               0,
		`""`: 0, `5`: 0,
	} {
		got, err := parseHVA(reply{value: []byte(text)}, "pc.ram")
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%s: %#x, %v", text, got, err)
		}
	}
}

func FuzzMtree(f *testing.F) {
	files, _ := filepath.Glob("testdata/mtree/*.txt")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text[:min(len(text), 2000)]))
	}
	f.Add("FlatView #0\n AS \"memory\", root: a\n  fffffffffffffff0-ffffffffffffffff (prio 0, ram): a @0000000000000000 KVM\n")
	f.Fuzz(func(t *testing.T, text string) {
		views, err := parseMtree(text)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || views != nil {
				t.Fatalf("%v, %v", views, err)
			}
			return
		}
		for _, v := range views {
			blocks, _ := layoutOf(v, []memdev{{"a", 1 << 40, true}, {"b", 0, true}}, memorySize{})
			checkBlocks(t, blocks)
			blocks, _ = layoutOf(v, nil, memorySize{})
			checkBlocks(t, blocks)
		}
	})
}

// checkBlocks checks what openPart and newRAM rely on.
func checkBlocks(t *testing.T, blocks []block) {
	for _, b := range blocks {
		if len(b.ranges) == 0 {
			t.Fatalf("block %q is nowhere", b.name)
		}
		for _, r := range b.ranges {
			if end := r.offset + r.span.Size(); end > b.size || end <= r.offset {
				t.Fatalf("%v at %#x is not in the %#x bytes of %q", r.span, r.offset, b.size, b.name)
			}
		}
		if !slices.IsSortedFunc(b.ranges, func(a, b blockRange) int { return int(mem.Phys(a.span.First>>1)) - int(b.span.First>>1) }) {
			t.Fatalf("ranges of %q are not in order", b.name)
		}
	}
}
