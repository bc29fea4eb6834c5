package debugfile

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// object is a relocatable file with one note section of these bytes.
func object(notes []byte) []byte {
	const sections = 3
	names := []byte("\x00.note.gnu.build-id\x00.shstrtab\x00")
	le := binary.LittleEndian
	data := append(bytes.Clone(notes), names...)
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + string(make([]byte, 9)))
	header := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, le, v) // a buffer takes everything
		}
	}
	header(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), uint64(64+len(data)), uint32(0),
		uint16(64), uint16(0), uint16(0), uint16(64), uint16(sections), uint16(2))
	b.Write(data)
	b.Write(make([]byte, 64))
	section := func(name, kind uint32, flags, at, size uint64) {
		header(name, kind, flags, uint64(0), at, size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	section(1, 7, 2, 64, uint64(len(notes)))
	section(20, 3, 0, 64+uint64(len(notes)), uint64(len(names)))
	return b.Bytes()
}

// note is an ELF note.
func note(kind uint32, name, desc string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = append(binary.LittleEndian.AppendUint32(b, kind), name...)
	b = append(b, make([]byte, -len(b)&3)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(b)&3)...)
}

func buildID(id string) []byte { return note(3, "GNU\x00", id) }

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBuildID(t *testing.T) {
	long := bytes.Repeat([]byte{0xab}, 20)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"plain":           {object(buildID("\x01\x02\x03\x04")), "01020304"},
		"not the first":   {object(append(note(6, "Linux\x00", "LTO12"), buildID(string(long))...)), "abababababababababababababababababababab"},
		"odd size":        {object(buildID("\x01\x02\x03")), "010203"},
		"no padding":      {object(buildID("\x01\x02\x03")[:19]), "010203"},
		"another vendor":  {object(note(3, "BSD\x00", "\x01\x02")), ""},
		"another kind":    {object(note(1, "GNU\x00", "\x01\x02")), ""},
		"cut":             {object(buildID(string(long))[:30]), ""},
		"name too long":   {object([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00")), ""},
		"no notes":        {object(nil), ""},
		"no ELF":          {[]byte("#!/bin/sh\n"), ""},
		"empty":           {nil, ""},
		"header cut":      {object(buildID("\x01\x02"))[:40], ""},
		"sections beyond": {object(buildID("\x01\x02"))[:70], ""},
	} {
		got, err := BuildID(write(t, filepath.Join(t.TempDir(), "f"), c.file))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	if _, err := BuildID("/no/such/file"); err == nil {
		t.Error("a file that is not there")
	}
}

func TestKernel(t *testing.T) {
	right, wrong := object(buildID("\x01\x02\x03\x04")), object(buildID("\x09\x09\x09\x09"))
	const id, release = "01020304", "6.1.0-test"
	for _, place := range []string{
		".build-id/01/020304.debug", "boot/vmlinux-" + release, "vmlinux-" + release, "vmlinux",
		"lib/modules/" + release + "/vmlinux", "usr/lib/debug/boot/vmlinux-" + release, "usr/lib/debug/.build-id/01/020304.debug",
	} {
		dir := t.TempDir()
		path := write(t, filepath.Join(dir, place), right)
		if got := New(dir).Kernel(id, release); got != path {
			t.Errorf("%s: %q", place, got)
		}
		write(t, path, wrong)
		if got := New(dir).Kernel(id, release); got != "" {
			t.Errorf("%s: %q has another build id", place, got)
		}
		if got := New(dir, path).Kernel("09090909", release); got != path {
			t.Errorf("%s, named itself: %q", place, got)
		}
	}
	// A wrong file at a better place does not hide the right one.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "boot/vmlinux-"+release), wrong)
	path := write(t, filepath.Join(dir, "vmlinux"), right)
	f := New(dir)
	if got := f.Kernel(id, release); got != path {
		t.Errorf("%q", got)
	}
	for _, none := range []string{"", "0", "01"} {
		if got := f.Kernel(none, release); got != "" {
			t.Errorf("build id %q: %q", none, got)
		}
	}
}

func TestModule(t *testing.T) {
	const release = "6.1.0-test"
	id := buildID("\x0a\x0b")
	for file, name := range map[string]string{
		"kernel/arch/x86/kvm/kvm-amd.ko": "kvm_amd", "kvm_amd.ko": "kvm_amd", "kvm-amd.ko.debug": "kvm_amd", "extra/a-b_c.ko": "a_b_c",
	} {
		for _, root := range []string{"", "usr/lib/debug"} {
			dir := t.TempDir()
			path := write(t, filepath.Join(dir, root, "lib/modules", release, file), object(id))
			f := New(dir)
			for _, spelled := range []string{name, filepath.Base(name)} {
				if got := f.Module("0a0b", release, spelled); got != path {
					t.Errorf("%s for %s: %q", file, spelled, got)
				}
			}
			for what, got := range map[string]string{
				"another build id": f.Module("0a0c", release, name), "no build id": f.Module("", release, name),
				"another name": f.Module("0a0b", release, name+"x"), "another release": f.Module("0a0b", "5.0", name),
			} {
				if got != "" {
					t.Errorf("%s with %s: %q", file, what, got)
				}
			}
		}
	}
}

func TestAllocSections(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "m.ko"), object(buildID("\x01\x02")))
	got, err := AllocSections(path)
	if err != nil || len(got) != 1 || got[0] != ".note.gnu.build-id" {
		t.Errorf("%q, %v", got, err)
	}
	if at, err := FirstSegment(path); err == nil {
		t.Errorf("a file without segments begins at %#x", at)
	}
}
