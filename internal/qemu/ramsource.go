package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// openPart opens the bytes of a block that lies at the address hva of the QEMU
// process, by what /proc/PID/maps says is mapped there. So it is certain that the
// file is the one that the machine uses now, and where in it the block begins.
func (p procFS) openPart(pid int, b block, hva uint64, maps []mapping) (*ramPart, error) {
	part := &ramPart{name: b.name, size: b.size, ranges: b.ranges}
	m, err := spanAt(maps, hva, b.size)
	if err == nil && m.shared && m.inode != 0 {
		if part.mapFile(func() (ramFile, error) { return p.openMapped(pid, m) }, m.offset) == nil {
			return part, nil
		}
	}
	part.base = hva
	part.source = fmt.Sprintf("process_vm_readv of process %d", pid)
	var probe [1]byte
	if _, err := readProcess(pid, probe[:], hva+b.ranges[0].offset); err != nil {
		part.source = "nothing"
		part.err = fmt.Errorf("memory backend %s of QEMU %d cannot be read: %w; %s", b.name, pid, err, shareOption)
		return part, part.err
	}
	return part, nil
}

// shareOption is how QEMU has to be started for its memory to be a file.
const shareOption = "run nestdbg as the user of QEMU or root, or start QEMU with -object " +
	"memory-backend-file,id=ram,share=on,mem-path=FILE,size=SIZE -machine memory-backend=ram"

// ramFile is an open file of RAM.
type ramFile struct {
	f      *os.File
	path   string
	source string
}

// mapFile maps the block from the file, where it begins at offset.
func (p *ramPart) mapFile(open func() (ramFile, error), offset uint64) error {
	f, err := open()
	if err != nil {
		return err
	}
	fi, err := f.f.Stat()
	if err == nil && fi.Mode().IsRegular() && uint64(fi.Size()) < offset+p.size {
		err = fmt.Errorf("%s is shorter than the memory backend %s", f.path, p.name)
	}
	var data []byte
	if err == nil {
		data, err = unix.Mmap(int(f.f.Fd()), int64(offset), int(p.size), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		f.f.Close()
		return fmt.Errorf("map %s: %w", f.path, err)
	}
	mem.Mapped(data, f.path, offset)
	p.file, p.path, p.source, p.data, p.base = f.f, f.path, f.source, data, offset
	return nil
}

// openMapped opens the file of a shared mapping: by its path, or if that is gone
// or hidden through a descriptor of the process, or through the mapping itself.
func (p procFS) openMapped(pid int, m mapping) (ramFile, error) {
	if strings.HasPrefix(m.path, "/") && !strings.HasSuffix(m.path, " (deleted)") {
		path := p.resolve(pid, m.path)
		if f, err := openSame(path, m); err == nil {
			return ramFile{f, path, "shared file " + path}, nil
		}
	}
	if f, ok := p.openFD(pid, m); ok {
		return f, nil
	}
	path := filepath.Join(p.path(pid, "map_files"), m.name)
	f, err := openSame(path, m)
	if err != nil {
		return ramFile{}, err
	}
	return ramFile{f, path, fmt.Sprintf("shared memory of process %d through %s", pid, path)}, nil
}

// openFD opens the file of a shared mapping through a descriptor of the process.
// Some file systems (btrfs, overlayfs) show another device in maps than in stat; if
// the file still has its name, a descriptor of the same name is proof enough.
func (p procFS) openFD(pid int, m mapping) (ramFile, bool) {
	fds, err := p.fds(pid)
	if err != nil {
		return ramFile{}, false
	}
	what, named := "shared file "+m.path, true
	switch {
	case strings.HasPrefix(m.path, "/memfd:"):
		what, named = "memfd", false
	case strings.HasSuffix(m.path, " (deleted)"):
		what, named = "deleted file", false
	}
	for fd, link := range fds {
		if link != m.path {
			continue
		}
		path := p.path(pid, "fd/"+strconv.Itoa(fd))
		f, err := openSame(path, m)
		if err != nil && named {
			f, err = os.Open(path)
		}
		if err == nil {
			return ramFile{f, path, fmt.Sprintf("%s of process %d through %s", what, pid, path)}, true
		}
	}
	return ramFile{}, false
}

// openSame opens path if it is the file of the mapping, by device and inode.
func openSame(path string, m mapping) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Ino != m.inode || st.Dev != m.dev {
		f.Close()
		return nil, fmt.Errorf("%s is another file than the one that is mapped", path)
	}
	return f, nil
}

// openByPath opens the bytes of a block when QEMU's process cannot be looked into:
// by the path that QEMU names, which must be shared.
func openByPath(b block, path string) (*ramPart, error) {
	part := &ramPart{name: b.name, size: b.size, ranges: b.ranges, source: "nothing"}
	switch {
	case path == "":
		part.err = fmt.Errorf("memory backend %s has no file and QEMU's process cannot be read; %s", b.name, shareOption)
	case !b.shared:
		part.err = fmt.Errorf("file %s of memory backend %s is only its first content; add share=on", path, b.name)
	default:
		part.err = part.mapFile(func() (ramFile, error) {
			f, err := os.Open(path)
			return ramFile{f, path, "shared file " + path}, err
		}, 0)
	}
	return part, part.err
}
