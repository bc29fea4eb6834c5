package tests

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// exportReport is the answer of "export vmlinux --json".
type exportReport struct {
	Machine, File, Release string
	Size                   int64
	BuildID                string `json:"build_id"`
	Modules                []struct {
		Name, File string
		Size       int64
	}
	Problems []string
}

// What writing a vmlinux and opening it with gdb may take, in processor time: how
// long that is on the clock depends on what else the machine does.
const (
	exportLimit = 3 * time.Second
	openLimit   = 1500 * time.Millisecond
)

// TestExport asks both kernels, and compares types with the vendor's.
func TestExport(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, name := range []string{"l1", "vm0"} {
		t.Run(name, func(t *testing.T) { compareTypes(t, l, name, checkExport(t, l, name)) })
	}
}

// checkExport writes a vmlinux and a file for each module, and holds them against
// the guest's words: build id, every symbol. readelf has no complaints about them. A
// plain gdb opens them. It returns the vmlinux.
func checkExport(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	r := export(t, l, name, t.TempDir())
	if want := guestBuildID(t, l, name); r.BuildID != want || r.Machine != name {
		t.Errorf("machine %s, build id %s, want %s", r.Machine, r.BuildID, want)
	}
	if want := strings.TrimSpace(ask(t, l, name, "exec uname -r")); r.Release != want {
		t.Errorf("release %s, want %s", r.Release, want)
	}
	files := map[string]string{"": r.File} // by module
	var modules, want []string
	for _, m := range r.Modules {
		files[m.Name] = m.File
		modules = append(modules, m.Name)
	}
	for line := range strings.Lines(ask(t, l, name, "modules")) {
		want = append(want, strings.Fields(line)[0])
	}
	if !slices.Equal(modules, want) {
		t.Errorf("modules %v, want %v", modules, want)
	}
	checkExportedSymbols(t, l, name, files)
	for _, file := range files {
		readelfAccepts(t, file)
	}
	if id := noteOf(t, r.File); id != r.BuildID {
		t.Errorf("build id %s in the file, want %s", id, r.BuildID)
	}
	gdbOpens(t, l, name, r.File)
	return r.File
}

// export runs the command, and checks what it says of the files it wrote.
func export(t *testing.T, l *lab.Lab, machine, dir string) *exportReport {
	t.Helper()
	cmd := exec.Command(suite.binary, on(l, "export", "vmlinux", "-m", machine, "--json",
		"-o", filepath.Join(dir, "vmlinux"), "--modules", filepath.Join(dir, "modules"))...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	begin := time.Now()
	if err := cmd.Run(); err != nil || errOut.Len() > 0 {
		t.Fatalf("export: %v, %s", err, &errOut)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	t.Logf("written in %.2f s (%.2f s on the clock)", took.Seconds(), time.Since(begin).Seconds())
	if took > exportLimit {
		t.Errorf("that took longer than %v", exportLimit)
	}
	r := decode[exportReport](t, out.String())
	checkMissingTypes(t, l, r)
	sizes := map[string]int64{r.File: r.Size}
	for _, m := range r.Modules {
		sizes[m.File] = m.Size
	}
	found := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		found++
		info, err := d.Info()
		if err == nil && info.Size() != sizes[path] {
			t.Errorf("%s has %d bytes, the answer says %d", path, info.Size(), sizes[path])
		}
		return err
	})
	if err != nil || found != len(sizes) {
		t.Errorf("%d files, the answer has %d; %v", found, len(sizes), err)
	}
	return r
}

// checkMissingTypes: the types of a module are missing, and that is said, exactly
// where the guest has none either. Nothing else is missing.
func checkMissingTypes(t *testing.T, l *lab.Lab, r *exportReport) {
	t.Helper()
	types := strings.Fields(ask(t, l, r.Machine, "exec ls /sys/kernel/btf"))
	var want []string
	for _, m := range r.Modules {
		if !slices.Contains(types, m.Name) {
			want = append(want, m.Name+".ko: types of module "+m.Name+":")
		}
	}
	same := len(r.Problems) == len(want)
	for i := range want {
		same = same && strings.HasPrefix(r.Problems[i], want[i])
	}
	if !same {
		t.Errorf("problems %q, want %q", r.Problems, want)
	}
}

// modulesFirst is where modules are, above the image: MODULES_VADDR with
// CONFIG_RANDOMIZE_BASE (Linux 6.1 arch/x86/include/asm/pgtable_64_types.h).
const modulesFirst = 0xffffffffc0000000

