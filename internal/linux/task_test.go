package linux

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

func (s *fakeSystem) wantTasks() []Task {
	mm := mem.Virt(s.peek(s.tasks[1].at("mm")))
	task := func(i, pid, tgid int, comm, state string) Task {
		return Task{Addr: mem.Virt(s.tasks[i].va), PID: pid, TGID: tgid, Comm: comm, State: state, CPU: 1,
			Stack: 0xffffc90000000000 + mem.Virt(pid)<<16, SP: 0xffffc90000003f00 + mem.Virt(pid)<<16}
	}
	leader, vcpu := task(1, 100, 100, "qemu", "S"), task(2, 101, 100, "CPU 0/KVM", "R")
	leader.MM, vcpu.MM, vcpu.OnCPU = mm, mm, true
	kthread := task(3, 7, 7, "kworker/0:1", "I")
	kthread.Kernel = true
	return []Task{leader, vcpu, kthread}
}

func TestTasks(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	got, problems, err := k.Tasks()
	if err != nil || len(problems) != 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	if diff := gocmp.Diff(s.wantTasks(), got); diff != "" {
		t.Error(diff)
	}
	args, err := k.CommandLine(&got[1])
	if diff := gocmp.Diff([]string{"qemu", "-m", "1G"}, args); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	if args, err := k.CommandLine(&got[2]); args != nil || err != nil {
		t.Errorf("arguments of a thread of the kernel: %q, %v", args, err)
	}
}

func TestTaskState(t *testing.T) {
	for _, tt := range []struct {
		state, exit uint64
		want        string
	}{
		{0, 0, "R"}, {1, 0, "S"}, {2, 0, "D"}, {0x402, 0, "I"}, {4, 0, "T"}, {8, 0, "t"},
		{0, 0x10, "X"}, {0, 0x20, "Z"}, {0x40, 0, "P"}, {0x1000, 0, "D"}, {0x2001, 0, "S"},
		{0xffffffff, 0xffffffff, "I"}, {0x80, 0x30, "Z"},
	} {
		if got := taskState(tt.state, tt.exit); got != tt.want {
			t.Errorf("state %#x, exit %#x: %s, want %s", tt.state, tt.exit, got, tt.want)
		}
	}
}

func TestTasksBroken(t *testing.T) {
	tests := []struct {
		name     string
		spoil    func(s *fakeSystem)
		tasks    int
		problems int
		err      error
	}{
		{"list loops", func(s *fakeSystem) { s.poke(s.tasks[3].at("tasks"), s.tasks[1].at("tasks")) }, 3, 0, ErrCorrupt},
		{"threads loop", func(s *fakeSystem) { s.poke(s.tasks[2].at("thread_node"), s.tasks[1].at("thread_node")) }, 3, 1, nil},
		{"threads of another process", func(s *fakeSystem) {
			signal := s.peek(s.tasks[1].at("signal"))
			s.tasks[3].set("signal", signal)
		}, 3, 0, nil},
		{"wild signal", func(s *fakeSystem) { s.tasks[1].set("signal", 0x4141414141414141) }, 2, 1, nil},
		{"released", func(s *fakeSystem) { s.tasks[1].set("signal", 0) }, 2, 0, nil},
		{"wild parent", func(s *fakeSystem) { s.tasks[1].set("real_parent", 1) }, 3, 0, nil},
		{"wild next", func(s *fakeSystem) { s.poke(s.tasks[1].at("tasks"), 0x1000) }, 3, 0, mem.ErrFault},
		{"a task is passed over", func(s *fakeSystem) {
			s.poke(uint64(s.symbols["init_task"])+uint64(s.types.offset("task_struct", "tasks")), s.tasks[3].at("tasks"))
		}, 3, 0, ErrCorrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeSystem(t, false)
			k := s.find()
			tt.spoil(s)
			got, problems, err := k.Tasks()
			if len(got) != tt.tasks || len(problems) != tt.problems || !errors.Is(err, tt.err) {
				t.Errorf("%d tasks, %v, %v; want %d, %d problems, %v", len(got), problems, err, tt.tasks, tt.problems, tt.err)
			}
		})
	}
}

// TestKernelThreads: neither a process that has ended nor a thread of the kernel that
// borrows an mm_struct is known by that.
func TestKernelThreads(t *testing.T) {
	s := newFakeSystem(t, false)
	k := s.find()
	mm := s.peek(s.tasks[1].at("mm"))
	s.tasks[1].set("mm", 0).set("exit_state", 0x20)
	s.tasks[3].set("mm", mm)
	got, _, err := k.Tasks()
	if err != nil || got[0].Kernel || got[0].State != "Z" || !got[2].Kernel {
		t.Errorf("%+v, %v", got, err)
	}
	if args, err := k.CommandLine(&got[2]); args != nil || err != nil {
		t.Errorf("arguments of a thread of the kernel: %q, %v", args, err)
	}
}

