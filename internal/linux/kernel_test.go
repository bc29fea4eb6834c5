package linux

import (
	"testing"

	"nestdbg/internal/mem"
)

// fakeCore are the types that every fake kernel has. Members are in another order
// than in any real kernel.
const fakeCore = `
struct list_head { ptr next; ptr prev; }
struct mod_kallsyms { int pad; ptr symtab; u32 num_symtab; ptr strtab; ptr typetab; }
struct attribute { ptr name; u16 mode; }
struct bin_attribute { attribute attr; long size; ptr private; }
struct attribute_group { ptr name; ptr bin_attrs; }
struct thread_info { long flags; u32 cpu; }
struct thread_struct { ptr tls[3]; long sp; }
struct signal_struct { int count; list_head thread_head; }
struct mm_struct { long pad; ptr pgd; long arg_start; long env_end; long arg_end; long env_start; }
struct task_struct { thread_info thread_info; u32 __state; ptr stack; int on_cpu; list_head tasks;
  ptr mm; int exit_state; int pid; int tgid; ptr real_parent; list_head thread_node; char comm[16];
  ptr signal; u32 flags; thread_struct thread; }
struct btf { ptr data; u32 data_size; char name[56]; }
struct btf_module { list_head list; ptr module; ptr btf; }
struct upid { int nr; ptr ns; }
struct pid { int count; upid numbers[1]; }
struct xarray { int lock; ptr xa_head; }
struct xa_node { u8 shift; u8 offset; ptr parent; ptr slots[4]; }
struct atomic_t { int counter; }
struct kvm_vcpu_arch { long regs[17]; u32 regs_avail; long db[4]; }
struct kvm_vcpu { ptr kvm; int cpu; int vcpu_id; int mode; ptr pid; kvm_vcpu_arch arch; }
struct kvm_vmcb_info { ptr ptr; long pa; }
struct svm_nested_state { kvm_vmcb_info vmcb02; long hsave_msr; long vmcb12_gpa; long last_vmcb12_gpa; u8 nested_run_pending; }
struct vcpu_svm { long pad; kvm_vcpu vcpu; ptr vmcb; kvm_vmcb_info vmcb01; svm_nested_state nested; }
struct lonely_svm { kvm_vcpu vcpu; long pad[3]; ptr vmcb; long pa; }
struct page { long flags; long compound_head; int _mapcount; int _refcount; long mapping; long private; long pad; }
struct mem_section { long section_mem_map; ptr usage; }
`

// fakeNew are the types as in Linux 6.14, fakeOld as in 5.10.
const (
	fakeNew = fakeCore + `
struct module_memory { ptr base; u32 size; }
struct module_sect_attrs { attribute_group grp; bin_attribute attrs[0]; }
struct module_use { list_head target_list; list_head source_list; ptr target; ptr source; }
struct module { int state; list_head list; char name[56]; u8 build_id[20]; module_memory mem[7];
  ptr exit; long taints; list_head source_list; ptr init; atomic_t refcnt; ptr kallsyms; ptr sect_attrs; }
struct hlist_node { ptr next; ptr pprev; }
struct kvm_memory_slot { hlist_node id_node[2]; long base_gfn; long npages; long userspace_addr; u32 flags; u16 id; }
struct kvm_memslots { long generation; ptr id_hash[8]; int node_idx; }
struct kvm { int lock; list_head vm_list; ptr mm; ptr memslots[2]; xarray vcpu_array; int userspace_pid; }
struct pcpu_hot { int preempt; ptr current_task; }
`
	fakeOld = fakeCore + `
struct module_layout { ptr base; u32 size; u32 text_size; }
struct module_sect_attr { bin_attribute battr; long address; }
struct old_sect_attrs { attribute_group grp; }
struct module_sect_attrs { attribute_group grp; u32 nsections; module_sect_attr attrs[0]; }
struct module { int state; list_head list; char name[56]; module_layout core_layout; module_layout init_layout;
  ptr kallsyms; ptr sect_attrs; }
struct kvm_memory_slot { long base_gfn; long npages; long userspace_addr; u32 flags; u16 id; }
struct kvm_memslots { long generation; u16 id_to_index[8]; int used_slots; kvm_memory_slot memslots[0]; }
struct kvm { int lock; list_head vm_list; ptr mm; ptr memslots[2]; ptr vcpus[8]; atomic_t online_vcpus; int userspace_pid; }
`
)

