package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// procFS is where the proc file system is mounted. Tests use a directory of
// fixtures.
type procFS string

const proc procFS = "/proc"

func (p procFS) path(pid int, name string) string {
	return filepath.Join(string(p), strconv.Itoa(pid), name)
}

// pids lists the processes.
func (p procFS) pids() ([]int, error) {
	dir, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out, nil
}

// args is the process's command line; empty for kernel threads and zombies.
func (p procFS) args(pid int) ([]string, error) {
	b, err := os.ReadFile(p.path(pid, "cmdline"))
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00"), nil
}

// comm is the process's short name, or "?".
func (p procFS) comm(pid int) string {
	b, err := os.ReadFile(p.path(pid, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// uid is the user that owns the process.
func (p procFS) uid(pid int) (int, error) {
	fi, err := os.Stat(p.path(pid, ""))
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("no owner")
	}
	return int(st.Uid), nil
}

// stopped reports whether the process is stopped by a signal or a debugger, so
// that it cannot answer anybody.
//
// Source: proc(5), /proc/pid/stat. The name, in parentheses, may hold anything.
func (p procFS) stopped(pid int) bool {
	b, err := os.ReadFile(p.path(pid, "stat"))
	i := bytes.LastIndexByte(b, ')')
	return err == nil && i >= 0 && i+2 < len(b) && (b[i+2] == 'T' || b[i+2] == 't')
}

// fds returns what the process's descriptors point to, as /proc shows it.
func (p procFS) fds(pid int) (map[int]string, error) {
	dir := p.path(pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("descriptors of process %d: %w", pid, err)
	}
	out := map[int]string{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out[fd] = link
		}
	}
	return out, nil
}

// socketInode parses the link of a socket's descriptor, "socket:[123]".
func socketInode(link string) (uint64, bool) {
	s, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	return inode, err == nil
}

// socketInodes returns the inodes of the process's sockets.
func (p procFS) socketInodes(pid int) (map[uint64]bool, error) {
	fds, err := p.fds(pid)
	if err != nil {
		return nil, err
	}
	out := map[uint64]bool{}
	for _, link := range fds {
		if inode, ok := socketInode(link); ok {
			out[inode] = true
		}
	}
	return out, nil
}

// owners returns the processes that have a socket with one of these inodes.
// Processes that may not be looked into are left out.
func (p procFS) owners(inodes map[uint64]bool) []Holder {
	pids, err := p.pids()
	if err != nil || len(inodes) == 0 {
		return nil
	}
	var out []Holder
	for _, pid := range pids {
		own, err := p.socketInodes(pid)
		if err != nil {
			continue
		}
		for inode := range own {
			if inodes[inode] {
				out = append(out, Holder{pid, p.comm(pid)})
				break
			}
		}
	}
	return out
}

// sameMounts reports whether the process sees the same file system as we do, as
// far as that can be told.
func (p procFS) sameMounts(pid int) bool {
	own, err1 := os.Readlink(filepath.Join(string(p), "self/ns/mnt"))
	its, err2 := os.Readlink(p.path(pid, "ns/mnt"))
	ownRoot, err3 := os.Stat(filepath.Join(string(p), "self/root"))
	itsRoot, err4 := os.Stat(p.path(pid, "root"))
	if errors.Join(err1, err2, err3, err4) != nil {
		return true
	}
	return own == its && os.SameFile(ownRoot, itsRoot)
}

// resolve turns a path as the process means it into one that works here.
func (p procFS) resolve(pid int, path string) string {
	if path == "" || path[0] == '@' {
		return path
	}
	if path[0] != '/' {
		cwd, err := os.Readlink(p.path(pid, "cwd"))
		if err != nil {
			return path
		}
		path = filepath.Join(cwd, path)
	}
	if p.sameMounts(pid) {
		return path
	}
	return filepath.Join(p.path(pid, "root"), path)
}
