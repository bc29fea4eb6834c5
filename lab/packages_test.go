package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseDepends(t *testing.T) {
	out := "linux-image-7.2-amd64\n  Depends: linux-binary-7.2-amd64\n |Depends: linux-modules-7.2-amd64\n" +
		"  Depends: kmod\n  Depends: <linux-initramfs-tool>\n  Depends: linux-base\n  Recommends: linux-image-x\n"
	want := []string{"linux-binary-7.2-amd64", "linux-modules-7.2-amd64"}
	if got := parseDepends([]byte(out)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWithFiles(t *testing.T) {
	parts := []string{"linux-image-cloud-amd64", "linux-base-cloud-amd64", "linux-image-7.2-amd64", "linux-modules-7.2-amd64"}
	if got := withFiles(parts); !slices.Equal(got, parts[2:]) {
		t.Errorf("got %q", got)
	}
	if got := withFiles(parts[:1]); !slices.Equal(got, parts[:1]) {
		t.Errorf("got %q", got)
	}
}

func TestParseURIs(t *testing.T) {
	out := "'http://x/linux-image-cloud-amd64_6.1.192-2_amd64.deb' linux-image-cloud-amd64_6.1.192-2_amd64.deb 1504 SHA256:00\n" +
		"'http://x/y' linux-image-6.1.0-56-amd64_1%3a6.1_amd64.deb 26713492 SHA256:e7\n" +
		"noise\n'http://x' ../../evil.deb 1 SHA256:0\n"
	files := parseURIs([]byte(out))
	want := []debName{
		{"linux-image-cloud-amd64", "6.1.192-2", "linux-image-cloud-amd64_6.1.192-2_amd64.deb", 1504},
		{"linux-image-6.1.0-56-amd64", "1:6.1", "linux-image-6.1.0-56-amd64_1%3a6.1_amd64.deb", 26713492},
	}
	if !slices.Equal(files, want) {
		t.Fatalf("got %+v", files)
	}
	if got := mainPart(files); got != want[1] {
		t.Errorf("main part %+v", got)
	}
}

func TestParseSources(t *testing.T) {
	out := "Debian|http://a/debian/\nDebian|http://a/debian/\nDebian-Security|http://a/security/\nOther|http://b/\n$(LABEL)|\n"
	want := []string{
		"deb [signed-by=" + debianKeyring + "] http://a/debian/ trixie main\n",
		"deb [signed-by=" + debianKeyring + "] http://a/security/ trixie-security main\n",
	}
	if got := parseSources(out, "trixie"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := parseSources("Other|http://b/\n", "trixie"); got != nil {
		t.Errorf("not Debian: %q", got)
	}
}

// A kernel's suite becomes part of file names.
func TestKernelOfSuite(t *testing.T) {
	for _, spec := range []string{"linux-image/..", "linux-image/", "linux-image/a/b", "/trixie", "../x/trixie", "./no/such"} {
		if _, err := findKernel(t.Context(), cache{t.TempDir()}, spec, "", func(string) {}); err == nil {
			t.Errorf("%q was accepted", spec)
		}
	}
}

func TestPackageName(t *testing.T) {
	for name, want := range map[string]bool{
		"linux-image-cloud-amd64": true, "linux-image-5.10.0-32-cloud-amd64": true,
		"linux-image-6.12.118+deb13-cloud-amd64": true,
		"":                                       false, "x": false, "../x": false, "-x": false, "Linux": false, "a/b": false, "..": false,
	} {
		if got := packageName.MatchString(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestParseLdd(t *testing.T) {
	out := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
	want := []string{"/lib/x/libz.so.1", "/lib64/ld-linux-x86-64.so.2"}
	if got, err := parseLdd([]byte(out)); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := parseLdd([]byte("\tlibgone.so => not found\n")); err == nil {
		t.Error("a missing library was accepted")
	}
}

func TestWantSymbols(t *testing.T) {
	for name, want := range map[string]bool{
		"usr/lib/debug/boot/vmlinux-6.1.0":                                      true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/arch/x86/kvm/kvm.ko":            true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/virt/lib/irqbypass.ko":          true,
		"usr/lib/debug/usr/lib/modules/7.2/kernel/arch/x86/kvm/kvm-amd.ko.xz":   true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/drivers/virtio/virtio.ko":       true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/drivers/char/virtio_console.ko": true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/lib/crc-itu-t.ko":               true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/drivers/net/e1000.ko":           false,
		"usr/lib/debug/lib/modules/6.1.0/kernel/net/virt/x.ko":                  false,
		"usr/lib/debug/lib/modules/6.1.0/vmlinux":                               true,
		"usr/lib/debug/usr/lib/modules/7.2/vmlinux":                             true,
		"usr/lib/debug/lib/modules/6.1.0/kernel/vmlinux":                        false,
		"usr/share/doc/virt/kvm.ko":                                             false,
	} {
		if got := wantSymbols(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// tarOf makes a stream like that of dpkg-deb --fsys-tarfile.
func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o600
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtractTar(t *testing.T) {
	stream := tarOf(t,
		tar.Header{Name: "./boot/", Typeflag: tar.TypeDir},
		tar.Header{Name: "./boot/vmlinuz", Typeflag: tar.TypeReg, Size: 3000},
		tar.Header{Name: "./boot/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		tar.Header{Name: "./boot/up", Typeflag: tar.TypeSymlink, Linkname: "../../boot"},
		tar.Header{Name: "./boot/vmlinux", Typeflag: tar.TypeSymlink, Linkname: "../boot/vmlinuz"},
		tar.Header{Name: "./usr/doc", Typeflag: tar.TypeReg, Size: 1})
	dir := t.TempDir()
	if err := extractTar(bytes.NewReader(stream), dir, func(name string) bool { return name != "usr/doc" }); err != nil {
		t.Fatal(err)
	}
	got, err := filepath.Glob(dir + "/*/*")
	if err != nil || !slices.Equal(got, []string{dir + "/boot/vmlinux", dir + "/boot/vmlinuz"}) {
		t.Fatalf("unpacked %q, %v", got, err)
	}
	for _, path := range got { // the first is a link to the second
		if st, err := os.Stat(path); err != nil || st.Size() != 3000 || st.Mode() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
	}
	all := func(string) bool { return true }
	for n := 1; n < 5120; n += 200 { // the two blocks of zeros that end it may be missing
		if err := extractTar(bytes.NewReader(stream[:n]), t.TempDir(), all); err == nil && n%512 != 0 {
			t.Errorf("a stream cut after %d bytes was accepted", n)
		}
	}
	evil := tarOf(t, tar.Header{Name: "../evil", Typeflag: tar.TypeReg, Size: 1})
	if err := extractTar(bytes.NewReader(evil), t.TempDir(), all); err == nil {
		t.Error("a file was unpacked outside the directory")
	}
}

func TestExtractDebErrors(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.deb")
	if err := os.WriteFile(bad, []byte("this is no package"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := extractDeb(t.Context(), bad, t.TempDir(), func(string) bool { return true }); err == nil {
		t.Error("unpacked something that is no package")
	}
}

func TestCache(t *testing.T) {
	c := cache{t.TempDir()}
	made := 0
	fill := func(dir string) error {
		made++
		return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600)
	}
	for range 2 {
		dir, err := c.make("a/b", fill)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
			t.Fatal(err)
		}
	}
	if made != 1 {
		t.Errorf("made %d times, want once", made)
	}
	broken := errors.New("no network")
	if _, err := c.make("c", func(dir string) error { fill(dir); return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(c.path("c")); err == nil {
		t.Error("half of a directory is in the cache")
	}
	// Another process makes the same thing meanwhile.
	if _, err := c.make("d", func(dir string) error {
		_, err := c.make("d", fill)
		return errors.Join(err, fill(dir))
	}); err != nil {
		t.Errorf("two at the same time: %v", err)
	}
	if left, _ := filepath.Glob(c.path(".new-*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