// fakeSystem is a fake with something of everything.
type fakeSystem struct {
	*fake
	isNew            bool
	modules          []object // struct module
	tasks            []object // task_struct: init_task, then others
	vm               object
	vcpus            []object // vcpu_svm
	control          []object // pages
	vmListAt         uint64
	percpu           [2]object
	textOf           []object // of modules
	sectionAddresses [][]uint64
	page             func(i uint64) object // the struct page of a page
}

func newFakeSystem(t testing.TB, isNew bool) *fakeSystem {
	types := fakeOld
	if isNew {
		types = fakeNew
	}
	s := &fakeSystem{fake: newFake(t, types), isNew: isNew}
	s.addModules()
	s.addTasks()
	s.addKVM()
	s.addCPUs()
	s.addPages()
	return s
}

// addModules makes kvm and a second module.
func (s *fakeSystem) addModules() {
	head := s.variable("modules", 16)
	nodes := []uint64{head.va}
	for i, name := range []string{"kvm", "virtio\x07net"} {
		m := s.make("module").text("name", name).set("state", uint64(i))
		text := s.alloc(0x2000, pageSize)
		var symbols []fakeSymbol
		if name == "kvm" {
			list := s.alloc(16, 16)
			s.vmListAt = list.va
			symbols = append(symbols, fakeSymbol{"vm_list", list.va, 'd', 16})
		}
		symbols = append(symbols, fakeSymbol{name + "_init", text.va + 0x100, 't', 0x40},
			fakeSymbol{name + "_exit", text.va + 0x180, 't', 0}, fakeSymbol{"__this_module", text.va + 0x1000, 'd', 0})
		tables := s.make("mod_kallsyms")
		symtab, strtab, typetab := s.elfSymbols(symbols)
		tables.set("symtab", symtab).set("strtab", strtab).set("typetab", typetab).set("num_symtab", uint64(len(symbols)+1))
		m.set("kallsyms", tables.va).set("sect_attrs", s.sections(text.va))
		if s.isNew {
			m.set("mem[0].base", text.va).set("mem[0].size", 0x1000).set("mem[1].base", text.va+0x1000).set("mem[1].size", 0x1000)
			m.text("build_id", "\x01\x02\x03")
		} else {
			m.set("core_layout.base", text.va).set("core_layout.size", 0x2000)
		}
		s.modules, s.textOf = append(s.modules, m), append(s.textOf, text)
		nodes = append(nodes, m.at("list"))
	}
	s.link(nodes...)
	if s.isNew {
		s.addModuleUse()
	}
	btfHead := s.variable("btf_modules", 16)
	s.link(btfHead.va)
}

// addModuleUse has the second module need kvm, and twice somebody else. The second cannot
// be unloaded.
func (s *fakeSystem) addModuleUse() {
	kvm, user := s.modules[0], s.modules[1]
	use := s.make("module_use").set("source", user.va).set("target", kvm.va)
	kvm.set("refcnt.counter", 4).set("init", fakeText).set("exit", fakeText).set("taints", 1<<13|1<<12|1<<40)
	user.set("refcnt.counter", 1).set("init", fakeText)
	s.link(kvm.at("source_list"), use.at("source_list"))
	s.link(user.at("source_list"))
}

