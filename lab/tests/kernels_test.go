package tests

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/lab"
)

// The questions of this package asked of kernels other than Debian 12's 6.1, each
// as L1 and as L2: one lab per kernel, which has it in both layers.

// onTCG is what newer kernels need to boot as L1 in QEMU 7.2's emulation.
const onTCG = lab.DefaultCPUModel + ",-cx16"

// otherKernels are the labs of these kernels.
var otherKernels = map[string]lab.Options{
	"5.10": {L1Kernel: lab.DefaultKernel + "/bullseye", Kernel: lab.DefaultKernel + "/bullseye"},
	"6.12": {L1Kernel: lab.DefaultKernel + "/trixie", Kernel: lab.DefaultKernel + "/trixie",
		CPUModel: onTCG, Append: "no_timer_check"},
	"7.2": {L1Kernel: lab.DefaultKernel + "/sid", Kernel: lab.DefaultKernel + "/sid",
		CPUModel: onTCG, Append: "no_timer_check"},
}

// machineQuestions are asked of L1 and of its VM, labQuestions of the lab as a whole.
var (
	machineQuestions = []struct {
		name  string
		check func(t *testing.T, l *lab.Lab, name string)
	}{
		{"Symbols", checkSymbols}, {"Found", checkFound}, {"Types", checkTypes}, {"Log", checkLog},
		{"Following", checkFollowing}, {"Tasks", checkTasks}, {"PS", checkPS}, {"Modules", checkModules},
		{"Lsmod", checkLsmod}, {"Stacks", checkStacks}, {"PrintTasks", checkPrintTasks}, {"PrintFacts", checkPrintFacts},
		{"Sym", checkSym}, {"TaskThreads", checkTaskThreads},
		{"Export", func(t *testing.T, l *lab.Lab, name string) { checkExport(t, l, name) }},
	}
	labQuestions = []struct {
		name  string
		check func(t *testing.T, l *lab.Lab)
	}{
		{"StackOfCPU", checkStackOfCPU}, {"StackOfHost", checkStackOfHost}, {"Guests", checkGuests},
		{"Roads", func(t *testing.T, l *lab.Lab) { checkBothRoads(t, l) }}, {"Holes", checkHoles}, {"GDB", checkGDBWithoutFiles},
	}
)

func TestLinux510(t *testing.T) { checkKernel(t, "5.10") }
func TestLinux612(t *testing.T) { checkKernel(t, "6.12") }
func TestLinux72(t *testing.T)  { checkKernel(t, "7.2") }

// TestLinux61 asks what is not asked of this kernel by tests of their own.
func TestLinux61(t *testing.T) {
	t.Run("Found", func(t *testing.T) { eachMachine(t, checkFound) })
	t.Run("Types", func(t *testing.T) { eachMachine(t, checkTypes) })
	t.Run("Guests", func(t *testing.T) { checkGuests(t, sharedLab(t, "kaslr")) })
	t.Run("Holes", func(t *testing.T) { checkHoles(t, sharedLab(t, "kaslr")) })
}

// checkKernel asks everything of a lab, and ends it.
func checkKernel(t *testing.T, version string) {
	t.Cleanup(func() { endShared(t, version) }) // after sharedLab's own
	l := sharedLab(t, version)
	for _, m := range l.Machines {
		if release := strings.TrimSpace(ask(t, l, m.Name, "ping")); !strings.HasPrefix(release, version+".") {
			t.Fatalf("%s runs Linux %s", m.Name, release)
		}
	}
	// The symbols come first: others ask for single ones.
	for _, q := range machineQuestions {
		for _, m := range l.Machines {
			t.Run(q.name+"/"+m.Name, func(t *testing.T) { q.check(t, l, m.Name) })
			stopIfDead(t, l)
		}
	}
	for _, q := range labQuestions {
		t.Run(q.name, func(t *testing.T) { q.check(t, l) })
		stopIfDead(t, l)
	}
}

// stopIfDead ends a test of many questions at the first that lost a guest.
func stopIfDead(t *testing.T, l *lab.Lab) {
	t.Helper()
	if t.Failed() && casualty(t, l, true) != "" {
		t.FailNow()
	}
}

