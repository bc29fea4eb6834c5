package report

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
)

// Registers is the state of CPUs of one machine.
type Registers struct {
	Machine string         `json:"machine"`
	CPUs    []CPURegisters `json:"cpus"`
}

// CPURegisters is the state of one CPU. A register that is not known is null.
type CPURegisters struct {
	Index     int              `json:"index"`
	State     string           `json:"state"`
	Source    string           `json:"source"`
	Registers map[string]*Word `json:"registers"`

	order []arch.Reg
}

// Word is the value of a register of any width, as "0x..." in JSON.
type Word string

// NewRegisters reports the CPUs of m, or one of them; all adds floating point
// and vector registers.
func NewRegisters(m *machine.Machine, cpus []*machine.CPU, all bool) *Registers {
	r := &Registers{Machine: m.Name}
	for _, c := range cpus {
		x := CPURegisters{Index: c.Index, State: c.State.String(), Source: c.Source, Registers: make(map[string]*Word)}
		for i, reg := range m.Arch.Regs {
			if reg.Kind == arch.Float && !all || reg.Kind == arch.Implied {
				continue
			}
			x.order = append(x.order, reg)
			x.Registers[reg.Name] = word(c.Regs.Bytes(i))
		}
		r.CPUs = append(r.CPUs, x)
	}
	return r
}

// word renders little-endian bytes as one hexadecimal number.
func word(b []byte) *Word {
	if b == nil {
		return nil
	}
	big := slices.Clone(b)
	slices.Reverse(big)
	text := hex.EncodeToString(big)
	for len(text) > 1 && text[0] == '0' {
		text = text[1:]
	}
	w := Word("0x" + text)
	return &w
}

// Text implements Report.
func (r *Registers) Text(w io.Writer) {
	for _, c := range r.CPUs {
		fmt.Fprintf(w, "%s CPU %d  %s, from the %s\n", r.Machine, c.Index, c.State, c.Source)
		column := 0
		for _, reg := range c.order {
			value := "unavailable"
			if v := c.Registers[reg.Name]; v != nil {
				value = string(*v)
			} else if reg.Kind == arch.Hidden {
				continue // means nothing in this layer
			}
			if reg.Bits > 64 {
				if column%3 != 0 {
					fmt.Fprintln(w)
				}
				column = 0
				fmt.Fprintf(w, "  %-14s %s\n", reg.Name, value)
				continue
			}
			fmt.Fprintf(w, "  %-14s %-20s", reg.Name, value)
			if column++; column%3 == 0 {
				fmt.Fprintln(w)
			}
		}
		if column%3 != 0 {
			fmt.Fprintln(w)
		}
	}
}
