package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nestdbg/internal/session"
)

// hints are what a person says on the command line of guests and tables.
type hints struct {
	vmcb, vmcs, second, cr3, registers []string
}

// hintFlags are the flags of hints, for those who tell options from arguments.
var hintFlags = []string{"--vmcb", "--vmcs", "--second-stage", "--cr3", "--registers"}

func (h *hints) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringArrayVar(&h.vmcb, "vmcb", nil, "a VMCB is at this physical address: [MACHINE=]ADDR, of l1 if it does not say (repeatable)")
	f.StringArrayVar(&h.vmcs, "vmcs", nil, "the same for a VMCS")
	f.StringArrayVar(&h.second, "second-stage", nil,
		"a guest has this second stage: [MACHINE=]KIND:ROOT with npt4, npt5, ept4, ept5, or ept and an EPT pointer (repeatable)")
	f.StringArrayVar(&h.cr3, "cr3", nil, "page tables to read a machine's virtual memory by: [MACHINE=]ROOT, of -m if it does not say")
	f.StringArrayVar(&h.registers, "registers", nil, "where the hypervisor keeps a guest's general registers: MACHINE=[pa:]EXPRESSION, "+
		"a structure of its --symbols, as in vm0=vms[0].regs, for CPU 0, 1, ... (repeatable)")
}

// assume reads the flags and tells the session. ctx ends a search of memory.
func (a *app) assume(ctx context.Context) error {
	out := session.Assumptions{Blind: a.blind, Roots: make(map[string]uint64)}
	out.Progress = func(uint64, uint64) bool { return ctx.Err() == nil }
	if a.debugger == nil && isTerminal(os.Stderr) {
		p := &percent{app: a, name: "searching memory", wait: true}
		out.Progress = func(done, all uint64) bool {
			if p.show(done, all); done == all {
				p.clear()
			}
			return ctx.Err() == nil
		}
	}
	for _, x := range []struct {
		flag, kind string
		values     []string
	}{{"--vmcb", "VMCB", a.hints.vmcb}, {"--vmcs", "VMCS", a.hints.vmcs}} {
		for _, text := range x.values {
			in, rest := ofMachine(text, "l1")
			at, err := hintNumber(rest)
			if err != nil {
				return usagef("%s %s: %w", x.flag, text, err)
			}
			out.Hints = append(out.Hints, session.ControlHint(x.flag, in, x.kind, at))
		}
	}
	for _, text := range a.hints.second {
		in, rest := ofMachine(text, "l1")
		h, err := session.StageHint("--second-stage", in, rest, hintNumber)
		if err != nil {
			return usagef("--second-stage %s: %w", text, err)
		}
		out.Hints = append(out.Hints, h)
	}
	for _, text := range a.hints.cr3 {
		in, rest := ofMachine(text, a.machine)
		root, err := hintNumber(rest)
		if err != nil {
			return usagef("--cr3 %s: %w", text, err)
		}
		out.Roots[in] = root
	}
	var err error
	if out.Registers, err = a.savedRegisters(); err != nil {
		return err
	}
	a.session.Assume(out)
	return nil
}

// savedRegisters reads --registers. The n-th for a machine is for its CPU n.
func (a *app) savedRegisters() (out []session.SavedRegisters, err error) {
	count := make(map[string]int)
	for _, text := range a.hints.registers {
		name, rest := ofMachine(text, "")
		parent := "l1"
		if i := strings.LastIndex(name, "."); i >= 0 {
			parent = name[:i]
		}
		s := session.SavedRegisters{Machine: name, CPU: count[name], What: rest, Together: a.images.together(parent)}
		count[name]++
		rest, s.Physical = strings.CutPrefix(rest, "pa:")
		err = fmt.Errorf("a file with its debug information is wanted: --symbols %s=ELF", parent)
		for _, i := range a.images.byMachine[parent] {
			if s.Addr, s.Members, err = i.Structure(rest); err == nil {
				break
			}
		}
		if name == "" {
			err = fmt.Errorf("of which machine? MACHINE=[pa:]EXPRESSION")
		}
		if err != nil {
			return nil, usagef("--registers %s: %w", text, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// ofMachine cuts a machine's name off a hint.
func ofMachine(text, otherwise string) (machine, rest string) {
	if name, rest, ok := strings.Cut(text, "="); ok {
		return name, rest
	}
	return otherwise, text
}

// hintNumber reads a physical address, hexadecimal with or without 0x.
func hintNumber(text string) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no address", text)
	}
	return v, nil
}
