package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/cexpr"
)

// exprSymbols are the variables and functions of a kernel for expressions.
type exprSymbols struct {
	k     *Kernel
	types *exprTypes // nil if the kernel has none
	env   *cexpr.Env
}

// Variable implements cexpr.Symbols. The address is what kallsyms says. The type is
// what BTF says: of functions, of per-CPU variables, and where pahole was told to
// (1.28, --btf_features=global_var) of all. For a few more it is what every
// kernel has, and then a note says so.
func (s *exprSymbols) Variable(name string) (cexpr.Variable, error) {
	sym, err := s.symbol(name)
	if err != nil {
		return cexpr.Variable{}, err
	}
	v := cexpr.Variable{Addr: sym.Addr, PerCPU: s.isPerCPU(sym)}
	if s.types == nil {
		return v, nil
	}
	of := s.types.of(sym.Module)
	if s.isCode(sym) {
		if v.Type = s.types.function(of.spec, name); v.Type == nil {
			v.Type = cexpr.NewType(cexpr.Def{Kind: cexpr.KindFunc, Elem: cexpr.Void, Variadic: true})
			v.Note = "what the function " + name + " takes and returns is not in BTF"
		}
		return v, nil
	}
	known := s.types.variables(of.spec)[name]
	for _, k := range known {
		v.PerCPU = v.PerCPU || strings.HasSuffix(k.section, "percpu")
	}
	switch {
	case len(known) == 1:
		v.Type = known[0].typ
	case len(known) > 1:
		v.Note = fmt.Sprintf("BTF has %d variables %s; which of them has this address it does not say", len(known), name)
	default:
		v.Type, v.Note = s.assumed(sym)
	}
	return v, nil
}

// symbol is the one that a name stands for: that of the kernel itself before those
// of modules, a global one before static ones, which there may be many of.
func (s *exprSymbols) symbol(name string) (Symbol, error) {
	list, problems := s.k.LookupAll(name)
	own := slices.DeleteFunc(slices.Clone(list), func(sym Symbol) bool { return sym.Module != "" })
	if len(own) > 0 {
		list = own
	}
	global := slices.DeleteFunc(slices.Clone(list), func(sym Symbol) bool { return sym.Type < 'A' || sym.Type > 'Z' })
	switch {
	case len(list) == 0:
		return Symbol{}, s.notFound(name, problems)
	case len(list) == 1:
		return list[0], nil
	case len(global) == 1:
		return global[0], nil
	}
	var places []string
	for _, sym := range list[:min(len(list), 6)] {
		text := fmt.Sprintf("%#x", sym.Addr)
		if sym.Module != "" {
			text += " [" + sym.Module + "]"
		}
		places = append(places, text)
	}
	if len(list) > len(places) {
		places = append(places, "...")
	}
	return Symbol{}, &cexpr.Error{Pos: -1, Msg: fmt.Sprintf("%d symbols are called %s: %s; write *(TYPE *) and the address",
		len(list), name, strings.Join(places, ", "))}
}

// notFound is the error for a name that no symbol has, with why one may not be found.
func (s *exprSymbols) notFound(name string, problems []Problem) error {
	if _, err := s.k.Symbols(); err != nil {
		return err
	}
	var missing *MissingError
	why := strings.TrimPrefix(Unread(problems), "; ")
	if err := s.k.missingSymbol(name, ""); errors.As(err, &missing) {
		why = "its table has no variables, which " + missing.Option + " gives"
	}
	if why == "" {
		return fmt.Errorf("symbol %s: %w", name, cexpr.ErrNotFound)
	}
	return &cexpr.Error{Pos: -1, Msg: why, Err: cexpr.ErrNotFound}
}

// isCode reports whether a symbol is a function. The letter does not tell: in Debian's
// 7.2 the variables of some sections have that of code.
func (s *exprSymbols) isCode(sym Symbol) bool {
	letter := strings.IndexByte("tTwWiI", sym.Type) >= 0
	if !letter || sym.Module != "" {
		return letter
	}
	known := false
	for _, ends := range [][2]string{{"_stext", "_etext"}, {"_sinittext", "_einittext"}} {
		start, ok := s.k.lookupCore(ends[0])
		end, okEnd := s.k.lookupCore(ends[1])
		if !ok || !okEnd {
			continue
		}
		if known = true; uint64(start) <= sym.Addr && sym.Addr < uint64(end) {
			return true
		}
	}
	return !known
}

// isPerCPU reports whether a symbol lies where the kernel keeps what each CPU gets a
// copy of. Before Linux 6.15 x86-64 links it at 0, and its symbols are absolute.
func (s *exprSymbols) isPerCPU(sym Symbol) bool {
	if sym.Module != "" {
		return false // BTF says it; see Variable
	}
	start, ok := s.k.lookupCore("__per_cpu_start")
	if !ok {
		return false
	}
	end, ok := s.k.lookupCore("__per_cpu_end")
	return ok && uint64(start) <= sym.Addr && sym.Addr < uint64(end)
}

