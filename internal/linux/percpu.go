package linux

import (
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// cpusMax bounds CPU numbers, CONFIG_NR_CPUS at its largest.
const cpusMax = 8192

// CPUCount is how many CPU numbers the kernel set up, from 0 on; some of them may
// be offline.
func (k *Kernel) CPUCount() (int, error) {
	if _, ok := k.lookupCore("__per_cpu_offset"); !ok {
		if table, err := k.Symbols(); err != nil || !hasVariables(table) {
			return 0, k.missingSymbol("__per_cpu_offset", "")
		}
		return 1, nil // CONFIG_SMP=n
	}
	at, ok := k.lookupCore("nr_cpu_ids")
	if !ok {
		return 0, k.missingSymbol("nr_cpu_ids", "")
	}
	n, err := mem.VirtUint32(k.space, at)
	if err != nil {
		return 0, fmt.Errorf("read nr_cpu_ids: %w", err)
	}
	if n == 0 || n > cpusMax {
		return 0, fmt.Errorf("nr_cpu_ids is %d: %w", n, ErrCorrupt)
	}
	return int(n), nil
}

// PerCPUSymbols is where the symbols of per-CPU variables lie, of which each CPU has a
// copy elsewhere. Before Linux 6.15 x86-64 links them at 0, and they are absolute.
func (k *Kernel) PerCPUSymbols() (mem.Range, bool) {
	start, ok := k.lookupCore("__per_cpu_start")
	end, okEnd := k.lookupCore("__per_cpu_end")
	if !ok || !okEnd || end <= start {
		return mem.Range{}, false
	}
	return mem.Range{First: uint64(start), Last: uint64(end) - 1}, true
}

// perCPUOffset is what a CPU adds to the address of a per-CPU symbol.
func (k *Kernel) perCPUOffset(cpu int) (uint64, error) {
	n, err := k.CPUCount()
	if err != nil {
		return 0, err
	}
	if cpu < 0 || cpu >= n {
		return 0, fmt.Errorf("cpu %d of %d: %w", cpu, n, ErrNotFound)
	}
	table, ok := k.lookupCore("__per_cpu_offset")
	if !ok {
		return 0, nil // CONFIG_SMP=n: the only copy is where the symbol is
	}
	off, err := mem.VirtUint64(k.space, table+mem.Virt(8*cpu))
	if err != nil {
		return 0, fmt.Errorf("per-CPU offset of cpu %d: %w", cpu, err)
	}
	return off, nil
}

// PerCPU is the address of a CPU's own copy of a per-CPU variable.
func (k *Kernel) PerCPU(cpu int, symbol string) (mem.Virt, error) {
	a, ok := k.lookupCore(symbol)
	if !ok {
		return 0, k.missingSymbol(symbol, "")
	}
	off, err := k.perCPUOffset(cpu)
	return a + mem.Virt(off), err
}

// CPUOf tells which of the kernel's CPUs the registers are those of, by the base
// of its per-CPU data. The kernel's numbers need not be the machine's order.
func (k *Kernel) CPUOf(regs *arch.Registers) (int, error) {
	n, err := k.CPUCount()
	if err != nil {
		return 0, err
	}
	for cpu := range n {
		off, err := k.perCPUOffset(cpu)
		if err != nil {
			return 0, err
		}
		for _, name := range k.layout.perCPURegs {
			if v, ok := regs.Get(name); ok && v == off && v >= k.layout.kernelMin {
				return cpu, nil
			}
		}
	}
	return 0, fmt.Errorf("no register holds a base of per-CPU data: %w", ErrNotFound)
}

// Current is the task a CPU runs, by the kernel's number of the CPU. It may be
// the CPU's idle task, which Tasks does not list.
func (k *Kernel) Current(cpu int) (Task, error) {
	at, err := k.currentPointer(cpu)
	if err != nil {
		return Task{}, fmt.Errorf("current task of cpu %d: %w", cpu, err)
	}
	p, err := mem.VirtUint64(k.space, at)
	if err != nil {
		return Task{}, fmt.Errorf("current task of cpu %d: %w", cpu, err)
	}
	return k.Task(mem.Virt(p))
}

// CurrentOf is the task that the CPU with these registers runs.
func (k *Kernel) CurrentOf(regs *arch.Registers) (Task, error) {
	cpu, err := k.CPUOf(regs)
	if err != nil {
		return Task{}, fmt.Errorf("current task: %w", err)
	}
	return k.Current(cpu)
}

// currentPointer is where a CPU keeps the pointer to its task.
func (k *Kernel) currentPointer(cpu int) (mem.Virt, error) { return k.hotVariable(cpu, "current_task") }

// hotVariable is where a CPU keeps a per-CPU variable that from Linux 6.2 to 6.14 is a
// member of pcpu_hot.
func (k *Kernel) hotVariable(cpu int, name string) (mem.Virt, error) {
	if _, ok := k.lookupCore(name); ok {
		return k.PerCPU(cpu, name)
	}
	hot, err := k.PerCPU(cpu, "pcpu_hot")
	if err != nil {
		return 0, err
	}
	t, err := k.Types()
	if err != nil {
		return 0, err
	}
	off, _, err := t.Offset("pcpu_hot", name)
	return hot + mem.Virt(off), err
}
