package tests

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// unwindKernels chooses among unwindLabOf. The files of the others are another gigabyte to
// download: "make test-kernels" is for them.
var unwindKernels = flag.String("unwind", "6.1", "the kernels that TestUnwindStops is for, with commas")

// unwindLabOf says for each kernel how many stops are compared, and on which lab.
var unwindLabOf = map[string]struct {
	stops   int
	options lab.Options
}{
	"6.1": {500, lab.Options{}},
	// Debian has no debug symbols of its security updates any more: the last before them.
	"5.10": {130, lab.Options{Kernel: "linux-image-5.10.0-32-cloud-amd64/bullseye"}},
	"6.12": {130, lab.Options{Kernel: lab.DefaultKernel + "/trixie", CPUModel: onTCG}},
	"7.2":  {130, lab.Options{Kernel: lab.DefaultKernel + "/sid", CPUModel: onTCG}},
}

const (
	// unwindSilence bounds the wait for the next stop; gdb takes half a minute to
	// read a vmlinux for the first time, on a busy machine two.
	unwindSilence = 3 * time.Minute
	// unwindLabs is how many labs the test may use up. QEMU 7.2 loses a machine now and
	// then: see casualty_test.go, and with breakpoints that come and go a vCPU of it can
	// stay in a loop of translated code, where nothing stops it.
	unwindLabs = 5
	// unwindFrames is the bound of a backtrace (linux.framesMax).
	unwindFrames = 256
)

// unwindLoad keeps L2 busy in the kernel and its modules, for the life of
// the lab.
const unwindLoad = "exec (dd if=/dev/zero of=/tmp/image bs=64k count=16; losetup /dev/loop0 /tmp/image; " +
	"ip addr add 10.9.9.1/24 dev dummy0; ip link set dummy0 up; " +
	"sh -c 'while :; do dd if=/dev/loop0 of=/dev/null bs=4k count=8; echo 1 > /proc/sys/vm/drop_caches; " +
	"cat /proc/self/maps; echo x > /tmp/y; usleep 1000; done' & " +
	"sh -c 'while :; do ping -c1 -W1 10.9.9.2; usleep 1000; done' & " +
	"sh -c 'while :; do date | nc -u -w1 10.9.9.7 99; echo hello > /dev/hvc0; done' & ) > /dev/null 2>&1"

// unwindReport is a stop, as stops.py prints it.
type unwindReport struct {
	Why, Class string
	GDB        []unwindFrame
	Error      string // why gdb's frames end, if it says so
	Nestdbg    struct {
		Stacks []struct {
			Frames []unwindNamed
			Error  string
		}
		Problems []string
	}
}

type unwindFrame struct{ PC, SP address }

type unwindNamed struct {
	unwindFrame
	Symbol      string
	Offset      address
	Interrupted bool
}

// unwindRun is what the stops so far showed.
type unwindRun struct {
	t                     *testing.T
	options               lab.Options
	wanted                int // stops
	entryFirst, entryLast address
	stops, agree          map[string]int // by class
	shown, longest        int
	through               int // stacks that go through an interrupt or exception
}

// TestUnwindStops compares backtraces of L2, frame by frame, with those of gdb with
// the vendor's files: at random moments and at random places of the kernel, of
// interrupts, exceptions, modules and entry code, under load. A frame is its program
// counter and its stack pointer, which is the frame address of the one before.
//
// One gdb and one server serve all stops. The frames that gdb must not be asked for
// are named in testdata/unwind/stops.py, with what is right there: the vendor's
// file describes no assembly and looks into no inline assembly. Two differences are
// by the kernel's own tables: error_entry and its caller are one frame to them, and
// in the last instructions before user mode and the first behind it they say that the
// stack ends, so the frame of user mode is not there. What is left of the share that
// need not agree is for assembly that pushes something, such as __switch_to_asm: gdb
// takes what is on top of the stack for the return address.
//
// Of other kernels it is asked with -unwind.
func TestUnwindStops(t *testing.T) {
	for version := range strings.SplitSeq(*unwindKernels, ",") {
		of, ok := unwindLabOf[version]
		if !ok {
			t.Fatalf("no kernel %q", version)
		}
		t.Run(version, func(t *testing.T) {
			r := &unwindRun{t: t, options: of.options, wanted: of.stops, stops: map[string]int{}, agree: map[string]int{}}
			r.run()
		})
	}
}

