package report

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Format is how memory is shown, in gdb's terms: count, letter, unit size.
type Format struct {
	Count  int
	Letter byte // x d u o t a c s i
	Size   int  // bytes per unit: 1 2 4 8
}

// maxExamine bounds how much one question shows, in bytes.
const maxExamine = 1 << 24

// ParseFormat reads "16gx", "s", "8i". The default is one 8-byte word in hexadecimal.
func ParseFormat(s string) (Format, error) {
	f := Format{Count: 1, Letter: 'x', Size: 8}
	digits := 0
	for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
		digits++
	}
	if digits > 0 {
		n, err := strconv.Atoi(s[:digits])
		if err != nil || n < 1 {
			return f, fmt.Errorf("format %q: the count must be a number from 1 on", s)
		}
		f.Count = n
	}
	sized := false
	for _, c := range []byte(s[digits:]) {
		switch c {
		case 'b', 'h', 'w', 'g':
			f.Size, sized = map[byte]int{'b': 1, 'h': 2, 'w': 4, 'g': 8}[c], true
		case 'x', 'd', 'u', 'o', 't', 'a', 'c', 's', 'i':
			f.Letter = c
		default:
			return f, fmt.Errorf("format %q: %q is no format letter (x d u o t a c s i) and no size (b h w g)", s, c)
		}
	}
	if f.Letter == 'c' && !sized {
		f.Size = 1
	}
	if f.Letter == 'a' {
		f.Size = 8
	}
	if f.Count > maxExamine/f.Size {
		return f, fmt.Errorf("format %q: at most %d bytes at once", s, maxExamine)
	}
	return f, nil
}

// Memory is a piece of memory as a person asked to see it.
type Memory struct {
	Machine string       `json:"machine"`
	Space   string       `json:"space"` // "va" or "pa"
	Lines   []MemoryLine `json:"lines"`
	Fault   string       `json:"fault,omitempty"` // why it ends early
}

// MemoryLine is one line: the bytes at an address and how they read.
type MemoryLine struct {
	Addr   Hex      `json:"addr"`
	Symbol string   `json:"symbol,omitempty"`
	Bytes  string   `json:"bytes"` // hexadecimal, in memory order
	Values []string `json:"values"`
}

// Examiner shows memory in one of gdb's formats.
type Examiner struct {
	Arch   *arch.Arch
	Read   func(p []byte, addr uint64) (int, error)
	Symbol func(addr uint64) string // "" if there is none
}

// Examine reads and formats memory from addr on. What was read before a fault is shown.
func (e *Examiner) Examine(m *Memory, f Format, addr uint64) {
	switch f.Letter {
	case 's':
		e.strings(m, f.Count, addr)
	case 'i':
		e.instructions(m, f.Count, addr)
	default:
		e.words(m, f, addr)
	}
}

func (e *Examiner) words(m *Memory, f Format, addr uint64) {
	b := make([]byte, f.Count*f.Size)
	n, err := e.Read(b, addr)
	m.fault(err)
	b = b[:n/f.Size*f.Size]
	perLine := 16 / f.Size
	if f.Letter == 'a' {
		perLine = 1
	}
	for len(b) > 0 {
		k := min(len(b), perLine*f.Size)
		line := MemoryLine{Addr: Hex(addr), Symbol: e.symbol(addr), Bytes: hex.EncodeToString(b[:k])}
		for o := 0; o < k; o += f.Size {
			line.Values = append(line.Values, e.value(f, b[o:o+f.Size]))
		}
		m.Lines = append(m.Lines, line)
		b, addr = b[k:], addr+uint64(k)
	}
}

// value renders one little-endian unit.
func (e *Examiner) value(f Format, b []byte) string {
	var wide [8]byte
	copy(wide[:], b)
	v := binary.LittleEndian.Uint64(wide[:])
	shift := 64 - 8*f.Size
	switch f.Letter {
	case 'd':
		return strconv.FormatInt(int64(v<<shift)>>shift, 10)
	case 'u':
		return strconv.FormatUint(v, 10)
	case 'o':
		return fmt.Sprintf("0%o", v)
	case 't':
		return fmt.Sprintf("%0*b", 8*f.Size, v)
	case 'c':
		return fmt.Sprintf("%d %s", int64(v<<shift)>>shift, strconv.QuoteRuneToASCII(rune(v&0xff)))
	case 'a':
		if s := e.symbol(v); s != "" {
			return fmt.Sprintf("%#x %s", v, s)
		}
		return fmt.Sprintf("%#x", v)
	}
	return fmt.Sprintf("0x%0*x", 2*f.Size, v)
}

// maxString is how much of one string is shown, in bytes.
const maxString = 4096

func (e *Examiner) strings(m *Memory, count int, addr uint64) {
	for range count {
		s, err := mem.CString(reader(e.Read), mem.Virt(addr), maxString)
		if err != nil {
			m.fault(err)
			return
		}
		m.Lines = append(m.Lines, MemoryLine{
			Addr: Hex(addr), Symbol: e.symbol(addr), Bytes: hex.EncodeToString(append([]byte(s), 0)),
			Values: []string{strconv.Quote(s)},
		})
		addr += uint64(len(s)) + 1
	}
}

type reader func(p []byte, addr uint64) (int, error)

func (r reader) ReadVirt(p []byte, a mem.Virt) (int, error) { return r(p, uint64(a)) }

// badInstruction stands for a byte with which no known instruction begins, as in
// gdb. What follows may be out of step.
const badInstruction = "(bad)"

func (e *Examiner) instructions(m *Memory, count int, addr uint64) {
	if e.Arch.Disassemble == nil {
		m.fault(errors.New("no disassembler for " + e.Arch.Name))
		return
	}
	for range count {
		code := make([]byte, e.Arch.MaxInsn)
		n, err := e.Read(code, addr)
		if n == 0 {
			m.fault(err)
			return
		}
		text, size, err := e.Arch.Disassemble(code[:n], addr, e.Symbol)
		if err != nil {
			text, size = badInstruction, 1
		}
		m.Lines = append(m.Lines, MemoryLine{
			Addr: Hex(addr), Symbol: e.symbol(addr), Bytes: hex.EncodeToString(code[:size]), Values: []string{text},
		})
		addr += uint64(size)
	}
}

func (e *Examiner) symbol(a uint64) string {
	if e.Symbol == nil {
		return ""
	}
	return e.Symbol(a)
}

func (m *Memory) fault(err error) {
	if err != nil {
		m.Fault = err.Error()
	}
}

// Text implements Report.
func (m *Memory) Text(w io.Writer) {
	for _, l := range m.Lines {
		fmt.Fprintf(w, "%s", l.Addr)
		if l.Symbol != "" {
			fmt.Fprintf(w, " <%s>", l.Symbol)
		}
		fmt.Fprintf(w, ":\t%s\n", strings.Join(l.Values, "\t"))
	}
	if m.Fault != "" {
		fmt.Fprintf(w, "%s\n", m.Fault)
	}
}
