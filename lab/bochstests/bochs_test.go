// Package bochstests has the tests of what needs VMX: the labs in Bochs, of which memory
// is left. Linux boots for minutes there, with KVM for Intel or under the monitor, and
// so is not among the other lab tests; "make test-bochs" runs it. The monitor takes
// seconds: "make test" runs what is called TestMonitor.
package bochstests

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
	"nestdbg/lab/agent"
)

var (
	useLab   = flag.String("lab", "", "a lab of the kind bochs that is over, instead of one that is booted")
	labState = flag.String("state", "", "the directory of labs that it is in")
)

// image is the program that looks, and where what tests make is.
var image struct{ binary, dir string }

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

// run builds the program, and removes what was made.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bochs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	image.dir, image.binary = dir, filepath.Join(dir, "nestdbg")
	build := exec.Command("go", "build", "-trimpath", "-o", image.binary, "nestdbg/cmd/nestdbg")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	defer nestdbg("lab", "down", labName)
	return m.Run()
}

const labName = "bochs"

// nestdbg runs the program on labs of these tests.
func nestdbg(args ...string) error {
	cmd := exec.Command(image.binary, args...)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(image.dir, "state"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("nestdbg %q: %w\n%s", args, err, out)
	}
	return nil
}

// boot boots the lab with Linux, or finds the one that was named.
var boot = sync.OnceValues(func() (*lab.Lab, error) {
	if *useLab != "" {
		return lab.Open(*labState, *useLab)
	}
	if err := nestdbg("lab", "up", "--kind", lab.BochsKind, "--name", labName); err != nil {
		return nil, err
	}
	return lab.Open(filepath.Join(image.dir, "state", "nestdbg", "lab"), labName)
})

// linuxLab is the lab that the tests of Linux look at.
func linuxLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := boot()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ask is askFile for the lab with Linux.
func ask[T any](t *testing.T, args ...string) T {
	t.Helper()
	return askFile[T](t, linuxLab(t).MemoryFile, args...)
}

// askFile is nestdbg on a memory file; a report is decoded into T.
func askFile[T any](t *testing.T, file string, args ...string) T {
	t.Helper()
	var out T
	args = append([]string{"-t", file, "--json"}, args...)
	var stderr strings.Builder
	cmd := exec.Command(image.binary, args...)
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("nestdbg %q: %v\n%s", args, err, &stderr)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("nestdbg %q: %v", args, err)
	}
	return out
}

// told is what a machine said of itself before it was stopped.
func told(t *testing.T, machine, request string) []string {
	t.Helper()
	text, err := linuxLab(t).Told(machine, request)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimRight(text, "\n"), "\n")
}

// machines are the two that there are.
var machines = []string{"l1", "vm0"}