// checkFound compares where the kernel was found with where it says that it is:
// release, build id, slide, physical base, root of the page tables, VMCOREINFO.
func checkFound(t *testing.T, l *lab.Lab, name string) {
	st := decode[statusReport](t, must(t, l, "status", "--json"))
	checkMachine(t, l, st, st.machine(t, name), name)
	v := look(t, l)
	k := v.kernel(t, v.machine(t, name))
	text := guestSymbol(t, l, name, "_text")
	banner := strings.TrimSpace(ask(t, l, name, "cat /proc/version"))
	code := "" // FIRST-LAST : Kernel code
	for line := range strings.Lines(ask(t, l, name, "cat /proc/iomem")) {
		if first, what, _ := strings.Cut(strings.TrimSpace(line), " : "); what == "Kernel code" {
			code, _, _ = strings.Cut(first, "-")
		}
	}
	pa, err := strconv.ParseUint(code, 16, 64)
	if err != nil {
		t.Fatalf("%s: /proc/iomem: kernel code at %q", name, code)
	}
	root := guestSymbol(t, l, name, "init_top_pgt") - text + pa
	if k.Banner != banner || uint64(k.TextVA) != text || uint64(k.TextPA) != pa || k.Slide != text-linkedText ||
		k.PhysBase != int64(pa-(text-linkedBase)) || uint64(k.Root) != root {
		t.Errorf("%s: %q at %#x, %#x, slide %#x, base %#x, root %#x; it says %q at %#x, %#x, root %#x",
			name, k.Banner, k.TextVA, k.TextPA, k.Slide, k.PhysBase, k.Root, banner, text, pa, root)
	}
	var at, size uint64
	where := ask(t, l, name, "cat /sys/kernel/vmcoreinfo")
	if n, _ := fmt.Sscanf(where, "0x%x %x", &at, &size); n != 2 || size == 0 || size > 1<<16 {
		t.Fatalf("%s: VMCOREINFO is at %q", name, where)
	}
	note := make([]byte, size)
	if _, err := v.machine(t, name).Phys.ReadPhys(note, mem.Phys(at)); err != nil {
		t.Fatalf("%s: VMCOREINFO: %v", name, err)
	}
	begin := bytes.Index(note, []byte("OSRELEASE="))
	if begin < 0 {
		t.Fatalf("%s: no VMCOREINFO at %#x", name, at)
	}
	want, err := linux.ParseVMCoreInfo(bytes.TrimRight(note[begin:], "\x00"))
	if err != nil || fmt.Sprint(want) != fmt.Sprint(k.VMCoreInfo) {
		t.Errorf("%s: VMCOREINFO, %v:\n%v\nwant:\n%v", name, err, k.VMCoreInfo, want)
	}
}

// linkedBase is where the kernel mapping of x86-64 begins.
const linkedBase = 0xffffffff80000000

// checkTypes compares the types of the kernel and of every module, all bytes, with
// what the guest shows in /sys/kernel/btf.
func checkTypes(t *testing.T, l *lab.Lab, name string) {
	v := look(t, l)
	k := v.kernel(t, v.machine(t, name))
	compared := 0
	for line := range strings.Lines(ask(t, l, name, "exec sha256sum /sys/kernel/btf/*")) {
		want, path, _ := strings.Cut(strings.TrimSpace(line), "  ")
		module := strings.TrimPrefix(path, "/sys/kernel/btf/")
		raw, err := k.RawBTF()
		if module != "vmlinux" {
			raw, err = k.RawModuleBTF(module)
		}
		sum := sha256.Sum256(raw)
		if err != nil || hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s: types of %s: %d bytes that are not those of the guest, %v", name, module, len(raw), err)
		}
		compared++
	}
	types, err := k.Types()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if size, err := types.SizeOf("task_struct"); err != nil || size < 1<<10 {
		t.Errorf("%s: size of task_struct %d, %v", name, size, err)
	}
	if compared == 0 {
		t.Errorf("%s shows no types", name)
	}
	t.Logf("%s: types of the kernel and %d modules", name, compared-1)
}

// checkGuests compares what KVM's structures say with what L1 says of the VMM: its
// process, name and mappings, and the thread of each vCPU.
func checkGuests(t *testing.T, l *lab.Lab) {
	v := look(t, l)
	v.names(t, l) // every VM of the lab is a machine, by the PID of its VMM
	vms, problems, err := v.kernel(t, v.machine(t, "l1")).KVMs()
	if err != nil || len(problems) > 0 || len(vms) != len(l.Machines)-1 {
		t.Fatalf("%d guests, %v, %v", len(vms), problems, err)
	}
	for _, vm := range vms {
		if comm := strings.TrimSpace(ask(t, l, "l1", fmt.Sprintf("cat /proc/%d/comm", vm.PID))); vm.Comm != comm {
			t.Errorf("process %d is %q, it says %q", vm.PID, vm.Comm, comm)
		}
		checkSlots(t, l, &vm)
		for _, c := range vm.VCPUs {
			if c.Control.Kind != "vmcb" || c.Control.Phys == 0 {
				t.Errorf("control block of vCPU %d: %+v", c.ID, c.Control)
			}
			ask(t, l, "l1", fmt.Sprintf("cat /proc/%d/task/%d/comm", vm.PID, c.PID)) // such a thread is there
		}
	}
	checkParked(t, l)
}

