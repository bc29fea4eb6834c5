package lab

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"nestdbg/lab/agent"
)

// readCPIO lists an archive as "NAME MODE CONTENT", by the format's document
// and not by the writer.
func readCPIO(t *testing.T, b []byte) []string {
	t.Helper()
	var out []string
	for at := 0; ; {
		if at%4 != 0 || len(b)-at < 110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		size, nameSize := field(6), field(11)
		name := string(b[at+110 : at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return out
		}
		out = append(out, fmt.Sprintf("%s %o %.20s", name, field(1), b[data:data+size]))
		at = (data + size + 3) &^ 3
	}
}

func TestPack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("from L0"), 0o600); err != nil {
		t.Fatal(err)
	}
	members := []member{
		{name: "/init", data: []byte("#!")},
		{name: "/usr/lib/x", path: file},
		{name: "/usr/y", data: nil},
	}
	var b bytes.Buffer
	if err := pack(&b, members); err != nil {
		t.Fatal(err)
	}
	want := []string{"init 100755 #!", "usr 40755 ", "usr/lib 40755 ", "usr/lib/x 100755 from L0", "usr/y 100755 "}
	if got := readCPIO(t, b.Bytes()); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if err := pack(io.Discard, []member{{name: "/x", path: "/nonexistent"}}); err == nil {
		t.Error("packed a file that is not there")
	}
	for n := 0; ; n++ {
		err := pack(&fullDisk{room: n}, members)
		if err == nil {
			break
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("after %d writes: %v", n, err)
		}
	}
}

var errFull = errors.New("disk full")

