package cexpr

import (
	"maps"
	"slices"
	"strings"
)

// call asks a helper. Those about per-CPU data are part of the language, because
// their argument is not what a value is but where.
func (ev *evaluator) call(n *Call) (Value, error) {
	switch n.Fun {
	case "per_cpu", "$lx_per_cpu":
		return ev.perCPU(n)
	case "per_cpu_ptr", "$lx_per_cpu_ptr":
		return ev.perCPUPointer(n)
	}
	h, ok := ev.env.Helpers[n.Fun]
	if !ok {
		return Value{}, ev.noHelper(n)
	}
	args := make([]Value, 0, len(n.Args))
	for _, a := range n.Args {
		if s, ok := a.(*String); ok {
			args = append(args, Value{Symbol: s.Text})
			continue
		}
		v, err := ev.operand(a)
		if err != nil {
			return v, err
		}
		args = append(args, v)
	}
	v, err := h.Call(args)
	return v, place(err, n)
}

func (ev *evaluator) noHelper(n *Call) error {
	if ev.env.Symbols != nil {
		if _, err := ev.env.Symbols.Variable(n.Fun); err == nil {
			return errorAt(n.At(), "%s would have to be called, and an expression runs nothing", n.Fun)
		}
	}
	names := append(slices.Sorted(maps.Keys(ev.env.Helpers)), "per_cpu", "per_cpu_ptr", "container_of", "offsetof", "sizeof")
	return errorAt(n.At(), "there is no helper %q; there are: %s", n.Fun, strings.Join(names, ", "))
}

// cpuArgument is the second of two arguments: a CPU.
func (ev *evaluator) cpuArgument(n *Call) (uint64, error) {
	if len(n.Args) != 2 {
		return 0, errorAt(n.At(), "%s takes a variable and a CPU, got %d arguments", n.Fun, len(n.Args))
	}
	cpu, err := ev.operand(n.Args[1])
	if err != nil {
		return 0, err
	}
	if ev.env.PerCPU == nil {
		return 0, errorAt(n.At(), "%s: no per-CPU data is known here", n.Fun)
	}
	if cpu.bits > 1<<20 {
		return 0, errorAt(n.Args[1].At(), "there is no CPU %d", int64(cpu.bits))
	}
	return ev.env.PerCPU(int(cpu.bits))
}

// perCPU is one CPU's copy of a per-CPU variable: per_cpu(runqueues, 0).
func (ev *evaluator) perCPU(n *Call) (Value, error) {
	offset, err := ev.cpuArgument(n)
	if err != nil {
		return Value{}, err
	}
	v, err := ev.eval(n.Args[0])
	switch {
	case err != nil:
		return v, err
	case !v.InMemory || !v.PerCPU:
		return v, errorAt(n.Args[0].At(), "%s is not per-CPU data; a pointer to some goes through per_cpu_ptr", Text(n.Args[0]))
	}
	v.Addr, v.PerCPU = v.Addr+offset, false
	v.Symbol = Text(n)
	return v, nil
}

// perCPUPointer turns a __percpu pointer into one to a CPU's copy:
// per_cpu_ptr(x->counters, 0). The address of a per-CPU variable is taken too.
func (ev *evaluator) perCPUPointer(n *Call) (Value, error) {
	offset, err := ev.cpuArgument(n)
	if err != nil {
		return Value{}, err
	}
	if u, ok := n.Args[0].(*Unary); ok && u.Op == "&" {
		v, err := ev.eval(u.X)
		if err != nil {
			return v, err
		}
		if v.InMemory && v.PerCPU {
			v.Addr, v.PerCPU = v.Addr+offset, false
			if v.Type == nil {
				return ev.env.Computed(PointerTo(Void), v.Addr), nil
			}
			return ev.env.Computed(PointerTo(v.Type), v.Addr), nil
		}
	}
	v, err := ev.operand(n.Args[0])
	if err != nil {
		return v, err
	}
	if !isPointer(v.Type) {
		return v, errorAt(n.Args[0].At(), "per_cpu_ptr takes a pointer, not %s", article(v.Type))
	}
	v.bits += offset
	return v, nil
}