// view is nestdbg in this process, after one look.
func view(t *testing.T) *session.Session {
	t.Helper()
	back, err := target.Recognise(t.Context(), linuxLab(t).MemoryFile, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { back.Close() })
	s := session.New(back)
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFound: one guest is in the memory, with EPT, as Linux's own list has it.
func TestFound(t *testing.T) {
	s := view(t)
	tower := s.Tower()
	if len(tower.Machines) != 2 || len(tower.Machines[1].CPUs) != 1 {
		t.Fatalf("%d machines", len(tower.Machines))
	}
	vm := tower.Machines[1]
	evidence := strings.Join(vm.Evidence, "\n")
	if vm.Second.Kind != "ept4" || !strings.Contains(evidence, "VMCS") || !strings.Contains(evidence, "Bochs 2.7") ||
		!strings.Contains(evidence, "struct kvm") {
		t.Errorf("second stage %s by\n%s", vm.Second.Kind, evidence)
	}
	if len(tower.Problems) > 0 {
		t.Errorf("problems %q", tower.Problems)
	}
	// Nothing else in memory looks like a control block.
	if n := len(ask[struct{ Candidates []struct{ Kind string } }](t, "find", "--all").Candidates); n != 1 {
		t.Errorf("%d candidates", n)
	}
	for _, m := range tower.Machines {
		k, err := s.Kernel(m)
		if err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		if release := told(t, m.Name, "ping")[0]; k.Release != release {
			t.Errorf("%s: Linux %s, it says %s", m.Name, k.Release, release)
		}
	}
}

// TestWithoutKVMsWord: the guest is found in the same memory, with the same second stage,
// by somebody who knows nothing of Linux.
func TestWithoutKVMsWord(t *testing.T) {
	s := view(t)
	known := s.Tower()
	l1 := known.Machines[0]
	blind := new(nested.Finder).Build(&machine.Machine{Name: l1.Name, Level: 1, Arch: l1.Arch, Phys: l1.Phys}, nested.Options{Scan: true})
	if len(blind.Machines) != 2 {
		t.Fatalf("%d machines, problems %q", len(blind.Machines), blind.Problems)
	}
	got, want := blind.Machines[1], known.Machines[1]
	if got.CPUs[0].Control != want.CPUs[0].Control || got.Second.Kind != want.Second.Kind ||
		got.Second.Space.Root() != want.Second.Space.Root() {
		t.Errorf("VMCS at %#x, %s at %#x", got.CPUs[0].Control, got.Second.Kind, got.Second.Space.Root())
	}
}

// TestRegisters: of the parked vCPU those are known that its VMCS has not.
func TestRegisters(t *testing.T) {
	s := view(t)
	vm := s.Tower().Machines[1]
	k, err := s.Kernel(vm)
	if err != nil {
		t.Fatal(err)
	}
	entry, ok := k.Lookup("entry_SYSCALL_64")
	regs := vm.CPUs[0].Regs
	if lstar, known := regs.Get("lstar"); !ok || !known || lstar != uint64(entry) {
		t.Errorf("LSTAR is %#x (%v), entry_SYSCALL_64 at %#x (%v)", lstar, known, entry, ok)
	}
	const efer = 0xd01 // SCE, LME, LMA, NXE
	if v, known := regs.Get("efer"); !known || v != efer {
		t.Errorf("EFER is %#x (%v), want %#x", v, known, efer)
	}
	for _, name := range []string{"rax", "rbx", "r15", "cr2", "k_gs_base", "dr7"} {
		if _, known := regs.Get(name); !known {
			t.Errorf("%s is not known", name)
		}
	}
}

// TestRoads compares, for every page that EPT maps, where it leads with where KVM's
// memory slots and the page tables of its VMM's process lead.
func TestRoads(t *testing.T) {
	s := view(t)
	vm := s.Tower().Machines[1]
	l1, err := s.Kernel(s.Tower().Machines[0])
	if err != nil {
		t.Fatal(err)
	}
	vms, problems, err := l1.KVMs()
	if err != nil || len(problems) > 0 || len(vms) != 1 {
		t.Fatalf("%d guests, %v, %v", len(vms), problems, err)
	}
	vmm, err := l1.UserSpace(vms[0].MM)
	if err != nil {
		t.Fatal(err)
	}
	pages, large := 0, 0
	for x, err := range vm.Second.Space.Ranges(mem.Range{Last: 1<<48 - 1}) {
		if err != nil {
			t.Logf("hole: %v", err) // KVM's marks of MMIO
			continue
		}
		if x.Size >= 2<<20 {
			large++
		}
		for done := uint64(0); done < x.Size; done += 4096 {
			pages++
			checkPage(t, &vms[0], vmm, mem.Phys(x.First+done), x.Phys+mem.Phys(done))
		}
	}
	t.Logf("%d pages, %d runs of 2 MiB and more", pages, large)
	if pages < 10000 {
		t.Errorf("only %d pages", pages)
	}
}

// translator is an address space of a kernel's process.
type translator interface {
	Translate(addr uint64) (mem.Phys, uint64, error)
}

func checkPage(t *testing.T, vm *linux.VM, vmm translator, pa, first mem.Phys) {
	t.Helper()
	for _, s := range vm.Memslots {
		if s.AddressSpace == 0 && s.Base <= pa && uint64(pa-s.Base) < s.Size {
			second, _, err := vmm.Translate(uint64(s.User) + uint64(pa-s.Base))
			if err != nil || first != second {
				t.Errorf("pa %#x: EPT gives %#x, slot %+v gives %#x, %v", pa, first, s, second, err)
			}
			return
		}
	}
	t.Errorf("pa %#x: EPT gives %#x, and there is no slot", pa, first)
}

// TestLog compares every record that /dev/kmsg had.
func TestLog(t *testing.T) {
	for _, m := range machines {
		got := make(map[uint64]string)
		for _, r := range ask[struct {
			Records []struct {
				Seq  uint64
				Text string
			}
		}](t, "dmesg", "-m", m).Records {
			got[r.Seq] = r.Text
		}
		n := 0
		for _, line := range told(t, m, "kmsg") {
			head, text, ok := strings.Cut(line, ";")
			f := strings.Split(head, ",")
			if !ok || len(f) < 4 || strings.HasPrefix(line, " ") {
				continue // a key of the record before
			}
			seq, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				t.Fatalf("%s: line %q", m, line)
			}
			n++
			if x, there := got[seq]; !there || x != text && !strings.Contains(text, `\x`) {
				t.Errorf("%s: record %d is %q (%v), want %q", m, seq, x, there, text)
			}
		}
		t.Logf("%s: %d records", m, n)
		if n < 150 {
			t.Errorf("%s: only %d records", m, n)
		}
	}
}

