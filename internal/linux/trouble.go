package linux

import (
	"regexp"
	"strconv"
	"strings"

	"nestdbg/internal/mem"
)

// TroubleKind is what a kernel says of itself when something is badly wrong, or when
// it ends.
type TroubleKind int

// The kinds of trouble. Oops is any exception in kernel mode and a failed assertion;
// a task dies of it, and the kernel may go on. Lockup is a CPU that does not schedule,
// Stall a CPU that RCU waits for, HungTask a task that nothing wakes.
const (
	Panic TroubleKind = iota
	Oops
	Lockup
	Stall
	HungTask
	Restart
	PowerDown
)

func (k TroubleKind) String() string {
	names := [...]string{"panic", "oops", "lockup", "stall", "hung task", "restart", "power down"}
	if k < 0 || int(k) >= len(names) {
		return "trouble " + strconv.Itoa(int(k))
	}
	return names[k]
}

// Trouble is one trouble as a kernel's log has it.
type Trouble struct {
	Kind   TroubleKind
	Record LogRecord // its first line
	// CPU and PID are of the line that the kernel prints with a stack, -1 where that
	// line is not there.
	CPU, PID int
}

// troubleSign is how the first line of a trouble begins, and what else is in it.
type troubleSign struct {
	kind           TroubleKind
	prefix, within string
}

// troubleSigns, where Linux 6.1 prints them: kernel/panic.c:panic,
// arch/x86/mm/fault.c:show_fault_oops, lib/bug.c:__report_bug,
// kernel/watchdog.c:watchdog_timer_fn, kernel/watchdog_hld.c:watchdog_overflow_callback,
// kernel/rcu/tree_stall.h, kernel/hung_task.c:check_hung_task, kernel/reboot.c.
var troubleSigns = []troubleSign{
	{Panic, "Kernel panic - not syncing", ""},
	{Oops, "BUG: kernel NULL pointer dereference", ""},
	{Oops, "BUG: unable to handle", ""},
	{Oops, "kernel BUG at ", ""},
	{Lockup, "watchdog: BUG: soft lockup", ""},
	{Lockup, "", "Watchdog detected hard LOCKUP"},
	{Stall, "rcu: INFO: ", "detected"},
	{HungTask, "INFO: task ", " blocked for more than "},
	{Restart, "reboot: Restarting system", ""},
	{PowerDown, "reboot: Power down", ""},
	{PowerDown, "reboot: System halted", ""},
}

var (
	// dieHeader ends the first line of what dies: "Oops: 0002 [#1] PREEMPT SMP" (Linux
	// 6.1 arch/x86/kernel/dumpstack.c:__die_header, arch/arm64/kernel/traps.c:__die).
	dieHeader = regexp.MustCompile(`^.{1,200}: [0-9a-f]{4,16} \[#[0-9]{1,9}\]`)
	// troubleCPU is lib/dump_stack.c:dump_stack_print_info; UID since Linux 6.10.
	troubleCPU = regexp.MustCompile(`^CPU: ([0-9]{1,5}) (?:UID: [0-9]+ )?PID: ([0-9]{1,9}) Comm: `)
)

// Troubles finds them in records of a log that follow each other, oldest first. Only
// what the kernel itself wrote counts: a program that writes to /dev/kmsg cannot give
// its records the kernel's facility. An oops has many lines and is one trouble.
func Troubles(records []LogRecord) []Trouble {
	var f TroubleFinder
	for i := range records {
		f.Add(&records[i])
	}
	return f.Found
}

// TroubleFinder is Troubles for a log that grows. The zero value is ready.
type TroubleFinder struct {
	Found []Trouble

	left int  // records in which the newest trouble's CPU may still come
	open bool // the newest oops has not ended

	newest TroubleKind
}

const (
	// troubleReach is how many records belong to a trouble at most.
	troubleReach = 100
	// troublesMax bounds what is kept; the newest are dropped, for the first is the
	// one that matters.
	troublesMax = 1000
)

// Add takes the next record, and reports whether it is the first of a trouble.
func (f *TroubleFinder) Add(r *LogRecord) bool {
	if r.Facility != 0 {
		return false
	}
	if f.left--; f.left <= 0 {
		f.open = false
	}
	if strings.HasPrefix(r.Text, "---[ end trace") {
		f.open = false
	}
	kind, ok := troubleOf(r.Text)
	if ok && !(kind == Oops && f.open) {
		f.left, f.open, f.newest = troubleReach, kind == Oops, kind
		if len(f.Found) < troublesMax {
			f.Found = append(f.Found, Trouble{Kind: kind, Record: *r, CPU: -1, PID: -1})
		}
		return true
	}
	if last := len(f.Found) - 1; last >= 0 && f.left > 0 && f.Found[last].CPU < 0 {
		if m := troubleCPU.FindStringSubmatch(r.Text); m != nil {
			f.Found[last].CPU, _ = strconv.Atoi(m[1]) // digits, and few
			f.Found[last].PID, _ = strconv.Atoi(m[2])
		}
	}
	return false
}

// Newest is the kind of the trouble that Add found last. Preconditions: there was one.
func (f *TroubleFinder) Newest() TroubleKind { return f.newest }

func troubleOf(text string) (TroubleKind, bool) {
	for _, s := range troubleSigns {
		if strings.HasPrefix(text, s.prefix) && strings.Contains(text, s.within) {
			return s.kind, true
		}
	}
	return Oops, dieHeader.MatchString(text)
}

// LastCall is a function that a kernel calls when something is over.
type LastCall struct {
	Function string
	Addr     mem.Virt
	// Guest says that it is a guest's CPU that is over, by a triple fault most often:
	// the function is KVM's, and resets the CPU. Else it is the kernel itself.
	Guest bool
}

// LastCalls are those of a kernel, as far as it has them.
func (k *Kernel) LastCalls() (out []LastCall) {
	add := func(name string, guest bool) {
		if at, ok := k.Lookup(name); ok {
			out = append(out, LastCall{name, at, guest})
		}
	}
	add("panic", false)
	for _, name := range k.layout.kvmShutDown {
		add(name, true)
	}
	return out
}

// PanicCPU is the CPU that is in panic(), by the kernel's number; ok is false if none
// is, or if the kernel does not tell.
func (k *Kernel) PanicCPU() (cpu int, ok bool) {
	at, ok := k.lookupCore("panic_cpu") // an atomic_t, PANIC_CPU_INVALID is -1
	if !ok {
		return 0, false
	}
	v, err := mem.VirtUint32(k.space, at)
	if err != nil || v >= cpusMax {
		return 0, false
	}
	return int(v), true
}