// fullDisk fails after some writes.
type fullDisk struct{ room int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.room--; d.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestHashMembers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	hash := func(m ...member) string {
		t.Helper()
		h, err := hashMembers(m)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	seen := map[string]bool{
		hash(member{name: "/a", data: []byte("bc")}): true,
		hash(member{name: "/ab", data: []byte("c")}): true,
		hash(member{name: "/a", data: []byte("bd")}): true,
		hash(member{name: "/f", path: file}):         true,
		hash(member{name: "/f"}):                     true,
		hash(member{name: "/f"}, member{name: "/g"}): true,
	}
	before := hash(member{name: "/f", path: file})
	if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	seen[hash(member{name: "/f", path: file})] = true
	if len(seen) != 7 || !seen[before] {
		t.Errorf("%d different hashes, want 7", len(seen))
	}
}

func TestDropOld(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"a", "b", "c", "d"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(int64(100-i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropOld(dir, 2); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/*"); !slices.Equal(left, []string{dir + "/a", dir + "/b"}) {
		t.Errorf("left %q", left)
	}
}

// moduleELF is the smallest ELF with a section .modinfo.
func moduleELF(info string) []byte {
	const header, names, section = 64, "\x00.modinfo\x00.shstrtab\x00", 64
	var b bytes.Buffer
	le := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	shoff := uint64(header + len(info) + len(names))
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	le([]uint16{1, 62})                                    // relocatable, x86-64
	le(uint32(1))                                          // version
	le([]uint64{0, 0, shoff})                              // entry, segments, sections
	le(uint32(0))                                          // flags
	le([]uint16{header, 0, 0, section, 3, 2})              // sizes and counts; names are in section 2
	b.WriteString(info + names)                            // the sections' contents
	le([8]uint64{})                                        // section 0 is empty
	le([]uint32{1, 1})                                     // .modinfo, PROGBITS
	le([]uint64{0, 0, header, uint64(len(info)), 0, 1, 0}) // offset, size, alignment
	le([]uint32{10, 3})                                    // .shstrtab, STRTAB
	le([]uint64{0, 0, uint64(header + len(info)), uint64(len(names)), 0, 1, 0})
	return b.Bytes()
}

// moduleDir makes lib/modules/RELEASE with modules that need each other, packed
// in the ways that suites of Debian do.
func moduleDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, pack func(io.Writer) io.WriteCloser, depends string) {
		var b bytes.Buffer
		w := pack(&b)
		w.Write(moduleELF("license=GPL\x00depends=" + depends + "\x00name=x\x00"))
		w.Close()
		if err := writeFile(filepath.Join(dir, "kernel", name), b.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	plain := func(w io.Writer) io.WriteCloser { return nopCloser{w} }
	put("virt/kvm.ko", plain, "irqbypass")
	put("virt/irqbypass.ko.xz", func(w io.Writer) io.WriteCloser { z, _ := xz.NewWriter(w); return z }, "")
	put("virt/kvm-amd.ko.zst", func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }, "kvm,ccp")
	put("crypto/ccp.ko.gz", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }, "rng_core")
	put("loop1.ko", plain, "loop2")
	put("loop2.ko", plain, "loop1")
	put("needy.ko", plain, "gone")
	if err := writeFile(filepath.Join(dir, "kernel/bad.ko"), []byte("no ELF")); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/rng-core.ko\n")); err != nil {
		t.Fatal(err)
	}
	return dir
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func TestModuleClosure(t *testing.T) {
	tree, err := readModuleTree(moduleDir(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"kvm-amd"}, "irqbypass kvm ccp kvm_amd"},
		{[]string{"irqbypass", "kvm", "kvm_amd"}, "irqbypass kvm ccp kvm_amd"},
		{[]string{"rng_core"}, ""},
		{[]string{"loop1"}, "loop2 loop1"},
	} {
		mods, err := tree.closure(c.names...)
		var got []string
		for _, m := range mods {
			got = append(got, m.name)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, %v; want %q", c.names, got, err, c.want)
		}
	}
	for _, name := range []string{"gone", "needy"} {
		if _, err := tree.closure(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tree.closure("bad"); err == nil {
		t.Error("a file that is no ELF was taken for a module")
	}
	if got := tree.optional(1, "gone", "kvm", "irqbypass", "ccp"); len(got) != 1 || got[0].name != "irqbypass" {
		t.Errorf("optional: %v", got)
	}
	if _, err := readModuleTree(t.TempDir()); err == nil {
		t.Error("an empty directory was taken for modules")
	}
}

// The initramfs of L1 has that of its VMs in it, and that one, in a lab of three
// levels, another.
func TestInitramfsInInitramfs(t *testing.T) {
	dir := moduleDir(t)
	builtin := "kernel/drivers/rng-core.ko\nkernel/virtio_pci.ko\nkernel/virtio_mmio.ko\nkernel/virtio_console.ko\n"
	if err := writeFile(filepath.Join(dir, "modules.builtin"), []byte(builtin)); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(dir, "tool")
	if err := writeFile(tool, []byte("a program of L0")); err != nil {
		t.Fatal(err)
	}
	k := &Kernel{Image: tool, Modules: dir}
	host := &hostFiles{files: map[string]string{agent.Busybox: tool, agent.VMQEMU: tool}}
	for depth := 2; depth <= 3; depth++ {
		members, err := allMembers(k, k, host, []byte("nestdbg"), Options{Depth: depth})
		if err != nil {
			t.Fatal(err)
		}
		for level := 1; level <= depth; level++ {
			var packed bytes.Buffer
			if err := pack(&packed, members); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, line := range readCPIO(t, packed.Bytes()) {
				name, _, _ := strings.Cut(line, " ")
				names = append(names, name)
			}
			hosts := level < depth
			for name, want := range map[string]bool{"init": true, "nestdbg": true, "bin/busybox": true, "vm/vmlinuz": hosts,
				"vm/initramfs": hosts, "usr/bin/qemu-system-x86_64": hosts, "modules/kvm/03-kvm_amd.ko": hosts} {
				if slices.Contains(names, name) != want {
					t.Errorf("depth %d, level %d: %s is there: %v; %q", depth, level, name, !want, names)
				}
			}
			if sorted := slices.Sorted(slices.Values(names)); len(slices.Compact(sorted)) != len(names) {
				t.Errorf("depth %d, level %d: files twice: %q", depth, level, names)
			}
			role := agent.VMRole
			if level == 1 {
				role = agent.L1Role
			}
			if i := slices.IndexFunc(members, func(m member) bool { return m.name == "/init" }); !bytes.Equal(members[i].data, initScript(role)) {
				t.Errorf("depth %d, level %d: init is %q", depth, level, members[i].data)
			}
			members = unpack(members)
		}
	}
}

// unpack is what the initramfs inside is made of, from what it was packed with.
func unpack(members []member) []member {
	i := slices.IndexFunc(members, func(m member) bool { return m.name == agent.VMInitramfs })
	if i < 0 {
		return nil
	}
	var out []member
	for at, b := 0, members[i].data; ; {
		field := func(i int) int { n, _ := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32); return int(n) }
		size, nameSize := field(6), field(11)
		name := string(b[at+110 : at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return out
		}
		if field(1)&0o170000 == 0o100000 {
			out = append(out, member{name: "/" + name, data: b[data : data+size]})
		}
		at = (data + size + 3) &^ 3
	}
}

func TestStripELF(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	size := len(data)
	stripped, err := stripELF(data)
	if err != nil || len(stripped) >= size {
		t.Fatalf("%d of %d bytes, %v", len(stripped), size, err)
	}
	path := filepath.Join(t.TempDir(), "stripped")
	if err := os.WriteFile(path, stripped, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "-test.run=^$").CombinedOutput(); err != nil {
		t.Errorf("it does not run any more: %v: %s", err, out)
	}
	if _, err := stripELF(stripped[:len(stripped)-1]); err == nil {
		t.Error("a program that is cut off was accepted")
	}
	if _, err := stripELF([]byte("no ELF")); err == nil {
		t.Error("something else was accepted")
	}
}

// bzImage is the smallest file that says which release it is.
func bzImage(release string) []byte {
	b := make([]byte, 0x400)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], release)
	return b
}

func TestKernelFromImage(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "boot/vmlinuz-6.1.0")
	if err := writeFile(image, bzImage("6.1.0 (someone@somewhere) #1\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := kernelFromImage(image, ""); err == nil || !strings.Contains(err.Error(), "--modules") {
		t.Errorf("no modules: %v", err)
	}
	modules := filepath.Join(dir, "lib/modules/6.1.0")
	if err := os.MkdirAll(filepath.Join(modules, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{"", modules, dir} {
		k, err := kernelFromImage(image, given)
		if err != nil || k.Release != "6.1.0" || filepath.Clean(k.Modules) != modules {
			t.Errorf("modules %q: %+v, %v", given, k, err)
		}
	}
	if k, err := kernelFromTree(dir); err != nil || k.Image != image {
		t.Errorf("tree: %+v, %v", k, err)
	}
	for name, content := range map[string][]byte{
		"vmlinux": []byte("\x7fELF"), "empty": nil, "nameless": bzImage(""), "slash": bzImage("../x y"),
	} {
		path := filepath.Join(dir, name)
		if err := writeFile(path, content); err != nil {
			t.Fatal(err)
		}
		if k, err := kernelFromImage(path, ""); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
	if _, err := findKernel(t.Context(), cache{dir}, "./no/such", "", func(string) {}); err == nil {
		t.Error("a path that is not there was looked for at Debian's")
	}
}
