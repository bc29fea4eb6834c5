package agent

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patternRole makes a process that holds memory with known contents.
const patternRole = "pattern"

const (
	smallPage = 4 << 10
	hugePage  = 2 << 20
	// patternHalf is how much memory is mapped with pages of each size, in bytes.
	patternHalf = 32 << 20
)

// PatternWord is the 8-byte little-endian word that "pattern" writes to the
// virtual address addr, which is a multiple of 8. The factor is odd, so no two
// addresses share a word, and neighbours differ in most bits.
func PatternWord(addr uint64) uint64 { return addr * 0x9e3779b97f4a7c15 }

// patternHolder keeps the process of the request "pattern".
type patternHolder struct {
	children *children
	mu       sync.Mutex
	cmd      *exec.Cmd      // guarded by mu: nil if there is none
	hold     io.WriteCloser // guarded by mu: its input; closing it ends the process
}

// start answers with what the process says: see pattern.
func (h *patternHolder) start() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		return nil, errors.New("a pattern is mapped already; unpattern ends it")
	}
	cmd := self(patternRole)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.children.start(cmd); err != nil {
		return nil, err
	}
	text, err := readUntil(out, "end\n")
	if err != nil {
		in.Close()
		return nil, errors.Join(fmt.Errorf("pattern: %w: %s", err, text), h.children.wait(cmd))
	}
	h.cmd, h.hold = cmd, in
	return text, nil
}

// readUntil reads lines up to the one that is last, which is left out.
func readUntil(r io.Reader, last string) ([]byte, error) {
	br := bufio.NewReader(r)
	var out bytes.Buffer
	for {
		line, err := br.ReadString('\n')
		if err != nil || line == last {
			return out.Bytes(), err
		}
		out.WriteString(line)
	}
}

func (h *patternHolder) stop() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd == nil {
		return errors.New("no pattern is mapped")
	}
	cmd := h.cmd
	h.cmd = nil
	return errors.Join(h.hold.Close(), h.children.wait(cmd))
}

// pattern maps the memory, describes it on out and keeps it until in ends:
//
//	pid PID
//	range ADDR SIZE PAGESIZE HOW       one per mapping
//	page ADDR PHYS SIZE                one per page; PHYS is L2-physical in L2
//	end
//
// Addresses are in hex with 0x, sizes decimal in bytes. HOW says what made the
// pages large: hugetlb or thp; small pages have "small".
func pattern(in io.Reader, out io.Writer) error {
	os.WriteFile("/proc/self/comm", []byte("lab-pattern"), 0)
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "pid %d\n", os.Getpid())
	small, err := mapSmall()
	if err != nil {
		return err
	}
	huge, how, err := mapHuge()
	if err != nil {
		return err
	}
	if err := describe(w, small, smallPage, "small"); err != nil {
		return err
	}
	if err := describe(w, huge, hugePage, how); err != nil {
		return err
	}
	fmt.Fprintln(w, "end")
	if err := w.Flush(); err != nil {
		return err
	}
	io.Copy(io.Discard, in)
	return nil
}

// mapSmall maps and fills pages that nothing may merge to large ones.
func mapSmall() ([]byte, error) {
	b, err := mapPrivate(patternHalf, 0)
	if err != nil {
		return nil, err
	}
	// EINVAL: a kernel without transparent huge pages, which is as good.
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("madvise: %w", err)
	}
	fill(b)
	return b, unix.Mlock(b)
}

// mapHuge maps and fills 2 MiB pages: reserved ones if the kernel can free as
// many, else transparent ones, and says which.
func mapHuge() ([]byte, string, error) {
	pages := strconv.Itoa(patternHalf / hugePage)
	if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte(pages), 0); err == nil {
		if b, err := mapPrivate(patternHalf, unix.MAP_HUGETLB); err == nil {
			fill(b)
			return b, "hugetlb", nil
		}
		os.WriteFile("/proc/sys/vm/nr_hugepages", []byte("0"), 0)
	}
	b, err := mapPrivate(patternHalf+hugePage, 0)
	if err != nil {
		return nil, "", err
	}
	b = b[-address(b)&(hugePage-1):][:patternHalf]
	if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
		return nil, "", fmt.Errorf("no huge pages: madvise: %w", err)
	}
	fill(b)
	got, err := hugeBytes("/proc/self/smaps", address(b))
	if err != nil {
		return nil, "", err
	}
	if got < patternHalf {
		return nil, "", fmt.Errorf("only %d of %d bytes got huge pages; give the machine more memory",
			got, patternHalf)
	}
	return b, "thp", unix.Mlock(b)
}

func mapPrivate(size, flags int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return b, nil
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

func fill(b []byte) {
	base := address(b)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], PatternWord(base+uint64(i)))
	}
}

// hugeBytes is AnonHugePages of the mapping that holds addr, in bytes.
func hugeBytes(smaps string, addr uint64) (uint64, error) {
	text, err := os.ReadFile(smaps)
	if err != nil {
		return 0, err
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		var first, end, kB uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &first, &end); n == 2 {
			inside = first <= addr && addr < end
		} else if n, _ := fmt.Sscanf(line, "AnonHugePages: %d kB", &kB); n == 1 && inside {
			return kB << 10, nil
		}
	}
	return 0, fmt.Errorf("%s does not describe the mapping at %#x", smaps, addr)
}

// describe writes one range line and a page line for each page of b.
func describe(w io.Writer, b []byte, pageSize uint64, how string) error {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	base := address(b)
	fmt.Fprintf(w, "range %#x %d %d %s\n", base, len(b), pageSize, how)
	for addr := base; addr < base+uint64(len(b)); addr += pageSize {
		var entry [8]byte
		if _, err := pagemap.ReadAt(entry[:], int64(addr/smallPage*8)); err != nil {
			return fmt.Errorf("pagemap at %#x: %w", addr, err)
		}
		phys, err := pagemapPhys(binary.LittleEndian.Uint64(entry[:]))
		if err != nil {
			return fmt.Errorf("pagemap at %#x: %w", addr, err)
		}
		fmt.Fprintf(w, "page %#x %#x %d\n", addr, phys, pageSize)
	}
	return nil
}

// pagemapPhys is the physical address in an entry of /proc/PID/pagemap: bit 63
// present, bits 54..0 the frame number (Linux document "pagemap, from the
// userspace perspective").
func pagemapPhys(entry uint64) (uint64, error) {
	if entry>>63 == 0 {
		return 0, errors.New("page is not present")
	}
	frame := entry & (1<<55 - 1)
	if frame == 0 {
		return 0, errors.New("frame number is hidden: not root?")
	}
	return frame * smallPage, nil
}
