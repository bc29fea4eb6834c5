package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Numbers of ELF-64 core files (System V gABI, "Object Files"). A dump by kdump, as
// crash reads it, is a core file with the note VMCOREINFO whose segments are physical
// memory (Linux 6.1 kernel/crash_core.c, fs/proc/vmcore.c).
const (
	coreHeader  = 64
	coreProgram = 56
	coreAlign   = 4096
	ptLoad      = 1
	ptNote      = 4
)

// writeCore writes a machine's physical memory as a dump for crash.
func writeCore(path string, m *machine.Machine, k *linux.Kernel) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	note := coreNote(k.VMCoreInfo)
	ranges := m.Phys.PhysRanges()
	at := uint64(coreHeader + coreProgram*(1+len(ranges)))
	var head []byte
	head = append(head, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	head = appendWords(head, uint16(4), uint16(62), uint32(1), uint64(0), uint64(coreHeader), uint64(0), // ET_CORE, EM_X86_64
		uint32(0), uint16(coreHeader), uint16(coreProgram), uint16(1+len(ranges)), uint16(0), uint16(0), uint16(0))
	head = appendWords(head, uint32(ptNote), uint32(0), at, uint64(0), uint64(0), uint64(len(note)), uint64(len(note)), uint64(0))
	at = (at + uint64(len(note)) + coreAlign - 1) &^ (coreAlign - 1)
	for _, r := range ranges {
		head = appendWords(head, uint32(ptLoad), uint32(7), at, uint64(0), r.First, r.Size(), r.Size(), uint64(coreAlign))
		at += r.Size()
	}
	w := bufio.NewWriterSize(out, 1<<20)
	head = append(head, note...)
	head = append(head, make([]byte, -len(head)&(coreAlign-1))...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, r := range ranges {
		if err := copyRange(w, m, r); err != nil {
			return err
		}
	}
	return w.Flush()
}

// appendWords appends numbers of fixed size, little-endian.
func appendWords(b []byte, words ...any) []byte {
	for _, v := range words {
		b, _ = binary.Append(b, binary.LittleEndian, v) // fails for no number
	}
	return b
}

// coreNote is the note VMCOREINFO.
func coreNote(info linux.VMCoreInfo) []byte {
	var text string
	for key, value := range info {
		text += fmt.Sprintf("%s=%s\n", key, value)
	}
	const name = "VMCOREINFO\x00\x00" // 11 bytes and padding
	b := appendWords(nil, uint32(11), uint32(len(text)), uint32(0))
	b = append(append(b, name...), text...)
	return append(b, make([]byte, -len(b)&3)...)
}

func copyRange(w io.Writer, m *machine.Machine, r mem.Range) error {
	buf := make([]byte, 1<<20)
	for a := r.First; ; {
		n := min(uint64(len(buf)), r.Last-a+1)
		if _, err := m.Phys.ReadPhys(buf[:n], mem.Phys(a)); err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if r.Last-a < n {
			return nil
		}
		a += n
	}
}
