package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is a line of /proc/PID/maps.
type mapping struct {
	start, end uint64 // end exclusive
	shared     bool
	offset     uint64 // of start in the file
	dev        uint64 // as in stat(2)
	inode      uint64 // 0 for anonymous memory
	path       string // with " (deleted)" if it is
	name       string // "start-end" of the line, the name in /proc/PID/map_files
}

// parseMaps parses /proc/PID/maps:
//
//	7f6337fff000-7f63b7fff000 rw-s 00000000 00:1b 2        /dev/shm/x
//
// Source: proc(5), /proc/pid/maps.
func parseMaps(r io.Reader) ([]mapping, error) {
	var out []mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		m, ok := parseMapping(lines.Text())
		if !ok {
			return nil, fmt.Errorf("bad line %.100q", lines.Text())
		}
		out = append(out, m)
	}
	return out, lines.Err()
}

func parseMapping(line string) (m mapping, ok bool) {
	f, path := cutFields(line, 5)
	if len(f) != 5 || len(f[1]) != 4 {
		return m, false
	}
	start, end, _ := strings.Cut(f[0], "-")
	major, minor, _ := strings.Cut(f[3], ":")
	var err [6]error
	m.start, err[0] = strconv.ParseUint(start, 16, 64)
	m.end, err[1] = strconv.ParseUint(end, 16, 64)
	m.offset, err[2] = strconv.ParseUint(f[2], 16, 64)
	maj, e3 := strconv.ParseUint(major, 16, 32)
	mnr, e4 := strconv.ParseUint(minor, 16, 32)
	m.inode, err[5] = strconv.ParseUint(f[4], 10, 64)
	err[3], err[4] = e3, e4
	for _, e := range err {
		if e != nil {
			return m, false
		}
	}
	m.dev = unix.Mkdev(uint32(maj), uint32(mnr))
	m.shared = f[1][3] == 's'
	m.name = f[0]
	m.path = strings.ReplaceAll(strings.TrimLeft(path, " "), `\012`, "\n")
	return m, m.start < m.end
}

func (p procFS) maps(pid int) ([]mapping, error) {
	f, err := os.Open(p.path(pid, "maps"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := parseMaps(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return out, nil
}

// spanAt returns the mapping of size bytes at addr as one, though the kernel may
// have split it: the parts must follow each other in memory and in the same file.
func spanAt(maps []mapping, addr, size uint64) (mapping, error) {
	var out mapping
	next := addr
	for _, m := range maps {
		if m.end <= next {
			continue
		}
		if m.start > next {
			break
		}
		m.offset += next - m.start
		m.start = next
		if out.end == 0 {
			out = m
		} else if m.dev != out.dev || m.inode != out.inode || m.shared != out.shared ||
			m.inode != 0 && m.offset != out.offset+(m.start-out.start) {
			return mapping{}, fmt.Errorf("mapping at %#x is of several things", addr)
		}
		out.end, next = m.end, m.end
		if next-addr >= size {
			out.end = addr + size
			return out, nil
		}
	}
	return mapping{}, fmt.Errorf("nothing is mapped at %#x", next)
}