// run takes the stops, on as many labs as it takes.
func (r *unwindRun) run() {
	t, begin := r.t, time.Now()
	for labs := 1; r.total(r.stops) < r.wanted; labs++ {
		if labs > unwindLabs {
			name, _, _ := strings.Cut(t.Name(), "/")
			fmt.Printf("\ncasualty: %s: %d labs were lost\n", name, unwindLabs) // see lab/labtests
			t.Fatalf("%d stops on %d labs, want %d", r.total(r.stops), unwindLabs, r.wanted)
		}
		if err := r.onLab(uint64(labs)); err != nil {
			t.Logf("lab %d, after %d stops: %v", labs, r.total(r.stops), err)
		}
	}
	all, agree := r.total(r.stops), r.total(r.agree)
	for class, n := range r.stops {
		t.Logf("%-9s %3d stops, %3d agree", class, n, r.agree[class])
		if n < all/25 {
			t.Errorf("only %d of %d stops are of class %s", n, all, class)
		}
	}
	t.Logf("%d of %d stops agree with gdb: %.1f %%; %d through interrupts and exceptions; at most %d frames; %.0f s",
		agree, all, 100*float64(agree)/float64(all), r.through, r.longest, time.Since(begin).Seconds())
	if 100*agree < 99*all {
		t.Errorf("%d of %d stops agree, want 99 %%", agree, all)
	}
	if len(r.stops) != 5 {
		t.Errorf("stops in %v, want 5 classes", r.stops)
	}
}

func (r *unwindRun) total(m map[string]int) int {
	sum := 0
	for _, n := range m {
		sum += n
	}
	return sum
}

// onLab takes stops on a lab of its own until there are enough or it is lost.
func (r *unwindRun) onLab(seed uint64) error {
	t := r.t
	l := ownLab(t, r.options)
	symbols, err := l.SymbolsDir(t.Context(), "vm0", "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatalf("debug symbols of L2's kernel: %v", err)
	}
	ask(t, l, "vm0", unwindLoad)
	modules := loadModules(t, l, symbols)
	s := serve(t, l, "--symbols", symbols)
	script := filepath.Join(t.TempDir(), "stops.gdb")
	images, err := filepath.Glob(filepath.Join(symbols, "boot/vmlinux-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("vmlinux in %s: %v, %v", symbols, images, err)
	}
	code, err := filepath.Abs("testdata/unwind/stops.py")
	if err != nil {
		t.Fatal(err)
	}
	text := "set confirm off\nset pagination off\nset width 0\nset auto-connect-native-target off\nset sysroot\n" +
		"set remotetimeout 60\nset stack-cache off\nset code-cache off\nset index-cache enabled on\n" +
		// Without nestdbg's own frame information for assembly, which is from the tables.
		"set auto-solib-add off\n" +
		fmt.Sprintf("file %s\ntarget extended-remote %s\nattach %d\n", images[0], s.addr, vm0) +
		"set index-cache enabled off\n" + modules.commands + fmt.Sprintf("source %s\n", code) +
		fmt.Sprintf("python stops(%d, %d, %q, [(%#x, %#x)])\n", r.wanted-r.total(r.stops), seed, s.addr,
			uint64(modules.first), uint64(modules.last)) +
		"detach\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lost := r.gdb(script)
	if lost != nil {
		// What is stuck in it would go on for the rest of the test.
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		lost = errors.Join(lost, l.Down(ctx))
	}
	return lost
}

// gdb runs the script and judges the stops that it prints.
func (r *unwindRun) gdb(script string) error {
	cmd := exec.Command("gdb", "-nx", "-q", "-batch", "-x", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var errOut lockedBuffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		return err
	}
	silence := time.AfterFunc(unwindSilence, func() { cmd.Process.Kill() })
	defer silence.Stop()
	lines := bufio.NewReaderSize(out, 1<<20)
	done := false
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		silence.Reset(unwindSilence)
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "STOP "); ok {
			r.judge(decode[unwindReport](r.t, text))
			silence.Reset(unwindSilence / 4)
		} else if text, ok := strings.CutPrefix(line, "READY "); ok {
			var entry struct{ First, Last address }
			if err := json.Unmarshal([]byte(text), &entry); err != nil {
				r.t.Fatalf("%v: %s", err, text)
			}
			r.entryFirst, r.entryLast = entry.First, entry.Last
		} else {
			done = done || line == "DONE"
		}
	}
	err = cmd.Wait()
	if !done {
		return fmt.Errorf("gdb ended early: %w\n%s", err, errOut.String())
	}
	return nil
}

