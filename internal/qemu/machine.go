package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"nestdbg/internal/qmp"
)

// Machine is a running QEMU that is looked at. Its methods are safe for concurrent
// use, except Close, which must be the last. Every call ends when its context does
// and after some seconds at the latest; when QEMU has ended, with ErrGone.
type Machine struct {
	target   Target
	monitor  *monitor
	life     life
	ram      *RAM
	info     Info
	problems []Problem

	stateMu sync.Mutex
	state   *stateFile // guarded by stateMu; nil until it is needed

	beforeStop func(context.Context) // or nil
}

// Info is what a machine is.
type Info struct {
	PID         int    // 0 if it cannot be told
	Version     string // of QEMU
	Accel       string // "kvm", "tcg" or another that the command line names, "not kvm"
	Arch        string // as QEMU names it: "x86_64", "aarch64"
	MachineType string // "pc-q35-7.2-machine"
	Name        string // of the machine (-name), or ""
	CPUs        int
	PhysBits    uint // of a CPU's physical addresses; 0 if it does not say
	QMP         Address
	Stub        Address // of the gdbstub, zero if none is open
}

// Open asks a QEMU what it is and opens its memory. What is not as it should be
// but does not prevent that is in Problems.
func Open(ctx context.Context, t *Target) (*Machine, error) {
	l := watchLife(t.PID)
	m := &Machine{target: *t, life: l, monitor: newMonitor(t.QMP, l)}
	facts, err := m.askFacts(ctx)
	if err == nil {
		m.info = facts.info(t)
		m.info.Version = m.monitor.vers.String()
		m.info.Stub = m.findStub(facts.chardevs).addr
		if m.info.PhysBits, err = m.askPhysBits(ctx, facts); err == nil {
			m.ram, err = m.openRAM(ctx, facts)
		}
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close lets go of QEMU and unmaps its memory. The machine is left as it is.
// Preconditions: the stub is closed, nobody reads RAM any more.
func (m *Machine) Close() error {
	m.monitor.close()
	if m.state != nil {
		m.state.close()
	}
	if m.ram != nil {
		m.ram.close()
	}
	m.life.close()
	return nil
}

// Info is what the machine was when it was opened.
func (m *Machine) Info() Info { return m.info }

// RAM is the machine's memory. It is the same until Close.
func (m *Machine) RAM() *RAM { return m.ram }

// Problems returns what was not as it should be when the machine was opened.
func (m *Machine) Problems() []Problem { return append([]Problem(nil), m.problems...) }

// facts are QEMU's answers to what Open asks first.
type facts struct {
	kvm     struct{ Enabled bool }
	target  struct{ Arch string }
	machine string
	name    struct{ Name string }
	cpus    []struct {
		Index int    `json:"cpu-index"`
		Path  string `json:"qom-path"`
	}
	chardevs []chardev
	memdevs  []memdev
	size     memorySize
	mtree    string
}

// chardev is a character device as query-chardev shows it.
type chardev struct{ Label, Filename string }

func (m *Machine) askFacts(ctx context.Context) (*facts, error) {
	f := &facts{}
	questions := []struct {
		command
		result any
	}{
		{command{name: "query-kvm"}, &f.kvm},
		{command{name: "query-target"}, &f.target},
		{command{name: "qom-get", args: property("/machine", "type")}, &f.machine},
		{command{name: "query-name"}, &f.name},
		{command{name: "query-cpus-fast"}, &f.cpus},
		{command{name: "query-chardev"}, &f.chardevs},
		{command{name: "query-memdev"}, &f.memdevs},
		{command{name: "query-memory-size-summary"}, &f.size},
		{hmp("info mtree -f"), &f.mtree},
	}
	commands := make([]command, len(questions))
	for i, q := range questions {
		commands[i] = q.command
	}
	replies, err := m.monitor.exchange(ctx, commands...)
	if err != nil {
		return nil, err
	}
	for i, q := range questions {
		if err := replies[i].decode(q.name, q.result); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// askPhysBits asks the first CPU. The property has what the machine was built with, also
// where nobody chose it, and only x86 has it (QEMU 7.2 target/i386/cpu.c:
// x86_cpu_realizefn).
func (m *Machine) askPhysBits(ctx context.Context, f *facts) (uint, error) {
	if len(f.cpus) == 0 {
		return 0, nil
	}
	var bits uint
	err := m.monitor.ask(ctx, "qom-get", property(f.cpus[0].Path, "phys-bits"), &bits)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return 0, nil
	}
	return bits, err
}

func property(path, name string) any {
	return map[string]string{"path": path, "property": name}
}

func hmp(line string) command {
	return command{name: "human-monitor-command", args: map[string]string{"command-line": line}}
}

func (f *facts) info(t *Target) Info {
	accel := "not kvm"
	switch {
	case f.kvm.Enabled:
		accel = "kvm"
	case t.Args != nil:
		// Of "kvm:tcg" it is the alternative, then.
		asked := parseOptions(t.Args).accel()
		accel = asked[strings.LastIndexByte(asked, ':')+1:]
	}
	name := f.name.Name
	if name == "" {
		name = t.Name
	}
	return Info{
		PID: t.PID, Accel: accel, Arch: f.target.Arch, MachineType: f.machine, Name: name,
		CPUs: len(f.cpus), QMP: t.QMP,
	}
}

// HMP executes a line of QEMU's human monitor and returns its output. The human
// monitor has no errors: what went wrong is in the text.
func (m *Machine) HMP(ctx context.Context, line string) (string, error) {
	var out string
	c := hmp(line)
	err := m.monitor.ask(ctx, c.name, c.args, &out)
	return out, err
}

// Status tells whether the machine runs, and QEMU's name for its state: "running",
// "paused", "debug" when a gdbstub stopped it, "prelaunch", "shutdown", ...
func (m *Machine) Status(ctx context.Context) (running bool, state string, err error) {
	var s struct {
		Running bool
		Status  string
	}
	err = m.monitor.ask(ctx, "query-status", nil, &s)
	return s.Running, s.Status, err
}

// BeforeStop makes the machine call f right before whatever may stop it is sent to
// QEMU: f can wait for a moment at which that is harmless. It is set before the
// machine is used. f reads memory; where that asks QEMU's monitor, which is in use then,
// it is not called.
func (m *Machine) BeforeStop(f func(context.Context)) {
	if !m.ram.throughMonitor() {
		m.beforeStop = f
	}
}

// StopMachine pauses the machine; a paused one stays so.
func (m *Machine) StopMachine(ctx context.Context) error {
	c := command{name: "stop", before: m.beforeStop}
	replies, err := m.monitor.exchange(ctx, c)
	if err != nil {
		return err
	}
	return replies[0].decode(c.name, nil)
}

// ContMachine lets the machine run.
func (m *Machine) ContMachine(ctx context.Context) error {
	return m.monitor.ask(ctx, "cont", nil, nil)
}

// openRAM finds the memory's layout and opens it.
func (m *Machine) openRAM(ctx context.Context, f *facts) (*RAM, error) {
	views, err := parseMtree(f.mtree)
	if err != nil {
		return nil, err
	}
	view, err := cpuView(views)
	if err != nil {
		return nil, err
	}
	blocks, problems := layoutOf(view, f.memdevs, f.size)
	m.problems = append(m.problems, problems...)
	hvas, paths, err := m.askBlocks(ctx, blocks)
	if err != nil {
		return nil, err
	}
	var maps []mapping
	if m.life.pid > 0 {
		maps, err = proc.maps(m.life.pid)
	} else {
		err = errors.New("the process of QEMU is not known")
	}
	if err != nil {
		m.problems = append(m.problems, Problem(err.Error()))
	}
	parts := make([]*ramPart, len(blocks))
	for i, b := range blocks {
		if maps != nil && hvas[i] != 0 {
			parts[i], err = proc.openPart(m.life.pid, b, hvas[i], maps)
		} else {
			parts[i], err = openByPath(b, paths[i])
		}
		if err != nil {
			m.problems = append(m.problems, Problem(err.Error()))
			m.readSaved(parts[i])
		}
	}
	return newRAM(parts, m.life)
}

// askBlocks returns for every block where it is in QEMU's address space, 0 if that
// is not certain, and the path of its file, "" if it has none.
func (m *Machine) askBlocks(ctx context.Context, blocks []block) (hvas []uint64, paths []string, err error) {
	const each = 3
	var commands []command
	for _, b := range blocks {
		commands = append(commands,
			hmp(fmt.Sprintf("gpa2hva %#x", b.ranges[0].span.First)),
			hmp(fmt.Sprintf("gpa2hva %#x", b.ranges[len(b.ranges)-1].span.First)),
			command{name: "qom-get", args: property("/objects/"+b.name, "mem-path")})
	}
	replies, err := m.monitor.exchange(ctx, commands...)
	if err != nil {
		return nil, nil, err
	}
	hvas, paths = make([]uint64, len(blocks)), make([]string, len(blocks))
	for i, b := range blocks {
		first, last := replies[each*i], replies[each*i+1]
		var problem error
		if hvas[i], problem = blockHVA(b, first, last); problem != nil {
			m.problems = append(m.problems, Problem(problem.Error()))
		}
		var refused *qmp.Error
		err := replies[each*i+2].decode("qom-get", &paths[i])
		if err != nil && !errors.As(err, &refused) { // a backend without a file has no such property
			return nil, nil, err
		}
	}
	return hvas, paths, nil
}

// blockHVA computes the address of a block in QEMU from the answers about its
// first and its last range, which must agree.
func blockHVA(b block, first, last reply) (uint64, error) {
	a, err1 := parseHVA(first, b.name)
	z, err2 := parseHVA(last, b.name)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	a -= b.ranges[0].offset
	z -= b.ranges[len(b.ranges)-1].offset
	if a != z {
		return 0, fmt.Errorf("memory backend %s begins at %#x and at %#x of QEMU's address space", b.name, a, z)
	}
	return a, nil
}

// parseHVA parses the output of HMP "gpa2hva", which must be about the region name:
//
//	Host virtual address for 0x1000 (pc.ram) is 0x7f6338000000
//
// Source: QEMU 7.2 monitor/misc.c:hmp_gpa2hva.
func parseHVA(r reply, name string) (uint64, error) {
	var text string
	if err := r.decode("gpa2hva", &text); err != nil {
		return 0, err
	}
	text = strings.TrimSpace(text)
	var gpa, hva uint64
	_, rest, _ := strings.Cut(text, " (")
	i := strings.LastIndex(rest, ") is ")
	if _, err := fmt.Sscanf(text, "Host virtual address for 0x%x", &gpa); err != nil || i < 0 {
		return 0, fmt.Errorf("%w: gpa2hva of memory backend %s: %.100q", ErrCorrupt, name, text)
	}
	if got := strings.TrimPrefix(rest[:i], "/objects/"); got != name {
		return 0, fmt.Errorf("%w: gpa2hva: memory backend %s is called %q", ErrCorrupt, name, got)
	}
	if _, err := fmt.Sscanf(rest[i:], ") is 0x%x", &hva); err != nil {
		return 0, fmt.Errorf("%w: gpa2hva: no address in %.100q", ErrCorrupt, text)
	}
	return hva, nil
}
