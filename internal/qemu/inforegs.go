package qemu

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// PeekRegisters is what QEMU's human monitor prints of every CPU, by QEMU's names
// ("CR3", "RIP", "EFER"), without stopping the machine: a CPU that runs changes
// while it is printed. Values are of 64 bits at most; others are left out.
func (m *Machine) PeekRegisters(ctx context.Context) ([]map[string]uint64, error) {
	text, err := m.HMP(ctx, "info registers -a")
	if err != nil {
		return nil, err
	}
	cpus, err := parseInfoRegisters(text)
	if err == nil && len(cpus) != m.Info().CPUs {
		err = fmt.Errorf("%w: info registers -a shows %d CPUs of %d", ErrCorrupt, len(cpus), m.Info().CPUs)
	}
	return cpus, err
}

// maxPeeked bounds the CPUs and the registers of each that are taken from a text.
const maxPeeked = 4096

// parseInfoRegisters parses the output of HMP "info registers -a": a line "CPU#0"
// before each CPU, then words NAME=HEX among others.
//
// Source: QEMU 7.2 monitor/misc.c:hmp_info_registers,
// target/i386/cpu-dump.c:x86_cpu_dump_state.
func parseInfoRegisters(text string) ([]map[string]uint64, error) {
	var out []map[string]uint64
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(strings.TrimSpace(line), "CPU#"); ok {
			if number != strconv.Itoa(len(out)) || len(out) == maxPeeked {
				return nil, fmt.Errorf("%w: info registers -a: %.40q after %d CPUs", ErrCorrupt, line, len(out))
			}
			out = append(out, make(map[string]uint64))
			continue
		}
		if len(out) == 0 {
			continue
		}
		for word := range strings.FieldsSeq(line) {
			name, value, ok := strings.Cut(word, "=")
			v, err := strconv.ParseUint(value, 16, 64)
			if ok && err == nil && name != "" && len(value) <= 16 && len(out[len(out)-1]) < maxPeeked {
				out[len(out)-1][name] = v
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: info registers -a: no CPU in %.100q", ErrCorrupt, text)
	}
	return out, nil
}
