package linux

import (
	"slices"
	"strconv"
	"strings"

	"nestdbg/internal/btf"
	"nestdbg/internal/cexpr"
	"nestdbg/internal/kallsyms"
)

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

// TypedVariable is a variable whose type BTF does not say, but which is the same in
// all kernels. Type is that, or with Pointer what it points to, or with Array what it
// consists of; Count is 0 if it is not known of how many.
type TypedVariable struct {
	Name           string
	Addr           uint64
	Type           btf.ID
	Pointer, Array bool
	Count          uint32
}

// VariableTyper finds the typed variables among a kernel's symbols, for who goes through
// those anyway: to look up each by its name takes longer than all else.
type VariableTyper struct {
	types  *Types
	table  *kallsyms.Table
	byName map[string][]kallsyms.Symbol
}

// NewVariableTyper returns one for the kernel's own symbols.
func (k *Kernel) NewVariableTyper() (*VariableTyper, error) {
	types, err := k.Types()
	if err != nil {
		return nil, err
	}
	table, err := k.Symbols()
	if err != nil {
		return nil, err
	}
	return &VariableTyper{types: types, table: table, byName: make(map[string][]kallsyms.Symbol)}, nil
}

// Add adds a symbol. Preconditions: it adds every one once.
func (x *VariableTyper) Add(s kallsyms.Symbol) {
	if wellKnown[s.Name] != "" {
		x.byName[s.Name] = append(x.byName[s.Name], s)
	}
}

// Variables are those that the kernel has, as expressions take them. What has no
// type of that name, or several, or no room before the next symbol, is left out.
func (x *VariableTyper) Variables() []TypedVariable {
	types, table := x.types, x.table
	basic := types.basic()
	var out []TypedVariable
	for _, name := range WellKnownVariables() {
		sym, ok := only(x.byName[name], func(s kallsyms.Symbol) byte { return s.Type })
		if !ok {
			continue
		}
		v, ok := types.declared(wellKnown[name], basic)
		if !ok {
			continue
		}
		v.Name, v.Addr = name, sym.Addr
		if room, ok := table.Size(sym.Addr); ok && !sym.Absolute() && !types.fits(&v, room) {
			continue
		}
		out = append(out, v)
	}
	return out
}

// basic are the types that words such as "unsigned long" spell.
func (t *Types) basic() map[string]btf.ID {
	out := make(map[string]btf.ID)
	for i := range t.spec.Len() {
		if t.spec.KindAt(i) != btf.Int {
			continue
		}
		typ := t.spec.At(i)
		if d, ok := cexpr.Basic(string(t.spec.Text(typ.Name))); ok && d.Size == uint64(typ.Ref) && out[d.Name] == 0 {
			out[d.Name] = t.spec.First() + btf.ID(i)
		}
	}
	return out
}

// declared reads a type as wellKnown has it.
func (t *Types) declared(text string, basic map[string]btf.ID) (v TypedVariable, ok bool) {
	if rest, count, isArray := strings.Cut(text, " ["); isArray {
		n, _ := strconv.ParseUint(strings.TrimSuffix(count, "]"), 10, 32) // "" is not known
		text, v.Array, v.Count = rest, true, uint32(n)
	}
	text, v.Pointer = strings.CutSuffix(text, " *")
	if text == "void" {
		return v, v.Pointer
	}
	if d, isBasic := cexpr.Basic(text); isBasic {
		v.Type, ok = basic[d.Name]
		return v, ok
	}
	keyword, name, tagged := strings.Cut(text, " ")
	if !tagged {
		keyword, name = "", text
	}
	ids, err := t.named(name)
	if err != nil {
		return v, false
	}
	for _, id := range ids {
		typ, exists := t.spec.Type(id)
		if !exists || !oneOf(typ.Kind, kindsOf(keyword)) || typ.Kind == btf.Enum && typ.Count == 0 { // which is only declared
			continue
		}
		if ok {
			return v, false
		}
		v.Type, ok = id, true
	}
	return v, ok
}

// fits reports whether a variable has room in so many bytes, and counts the elements of
// an array that ends where the next variable begins, or before.
func (t *Types) fits(v *TypedVariable, room uint64) bool {
	size := uint64(8) // of a pointer
	if !v.Pointer {
		var err error
		if size, err = t.spec.Size(v.Type); err != nil {
			return false
		}
	}
	if !v.Array {
		return room == 0 || size <= room
	}
	if v.Count == 0 && size > 0 {
		v.Count = uint32(min(room, pageSize*size) / size)
	}
	return room == 0 || size*uint64(v.Count) <= room
}
