package report

import (
	"fmt"
	"io"
	"strings"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
)

// Print is the value of an expression.
type Print struct {
	Machine string   `json:"machine"`
	Expr    string   `json:"expr"`
	Value   *Value   `json:"value"`
	Notes   []string `json:"notes,omitempty"` // what the answer rests on
}

// PrintFormat reads gdb's format of print, "/x" or "x"; 0 for none.
func PrintFormat(text string) (byte, error) {
	text = strings.TrimPrefix(text, "/")
	if text == "" {
		return 0, nil
	}
	if len(text) != 1 || strings.IndexByte("xduotcasz", text[0]) < 0 {
		return 0, fmt.Errorf("format %q: print takes one letter of x d u o t c a s z", "/"+text)
	}
	return text[0], nil
}

// Printer evaluates expressions and reads types of one kernel for people.
type Printer struct {
	Machine string
	Env     *cexpr.Env
	Symbol  func(addr uint64) string // "" if there is none
	Format  byte                     // see PrintFormat
	Limits  ValueLimits
}

// Print evaluates an expression and reads its value. That members cannot be read is
// part of the report (see Unread); that a number cannot, or the way to it, is an error.
func (p *Printer) Print(expr string) (*Print, error) {
	r, err := p.Env.Evaluate(expr)
	if err != nil {
		return nil, err
	}
	if err := r.Value.Known(); err != nil {
		return nil, err
	}
	out := &Print{Machine: p.Machine, Expr: expr, Value: p.read(r.Value, ""), Notes: r.Notes}
	if !out.Value.composite && out.Unread() {
		if _, err := r.Value.Bytes(1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p *Printer) read(v cexpr.Value, name string) *Value {
	return newValueReader(p.Format, p.Limits, p.Symbol).read(v, name, 0)
}

// Unread reports whether nothing of the value could be read.
func (r *Print) Unread() bool { return r.Value.unread() }

// unread reports whether something of a value could not be read, and nothing could.
func (v *Value) unread() bool {
	read, faults := v.parts()
	return faults && !read
}

// parts reports whether some part of a value was read, and whether one could not be.
func (v *Value) parts() (read, faults bool) {
	if !v.composite {
		known := v.Number != nil || v.String != nil || v.Text != ""
		return known, v.Fault != "" && !known
	}
	faults = v.Fault != ""
	for _, list := range [][]*Value{v.Fields, v.Array} {
		for _, part := range list {
			r, f := part.parts()
			read, faults = read || r, faults || f
		}
	}
	return read, faults
}

// Text implements Report.
func (r *Print) Text(w io.Writer) {
	// Like gdb: a pointer says what it points to, as the number alone tells little.
	if strings.Contains(r.Value.Type, "*") && !r.Value.composite && r.Value.String == nil && strings.HasPrefix(r.Value.Text, "0x") {
		fmt.Fprintf(w, "(%s) ", r.Value.Type)
	}
	r.Value.write(w, "")
	fmt.Fprintln(w)
	writeNotes(w, r.Notes)
}

func writeNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

// symbolReach is how far behind a symbol a pointer still counts as one into it, in
// bytes; ours. What has no symbol, such as strings, would else be in the last variable
// before it.
const symbolReach = 64 << 10

// PointerSymbol is what a pointer of a kernel points to or into, as gdb writes it:
// "init_task", "schedule+0x10", "kvm_init+0x4 [kvm]"; "" if that is no symbol's.
func PointerSymbol(k *linux.Kernel, addr uint64) string {
	place, ok := k.Symbolize(mem.Virt(addr))
	if !ok || place.Offset >= symbolReach {
		return ""
	}
	if place.Offset == 0 {
		return strings.Replace(place.String(), "+0x0", "", 1)
	}
	return place.String()
}