// sections makes a struct module_sect_attrs with two sections.
func (s *fakeSystem) sections(text uint64) uint64 {
	names := []string{".text", ".note.gnu.build-id"}
	note := s.alloc(64, 4)
	note.put(0, append(append([]byte{}, gnuBuildID...), make([]byte, buildIDSize-1)...))
	note.put(uint64(len(gnuBuildID)+buildIDSize-1), []byte{0xee})
	addrs := []uint64{text, note.va}
	element, name, address := "module_sect_attr", "battr.attr.name", "address"
	if s.isNew {
		element, name, address = "bin_attribute", "attr.name", "private"
	}
	size := uint64(s.types.size(element))
	base := uint64(s.types.offset("module_sect_attrs", "attrs"))
	all := s.alloc(base+2*size, 16)
	all.kind = "module_sect_attrs"
	pointers := s.alloc(24, 8)
	for i := range names {
		e := object{f: s.fake, kind: element, pa: all.pa, va: all.va}
		e = e.shift(base + uint64(i)*size)
		e.set(name, s.cstring(names[i])).set(address, addrs[i])
		pointers.put64(uint64(8*i), e.va)
	}
	all.set("grp.bin_attrs", pointers.va)
	if !s.isNew {
		all.set("nsections", 2)
	}
	return all.va
}

// shift is an object further up.
func (o object) shift(n uint64) object {
	o.va += n
	o.pa += mem.Phys(n)
	return o
}

// addTasks makes init_task, a process of two threads and a thread of the kernel.
func (s *fakeSystem) addTasks() {
	size := uint64(s.types.size("task_struct"))
	first := s.variable("init_task", size)
	first.kind = "task_struct"
	first.text("comm", "swapper/0")
	mm := s.make("mm_struct")
	args := s.alloc(64, 8)
	args.put(0, []byte("qemu\x00-m\x001G\x00"))
	// The process's tables are the kernel's, so its memory is where the kernel has it.
	mm.set("pgd", fakeDirect+uint64(s.root)).set("arg_start", args.va).set("arg_end", args.va+11)
	signal := s.make("signal_struct")
	list := []uint64{first.at("tasks")}
	add := func(comm string, pid, tgid uint64, state uint64) object {
		o := s.make("task_struct").text("comm", comm).set("pid", pid).set("tgid", tgid).set("__state", state)
		o.set("real_parent", first.va).set("stack", 0xffffc90000000000+pid<<16).set("thread.sp", 0xffffc90000003f00+pid<<16)
		o.set("thread_info.cpu", 1)
		s.tasks = append(s.tasks, o)
		return o
	}
	s.tasks = append(s.tasks, first)
	leader := add("qemu", 100, 100, 1).set("mm", mm.va).set("signal", signal.va)
	vcpu := add("CPU 0/KVM", 101, 100, 0).set("mm", mm.va).set("signal", signal.va).set("on_cpu", 1)
	kthread := add("kworker/0:1", 7, 7, 0x402).set("flags", kernelThread|0x40)
	own := s.make("signal_struct")
	kthread.set("signal", own.va)
	s.link(signal.at("thread_head"), leader.at("thread_node"), vcpu.at("thread_node"))
	s.link(own.at("thread_head"), kthread.at("thread_node"))
	s.link(append(list, leader.at("tasks"), kthread.at("tasks"))...)
}

// addKVM makes a VM with two vCPUs and two memory slots.
func (s *fakeSystem) addKVM() {
	s.vm = s.make("kvm")
	mm := uint64(0)
	for i := range 8 {
		mm |= uint64(s.ram[uint64(s.tasks[1].pa)+uint64(s.types.offset("task_struct", "mm"))+uint64(i)]) << (8 * i)
	}
	s.vm.set("mm", mm).set("userspace_pid", 101)
	s.link(s.vmListAt, s.vm.at("vm_list"))
	for i := range 2 {
		v := s.make("vcpu_svm")
		block := s.alloc(pageSize, pageSize)
		pid := s.make("pid").set("numbers[0].nr", uint64(101+i))
		v.set("vmcb", block.va).set("vmcb01.ptr", block.va).set("vmcb01.pa", uint64(block.pa)|1<<47)
		v.set("vcpu.kvm", s.vm.va).set("vcpu.cpu", uint64(i)).set("vcpu.vcpu_id", uint64(10+i)).set("vcpu.mode", uint64(i))
		v.set("vcpu.pid", pid.va).set("vcpu.arch.regs_avail", 0xfffeffff)
		for r := range 17 {
			v.shift(uint64(8*r)).set("vcpu.arch.regs", uint64(0x1000*(i+1)+r))
		}
		for r := range 4 {
			v.shift(uint64(8*r)).set("vcpu.arch.db", uint64(0x20000*(i+1)+r))
		}
		s.vcpus, s.control = append(s.vcpus, v), append(s.control, block)
	}
	s.addVCPUList()
	s.addSlots()
}

