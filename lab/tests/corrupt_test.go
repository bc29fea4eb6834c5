package tests

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// What a mutation may cost at most. The time is the processor's; what takes ten times
// as long by the clock is a hang. The bytes are all that are allocated while it
// is dealt with, so those in use at any moment are fewer.
const (
	corruptTime  = 2 * time.Second
	corruptBytes = 300 << 20
)

// snapshot is a copy of a machine's physical memory, which may be spoiled. It notes
// what is read.
type snapshot struct {
	bytes []byte             // from address 0 on
	reads map[mem.Range]bool // nil if nobody wants to know
}

func (s *snapshot) SlicePhys(a mem.Phys, limit int) []byte {
	if a >= mem.Phys(len(s.bytes)) || limit <= 0 {
		return nil
	}
	b := s.bytes[a:]
	b = b[:min(len(b), limit)]
	if s.reads != nil {
		s.reads[mem.Range{First: uint64(a), Last: uint64(a) + uint64(len(b)) - 1}] = true
	}
	return b
}

func (s *snapshot) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := copy(p, s.SlicePhys(a, len(p)))
	if n < len(p) {
		return n, &mem.FaultError{Space: "snapshot", Addr: uint64(a) + uint64(n), Err: mem.ErrNoRAM}
	}
	return n, nil
}

func (s *snapshot) PhysRanges() []mem.Range {
	return []mem.Range{{First: 0, Last: uint64(len(s.bytes)) - 1}}
}

// takeSnapshot copies the memory of a machine that stands still, with its CPUs.
func takeSnapshot(t *testing.T, m *machine.Machine) (*snapshot, linux.Source) {
	t.Helper()
	s := &snapshot{}
	for _, r := range m.Phys.PhysRanges() {
		if r.Last < 1<<30 { // the lab's L2 has less RAM; above is its firmware
			s.bytes = append(s.bytes, make([]byte, r.Last+1-uint64(len(s.bytes)))...)
		}
	}
	for at := 0; at < len(s.bytes); at += 4096 {
		// A page that the hypervisor has not filled yet is zero to its guest.
		m.Phys.ReadPhys(s.bytes[at:min(at+4096, len(s.bytes))], mem.Phys(at))
	}
	copied := &machine.Machine{Name: m.Name, Level: m.Level, Arch: m.Arch, Phys: s, CPUs: m.CPUs}
	var cpus []*arch.Registers
	for _, c := range m.CPUs {
		cpus = append(cpus, c.Regs)
	}
	return s, linux.Source{Arch: m.Arch, Phys: s, Ranges: s.PhysRanges, CPUs: cpus,
		Space: func(root mem.Phys) (linux.AddressSpace, error) {
			copied.Forget() // what it remembers of page tables may be spoiled now
			return copied.SpaceAt(uint64(root))
		}}
}

// answer is what a question got.
type answer struct {
	items    []uint64 // hashes of what is in it
	problems int
	err      error
	log      *answer // what the kernel found anew that has no answer says of its log
}

var corruptSeed = maphash.MakeSeed()

func (a *answer) add(item any) {
	a.items = append(a.items, maphash.String(corruptSeed, fmt.Sprintf("%+v", item)))
}

// question is something to ask a kernel, and how many mutations of what the answer
// is made from there are.
type question struct {
	name  string
	count int
	fresh bool // of a kernel that is found anew
	ask   func(k *linux.Kernel) answer
	most  limits

	whole  answer // of memory as it is
	places []mem.Range
	bytes  uint64 // in places

	same, partial, failed, differs, silent int
	logAsked, logSame                      int
	slowest                                time.Duration
	largest                                uint64
}

// limits are how many of a thousand mutations may end in what is no good answer: twice
// what they do, about.
type limits struct {
	refused int // no answer
	other   int // data that differs, and nothing says that it should not
	shorter int // something is missing, and nothing says so
}

// questions are 10 000 mutations in all. What differs without a word is what nothing
// else in memory says: the letters of a message or a name, sizes, states, symbols of
// modules. What is missing without a word, of the log, is the last record, where its
// state says that the kernel took it back; of stacks, where a return address or an entry
// of the table now is one with which a stack can end.
func questions() []*question {
	return []*question{
		{name: "find", count: 300, fresh: true, ask: askFind, most: limits{refused: 30, other: 10, shorter: 4}},
		{name: "kallsyms", count: 300, fresh: true, ask: askSymbols, most: limits{refused: 40, other: 50, shorter: 4}},
		{name: "BTF", count: 300, fresh: true, ask: askTypes, most: limits{refused: 40, other: 50, shorter: 4}},
		{name: "log", count: 3000, ask: askLog, most: limits{refused: 25, other: 250, shorter: 1}},
		{name: "tasks", count: 3100, ask: askTasks, most: limits{refused: 4, other: 30, shorter: 1}},
		{name: "modules", count: 2500, ask: askModules, most: limits{refused: 80, other: 600, shorter: 1}},
		{name: "stacks", count: 500, ask: askStacks, most: limits{refused: 10, other: 50, shorter: 20}},
	}
}

