package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"nestdbg/lab/agent"
)

// hostFiles is what L1 borrows from L0: its QEMU with libraries and firmware,
// and busybox. The keys are the paths in L1.
type hostFiles struct {
	qemu  string // L0's own QEMU
	files map[string]string
}

// firmware is what QEMU needs to start a microvm, in firmwareDirs.
var (
	firmware = []string{
		"bios-256k.bin", "bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin",
	}
	firmwareDirs = []string{"/usr/share/seabios", "/usr/share/qemu"}
)

// requiredFirmware are those without which a VM does not start; the others
// belong to some versions of QEMU only.
var requiredFirmware = map[string]string{
	"bios-microvm.bin":  "seabios",
	"linuxboot_dma.bin": "qemu-system-data",
}

// findHostFiles looks for everything and names all packages that are missing.
func findHostFiles(ctx context.Context, qemu string) (*hostFiles, error) {
	h := &hostFiles{files: make(map[string]string)}
	var missing []string
	need := func(program, pkg string) string {
		path, err := exec.LookPath(program)
		if err != nil {
			missing = append(missing, pkg)
		}
		return path
	}
	h.qemu = need(qemu, "qemu-system-x86")
	need("dpkg-deb", "dpkg")
	box := need("busybox", "busybox-static")
	if box != "" && !isStatic(box) {
		missing = append(missing, "busybox-static")
	}
	for _, name := range firmware {
		path, ok := findFirmware(name)
		if ok {
			h.files[path] = path
		} else if pkg := requiredFirmware[name]; pkg != "" {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("the lab needs packages that are not installed: apt-get install %s",
			strings.Join(slices.Compact(missing), " "))
	}
	h.files[agent.Busybox] = box
	h.files[agent.VMQEMU] = h.qemu
	libs, err := libraries(ctx, h.qemu)
	if err != nil {
		return nil, err
	}
	for _, lib := range libs {
		h.files[lib] = lib
	}
	return h, nil
}

func findFirmware(name string) (string, bool) {
	for _, dir := range firmwareDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, true
		}
	}
	return "", false
}

// libraries lists the dynamic linker and all libraries of a program.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := output(ctx, "ldd", program)
	if err != nil {
		return nil, err
	}
	return parseLdd(out)
}

// parseLdd reads lines "NAME => PATH (ADDRESS)" and "PATH (ADDRESS)".
func parseLdd(out []byte) ([]string, error) {
	var libs []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("ldd: %s", strings.TrimSpace(line))
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				libs = append(libs, word)
			}
		}
	}
	return libs, nil
}

// isStatic reports whether a program runs without a dynamic linker.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// readAgent reads the nestdbg binary that the machines run, without what only
// debuggers of nestdbg need.
func readAgent(path string) ([]byte, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		path = self
	}
	if !isStatic(path) {
		return nil, fmt.Errorf("%s is no static program, so it cannot be the lab's agent: "+
			"build nestdbg with CGO_ENABLED=0", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	stripped, err := stripELF(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return stripped, nil
}

// Offsets of the section table's fields in a 64-bit ELF header (ELF-64 Object
// File Format, "File header").
const (
	elfHeaderSize = 64
	elfShoff      = 0x28 // uint64
	elfShnum      = 0x3c // uint16, then e_shstrndx
)

// stripELF cuts a program behind the last byte that is loaded and forgets the
// section table; the kernel looks at segments only. data is changed.
func stripELF(data []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, errors.New("not a little-endian 64-bit program")
	}
	end := uint64(elfHeaderSize)
	for _, p := range f.Progs {
		if p.Off+p.Filesz > uint64(len(data)) || p.Off+p.Filesz < p.Off {
			return nil, errors.New("program is cut off")
		}
		end = max(end, p.Off+p.Filesz)
	}
	binary.LittleEndian.PutUint64(data[elfShoff:], 0)
	binary.LittleEndian.PutUint32(data[elfShnum:], 0)
	return data[:end], nil
}
