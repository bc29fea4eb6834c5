// Package vmstate decodes QEMU's device-state stream: the truth about a CPU
// that the gdbstub hides. It reads what the QMP command xen-save-devices-state
// writes (devices only, no description) and what migrate writes (RAM section,
// devices, a JSON description at the end).
//
// The stream is QEMU's migration format (migration/savevm.c, vmstate.c; read in
// 7.2.22 and 10.0.13, which agree in everything used here). All numbers in it
// are big-endian; register values come out in arch.Registers as usual.
package vmstate

import (
	"errors"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// ErrCorrupt is the class of every stream that contradicts the format. The
// text names the offset in the stream, in bytes.
var ErrCorrupt = errors.New("corrupt device state")

// ErrUnsupported is the class of a stream, or an architecture, that is sound
// as far as one can tell but that this package does not know.
var ErrUnsupported = errors.New("unsupported device state")

// maxCPUs bounds the index that a section may claim. QEMU's x86 machines stop
// at 4096 (10.0, hw/i386/pc_q35.c).
const maxCPUs = 4096

// State is one decoded stream.
type State struct {
	// MachineType is like "pc-q35-7.2"; only migrate records it, otherwise "".
	MachineType string
	// CPUs has the registers of each CPU at its CPU index. An entry is nil where
	// the stream has no such CPU (a free hot-plug slot) or where Problems says
	// why it could not be decoded. YMM and higher registers are not kept.
	CPUs []*arch.Registers
	// Interrupts is interrupt_request of each CPU index: QEMU's own
	// CPU_INTERRUPT_* bits, what is pending for the CPU.
	Interrupts map[int]uint32
	// Nested is what KVM keeps about a nested guest, by CPU index. Empty under TCG.
	Nested map[int]*Nested
	// Sections are all sections in stream order.
	Sections []Section
	// RunState is QEMU's run state when the stream was made. Only migrate records
	// it: xen-save-devices-state always writes "running" (QEMU 7.2
	// migration/savevm.c:qmp_xen_save_devices_state), so there it is "".
	RunState string
	// RAM says where the pages of RAM are; nil but for ParseMigration.
	RAM *RAM
	// Problems are the parts that could not be decoded, in words.
	Problems []string
}

// Section is one section of the stream.
type Section struct {
	Kind     Kind
	Name     string // QEMU's idstr; for Part and End that of their Start
	ID       uint32 // unique in the stream, given in order of creation
	Instance uint32 // unique together with Name; for "cpu" the CPU index
	Version  uint32
	Offset   int    // of Payload in the stream, in bytes
	Payload  []byte // part of the parsed stream, not a copy
}

// Kind says which part of its device's state a section holds.
type Kind byte

// The kinds, with their numbers in the stream (QEMU 7.2 migration/savevm.h).
const (
	Start Kind = 1 // first piece of a state that is sent in pieces
	Part  Kind = 2
	End   Kind = 3
	Full  Kind = 4 // the whole state
)

// Nested is KVM's state of a nested guest on one CPU, the subsection
// "cpu/nested_state" (Linux struct kvm_nested_state). Which of the pages holds
// what is said in KVM's nested_vmx_get_nested_state and svm_get_nested_state:
// the VMCB page has the controls of L2 but the save area of L1.
type Nested struct {
	Kind   NestedKind
	Flags  uint16   // KVM_STATE_NESTED_*: 1 the CPU is in the nested guest, 2 VM entry pending, 0x100 GIF
	VMXON  mem.Phys // VMX: address of the VMXON region
	VMCS12 mem.Phys // VMX: address of the current VMCS; all ones if none is current
	VMCB   mem.Phys // SVM: address of the VMCB
	Page   []byte   // 4096 bytes: VMCS12 or VMCB; nil if the stream has none
	Shadow []byte   // 4096 bytes: shadow VMCS12; nil if the stream has none
}

// NestedKind is the virtualisation extension a Nested belongs to.
type NestedKind uint16

// The kinds of nested state (KVM_STATE_NESTED_FORMAT_*).
const (
	NestedVMX NestedKind = 0
	NestedSVM NestedKind = 1
)

func (k NestedKind) String() string {
	switch k {
	case NestedVMX:
		return "vmx"
	case NestedSVM:
		return "svm"
	}
	return fmt.Sprintf("format %d", uint16(k))
}

// decoders has the function that fills State from its sections, by the name of
// the architecture.
var decoders = map[string]func(*State, *arch.Arch) error{
	arch.X86.Name: decodeX86,
}

// Parse decodes a whole stream of a machine of architecture a. Payloads point
// into b, which must not change while they are in use. A stream whose sections
// cannot be told apart with certainty is ErrCorrupt; a CPU that cannot be
// decoded is an entry in Problems, unless none can be.
func Parse(b []byte, a *arch.Arch) (*State, error) {
	if decoders[a.Name] == nil {
		return nil, fmt.Errorf("%w: no decoder for CPUs of %s", ErrUnsupported, a.Name)
	}
	s, err := parseSections(b)
	if err != nil {
		return nil, err
	}
	if err := s.decode(a); err != nil {
		return nil, err
	}
	return s, nil
}

// ParseMigration decodes a stream of migrate as it is in a file, with the places of
// the pages of RAM. What is cut short or damaged behind pages of RAM is in Problems,
// and then there may be no CPU.
func ParseMigration(b []byte, a *arch.Arch) (*State, error) {
	if decoders[a.Name] == nil {
		return nil, fmt.Errorf("%w: no decoder for CPUs of %s", ErrUnsupported, a.Name)
	}
	c, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	s := newState(c)
	s.RAM = &RAM{data: b, PageSize: 1 << c.pageBits, limit: max(minPages, uint64(len(b))/minPage)}
	if err = s.readSections(b, c, s.RAM); err == nil {
		err = s.decode(a)
	}
	if err == nil {
		return s, nil
	}
	if s.RAM.interrupted() {
		err = fmt.Errorf("%w; the migration was interrupted before it said which pages it has written", err)
	}
	if !s.RAM.any() {
		return nil, err
	}
	s.problem("not all of the stream is understood: %v", err)
	return s, nil
}

func newState(c configuration) *State {
	return &State{MachineType: c.machine, Interrupts: map[int]uint32{}, Nested: map[int]*Nested{}}
}

// parseSections reads everything that does not depend on the architecture.
func parseSections(b []byte) (*State, error) {
	c, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	s := newState(c)
	if err := s.readSections(b, c, nil); err != nil {
		return nil, err
	}
	return s, nil
}

// readSections reads what follows the header.
func (s *State) readSections(b []byte, c configuration, index *RAM) error {
	ram, rest, err := ramSections(b, c, index)
	if err != nil {
		return err
	}
	devices, err := split(b, rest)
	if err != nil {
		return err
	}
	s.Sections = append(ram, devices...)
	return nil
}

// decode makes registers of the sections.
func (s *State) decode(a *arch.Arch) error {
	if err := decoders[a.Name](s, a); err != nil {
		return err
	}
	if s.MachineType != "" {
		s.RunState = runState(s)
	}
	return nil
}

// section returns the whole section with this name and instance, or nil.
func (s *State) section(name string, instance uint32) *Section {
	for i := range s.Sections {
		c := &s.Sections[i]
		if c.Kind == Full && c.Name == name && c.Instance == instance {
			return c
		}
	}
	return nil
}

func (s *State) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

// runState reads the section "globalstate" (QEMU 7.2 migration/global_state.c):
//
//	0  uint32 size        of the string, its NUL included
//	4  char runstate[100]
func runState(s *State) string {
	g := s.section("globalstate", 0)
	if g == nil {
		return ""
	}
	r := reader{b: g.Payload}
	size := int64(r.u32())
	text := r.bytes(100)
	if r.short || size < 1 || size > 100 {
		s.problem("section globalstate at offset %#x: no run state in it", g.Offset)
		return ""
	}
	return string(text[:size-1])
}