func (s *fakeSystem) addVCPUList() {
	v0, v1 := s.vcpus[0].at("vcpu"), s.vcpus[1].at("vcpu")
	if !s.isNew {
		s.vm.set("vcpus[0]", v0).set("vcpus[1]", v1).set("online_vcpus.counter", 2)
		return
	}
	// A root with a leaf at index 0 that holds both, and a mark.
	leaf := s.make("xa_node").set("slots[0]", v0).set("slots[2]", v1).set("slots[3]", 3)
	top := s.make("xa_node").set("shift", 2).set("slots[0]", leaf.va+2).set("slots[1]", 0x402)
	s.vm.set("vcpu_array.xa_head", top.va+2)
}

func (s *fakeSystem) addSlots() {
	type slot struct{ id, gfn, pages, user uint64 }
	slots := []slot{{3, 0x100, 0x200, 0x7f0000000000}, {0, 0, 0xa0, 0x7e0000000000}}
	if s.isNew {
		set := s.make("kvm_memslots").set("node_idx", 1)
		var last object
		for i, x := range slots {
			o := s.make("kvm_memory_slot").set("id", x.id).set("base_gfn", x.gfn).set("npages", x.pages).set("userspace_addr", x.user)
			if i == 0 {
				set.set("id_hash[5]", o.at("id_node[1]"))
			} else {
				last.set("id_node[1].next", o.at("id_node[1]"))
			}
			last = o
		}
		s.vm.set("memslots[0]", set.va)
		return
	}
	size := uint64(s.types.size("kvm_memory_slot"))
	base := uint64(s.types.offset("kvm_memslots", "memslots"))
	all := s.alloc(base+2*size, 16)
	all.kind = "kvm_memslots"
	all.set("used_slots", 2)
	for i, x := range slots {
		o := all.shift(base + uint64(i)*size)
		o.kind = "kvm_memory_slot"
		o.set("id", x.id).set("base_gfn", x.gfn).set("npages", x.pages).set("userspace_addr", x.user)
	}
	s.vm.set("memslots[0]", all.va)
}

// addCPUs makes two CPUs; the second runs the vCPU's thread.
func (s *fakeSystem) addCPUs() {
	offsets := s.variable("__per_cpu_offset", 64)
	s.variable("nr_cpu_ids", 4).put(0, []byte{2, 0, 0, 0})
	current := uint64(0x40) // of the symbol current_task, see kallsymstest.Symbols
	for i, task := range []object{s.tasks[0], s.tasks[2]} {
		s.percpu[i] = s.alloc(0x2000, pageSize)
		offsets.put64(uint64(8*i), s.percpu[i].va)
		s.percpu[i].put64(current, task.va)
	}
}

// addPages makes struct page for the first 4 MiB of RAM, in one section.
func (s *fakeSystem) addPages() {
	const pages = 1024
	size := uint64(s.types.size("page"))
	pageArray := s.alloc(pages*size, pageSize)
	page := func(i uint64) object {
		o := pageArray.shift(i * size)
		o.kind = "page"
		return o
	}
	s.page = page
	page(5).set("_refcount", 1)
	page(8).set("_refcount", 3)
	page(9).set("compound_head", page(8).va|1)
	section := s.make("mem_section").set("section_mem_map", pageArray.va|0x1f)
	roots := s.alloc(64, 8)
	roots.put64(0, section.va)
	for key, v := range map[string]string{
		"SYMBOL(mem_section)": hexText(roots.va), "LENGTH(mem_section)": "8",
		"SIZE(mem_section)": "16", "OFFSET(mem_section.section_mem_map)": "0",
		"NUMBER(SECTION_SIZE_BITS)": "22",
	} {
		s.info[key] = v
	}
}
