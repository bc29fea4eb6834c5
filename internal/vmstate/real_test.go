package vmstate

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nestdbg/internal/arch"
)

// stops are the moments at which streams were taken: testdata/README.md.
var stops = []string{"l1", "l2"}

// stream reads a stream in testdata.
func stream(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// allowedMismatch are registers for which QEMU's gdbstub has a constant 0 where
// the stream has the value (QEMU 7.2 target/i386/gdbstub.c:
// x86_cpu_gdb_read_register, "ftag" to "fop").
var allowedMismatch = map[string]bool{
	"ftag": true, "fiseg": true, "fioff": true, "foseg": true, "fooff": true, "fop": true,
}

func TestRegistersAreGDBs(t *testing.T) {
	for _, stop := range stops {
		var want []map[string]string
		text, err := os.ReadFile(filepath.Join("testdata", stop+".registers.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{".xen", ".migrate"} {
			s, err := Parse(stream(t, stop+kind), arch.X86)
			if err != nil {
				t.Fatal(stop+kind, err)
			}
			if len(s.Problems) > 0 || len(s.CPUs) != len(want) {
				t.Fatalf("%s: %d CPUs, want %d, problems %q", stop+kind, len(s.CPUs), len(want), s.Problems)
			}
			for cpu := range want {
				compareWithGDB(t, fmt.Sprintf("%s%s CPU %d", stop, kind, cpu), s.CPUs[cpu], want[cpu])
			}
		}
	}
}

func compareWithGDB(t *testing.T, what string, got *arch.Registers, want map[string]string) {
	t.Helper()
	if len(want) != len(arch.X86.GDB) {
		t.Errorf("%s: gdb has %d registers, want %d", what, len(want), len(arch.X86.GDB))
	}
	for name, w := range want {
		i, ok := arch.X86.Index(name)
		if !ok || !got.Known(i) {
			t.Errorf("%s: %s is not known", what, name)
			continue
		}
		if g := hexOf(got.Bytes(i)); g != w && !allowedMismatch[name] {
			t.Errorf("%s: %s = %s, gdb has %s", what, name, g, w)
		}
	}
}

// hexOf renders little-endian bytes.
func hexOf(b []byte) string {
	b = bytes.Clone(b)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return fmt.Sprintf("%#x", new(big.Int).SetBytes(b))
}

// TestHidden compares with what is known from elsewhere: the nested CPU stopped
// at an address of L2, the VMCB and save areas found in L1's memory.
func TestHidden(t *testing.T) {
	const unknown = "unknown"
	for _, c := range []struct {
		stop string
		cpu  int
		want map[string]string
	}{
		{"l2", 0, map[string]string{"guest_mode": "0x0", "vm_hsave": "0x194b1000", "vm_vmcb": "0x18dce000",
			"nested_cr3": unknown, "nested_pg_mode": unknown, "halted": "0x1", "hflags2": "0x1", "cpl": "0x0"}},
		{"l2", 1, map[string]string{"guest_mode": "0x1", "vm_hsave": "0x194b0000", "vm_vmcb": "0x18dce000",
			"nested_cr3": "0x194ed000", "nested_pg_mode": "0x17", "halted": "0x0", "hflags": "0x8f0c2b0",
			"rip": "0xffffffff93b4a350", "lstar": "0xffffffff94400080", "tr": "0x40",
			"tr_base": "0xfffffe0000003000", "gdtr_base": "0xfffffe0000001000", "gdtr_limit": "0x7f",
			"idtr_base": "0xfffffe0000000000", "idtr_limit": "0xfff", "cs_base": "0x0", "ldtr": "0x0"}},
		{"l1", 1, map[string]string{"guest_mode": "0x0", "vm_vmcb": "0x18dce000", "nested_cr3": unknown,
			"halted": "0x0", "hflags2": "0x0", "tr_base": "0xfffffe000003e000"}},
	} {
		for _, kind := range []string{".xen", ".migrate"} {
			s, err := Parse(stream(t, c.stop+kind), arch.X86)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range c.want {
				got := unknown
				if v, ok := s.CPUs[c.cpu].Get(name); ok {
					got = fmt.Sprintf("%#x", v)
				}
				if got != want {
					t.Errorf("%s%s CPU %d: %s = %s, want %s", c.stop, kind, c.cpu, name, got, want)
				}
			}
		}
	}
}

func TestStreamsOfOneStopAgree(t *testing.T) {
	for _, stop := range stops {
		x, err := Parse(stream(t, stop+".xen"), arch.X86)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(stream(t, stop+".migrate"), arch.X86)
		if err != nil {
			t.Fatal(err)
		}
		for cpu := range m.CPUs {
			for i, r := range arch.X86.Regs {
				if a, b := x.CPUs[cpu].Bytes(i), m.CPUs[cpu].Bytes(i); !bytes.Equal(a, b) {
					t.Errorf("%s CPU %d: %s is %x in one stream, %x in the other", stop, cpu, r.Name, a, b)
				}
			}
		}
		if x.MachineType != "" || m.MachineType != "pc-q35-7.2" {
			t.Errorf("%s: machine types %q and %q", stop, x.MachineType, m.MachineType)
		}
		if x.RunState != "" || m.RunState != map[string]string{"l1": "paused", "l2": "debug"}[stop] {
			t.Errorf("%s: run states %q and %q", stop, x.RunState, m.RunState)
		}
		compareSections(t, stop, x.Sections, m.Sections)
	}
}

// compareSections expects the sections of devices to be the same ones.
func compareSections(t *testing.T, stop string, x, m []Section) {
	t.Helper()
	for len(m) > 0 && m[0].Kind != Full {
		if m[0].Name != "ram" {
			t.Errorf("%s: a piece of %q", stop, m[0].Name)
		}
		m = m[1:]
	}
	if len(x) != len(m) || len(x) != 33 {
		t.Fatalf("%s: %d and %d sections of devices, want 33", stop, len(x), len(m))
	}
	for i := range x {
		a, b := x[i], m[i]
		if a.Name != b.Name || a.ID != b.ID || a.Instance != b.Instance || a.Version != b.Version ||
			len(a.Payload) != len(b.Payload) {
			t.Errorf("%s: section %d is %q/%d id %d v%d, %d bytes in one stream and %q/%d id %d v%d, %d bytes in the other",
				stop, i, a.Name, a.Instance, a.ID, a.Version, len(a.Payload),
				b.Name, b.Instance, b.ID, b.Version, len(b.Payload))
		}
	}
}

// TestLayout checks the table of this package against what QEMU itself says
// about the fields: same names, order and sizes, same subsections.
func TestLayout(t *testing.T) {
	seen := map[string]bool{}
	for _, stop := range stops {
		d, err := ParseDescription(stream(t, stop+".migrate"))
		if err != nil {
			t.Fatal(err)
		}
		if d.PageSize != 4096 || len(d.Sections) != 33 {
			t.Errorf("%s: page size %d, %d sections", stop, d.PageSize, len(d.Sections))
		}
		for cpu := range uint32(2) {
			s := d.Section("cpu", cpu)
			if s == nil || s.Version != x86Version {
				t.Fatalf("%s: section cpu %d: %+v", stop, cpu, s)
			}
			compareLayout(t, s, seen)
		}
	}
	if !seen["cpu/svn_npt"] || !seen["cpu/svm_guest"] {
		t.Errorf("the streams have the subsections %v only", seen)
	}
}

func compareLayout(t *testing.T, s *Described, seen map[string]bool) {
	t.Helper()
	described, sizes := map[string]int{}, map[string]int{}
	end := 0
	for _, f := range s.Fields {
		if sub, _, ok := strings.Cut(f.Name, ":"); ok {
			sizes[sub] += len(f.Bytes)
			seen[sub] = true
			continue
		}
		if f.Offset != end {
			t.Fatalf("%s at %#x, the one before ends at %#x", f.Name, f.Offset, end)
		}
		end += len(f.Bytes)
		described[f.Name] = f.Offset
	}
	if end != x86MainSize {
		t.Errorf("fixed part of section cpu has %#x bytes, described are %#x", x86MainSize, end)
	}
	for _, f := range x86Main {
		name := f.name
		if f.count > 1 {
			name += "[0]"
		}
		at, ok := described[name]
		for _, member := range []string{".selector", ".base", ".tmp", "._q_ZMMReg[0]", "._q_ZMMReg[2]"} {
			if !ok {
				at, ok = described[name+member]
			}
		}
		if !ok || at != x86Offsets[f.name] {
			t.Errorf("%s at %#x, described at %#x (%v)", f.name, x86Offsets[f.name], at, ok)
		}
	}
	for sub, size := range sizes {
		if x86Subsections[sub] != size {
			t.Errorf("subsection %q has %d bytes, described are %d", sub, x86Subsections[sub], size)
		}
	}
}

// TestDescribedValues compares decoded registers with the described fields, by
// the names QEMU gives them.
func TestDescribedValues(t *testing.T) {
	b := stream(t, "l2.migrate")
	s, err := Parse(b, arch.X86)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDescription(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, field := range map[string]string{
		"rcx": "env.regs[1]", "rsp": "env.regs[4]", "r15": "env.regs[15]", "rip": "env.eip", "eflags": "env.eflags",
		"es": "env.segs[0].selector", "gs_base": "env.segs[5].base", "ldtr": "env.ldt.selector",
		"tr_base": "env.tr.base", "gdtr_limit": "env.gdt.limit", "idtr_base": "env.idt.base",
		"sysenter_eip": "env.sysenter_eip", "cr2": "env.cr[2]", "cr3": "env.cr[3]", "dr6": "env.dr[6]",
		"mxcsr": "env.mxcsr", "efer": "env.efer", "star": "env.star", "fmask": "env.fmask",
		"k_gs_base": "env.kernelgsbase", "pat": "env.pat", "vm_hsave": "env.vm_hsave", "vm_vmcb": "env.vm_vmcb",
		"nested_cr3": "cpu/svn_npt:env.nested_cr3", "nested_pg_mode": "cpu/svn_npt:env.nested_pg_mode",
	} {
		want := d.Section("cpu", 1).Field(field)
		got, ok := s.CPUs[1].Get(name)
		if want == nil || !ok || got != number(want) {
			t.Errorf("%s = %#x (%v), described is % x", name, got, ok, want)
		}
	}
}