// judge compares one stop.
func (r *unwindRun) judge(x *unwindReport) {
	r.stops[x.Class]++
	if len(x.Nestdbg.Stacks) != 1 || len(x.Nestdbg.Problems) > 0 {
		r.t.Errorf("%s: %d stacks, %v", x.Why, len(x.Nestdbg.Stacks), x.Nestdbg.Problems)
		return
	}
	stack := x.Nestdbg.Stacks[0]
	var got []unwindFrame
	for _, f := range stack.Frames {
		got = append(got, f.unwindFrame)
	}
	if slices.ContainsFunc(stack.Frames, func(f unwindNamed) bool { return f.Interrupted }) {
		r.through++
	}
	if r.longest = max(r.longest, len(got)); len(got) > unwindFrames {
		r.t.Errorf("%s: %d frames", x.Why, len(got))
	}
	if r.agrees(x, got) && stack.Error == "" {
		r.agree[x.Class]++
		return
	}
	if r.shown++; r.shown > 5 {
		return
	}
	var b strings.Builder
	for i := range max(len(got), len(x.GDB)) {
		var f unwindNamed
		var want unwindFrame
		if i < len(got) {
			f = stack.Frames[i]
		}
		if i < len(x.GDB) {
			want = x.GDB[i]
		}
		fmt.Fprintf(&b, "%016x %016x  gdb %016x %016x  %s+%#x\n", uint64(f.PC), uint64(f.SP),
			uint64(want.PC), uint64(want.SP), f.Symbol, uint64(f.Offset))
	}
	r.t.Logf("%s, %s: %s %s\n%s", x.Class, x.Why, stack.Error, x.Error, &b)
}

// agrees compares frames. In entry code gdb's are where the machine stands, and then
// those that were there some steps ago, from what was interrupted on.
func (r *unwindRun) agrees(x *unwindReport, got []unwindFrame) bool {
	if x.Class != "entry" {
		return slices.Equal(got, x.GDB)
	}
	if len(got) == 0 || got[0] != x.GDB[0] {
		return false
	}
	rest, want := got[1:], x.GDB[1:]
	for len(rest) > 0 && len(want) > 0 && rest[0] != want[0] && r.entryFirst <= rest[0].PC && rest[0].PC <= r.entryLast {
		rest = rest[1:]
	}
	onlyUser := len(want) == 1 && want[0].PC < 1<<63
	return slices.Equal(rest, want) || onlyUser && len(rest) == 0
}

// vendorModules are gdb's commands that load the vendor's files of L2's modules, and
// where their code is.
type vendorModules struct {
	commands    string
	first, last address
}

// loadModules finds out where L2 says that its modules are.
func loadModules(t *testing.T, l *lab.Lab, symbols string) vendorModules {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(symbols, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out := vendorModules{first: ^address(0)}
	var commands strings.Builder
	// "MODULE/sections/SECTION:ADDRESS"
	lines := ask(t, l, "vm0", "exec cd /sys/module; grep -H . */sections/.[a-z_]*")
	last := ""
	for line := range strings.Lines(lines) {
		path, text, _ := strings.Cut(strings.TrimSpace(line), ":")
		module, section, _ := strings.Cut(path, "/sections/")
		at, err := strconv.ParseUint(text, 0, 64)
		if err != nil {
			t.Fatalf("section %q: %v", line, err)
		}
		switch {
		case files[module] == "":
			t.Fatalf("no vendor's file of module %s in %s", module, symbols)
		case strings.HasPrefix(section, ".init"), strings.HasPrefix(section, ".note"), strings.HasSuffix(section, "tab"):
			continue // freed, or not in the file
		}
		if module != last {
			fmt.Fprintf(&commands, "\nadd-symbol-file %s", files[module])
			last = module
		}
		fmt.Fprintf(&commands, " -s %s %#x", section, at)
		if section == ".text" {
			out.first, out.last = min(out.first, address(at)), max(out.last, address(at))
		}
	}
	if last == "" {
		t.Fatalf("L2 has no modules: %q", lines)
	}
	const slack = 1 << 20 // no module of the lab is larger
	out.commands, out.last = commands.String()+"\n", out.last+slack
	return out
}
