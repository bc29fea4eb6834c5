package linux

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"nestdbg/internal/mem"
)

// VMCoreInfo is what the kernel says about itself for crash dumps (Linux 6.1
// kernel/crash_core.c; Documentation/admin-guide/kdump/vmcoreinfo.rst): lines
// KEY=VALUE, by key. Symbols are runtime addresses.
type VMCoreInfo map[string]string

// vmcoreinfoMax is the size of the kernel's buffer, one page.
const vmcoreinfoMax = pageSize

var vmcoreinfoStart = []byte("OSRELEASE=")

// vmcoreinfoNote starts the ELF note that wraps the same text: name size 11,
// text size (4 bytes, any), type 0, name. Linux 6.1 kernel/crash_core.c:update_vmcoreinfo_note.
var vmcoreinfoNote = []byte("VMCOREINFO\x00\x00")

// noteText is where the text of a note begins, in bytes from the note's start.
const noteText = 24

// ParseVMCoreInfo parses the text, which ends at the first NUL or with the
// slice. A text that does not begin with OSRELEASE is ErrNotFound; one that is
// not lines of printable KEY=VALUE is ErrCorrupt.
func ParseVMCoreInfo(text []byte) (VMCoreInfo, error) {
	if !bytes.HasPrefix(text, vmcoreinfoStart) {
		return nil, fmt.Errorf("VMCOREINFO: no OSRELEASE: %w", ErrNotFound)
	}
	text = text[:min(len(text), vmcoreinfoMax)]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	info := VMCoreInfo{}
	for line := range bytes.Lines(text) {
		line, ended := bytes.CutSuffix(line, []byte{'\n'})
		if !ended {
			break // cut off by the end of the buffer: not a whole value
		}
		key, value, ok := strings.Cut(string(line), "=")
		if !ok || key == "" || !printable(line) {
			return nil, fmt.Errorf("VMCOREINFO: line %d is not KEY=VALUE: %w", len(info)+1, ErrCorrupt)
		}
		info[key] = value
	}
	if info["OSRELEASE"] == "" {
		return nil, fmt.Errorf("VMCOREINFO: empty OSRELEASE: %w", ErrCorrupt)
	}
	return info, nil
}

// Text is the kernel's text again; the lines but the first are in order of their keys.
func (i VMCoreInfo) Text() []byte {
	const first = "OSRELEASE"
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s=%s\n", first, i[first])
	for _, key := range slices.Sorted(maps.Keys(i)) {
		if key != first {
			fmt.Fprintf(&b, "%s=%s\n", key, i[key])
		}
	}
	return b.Bytes()
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Symbol is the runtime address of a symbol, if it is listed.
func (i VMCoreInfo) Symbol(name string) (mem.Virt, bool) {
	v, err := strconv.ParseUint(strings.TrimPrefix(i["SYMBOL("+name+")"], "0x"), 16, 64)
	return mem.Virt(v), err == nil
}

// Number is NUMBER(name): decimal, or hexadecimal with 0x. Values above 2^63-1 wrap.
func (i VMCoreInfo) Number(name string) (int64, bool) {
	s := i["NUMBER("+name+")"]
	if v, err := strconv.ParseInt(s, 0, 64); err == nil {
		return v, true
	}
	v, err := strconv.ParseUint(s, 0, 64)
	return int64(v), err == nil
}

// Offset is OFFSET(member), in bytes, for "struct.member".
func (i VMCoreInfo) Offset(member string) (uint64, bool) { return i.count("OFFSET(" + member + ")") }

// SizeOf is SIZE(name), in bytes, of a type.
func (i VMCoreInfo) SizeOf(name string) (uint64, bool) { return i.count("SIZE(" + name + ")") }

// Length is LENGTH(name): elements of an array.
func (i VMCoreInfo) Length(name string) (uint64, bool) { return i.count("LENGTH(" + name + ")") }

func (i VMCoreInfo) count(key string) (uint64, bool) {
	v, err := strconv.ParseUint(i[key], 10, 64)
	return v, err == nil
}

// slide is KERNELOFFSET: hexadecimal without 0x.
func (i VMCoreInfo) slide() (uint64, bool) {
	v, err := strconv.ParseUint(i["KERNELOFFSET"], 16, 64)
	return v, err == nil
}

// vmcoreinfoIn returns the text in a page, in either form, nil if there is none.
func vmcoreinfoIn(page []byte) []byte {
	if bytes.HasPrefix(page, vmcoreinfoStart) {
		return page
	}
	if len(page) > noteText && bytes.HasPrefix(page, []byte{11, 0, 0, 0}) &&
		bytes.HasPrefix(page[12:], vmcoreinfoNote) && bytes.HasPrefix(page[noteText:], vmcoreinfoStart) {
		return page[noteText:]
	}
	return nil
}
