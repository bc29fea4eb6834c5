// Package vmstatetest makes device-state streams as QEMU writes them, for tests.
// It shares no table with package vmstate: its offsets are those seen in a
// stream of QEMU 7.2.22.
package vmstatetest

import (
	"encoding/binary"
	"fmt"
)

// Builder collects the sections of a stream.
type Builder struct {
	b      []byte
	nextID uint32
}

// NewDevices starts a stream like that of xen-save-devices-state.
func NewDevices() *Builder {
	return &Builder{b: []byte{'Q', 'E', 'V', 'M', 0, 0, 0, 3}}
}

// NewMigration starts a stream like that of migrate, with these capabilities.
func NewMigration(machine string, capabilities ...string) *Builder {
	s := NewDevices()
	s.b = append(be32(append(s.b, 7), uint32(len(machine))), machine...)
	if len(capabilities) > 0 {
		body := be32(nil, uint32(len(capabilities)))
		for _, c := range capabilities {
			body = counted(body, c)
		}
		s.b = append(s.b, Subsection("configuration/capabilities", body)...)
	}
	return s
}

// Raw appends bytes as they are.
func (s *Builder) Raw(b ...byte) *Builder {
	s.b = append(s.b, b...)
	return s
}

// Command appends a command to whoever loads the stream.
func (s *Builder) Command(command uint16, data ...byte) *Builder {
	s.b = binary.BigEndian.AppendUint16(append(s.b, 8), command)
	s.b = binary.BigEndian.AppendUint16(s.b, uint16(len(data)))
	return s.Raw(data...)
}

// SetID makes id the next section's; the ones after it count on from there.
func (s *Builder) SetID(id uint32) *Builder {
	s.nextID = id
	return s
}

// Section appends a whole section.
func (s *Builder) Section(name string, instance, version uint32, payload []byte) *Builder {
	s.b = append(s.b, SectionHeader(s.nextID, name, instance, version)...)
	return s.finish(payload)
}

// Piece appends a piece of a section: kind is 1, 2 or 3, and only the first has
// a name.
func (s *Builder) Piece(kind byte, name string, version uint32, payload []byte) *Builder {
	if kind == 1 {
		h := SectionHeader(s.nextID, name, 0, version)
		h[0] = kind
		s.b = append(s.b, h...)
		return s.finish(payload)
	}
	s.nextID--
	s.b = be32(append(s.b, kind), s.nextID)
	return s.finish(payload)
}

func (s *Builder) finish(payload []byte) *Builder {
	s.b = append(append(s.b, payload...), Footer(s.nextID)...)
	s.nextID++
	return s
}

// Bytes ends the stream and returns it.
func (s *Builder) Bytes() []byte { return append(append([]byte(nil), s.b...), 0) }

// Description ends the stream with this description and returns it.
func (s *Builder) Description(json string) []byte {
	return append(be32(append(s.Bytes(), 6), uint32(len(json))), json...)
}

// SectionHeader is the header of a whole section.
func SectionHeader(id uint32, name string, instance, version uint32) []byte {
	h := counted(be32([]byte{4}, id), name)
	return be32(be32(h, instance), version)
}

// Footer is the footer of section id.
func Footer(id uint32) []byte { return be32([]byte{0x7e}, id) }

// Subsection is a subsection of version 1.
func Subsection(name string, body []byte) []byte {
	return append(be32(counted([]byte{5}, name), 1), body...)
}

// cpuSize is the size of the section "cpu" without subsections.
const cpuSize = 0x719

// cpuField is a place in the section "cpu".
type cpuField struct{ at, size int }

// cpuFields are some of the fields of the section "cpu".
var cpuFields = map[string]cpuField{
	"rax": {0x00, 8}, "rcx": {0x08, 8}, "rdx": {0x10, 8}, "rbx": {0x18, 8},
	"rsp": {0x20, 8}, "rbp": {0x28, 8}, "rsi": {0x30, 8}, "rdi": {0x38, 8},
	"r8": {0x40, 8}, "r15": {0x78, 8}, "rip": {0x80, 8}, "eflags": {0x88, 8}, "hflags": {0x90, 4},
	"fctrl": {0x94, 2}, "fstat": {0x96, 2}, "x87 not empty": {0x98, 2},
	"es": {0xec, 4}, "cs": {0x100, 4}, "ss": {0x114, 4}, "ss flags": {0x124, 4},
	"fs_base": {0x140, 8}, "gs_base": {0x154, 8}, "tr": {0x178, 4}, "tr_base": {0x17c, 8},
	"gdtr_base": {0x190, 8}, "gdtr_limit": {0x198, 4}, "idtr_base": {0x1a4, 8},
	"cr0": {0x1c8, 8}, "cr2": {0x1d0, 8}, "cr3": {0x1d8, 8}, "cr4": {0x1e0, 8}, "dr7": {0x220, 8},
	"mxcsr": {0x22c, 4}, "efer": {0x330, 8}, "lstar": {0x340, 8}, "k_gs_base": {0x358, 8},
	"hflags2": {0x36c, 4}, "vm_hsave": {0x370, 8}, "vm_vmcb": {0x378, 8}, "v_tpr": {0x39c, 1},
}

// CPU is the payload of a section "cpu", version 12: these values, zero for the
// others, then the subsections. A name it does not know panics.
func CPU(values map[string]uint64, subsections ...[]byte) []byte {
	p := make([]byte, cpuSize)
	for name, v := range values {
		f, ok := cpuFields[name]
		if !ok {
			panic(fmt.Sprintf("no field %q", name))
		}
		for i := f.size - 1; i >= 0; i-- {
			p[f.at+i] = byte(v)
			v >>= 8
		}
	}
	for _, s := range subsections {
		p = append(p, s...)
	}
	return p
}

// SetX87 puts a value into register i, by QEMU's number, of a payload of CPU.
func SetX87(cpu []byte, i int, mantissa uint64, exponent uint16) {
	at := 0x9c + 10*i
	binary.BigEndian.PutUint64(cpu[at:], mantissa)
	binary.BigEndian.PutUint16(cpu[at+8:], exponent)
}

// NPT is the subsection that TCG sends while a nested guest runs.
func NPT(root uint64, mode uint32) []byte {
	return Subsection("cpu/svn_npt", be32(be64(nil, root), mode))
}

// Common is the payload of a section "cpu_common".
func Common(halted, interrupts uint32) []byte { return be32(be32(nil, halted), interrupts) }

// APIC is the payload of a section "apic", version 3, with a task priority.
func APIC(tpr byte) []byte {
	p := make([]byte, 181)
	p[6] = tpr
	return p
}

func counted(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }
func be32(b []byte, v uint32) []byte    { return binary.BigEndian.AppendUint32(b, v) }
func be64(b []byte, v uint64) []byte    { return binary.BigEndian.AppendUint64(b, v) }
