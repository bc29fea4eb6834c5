package nested

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// settler decides what the CPUs of QEMU's own machine executed where the file that
// their registers are from does not tell: a dump has no hidden state, and the
// registers of a CPU that ran a guest are that guest's.
type settler struct {
	m       *machine.Machine
	k       *linux.Kernel // nil if the hypervisor is not understood
	problem func(string, ...any)
	// listed says that entered is the hypervisor's word; else it is every control
	// block there is, under -1.
	listed  bool
	entered map[int][]entered
}

// entered is a control block that may be in use on a CPU.
type entered struct {
	tech technology
	at   mem.Phys
	what string
}

// settle gives CPUs whose registers do not say so the hidden state that fits, so
// that they are of the right layer from here on, and says what it is not sure of.
func settle(m *machine.Machine, opt Options, problem func(string, ...any)) {
	if m.Parent != nil {
		return
	}
	unsure := slices.ContainsFunc(m.CPUs, func(c *machine.CPU) bool { _, ok := c.Regs.Get("guest_mode"); return !ok })
	if len(m.CPUs) > 0 && !unsure {
		return
	}
	s := &settler{m: m, problem: problem, entered: make(map[int][]entered)}
	if opt.Kernel != nil {
		s.k = opt.Kernel(m)
	}
	if len(m.CPUs) == 0 && s.k == nil && opt.Scan {
		s.guessMode(opt)
	}
	s.learn(opt)
	if len(m.CPUs) == 0 {
		s.lost()
		return
	}
	for _, c := range m.CPUs {
		if _, ok := c.Regs.Get("guest_mode"); !ok {
			s.settle(c)
		}
	}
}

// guessMode finds the paging mode of a hypervisor of which there is nothing but
// memory: the one in which a guest's program counter leads somewhere. Second stages
// are in that mode, too.
func (s *settler) guessMode(opt Options) {
	if s.m.Mode = s.statedMode(opt); s.m.Mode != nil {
		return
	}
	for _, mode := range s.m.Modes() {
		mode.Forget(s.m.RootRegister())
		s.m.Mode = mode
		for _, tech := range technologies[s.m.Arch.Name] {
			found := make(map[mem.Phys]*candidate)
			scan(s.m, tech, found, opt, s.problem)
			for _, c := range found {
				if confirm(s.m, c) == nil {
					s.problem("no kernel was found that is understood and no registers: second stages are taken to be %s, in which a %s leads to memory",
						c.block.second.Name, tech.name())
					return
				}
			}
		}
	}
	s.m.Mode = nil
	s.guessGiven(opt.Hints)
}

// guessGiven is guessMode for a control block that only the person knows: the mode in
// which its second stage maps the most memory.
func (s *settler) guessGiven(hints []Hint) {
	var best *arch.Registers
	var most uint64
	var what string
	for _, mode := range s.m.Modes() {
		mode.Forget(s.m.RootRegister())
		s.m.Mode = mode
		found := make(map[mem.Phys]*candidate)
		hinted(s.m, found, hints)
		for _, c := range found {
			survey := c.block.second.Survey(s.m.Phys, c.block.root, ramOf(s.m))
			if survey.Sensible() && survey.Bytes > most {
				best, most, what = mode, survey.Bytes, c.block.second.Name
			}
		}
	}
	if s.m.Mode = best; best != nil {
		s.problem("no kernel was found that is understood and no registers: second stages are taken to be %s, in which that of the given control block maps the most memory", what)
	}
}

// ramOf reports whether a machine has RAM at an address.
func ramOf(m *machine.Machine) func(mem.Phys) bool {
	ranges := m.Phys.PhysRanges()
	return func(a mem.Phys) bool {
		return slices.ContainsFunc(ranges, func(r mem.Range) bool { return r.Contains(uint64(a)) })
	}
}

