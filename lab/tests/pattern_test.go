package tests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
	"nestdbg/lab"
	"nestdbg/lab/agent"
)

// pattern is memory with known contents in a process of a guest.
type pattern struct {
	pid   int
	pages []patternPage
}

// patternPage is one page: where the process has it and where its kernel says it is.
type patternPage struct {
	virt, phys uint64
	size       int
}

// patternOf makes a guest of a shared lab map the pattern, once for all tests.
// Whoever changes it puts it back.
func patternOf(t testing.TB, l *lab.Lab, guest string) *pattern {
	t.Helper()
	key := l.Name + "/" + guest
	if p := suite.patterns[key]; p != nil {
		return p
	}
	l.Ask(t.Context(), guest, "unpattern") // one that -keep left is of another run's agent
	text := ask(t, l, guest, "pattern")
	p := &pattern{}
	bytesBySize := make(map[int]int)
	for line := range strings.Lines(text) {
		var x patternPage
		if n, _ := fmt.Sscanf(line, "page %v %v %d", &x.virt, &x.phys, &x.size); n == 3 {
			p.pages = append(p.pages, x)
			bytesBySize[x.size] += x.size
		}
		fmt.Sscanf(line, "pid %d", &p.pid)
	}
	if bytesBySize[4<<10] != 32<<20 || bytesBySize[2<<20] != 32<<20 || p.pid == 0 {
		t.Fatalf("%s maps %v", guest, bytesBySize)
	}
	suite.patterns[key] = p
	return p
}

// bytes is what a page must hold.
func (x patternPage) bytes() []byte {
	b := make([]byte, x.size)
	for i := 0; i < x.size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], agent.PatternWord(x.virt+uint64(i)))
	}
	return b
}

// TestEveryByteOfThePattern reads 64 MiB of L2 through nestdbg, by physical address
// and by virtual address through the process's page tables.
func TestEveryByteOfThePattern(t *testing.T) {
	for _, name := range []string{"kaslr", "two"} {
		t.Run(name, func(t *testing.T) {
			l := sharedLab(t, name)
			p := patternOf(t, l, "vm0")
			v := look(t, l)
			m := v.names(t, l)["vm0"]
			space := v.processSpace(t, m, p.pid)
			for _, x := range []patternPage{p.pages[4711], p.pages[len(p.pages)-1]} {
				checkVTop(t, l, m.Name, fmt.Sprintf("pa:%#x", x.phys), x.phys)
			}
			got := make([]byte, 2<<20)
			for _, x := range p.pages {
				b, want := got[:x.size], x.bytes()
				if _, err := m.Phys.ReadPhys(b, mem.Phys(x.phys)); err != nil || !bytes.Equal(b, want) {
					t.Fatalf("%s pa %#x: %v, %s", m.Name, x.phys, err, difference(b, want))
				}
				clear(b)
				if _, err := space.ReadVirt(b, mem.Virt(x.virt)); err != nil || !bytes.Equal(b, want) {
					t.Fatalf("%s process %d va %#x: %v, %s", m.Name, p.pid, x.virt, err, difference(b, want))
				}
			}
		})
	}
}

// difference says where two blocks differ first.
func difference(got, want []byte) string {
	for i := range want {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %#x is %#02x, want %#02x", i, got[i], want[i])
		}
	}
	return "all bytes are right"
}

// processSpace is the virtual memory of a process of a guest.
func (v *view) processSpace(t testing.TB, m *machine.Machine, pid int) linux.AddressSpace {
	t.Helper()
	k := v.kernel(t, m)
	tasks, problems, err := k.Tasks()
	if err != nil {
		t.Fatalf("tasks of %s: %v, %v", m.Name, err, problems)
	}
	at := slices.IndexFunc(tasks, func(x linux.Task) bool { return x.PID == pid })
	if at < 0 {
		t.Fatalf("%s has no process %d: %+v", m.Name, pid, tasks)
	}
	space, err := k.UserSpace(tasks[at].MM)
	if err != nil {
		t.Fatal(err)
	}
	return space
}