// TestTasks compares the threads. Those that forking and working made since do not count.
func TestTasks(t *testing.T) {
	for _, m := range machines {
		type task struct {
			PID, TGID, PPID int
			Comm            string
			Kernel          bool
		}
		got := make(map[int]task)
		for _, x := range ask[struct{ Tasks []task }](t, "ps", "-T", "-m", m).Tasks {
			got[x.PID] = x
		}
		list, err := agent.ParseTasks([]byte(strings.Join(told(t, m, "tasks"), "\n")))
		if err != nil {
			t.Fatal(err)
		}
		same, other := 0, 0
		for _, want := range list {
			x, ok := got[want.PID]
			comm := x.Comm == want.Comm || x.Kernel && strings.HasPrefix(want.Comm, x.Comm)
			if !ok || x.TGID != want.TGID || x.PPID != want.PPID || !comm {
				other++
				t.Logf("%s: %+v was told, %+v is there", m, want, x)
				continue
			}
			same++
		}
		// One program that is started each second, and what it runs in.
		if same < 35 || other > 3 {
			t.Errorf("%s: %d tasks as told, %d not", m, same, other)
		}
		t.Logf("%s: %d tasks", m, same)
	}
}

func TestModules(t *testing.T) {
	for _, m := range machines {
		var got, want []string
		for _, x := range ask[struct {
			Modules []struct {
				Name string
				Size uint64
				Base string
			}
		}](t, "lsmod", "-m", m).Modules {
			got = append(got, fmt.Sprintf("%s %d %s", x.Name, x.Size, x.Base))
		}
		for _, line := range told(t, m, "modules") {
			f := strings.Fields(line)
			want = append(want, strings.Join([]string{f[0], f[1], f[5]}, " "))
		}
		if !slices.Equal(got, want) || len(want) < 3 {
			t.Errorf("%s: modules %q, want %q", m, got, want)
		}
	}
}

// TestSymbols asks for those that the guests were asked for.
func TestSymbols(t *testing.T) {
	for _, m := range machines {
		lines := told(t, m, agent.TellSymbols)
		if len(lines) < 6 {
			t.Errorf("%s told of %q only", m, lines)
		}
		for _, line := range lines {
			f := strings.Fields(line)
			r := ask[struct{ Symbols []struct{ Addr string } }](t, "sym", "-m", m, f[2])
			if !slices.ContainsFunc(r.Symbols, func(s struct{ Addr string }) bool { return s.Addr == "0x"+f[0] }) {
				t.Errorf("%s: %s is at %v, want %s", m, f[2], r.Symbols, f[0])
			}
		}
	}
}

