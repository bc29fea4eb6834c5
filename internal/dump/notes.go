package dump

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/arch"
)

// State is what the notes of a dump say beside memory. What is not there is
// absent; what is wrong is in Problems.
type State struct {
	CPUs       []*arch.Registers
	VMCoreInfo []byte // the text, nil if there is none
	Problems   []string
	// QEMU says that the CPUs are in QEMU's own form, with control registers.
	QEMU bool

	arch   *arch.Arch
	status []*arch.Registers // of NT_PRSTATUS
	qemu   []*arch.Registers // of QEMU's own notes
}

func newState(a *arch.Arch) State { return State{arch: a} }

func (s *State) problem(format string, args ...any) {
	if len(s.Problems) < maxProblems {
		s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
	}
}

// Bounds of what is told and taken of a dump.
const (
	maxProblems = 32
	maxCPUs     = 8192
)

// Types of notes (ELF gABI; QEMU 7.2 target/i386/arch_dump.c: a note "QEMU" has
// type 0; Linux 6.1 kernel/crash_core.c).
const (
	noteStatus = 1 // NT_PRSTATUS, name "CORE"
	noteQEMU   = 0
)

// readNotes reads a segment of notes that lies at an offset of the file. It may be
// called more than once.
func (s *State) readNotes(b []byte, offset uint64) {
	le := binary.LittleEndian
	const header = 12
	for at := 0; len(b)-at >= header; {
		nameSize, size, kind := uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:])), le.Uint32(b[at+8:])
		if nameSize == 0 && size == 0 && kind == 0 {
			break // the rest is padding
		}
		start := uint64(at) + header
		data := start + (nameSize+3)&^3
		end := data + size
		if end > uint64(len(b)) {
			s.problem("at %#x: a note of %#x bytes in %#x; it and the rest are not read", offset+uint64(at), size, uint64(len(b))-start)
			break
		}
		s.note(cString(b[start:start+nameSize]), kind, b[data:end], offset+data)
		at = int(min((end+3)&^3, uint64(len(b))))
	}
	s.join()
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// note takes one note, whose data lies at an offset of the file.
func (s *State) note(name string, kind uint32, data []byte, offset uint64) {
	if len(s.status) >= maxCPUs || len(s.qemu) >= maxCPUs {
		return
	}
	switch {
	case name == "CORE" && kind == noteStatus:
		r, err := parseStatus(s.arch, data)
		if err != nil {
			s.problem("at %#x: registers of CPU %d: %v", offset, len(s.status), err)
			r = arch.NewRegisters(s.arch)
		}
		s.status = append(s.status, r)
	case name == "QEMU" && kind == noteQEMU:
		r, err := parseQEMU(s.arch, data)
		if err != nil {
			s.problem("at %#x: QEMU's state of CPU %d: %v", offset, len(s.qemu), err)
			r = arch.NewRegisters(s.arch)
		}
		s.qemu = append(s.qemu, r)
	case name == "VMCOREINFO":
		s.VMCoreInfo = data
	}
}

// join makes CPUs of the two forms of notes. QEMU's has what the other has, and
// where they differ neither is believed without a word.
func (s *State) join() {
	s.QEMU = len(s.qemu) > 0
	if !s.QEMU {
		s.CPUs = s.status
		return
	}
	s.CPUs = s.qemu
	if len(s.status) != len(s.qemu) {
		s.problem("notes of %d CPUs, and QEMU's of %d: QEMU's are used", len(s.status), len(s.qemu))
		return
	}
	for i, q := range s.qemu {
		for _, r := range s.arch.Regs {
			a, ok1 := q.Get(r.Name)
			b, ok2 := s.status[i].Get(r.Name)
			switch {
			case ok1 && ok2 && a != b:
				s.problem("CPU %d: its two notes differ in %s, %#x and %#x; QEMU's is used", i, r.Name, a, b)
			case ok2 && !ok1:
				q.Set(r.Name, b)
			}
		}
	}
}