// TestWalksOfThePattern compares the guest's own word on where each page is with
// the ranges of "maps", and with every walk.
func TestWalksOfThePattern(t *testing.T) {
	l := sharedLab(t, "kaslr")
	p := patternOf(t, l, "vm0")
	v := look(t, l)
	m := v.machine(t, "vm0")
	space := v.processSpace(t, m, p.pid)
	root := v.processRoot(t, m, p.pid)
	walk, err := m.SpaceAt(root)
	if err != nil {
		t.Fatal(err)
	}
	maps := report.NewMaps(m, walk, 1, mem.Range{Last: 1<<47 - 1}, 0)
	for _, x := range p.pages {
		pa, contiguous, err := space.Translate(x.virt)
		if err != nil || uint64(pa) != x.phys || contiguous != uint64(x.size) {
			t.Fatalf("va %#x: pa %#x, %d bytes, %v; the guest says %#x, %d bytes", x.virt, pa, contiguous, err, x.phys, x.size)
		}
		tr, err := walk.Walk(x.virt + uint64(x.size) - 1)
		if err != nil || uint64(tr.Phys) != x.phys+uint64(x.size)-1 || tr.PageSize != uint64(x.size) {
			t.Fatalf("va %#x: walk to %+v, %v", x.virt, tr, err)
		}
		if pa, ok := mapped(maps, x.virt, uint64(x.size)); !ok || pa != x.phys {
			t.Fatalf("va %#x: maps says pa %#x, %v; the guest says %#x", x.virt, pa, ok, x.phys)
		}
	}
}

// processRoot is the value of CR3 of a process, without flags.
func (v *view) processRoot(t testing.TB, m *machine.Machine, pid int) uint64 {
	t.Helper()
	k := v.kernel(t, m)
	types, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	offset, _, err := types.Offset("mm_struct", "pgd")
	if err != nil {
		t.Fatal(err)
	}
	tasks, _, _ := k.Tasks()
	at := slices.IndexFunc(tasks, func(x linux.Task) bool { return x.PID == pid })
	if at < 0 {
		t.Fatalf("%s has no process %d", m.Name, pid)
	}
	pgd, err := mem.VirtUint64(k, tasks[at].MM+mem.Virt(offset))
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := k.Space().Translate(pgd)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(root)
}

// mapped looks an address up among the ranges of a maps report: size bytes that
// are contiguous in the machine's physical memory.
func mapped(r *report.Maps, va, size uint64) (pa uint64, ok bool) {
	i, found := slices.BinarySearchFunc(r.Ranges, va, func(x report.MapRange, va uint64) int {
		switch {
		case uint64(x.Last) < va:
			return -1
		case uint64(x.First) > va:
			return 1
		}
		return 0
	})
	if !found {
		return 0, false
	}
	pa = uint64(r.Ranges[i].PA) + va - uint64(r.Ranges[i].First)
	for done := uint64(0); done < size; i++ {
		if i == len(r.Ranges) {
			return pa, false
		}
		x := r.Ranges[i]
		if uint64(x.First) > va+done || uint64(x.PA)+va+done-uint64(x.First) != pa+done {
			return pa, false
		}
		done = uint64(x.Last) + 1 - va
	}
	return pa, true
}

// TestPatternThroughTheCommandLine reads pages of each size with "x" and follows
// them with "vtop", by physical address and through the guest's own map of all its
// memory, on a guest that runs.
func TestPatternThroughTheCommandLine(t *testing.T) {
	l := sharedLab(t, "kaslr")
	p := patternOf(t, l, "vm0")
	page := func(i int) patternPage { return p.pages[(i+len(p.pages))%len(p.pages)] }
	// Linux 6.1 arch/x86/include/asm/page_64.h
	direct := binary.LittleEndian.Uint64(examine(t, l, "vm0", "page_offset_base", 8))
	for _, x := range []patternPage{page(0), page(4711), page(-1)} {
		want := x.bytes()
		for _, where := range []struct {
			text string
			addr uint64
		}{
			{fmt.Sprintf("pa:%#x", x.phys), x.phys},
			{fmt.Sprintf("%#x", direct+x.phys), direct + x.phys},
		} {
			count := fmt.Sprintf("x/%dgx", x.size/8)
			r := decode[memoryReport](t, must(t, l, count, "--json", where.text))
			if got := r.bytes(t, where.addr); !bytes.Equal(got, want) {
				t.Errorf("%s %s: %d bytes, %s", count, where.text, len(got), difference(got, want[:len(got)]))
			}
			checkVTop(t, l, "vm0", where.text, x.phys)
		}
	}
}