// checkExportedSymbols compares all symbols of all files, by module, with
// /proc/kallsyms: name, address, and whether it is code. Of absolute symbols the
// kernel's per-CPU ones are in its file; those of modules are in none.
func checkExportedSymbols(t *testing.T, l *lab.Lab, machine string, files map[string]string) {
	t.Helper()
	all := parseSymbols(t, ask(t, l, machine, "kallsyms"))
	bound := func(name string) uint64 {
		i := slices.IndexFunc(all, func(s symbol) bool { return s.name == name })
		return all[i].addr
	}
	first, end := bound("__per_cpu_start"), bound("__per_cpu_end")
	want := slices.DeleteFunc(slices.Clone(all), func(s symbol) bool {
		isPerCPU := s.module == "" && first <= s.addr && s.addr < end
		// Since Linux 6.15 those of modules are in the image's part for them.
		return madeAtRunTime(s) || s.addr < 1<<63 && !isPerCPU || s.module != "" && s.addr < modulesFirst
	})
	for i := range want {
		switch want[i].kind {
		case 't', 'T', 'w', 'W':
			want[i].kind = 't'
		default:
			want[i].kind = 'd'
		}
	}
	var got []symbol
	for module, file := range files {
		f, err := elf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		table, err := f.Symbols()
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, s := range table {
			kind := byte('d')
			if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
				kind = 't'
			}
			got = append(got, symbol{s.Name, module, s.Value, kind})
			if s.Section == elf.SHN_ABS && kind == 't' {
				t.Errorf("%s: function %s at %#x is in no section", file, s.Name, s.Value)
			}
		}
	}
	compareSets(t, machine+": symbols", got, want, func(a, b symbol) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(a.name, b.name),
			cmp.Compare(a.module, b.module), cmp.Compare(a.kind, b.kind))
	})
}

// readelfAccepts lets readelf read everything in a file. Warnings go to stderr.
func readelfAccepts(t *testing.T, file string) {
	t.Helper()
	for _, args := range [][]string{{"-aW"}, {"--debug-dump"}, {"--lint", "-SW"}} {
		cmd := exec.Command("readelf", append(args, file)...)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut // and nothing wants the rest
		if err := cmd.Run(); err != nil || errOut.Len() > 0 {
			t.Errorf("readelf %v %s: %v, %.500s", args, file, err, &errOut)
		}
	}
}

// noteOf is the build id in a file.
func noteOf(t *testing.T, file string) string {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := f.Section(".note.gnu.build-id")
	if s == nil {
		t.Fatalf("%s has no build id", file)
	}
	note, err := s.Data()
	if err != nil || len(note) < 16 {
		t.Fatalf("note of %d bytes: %v", len(note), err)
	}
	return hex.EncodeToString(note[16:])
}

// plainGDB runs gdb without nestdbg and without its start files.
func plainGDB(t *testing.T, args ...string) (out string, took time.Duration) {
	t.Helper()
	cmd := exec.Command("gdb", append([]string{"-nx", "-batch", "-iex", "set debuginfod enabled off",
		"-ex", "set width 0"}, args...)...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gdb %v: %v\n%s", args, err, b)
	}
	return string(b), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// What BTF does not tell apart: an array of length 0 and a flexible one; an array of
// arrays and a flat one, which pahole makes of it.
var (
	flexible = regexp.MustCompile(`\[0?\];`)
	nested   = regexp.MustCompile(`(\[\d+\]){2,}`)
)

// asBTF is a type as gdb prints it, as far as BTF can know.
func asBTF(text string) string {
	return nested.ReplaceAllStringFunc(flexible.ReplaceAllString(text, "[];"), func(s string) string {
		product := 1
		for n := range strings.SplitSeq(strings.Trim(s, "[]"), "][") {
			v, err := strconv.Atoi(n)
			if err != nil {
				return s
			}
			product *= v
		}
		return fmt.Sprintf("[%d]", product)
	})
}

// gdbOpens opens an exported vmlinux with a plain gdb and compares what that says
// with the guest's word.
func gdbOpens(t *testing.T, l *lab.Lab, machine, file string) {
	t.Helper()
	out, took := plainGDB(t, file)
	t.Logf("opened in %.2f s", took.Seconds())
	if took > openLimit || out != "" {
		t.Errorf("opening it takes %v, more than %v, or gdb says %q", took, openLimit, out)
	}
	schedule := fmt.Sprintf("%#x", guestSymbol(t, l, machine, "schedule"))
	out, _ = plainGDB(t, file, "-ex", "info address schedule", "-ex", "print &init_task", "-ex", "whatis init_task",
		"-ex", "whatis ksys_write", "-ex", "print PIDTYPE_PID", "-ex", "info symbol schedule")
	for _, want := range []string{
		`Symbol "schedule" is a function at address ` + schedule + ".\n", "<init_task>\n", "type = struct task_struct\n",
		"type = ssize_t (unsigned int, const char *, size_t)\n", "= PIDTYPE_PID\n", "schedule in section .text\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("gdb does not say %q:\n%s", want, out)
		}
	}
}