// checkSlots checks that the VMM has mapped what its memory slots say, and that
// they are all of the guest's memory.
func checkSlots(t *testing.T, l *lab.Lab, vm *linux.VM) {
	t.Helper()
	type span struct{ first, end uint64 }
	var maps []span
	for line := range strings.Lines(ask(t, l, "l1", fmt.Sprintf("cat /proc/%d/maps", vm.PID))) {
		var x span
		if n, _ := fmt.Sscanf(line, "%x-%x ", &x.first, &x.end); n != 2 {
			t.Fatalf("/proc/%d/maps: %q", vm.PID, line)
		}
		if k := len(maps); k > 0 && maps[k-1].end == x.first {
			maps[k-1].end = x.end
		} else {
			maps = append(maps, x)
		}
	}
	ram := uint64(0)
	for _, s := range vm.Memslots {
		first, end := uint64(s.User), uint64(s.User)+s.Size
		if !slices.ContainsFunc(maps, func(x span) bool { return x.first <= first && end <= x.end }) {
			t.Errorf("slot %+v: the VMM has not mapped %#x-%#x", s, first, end)
		}
		if s.AddressSpace == 0 && uint64(s.Base) < 4<<30-1<<20 {
			ram += s.Size
		}
	}
	if want := l.Machines[1].MemBytes; ram != want {
		t.Errorf("slots of %d bytes, want %d", ram, want)
	}
}

// checkParked waits until each vCPU was seen parked, and then with all registers
// but those of the floating-point unit.
func checkParked(t *testing.T, l *lab.Lab) {
	t.Helper()
	seen := make(map[string]bool)
	eventually(t, "every vCPU parked", commandLimit, func() bool {
		thaw := freeze(t, l)
		defer thaw()
		v := look(t, l)
		all := 0
		for _, m := range v.Tower().Machines[1:] {
			for _, c := range m.CPUs {
				if all++; c.State != machine.Parked {
					continue
				}
				seen[fmt.Sprint(m.Name, c.Index)] = true
				for i, r := range m.Arch.Regs {
					if r.Kind <= arch.System && !c.Regs.Known(i) {
						t.Errorf("%s CPU %d is parked, and %s is not known", m.Name, c.Index, r.Name)
					}
				}
			}
		}
		return len(seen) == all || t.Failed()
	})
}

// checkHoles makes KVM drop all of its second-stage tables and reads what cannot
// have changed: the kernel's types and symbols, through holes, by the second road.
func checkHoles(t *testing.T, l *lab.Lab) {
	const knob = "/sys/module/kvm/parameters/nx_huge_pages" // setting it drops all tables
	before := constantBytes(t, l)
	ask(t, l, "l1", "exec echo force > "+knob)
	defer ask(t, l, "l1", "exec echo off > "+knob)
	holes := 0
	eventually(t, "a hole in the second stage", commandLimit, func() bool {
		thaw := freeze(t, l)
		defer thaw()
		v := look(t, l)
		m := v.machine(t, "vm0")
		k := v.kernel(t, m)
		for off := uint64(0); off < k.Size; off += 4096 {
			if _, _, aside, err := m.ToParent(k.TextPA + mem.Phys(off)); err == nil && aside {
				holes++
			}
		}
		if holes > 0 {
			checkHole(t, l, m, k)
		}
		return holes > 0
	})
	if after := constantBytes(t, l); !bytes.Equal(before, after) {
		t.Errorf("%d bytes of types and symbols are %d others through %d holes", len(before), len(after), holes)
	}
	t.Logf("%d pages of the kernel's image were holes of the second stage", holes)
}

// checkHole asks vtop about a hole, and writes there what is there.
func checkHole(t *testing.T, l *lab.Lab, m *machine.Machine, k *linux.Kernel) {
	t.Helper()
	pa := firstHole(m, k)
	where := fmt.Sprintf("pa:%#x", pa)
	if text := must(t, l, "vtop", "-m", "vm0", where); !strings.Contains(text, "second road: pa 0x") {
		t.Errorf("vtop of a hole:\n%s", text)
	}
	var b [8]byte
	if _, err := m.Phys.ReadPhys(b[:], pa); err != nil {
		t.Fatal(err)
	}
	must(t, l, "write", "-m", "vm0", where, hex.EncodeToString(b[:]))
}

func firstHole(m *machine.Machine, k *linux.Kernel) mem.Phys {
	for pa := k.TextPA; ; pa += 4096 {
		if _, _, aside, err := m.ToParent(pa); err == nil && aside {
			return pa
		}
	}
}

// constantBytes is what does not change in vm0's kernel while it runs: its types and
// the names of its symbols. (Code does: static keys.)
func constantBytes(t *testing.T, l *lab.Lab) []byte {
	t.Helper()
	v := look(t, l)
	k := v.kernel(t, v.machine(t, "vm0"))
	raw, err := k.RawBTF()
	if err != nil {
		t.Fatal(err)
	}
	table, err := k.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBuffer(slices.Clone(raw))
	for s := range table.All() {
		fmt.Fprintf(out, "%s %#x %c\n", s.Name, s.Addr, s.Type)
	}
	return out.Bytes()
}

// checkGDBWithoutFiles runs the session in which gdb has no file but those that
// nestdbg makes from RAM.
func checkGDBWithoutFiles(t *testing.T, l *lab.Lab) {
	const script = "testdata/gdb/without-files.gdb"
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	expectAll(t, string(text), runGDB(t, l, t.TempDir(), script))
}