// stack is one of a report of "bt".
type stack struct {
	CPU  *int
	Task *struct {
		PID  int
		Comm string
	}
	Frames []struct {
		Symbol, Module string
		Offset         string
		User, Guess    bool
	}
	Error string
}

// TestStacks: the vCPU that is parked, the thread of the VMM that runs it, and every
// thread that sleeps have stacks without guesses that come to an end.
func TestStacks(t *testing.T) {
	for _, m := range machines {
		good := 0
		for _, s := range ask[struct{ Stacks []stack }](t, "bt", "--all", "-m", m).Stacks {
			guess := slices.ContainsFunc(s.Frames, func(f struct {
				Symbol, Module string
				Offset         string
				User, Guess    bool
			}) bool {
				return f.Guess
			})
			switch {
			case s.Task == nil || m == "l1" && s.CPU != nil: // a CPU without registers
			case len(s.Frames) == 0 || s.Error != "" || guess:
				t.Errorf("%s: stack of %+v: %s, %+v", m, *s.Task, s.Error, s.Frames)
			default:
				good++
			}
		}
		t.Logf("%s: %d stacks", m, good)
		if good < 35 {
			t.Errorf("%s: only %d stacks", m, good)
		}
	}
	vcpu := ask[struct{ Stacks []stack }](t, "bt", "-m", "vm0").Stacks
	if len(vcpu) == 0 || len(vcpu[0].Frames) < 2 {
		t.Errorf("the vCPU's stack is %+v", vcpu)
	}
}

// TestStacksAsTold compares the stacks of threads that sleep with /proc/PID/stack.
func TestStacksAsTold(t *testing.T) {
	for _, m := range machines {
		want := make(map[int][]string)
		for _, line := range told(t, m, agent.TellStacks) {
			path, text, _ := strings.Cut(line, ":")
			f := strings.Split(path, "/") // "", proc, PID, task, TID, stack
			frame, ok := strings.CutPrefix(text, "[<0>] ")
			if pid, err := strconv.Atoi(f[min(4, len(f)-1)]); err == nil && ok {
				place, _, _ := strings.Cut(frame, "/")
				want[pid] = append(want[pid], place)
			}
		}
		same, moved := 0, 0
		for _, s := range ask[struct{ Stacks []stack }](t, "bt", "--all", "-m", m).Stacks {
			if s.Task == nil || s.CPU != nil || want[s.Task.PID] == nil {
				continue
			}
			var got []string
			for _, f := range s.Frames {
				if !f.User {
					got = append(got, f.Symbol+"+"+f.Offset)
				}
			}
			// The kernel leaves out what is of its scheduler, at the top.
			n := len(want[s.Task.PID])
			if len(got) >= n && slices.Equal(got[len(got)-n:], want[s.Task.PID]) {
				same++
			} else {
				moved++
				t.Logf("%s: stack of %d %s is %q, was told as %q", m, s.Task.PID, s.Task.Comm, got, want[s.Task.PID])
			}
		}
		t.Logf("%s: %d stacks as told, %d not", m, same, moved)
		if same < 35 || moved > 8 {
			t.Errorf("%s: %d stacks as told, %d not: those of threads that ran since are few", m, same, moved)
		}
	}
}

// TestVMCS: the control block of a guest that ran passes all checks of VM entry.
func TestVMCS(t *testing.T) {
	s := view(t)
	vm := s.Tower().Machines[1]
	if vm.CPUs[0].State == machine.Lost {
		t.Fatal("the vCPU is lost")
	}
	blocks := ask[struct {
		Blocks []struct {
			Kind, Exit string
			Failed     []struct{ Wrong, Seen string }
			Fields     []struct{ Name string }
		}
	}](t, "vmcs", "-m", "vm0").Blocks
	if len(blocks) != 1 || blocks[0].Kind != "VMCS" || blocks[0].Exit == "" || len(blocks[0].Fields) < 140 {
		t.Fatalf("control blocks %+v", blocks)
	}
	for _, c := range blocks[0].Failed {
		t.Errorf("VM entry would refuse it: %s (%s)", c.Wrong, c.Seen)
	}
}