func askFind(k *linux.Kernel) (a answer) {
	a.add([]any{k.Release, k.TextVA, k.TextPA, k.BuildID, k.Root})
	a.problems = len(k.Problems)
	return a
}

func askSymbols(k *linux.Kernel) (a answer) {
	table, err := k.Symbols()
	if a.err = err; err != nil {
		return a
	}
	if table.Damage() != "" {
		a.problems++
	}
	for s := range table.All() {
		if s.Addr%256 == 0 { // some thousand, the same ones whatever is missing
			a.add(s)
		}
	}
	return a
}

func askTypes(k *linux.Kernel) (a answer) {
	t, err := k.Types()
	if a.err = err; err != nil {
		return a
	}
	for _, name := range []string{"task_struct", "module", "file", "kvm_vcpu", "sk_buff", "printk_info"} {
		s, err := t.Struct(name)
		a.add(s)
		a.err = errors.Join(a.err, err)
	}
	return a
}

func askLog(k *linux.Kernel) (a answer) {
	log, err := k.Log()
	if a.err = err; err != nil {
		return a
	}
	b, err := log.Read()
	a.err, a.problems = err, len(b.Problems)+len(b.Lost)
	for _, r := range b.Records {
		a.add(r)
	}
	return a
}

func askTasks(k *linux.Kernel) (a answer) {
	tasks, problems, err := k.Tasks()
	a.err, a.problems = err, len(problems)
	for i := range tasks {
		a.add(tasks[i])
		if _, err := k.CommandLine(&tasks[i]); err != nil {
			a.problems++
		}
	}
	return a
}

func askModules(k *linux.Kernel) (a answer) {
	modules, problems, err := k.Modules()
	a.err, a.problems = err, len(problems)
	for i := range modules {
		symbols, err1 := k.ModuleSymbols(&modules[i])
		types, err2 := k.ModuleTypes(modules[i].Name)
		if errors.Join(err1, err2) != nil {
			a.problems++
		}
		a.add([]any{modules[i], symbols, types != nil})
	}
	return a
}

func askStacks(k *linux.Kernel) (a answer) {
	u := k.Unwinder()
	tasks, problems, err := k.Tasks()
	a.err, a.problems = err, len(problems)
	for i := range tasks {
		frames, err := u.Task(&tasks[i])
		if err != nil {
			a.problems++
		}
		for j := range frames {
			p, _ := frames[j].Symbolize(k)
			a.add([]any{tasks[i].PID, frames[j], p})
		}
	}
	a.problems += len(u.Problems)
	return a
}

// TestCorrupt flips bytes of a real kernel's memory, at random, in what it is asked
// about, page tables included: each question is asked 10 000 times in all, and is
// answered without a panic, in bounded time and memory, whole or with a problem
// named. What the bytes have nothing to do with is answered as before. The seeds are
// fixed; the memory is that of a guest that just booted.
func TestCorrupt(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	memory, src := takeSnapshot(t, look(t, l).machine(t, "vm0"))
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // the copy is no reason to let garbage lie
	k, err := linux.Find(src)
	if err != nil {
		t.Fatal(err)
	}
	all, total, begin := questions(), 0, time.Now()
	for _, q := range all {
		q.prepare(t, memory, src, k)
		total += q.count
	}
	for i, q := range all {
		r := rand.New(rand.NewPCG(uint64(i), 3))
		start := time.Now()
		for n := range q.count {
			restore := q.spoil(memory, r)
			got := q.try(t, src, k, fmt.Sprintf("%s, mutation %d", q.name, n))
			if got.log != nil && !overlaps(restore, all[3].places) {
				q.logAsked++
				if all[3].whole.equal(*got.log) {
					q.logSame++
				}
			}
			other := all[3+r.IntN(3)]
			if n%8 == 0 && other != q && !overlaps(restore, other.places) {
				if got := other.once(src, k); !other.whole.equal(got) {
					t.Errorf("%s, mutation %d: the answer about %s is another: %d items, %v", q.name, n, other.name, len(got.items), got.err)
				}
			}
			for j := len(restore) - 1; j >= 0; j-- {
				memory.bytes[restore[j].at] = restore[j].was
			}
		}
		t.Logf("%-8s %4d mutations of %5d KB in %4.1f s: %d the same, %d in part with a problem, %d refused, %d other data, %d shorter; at most %v, %d MB",
			q.name, q.count, q.bytes>>10, time.Since(start).Seconds(), q.same, q.partial, q.failed, q.differs, q.silent,
			q.slowest.Round(time.Millisecond), q.largest>>20)
		if q.logAsked > 0 {
			t.Logf("%-8s without an answer: the log was there in %d of %d", q.name, q.logSame, q.logAsked)
		}
		if q.logSame*10 < q.logAsked*9 {
			t.Errorf("%s: the log needs neither symbols nor types where VMCOREINFO is whole", q.name)
		}
		q.bounded(t)
	}
	t.Logf("%d mutations in %.1f s", total, time.Since(begin).Seconds())
}