// assumed is the type of a variable whose type BTF does not have, but which is the
// same in all kernels. A type that has no room before the next symbol is not it.
func (s *exprSymbols) assumed(sym Symbol) (*cexpr.Type, string) {
	text, ok := wellKnown[sym.Name]
	if !ok {
		return nil, ""
	}
	t, err := s.env.Resolve(text)
	if err != nil {
		return nil, ""
	}
	size, err := t.Size()
	if err != nil || sym.Size != 0 && size > sym.Size {
		return nil, ""
	}
	if d, err := t.Def(); err == nil && d.Kind == cexpr.KindArray && d.Count == 0 {
		// It ends where the next variable begins, or before; text ends with its NUL.
		if each, err := d.Elem.Size(); err == nil && each > 1 {
			t = cexpr.ArrayOf(d.Elem, min(sym.Size/each, pageSize))
		}
	}
	return t, fmt.Sprintf("%s is assumed to be %s: this kernel's BTF does not say it, and all kernels agree", sym.Name, text)
}

// wellKnown are the types of variables that are the same in every kernel that has
// them, back to 4.19. BTF has the types of per-CPU variables only, that of 5.10 of none,
// and without this table the most common questions would need a cast. The help of print
// lists it.
var wellKnown = map[string]string{
	"init_task": "struct task_struct", "init_mm": "struct mm_struct", "init_cred": "struct cred",
	"init_files": "struct files_struct", "init_fs": "struct fs_struct", "init_nsproxy": "struct nsproxy",
	"init_pid_ns": "struct pid_namespace", "init_user_ns": "struct user_namespace", "init_uts_ns": "struct uts_namespace",
	"init_ipc_ns": "struct ipc_namespace", "init_net": "struct net", "init_css_set": "struct css_set",
	"init_cgroup_ns": "struct cgroup_namespace", "root_task_group": "struct task_group",

	"modules": "struct list_head", "super_blocks": "struct list_head", "slab_caches": "struct list_head",
	"net_namespace_list": "struct list_head", "clocksource_list": "struct list_head", "cgroup_roots": "struct list_head",
	"vm_list": "struct list_head", // of KVM

	"jiffies": "unsigned long", "jiffies_64": "unsigned long long", "loops_per_jiffy": "unsigned long",
	"total_forks": "unsigned long", "nr_threads": "int", "nr_cpu_ids": "unsigned int", "max_threads": "int", "pid_max": "int",
	"system_state": "enum system_states", "panic_timeout": "int",
	"max_pfn": "unsigned long", "max_low_pfn": "unsigned long", "min_low_pfn": "unsigned long", "phys_base": "unsigned long",
	"page_offset_base": "unsigned long", "vmalloc_base": "unsigned long", "vmemmap_base": "unsigned long",
	"_totalram_pages": "atomic_long_t", "high_memory": "void *",

	"saved_command_line": "char *", "linux_proc_banner": "char []", "linux_banner": "char []", "boot_command_line": "char []",

	"__cpu_possible_mask": "struct cpumask", "__cpu_online_mask": "struct cpumask", "__cpu_present_mask": "struct cpumask",
	"__cpu_active_mask": "struct cpumask", "rcu_state": "struct rcu_state", "boot_cpu_data": "struct cpuinfo_x86",
	"cgrp_dfl_root": "struct cgroup_root", "iomem_resource": "struct resource", "ioport_resource": "struct resource",
	"prb": "struct printk_ringbuffer *", "log_buf_len": "unsigned int", "log_buf": "char *", "console_printk": "int [4]",
	"vm_zone_stat": "atomic_long_t []", "vm_node_stat": "atomic_long_t []", "__per_cpu_offset": "unsigned long []",
	"runqueues": "struct rq", "current_task": "struct task_struct *", "pcpu_hot": "struct pcpu_hot", "cpu_info": "struct cpuinfo_x86",
	"cpu_number": "int", "this_cpu_off": "unsigned long", "softnet_data": "struct softnet_data", "tick_cpu_sched": "struct tick_sched",
	"hrtimer_bases": "struct hrtimer_cpu_base", "process_counts": "unsigned long", "kstat": "struct kernel_stat",
	"kernel_cpustat": "struct kernel_cpustat", "vm_event_states": "struct vm_event_state", "rcu_data": "struct rcu_data",
	"ksoftirqd": "struct task_struct *", "irq_stat": "irq_cpustat_t", "cpu_tss_rw": "struct tss_struct",

	"slab_mutex": "struct mutex", "module_mutex": "struct mutex",
}

// WellKnownVariables are the variables whose types expressions assume, sorted.
func WellKnownVariables() []string {
	out := make([]string, 0, len(wellKnown))
	for name := range wellKnown {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