// checkVTop checks that an address of a VM leads to a page of L2 that the guest
// told, and there to a byte of QEMU's memory file that agrees.
func checkVTop(t *testing.T, l *lab.Lab, machine, where string, phys uint64) {
	t.Helper()
	text := must(t, l, "vtop", "--json", "-m", machine, where)
	checkShape(t, text, map[string]string{
		"machine": "string", "va": "address?", "steps[].stage": "number", "steps[].level": "number",
		"steps[].table": "address", "steps[].index": "number", "steps[].entry": "address", "steps[].flags": "list",
		"pa": "address", "parent_pa": "address", "file_offset": "address", "fault": "string",
	})
	r := decode[vtopReport](t, text)
	if r.Fault != "" || r.Machine != machine || uint64(*r.PA) != phys {
		t.Fatalf("vtop %s: %s; the guest says pa %#x", where, text, phys)
	}
	byPhys := strings.HasPrefix(where, "pa:")
	if (r.VA == nil) != byPhys {
		t.Errorf("vtop %s: va is %v", where, r.VA)
	}
	stages := make(map[int]int)
	for _, s := range r.Steps {
		stages[s.Stage]++
		if s.Entry&1 == 0 || len(s.Flags) == 0 || s.Index > 511 || s.Table%4096 != 0 {
			t.Errorf("vtop %s: step %+v", where, s)
		}
	}
	if (stages[1] == 0) != byPhys || stages[2] < 3 || len(stages) > 2 {
		t.Errorf("vtop %s: steps by stage: %v", where, stages)
	}
	want := examine(t, l, machine, where, 64)
	got := examine(t, l, "l1", fmt.Sprintf("pa:%#x", uint64(*r.ParentPA)), 64)
	inFile := readFile(t, l.MemoryFile, int64(*r.FileOffset), 64)
	if !bytes.Equal(got, want) || !bytes.Equal(inFile, want) {
		t.Errorf("vtop %s: L2 has %x, L1 %x, the file %x", where, want, got, inFile)
	}
}

// TestMapsAgreeWithVTop takes ranges of the kernel's own mappings.
func TestMapsAgreeWithVTop(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	for _, m := range []string{"vm0", "l1"} {
		r := decode[mapsReport](t, must(t, l, "maps", "--json", "-m", m, "_text", "_end"))
		if r.Machine != m || r.Stage != 1 || r.Cut || len(r.Problems) > 0 || len(r.Ranges) < 3 {
			t.Fatalf("maps of %s: %+v", m, r)
		}
		step := max(len(r.Ranges)/5, 1)
		for i := 0; i < len(r.Ranges); i += step {
			x := r.Ranges[i]
			for _, at := range []address{x.First, x.Last} {
				v := decode[vtopReport](t, nestdbg(t, on(l, "vtop", "--json", "-m", m, fmt.Sprintf("%#x", uint64(at)))...).stdout)
				if v.PA == nil || *v.PA != x.PA+at-x.First {
					t.Errorf("%s %#x: maps says pa %#x, vtop %v", m, uint64(at), uint64(x.PA+at-x.First), v.PA)
				}
				if (v.ParentPA == nil) != (x.ParentPA == nil) || v.ParentPA != nil && *v.ParentPA != *x.ParentPA+at-x.First {
					t.Errorf("%s %#x: maps says %v in the parent, vtop %v", m, uint64(at), x.ParentPA, v.ParentPA)
				}
			}
		}
	}
}