// bounded holds the answers against their limits.
func (q *question) bounded(t *testing.T) {
	t.Helper()
	for _, b := range []struct {
		what      string
		got, most int
	}{
		{"got no answer", q.failed, q.most.refused},
		{"got other data without a word", q.differs, q.most.other},
		{"took something away without a word", q.silent, q.most.shorter},
	} {
		if b.got*1000 > b.most*q.count {
			t.Errorf("%s: %d of %d mutations %s, at most %d of 1000", q.name, b.got, q.count, b.what, b.most)
		}
	}
}

// prepare asks once, and notes what was read for the answer.
func (q *question) prepare(t *testing.T, memory *snapshot, src linux.Source, k *linux.Kernel) {
	t.Helper()
	if !q.fresh {
		q.once(src, k) // symbols and types are known from here on
	}
	memory.reads = map[mem.Range]bool{}
	q.whole = q.once(src, k)
	for r := range memory.reads {
		q.places = append(q.places, r)
	}
	memory.reads = nil
	slices.SortFunc(q.places, func(a, b mem.Range) int {
		if a.First != b.First {
			return int(int64(a.First - b.First))
		}
		return int(int64(a.Last - b.Last))
	})
	for _, r := range q.places {
		q.bytes += r.Last - r.First + 1
	}
	if q.whole.err != nil || len(q.whole.items) == 0 {
		t.Fatalf("%s: %d items, %v", q.name, len(q.whole.items), q.whole.err)
	}
}

// once asks, of the kernel that is given or of one found anew.
func (q *question) once(src linux.Source, k *linux.Kernel) answer {
	if !q.fresh {
		k.Forget()
		return q.ask(k)
	}
	k, err := linux.Find(src)
	if err != nil {
		return answer{err: err}
	}
	a := q.ask(k)
	if a.err != nil {
		log := askLog(k)
		a.log = &log
	}
	return a
}

// patch is a byte that was changed.
type patch struct {
	at  mem.Phys
	was byte
}

// spoil changes up to 16 bytes of what the answer is made from: in places of any
// size alike, or by their size.
func (q *question) spoil(memory *snapshot, r *rand.Rand) []patch {
	var out []patch
	for range 1 << r.IntN(5) {
		place := q.places[r.IntN(len(q.places))]
		if r.IntN(2) == 0 {
			n := r.Uint64N(q.bytes)
			for _, place = range q.places {
				size := place.Last - place.First + 1
				if n < size {
					break
				}
				n -= size
			}
		}
		at := mem.Phys(place.First + r.Uint64N(place.Last-place.First+1))
		b := &memory.bytes[at]
		out = append(out, patch{at, *b})
		switch r.IntN(4) {
		case 0:
			*b ^= 1 << r.IntN(8)
		case 1:
			*b = 0
		case 2:
			*b = 0xff
		default:
			*b = byte(r.Uint32())
		}
	}
	return out
}

// try asks, and measures what that took.
func (q *question) try(t *testing.T, src linux.Source, k *linux.Kernel, what string) (got answer) {
	t.Helper()
	defer func() {
		if x := recover(); x != nil {
			t.Errorf("%s: %v\n%s", what, x, debug.Stack())
		}
	}()
	hang := time.AfterFunc(10*corruptTime, func() { panic(what + " hangs") })
	defer hang.Stop()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := processorTime(t)
	got = q.once(src, k)
	took := processorTime(t) - begin
	runtime.ReadMemStats(&after)
	bytes := after.TotalAlloc - before.TotalAlloc
	q.slowest, q.largest = max(q.slowest, took), max(q.largest, bytes)
	if took > corruptTime || bytes > corruptBytes {
		t.Errorf("%s took %v and %d MB", what, took, bytes>>20)
	}
	switch {
	case q.whole.equal(got):
		q.same++
	case got.err != nil && len(got.items) == 0:
		q.failed++
	case got.err != nil || got.problems > q.whole.problems:
		q.partial++
	case len(got.items) < len(q.whole.items):
		q.silent++
	default:
		q.differs++
	}
	return got
}

// processorTime is what this process used so far: others may keep the machine busy.
func processorTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (a answer) equal(b answer) bool {
	return slices.Equal(a.items, b.items) && a.problems == b.problems && (a.err == nil) == (b.err == nil)
}

// overlaps reports whether bytes are in places.
func overlaps(patches []patch, places []mem.Range) bool {
	return slices.ContainsFunc(patches, func(p patch) bool {
		return slices.ContainsFunc(places, func(r mem.Range) bool { return r.Contains(uint64(p.at)) })
	})
}