// learn finds the control blocks that may be in use.
func (s *settler) learn(opt Options) {
	if s.k != nil {
		vms, _, err := s.k.KVMs()
		s.listed = err == nil
		for _, vm := range vms {
			for _, v := range vm.VCPUs {
				if v.Mode == linux.VCPUOutside || v.CPU < 0 || v.Control.Current == 0 {
					continue
				}
				for _, tech := range technologies[s.m.Arch.Name] {
					if !strings.EqualFold(tech.name(), v.Control.Kind) {
						continue
					}
					s.entered[v.CPU] = append(s.entered[v.CPU], entered{tech, v.Control.Current,
						fmt.Sprintf("vCPU %d of struct kvm at %#x, %s", v.ID, vm.Addr, v.Mode)})
				}
			}
		}
	}
	if s.listed || !opt.Scan {
		return
	}
	for _, tech := range technologies[s.m.Arch.Name] {
		found := make(map[mem.Phys]*candidate)
		scan(s.m, tech, found, opt, s.problem)
		for _, at := range slices.Sorted(maps.Keys(found)) {
			s.entered[-1] = append(s.entered[-1], entered{tech, at, "found by content"})
		}
	}
}

// settle decides for one CPU.
func (s *settler) settle(c *machine.CPU) {
	if _, ok := c.Regs.Get("cr3"); !ok {
		return // nothing to go by, and nothing that depends on it
	}
	own := s.own(c)
	var fits []entered
	all := s.entered[-1]
	if s.listed {
		all = s.entered[c.Index]
	}
	for _, e := range all {
		if s.inGuest(c, e) {
			fits = append(fits, e)
		}
	}
	switch {
	case len(fits) == 0 && own:
	case len(fits) == 0 && len(all) == 0 && s.listed:
		s.problem("CPU %d: no guest is entered on it, but its page tables are not this machine's: it is taken to run the machine itself, in firmware or a kernel being started", c.Index)
	case len(fits) == 0:
		s.problem("CPU %d: its registers fit neither this machine nor any guest of it: whose they are is not known", c.Index)
	case len(fits) == 1 && !own:
		s.enter(c, fits[0])
	case s.listed && own && s.onHostStack(c, fits[0]):
		// Between KVM's note that it enters and the entry, or behind the exit.
	case s.listed:
		s.enter(c, fits[0])
		s.problem("CPU %d: its page tables fit this machine and %s as well; it is taken to run the guest, as the hypervisor has it", c.Index, fits[0].what)
	case own:
		s.problem("CPU %d: its registers fit this machine and %d guests: it is taken to run the machine itself", c.Index, len(fits))
	default:
		s.enter(c, fits[0])
		s.problem("CPU %d: its registers fit %d virtual CPUs: it is taken to run the one at %#x", c.Index, len(fits), fits[0].at)
	}
}

// own reports whether the CPU's registers make sense in the machine itself: its
// program counter leads to memory, and its tables are those of the machine's kernel.
func (s *settler) own(c *machine.CPU) bool {
	if s.k != nil && !s.k.Runs([]*arch.Registers{c.Regs}) {
		return false
	}
	return s.k != nil || leads(s.m, c.Regs)
}

// inGuest reports whether the registers make sense in the guest of a control block.
func (s *settler) inGuest(c *machine.CPU, e entered) bool {
	block := inspect(s.m, e.tech, e.at)
	if block == nil {
		return false
	}
	space := paging.NewSpace(block.block.second.Name, block.block.second, s.m.Phys, block.block.root)
	return leads(&machine.Machine{Arch: s.m.Arch, PhysBits: s.m.PhysBits, Phys: machine.NewNestedMemory(space)}, c.Regs)
}

// leads reports whether a program counter leads to memory.
func leads(m *machine.Machine, r *arch.Registers) bool {
	space, err := m.Space(&machine.CPU{Regs: r})
	pc, ok := r.PC()
	if err != nil || !ok {
		return false
	}
	var b [1]byte
	_, err = space.ReadVirt(b[:], mem.Virt(pc))
	return err == nil
}

// stackReach is how far the stack pointer in the code around an entry is from where
// it was at the entry, at most.
const stackReach = 16 << 10