// compareTypes compares large structures with those in the vendor's file, as gdb
// shows them.
func compareTypes(t *testing.T, l *lab.Lab, machine, file string) {
	t.Helper()
	symbols, err := l.SymbolsDir(t.Context(), machine, "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	vendors, err := filepath.Glob(filepath.Join(symbols, "boot", "vmlinux-*"))
	if err != nil || len(vendors) != 1 {
		t.Fatalf("the vendor's vmlinux: %v, %v", vendors, err)
	}
	var ask []string
	for _, s := range []string{"task_struct", "mm_struct", "file", "module", "sk_buff", "net_device", "page"} {
		ask = append(ask, "-ex", "ptype/o struct "+s, "-ex", "print sizeof(struct "+s+")")
	}
	got, _ := plainGDB(t, append([]string{file}, ask...)...)
	want, took := plainGDB(t, append([]string{vendors[0]}, ask...)...)
	t.Logf("the vendor's file: %.1f s", took.Seconds())
	if got, want := asBTF(got), asBTF(want); got != want ||
		strings.Count(got, "\n") < 1000 {
		t.Errorf("types differ from the vendor's: %s", firstDifference(got, want))
	}
}

// firstDifference shows where two texts part.
func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[i] + "\nwant\n" + b[i]
		}
	}
	return "one of them is longer"
}

// TestExportModuleTypes compares types of KVM's modules with those in the vendor's
// files, and functions' prototypes.
func TestExportModuleTypes(t *testing.T) {
	l := sharedLab(t, "kaslr")
	dir := t.TempDir()
	r := export(t, l, "l1", dir)
	symbols, err := l.SymbolsDir(t.Context(), "l1", "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string][]string{
		"kvm_amd": {"ptype/o struct vcpu_svm", "ptype/o struct kvm_svm", "print sizeof(struct kvm_vcpu)", "whatis svm_vcpu_run"},
		"kvm":     {"ptype/o struct kvm_memory_slot", "ptype/o struct kvm_lapic", "whatis kvm_arch_vcpu_ioctl_run"},
	} {
		vendors, err := filepath.Glob(filepath.Join(symbols, "lib/modules", r.Release, "kernel/arch/x86/kvm",
			strings.ReplaceAll(name, "_", "?")+".ko*"))
		if err != nil || len(vendors) != 1 {
			t.Fatalf("the vendor's file of %s: %v, %v", name, vendors, err)
		}
		var commands []string
		for _, c := range ask {
			commands = append(commands, "-ex", c)
		}
		ours := append([]string{r.File, "-ex", "set confirm off", "-ex",
			"add-symbol-file " + filepath.Join(dir, "modules", name+".ko")}, commands...)
		got, _ := plainGDB(t, ours...)
		_, got, _ = strings.Cut(got, ".ko\"\n") // gdb says what it adds
		want, _ := plainGDB(t, append([]string{vendors[0]}, commands...)...)
		if got, want := asBTF(got), asBTF(want); got != want ||
			strings.Count(got, "\n") < 50 {
			t.Errorf("%s: types differ from the vendor's: %s", name, firstDifference(got, want))
		}
	}
}

// TestExportReplacesNothing: what is there stays as it is, unless the person says so.
func TestExportReplacesNothing(t *testing.T) {
	l := sharedLab(t, "kaslr")
	dir := t.TempDir()
	file := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := on(l, "export", "vmlinux", "-m", "vm0", "-o", file)
	r := nestdbg(t, args...)
	if b, err := os.ReadFile(file); r.status != 2 || !strings.Contains(r.stderr, "exists; --force replaces it") ||
		string(b) != "precious" || err != nil {
		t.Errorf("status %d, %s: %d bytes, %v", r.status, r.stderr, len(b), err)
	}
	if r := nestdbg(t, append(args, "--force")...); r.status != 0 || !strings.HasPrefix(r.stdout, file+": ") {
		t.Errorf("status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	for _, wrong := range [][]string{
		{"export", "vmlinux", "-m", "vm0"}, {"export", "kernel"}, {"export", "vmlinux", "-m", "vm7", "-o", file + "2"},
		{"export", "vmlinux", "-m", "vm0", "-o", "/dev/null", "--force"},
	} {
		if r := nestdbg(t, on(l, wrong...)...); r.status != 2 || r.stdout != "" {
			t.Errorf("%q: status %d, %s%s", wrong, r.status, r.stdout, r.stderr)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode().IsRegular() {
		t.Errorf("/dev/null: %v", err)
	}
}