// TestCommandLine: bytes as the program left them, and what could be read of them.
func TestCommandLine(t *testing.T) {
	long := strings.Repeat("x", commandLineMax+1)
	for _, tt := range []struct {
		name   string
		memory string // at arg_start
		size   int    // of the arguments, of all of memory if 0
		env    int    // of the environment behind them
		atEnd  bool   // memory ends where RAM does
		want   []string
		err    string // what it contains
	}{
		{name: "bytes", memory: "a\x1b\xff\x00\xc3\xa9\x00", want: []string{"a\x1b\xff", "é"}},
		{name: "empty ones", memory: "sh\x00\x00-c\x00\x00", want: []string{"sh", "", "-c", ""}},
		{name: "only an empty one", memory: "\x00", want: []string{""}},
		{name: "title", memory: "sshd: a@b c\x00D=4\x00", size: 4, env: 12, want: []string{"sshd: a@b c"}},
		{name: "title, environment elsewhere", memory: "sshd: a@b c\x00D=4\x00", size: 4, want: []string{"sshd"}},
		{name: "title of a page", memory: strings.Repeat("y", 5000), want: []string{strings.Repeat("y", 4096)}},
		{name: "too long", memory: long + "\x00", want: []string{long[1:]}, err: "only 0x20000 of 0x20002 bytes"},
		{name: "cut by a hole", memory: "sh\x00-c", size: 4097, atEnd: true, want: []string{"sh", "-c"}, err: "arguments of task 100: fake"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeSystem(t, false)
			k := s.find()
			mm := object{f: s.fake, kind: "mm_struct", va: s.peek(s.tasks[1].at("mm"))}
			mm.pa = mem.Phys(s.physOf(mm.va))
			at := s.alloc(uint64(len(tt.memory)), 8)
			if tt.atEnd {
				at = object{f: s.fake, pa: fakeRAMSize - mem.Phys(len(tt.memory)), va: fakeDirect + fakeRAMSize - uint64(len(tt.memory))}
			}
			at.put(0, []byte(tt.memory))
			end := at.va + uint64(cmp.Or(tt.size, len(tt.memory)))
			mm.set("arg_start", at.va).set("arg_end", end)
			if tt.env > 0 {
				mm.set("env_start", end).set("env_end", end+uint64(tt.env))
			}
			task := s.wantTasks()[0]
			args, err := k.CommandLine(&task)
			if !slices.Equal(args, tt.want) || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%.80q, %v; want %.80q", args, err, tt.want)
			}
		})
	}
}

func TestCommandLineBroken(t *testing.T) {
	s := newFakeSystem(t, false)
	k := s.find()
	mm := object{f: s.fake, kind: "mm_struct", va: s.peek(s.tasks[1].at("mm"))}
	mm.pa = mem.Phys(s.physOf(mm.va))
	task := s.wantTasks()[0]
	mm.set("arg_end", 1)
	if args, err := k.CommandLine(&task); args != nil || !errors.Is(err, ErrCorrupt) {
		t.Errorf("end before start: %q, %v", args, err)
	}
	mm.set("arg_start", 0x1000).set("arg_end", 0x1010)
	if args, err := k.CommandLine(&task); args != nil || !errors.Is(err, mem.ErrFault) {
		t.Errorf("not mapped: %q, %v", args, err)
	}
}

func TestCurrent(t *testing.T) {
	s := newFakeSystem(t, false)
	k := s.find()
	for cpu, want := range []string{"swapper/0", "CPU 0/KVM"} {
		regs := arch.NewRegisters(arch.X86)
		regs.Set("gs_base", 0x7f1234560000) // as in user mode
		regs.Set("k_gs_base", s.percpu[cpu].va)
		task, err := k.CurrentOf(regs)
		if err != nil || task.Comm != want {
			t.Errorf("cpu %d: %+v, %v; want %s", cpu, task, err, want)
		}
	}
	for _, cpu := range []int{-1, 2} {
		if _, err := k.Current(cpu); !errors.Is(err, ErrNotFound) {
			t.Errorf("cpu %d: %v", cpu, err)
		}
	}
	if _, err := k.CurrentOf(arch.NewRegisters(arch.X86)); !errors.Is(err, ErrNotFound) {
		t.Errorf("no registers: %v", err)
	}
	s.poke(s.symbols["nr_cpu_ids"], 0x7fffffff)
	if _, err := k.Current(0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("giant number of CPUs: %v", err)
	}
}

func TestPageFree(t *testing.T) {
	eachGeneration(t, func(t *testing.T, s *fakeSystem) {
		k := s.find()
		for _, tt := range []struct {
			page mem.Phys
			free bool
			refs int
			err  error
		}{
			{0, true, 0, nil}, {5, false, 1, nil}, {8, false, 3, nil},
			{9, false, 3, nil}, // inside a larger page
			{1023, true, 0, nil},
			{1024, false, 0, ErrNotFound},    // a section that is not there
			{1 << 30, false, 0, ErrNotFound}, // beyond all sections
		} {
			free, refs, err := k.PageFree(tt.page*pageSize + 0x123)
			if free != tt.free || refs != tt.refs || !errors.Is(err, tt.err) {
				t.Errorf("page %d: %v, %d, %v; want %v, %d, %v", tt.page, free, refs, err, tt.free, tt.refs, tt.err)
			}
		}
	})
}

func TestCompoundHead(t *testing.T) {
	const at = 0xffffea0000012345 &^ 63
	for _, tt := range []struct{ info, want mem.Virt }{
		{0, at}, {0xffffea0000012000, at},
		{0xffffea0000012001, 0xffffea0000012000},
		{0xffffffffffff8001, at &^ 0x7fff},
	} {
		if got := compoundHead(at, uint64(tt.info)); got != tt.want {
			t.Errorf("%#x: %#x, want %#x", tt.info, got, tt.want)
		}
	}
}