// onHostStack reports whether the CPU's stack pointer is where the hypervisor's was
// when it entered this guest.
func (s *settler) onHostStack(c *machine.CPU, e entered) bool {
	host, _, err := s.host(c.Index, e)
	if err != nil {
		return false
	}
	then, ok1 := host.SP()
	now, ok2 := c.Regs.SP()
	return ok1 && ok2 && max(then, now)-min(then, now) < stackReach
}

// host is the hypervisor's own state on a CPU while a guest runs there.
func (s *settler) host(cpu int, e entered) (*arch.Registers, mem.Phys, error) {
	at := mem.Phys(0)
	if s.k != nil {
		at, _ = s.k.HostSaveArea(cpu)
	}
	return e.tech.saved(s.m, e.at, at)
}

// enter gives the CPU the hidden state of one that runs this guest.
func (s *settler) enter(c *machine.CPU, e entered) {
	host, save, err := s.host(c.Index, e)
	if err != nil {
		s.problem("CPU %d runs a guest (%s): the hypervisor's own state: %v", c.Index, e.what, err)
	}
	if err := e.tech.enter(s.m, c.Regs, e.at, save, host); err != nil {
		s.problem("CPU %d runs a guest (%s): %v", c.Index, e.what, err)
	}
	c.Source += "; in a guest by the hypervisor's word (" + e.what + ")"
	if !s.listed {
		c.Source = "registers of a guest by their looks: page tables and program counter fit no other machine"
	}
}

// lost makes CPUs of a machine of which there are no registers at all: as many as its
// kernel has, with what memory tells of them.
func (s *settler) lost() {
	if s.k == nil {
		s.saved()
		return
	}
	n, err := s.k.CPUCount()
	if err != nil {
		s.problem("how many CPUs there were is not known: %v", err)
		return
	}
	for i := range n {
		c := &machine.CPU{Index: i, On: -1, State: machine.Lost, Regs: arch.NewRegisters(s.m.Arch),
			Source: "file, which has no registers"}
		s.m.CPUs = append(s.m.CPUs, c)
		if regs, source, err := s.k.LeftRegisters(i); err == nil {
			c.Regs, c.Source = regs, source
			continue
		}
		for _, e := range s.entered[i] {
			host, save, err := s.host(i, e)
			if err != nil {
				continue
			}
			c.State, c.Regs = machine.Hosting, host
			c.EntryPC, _ = host.PC()
			c.Source = fmt.Sprintf("host save area at %#x; it was in a guest by the hypervisor's word (%s)", save, e.what)
		}
	}
}

// saved makes the CPUs of a hypervisor that is not understood, as far as their last
// entries into guests have left their state in memory. There may have been more.
func (s *settler) saved() {
	known := make(map[mem.Phys]bool)
	stacks := make(map[uint64]*machine.CPU)
	for _, e := range s.entered[-1] {
		host, save, err := e.tech.saved(s.m, e.at, 0)
		if err != nil || known[save] {
			continue
		}
		known[save] = true
		sp, ok := host.SP()
		if same := stacks[sp]; ok && same != nil {
			// Each guest may have a host state of its own; two CPUs share no stack.
			same.Entered = 0
			same.Source += fmt.Sprintf("; the same stack as for the %s at %#x", e.tech.name(), e.at)
			continue
		}
		c := &machine.CPU{Index: len(s.m.CPUs), On: -1, State: machine.Lost, Regs: host, Source: fmt.Sprintf(
			"host save area at %#x: of its last entry, with the %s at %#x; what it did since is not known", save, e.tech.name(), e.at)}
		c.EntryPC, _ = host.PC()
		c.Entered = e.at
		stacks[sp] = c
		s.m.CPUs = append(s.m.CPUs, c)
	}
}

// doubt says of the CPU of a guest that was, or may have been, the last to be entered, by
// a hypervisor of which no more is known, that it may have run on.
func doubt(parent *machine.Machine, c *machine.CPU) {
	for _, p := range parent.CPUs {
		may := p.Entered == c.Control || p.Entered == 0 && p.EntryPC != 0
		if p.State == machine.Lost && may && c.State == machine.Parked {
			c.Doubtful = true
			c.Why += ", and perhaps entered again: the registers are those of its last exit"
			return
		}
	}
}
