package linux

import (
	"fmt"
	"math/bits"

	"nestdbg/internal/mem"
)

// ModuleUse is who needs a module, as in /proc/modules.
type ModuleUse struct {
	Counted   bool     // the kernel knows (CONFIG_MODULE_UNLOAD); without it the rest is empty
	Refs      int      // references; -1 while the module is being unloaded
	Users     []string // the modules that need it, in the kernel's order
	Permanent bool     // it cannot be unloaded
}

// moduleRefBase is the reference that the kernel itself holds on a module that is
// loaded, Linux 6.1 kernel/module/main.c: MODULE_REF_BASE.
const moduleRefBase = 1

// moduleUseShape is where struct module and struct module_use keep who needs a module;
// kernels without CONFIG_MODULE_UNLOAD have neither.
type moduleUseShape struct {
	refs, users, init, exit Field // of struct module
	user                    *shape
	node, source            Field // of struct module_use
}

// newModuleUseShape adds members to those that are read of a struct module; nil if the
// kernel does not count.
func newModuleUseShape(t *Types, module *shape) (*moduleUseShape, error) {
	u := &moduleUseShape{user: newShape(t, "module_use")}
	var counts bool
	if u.refs, counts = module.want("refcnt.counter"); !counts {
		return nil, module.err
	}
	u.users, u.init, u.exit = module.need("source_list"), module.need("init"), module.need("exit")
	u.node, u.source = u.user.need("source_list"), u.user.need("source")
	return u, u.user.err
}

// moduleUse reads who needs a module, Linux 6.1 kernel/module/procfs.c:
// print_unload_info. The list has at most so many nodes as there are modules: each is
// in it once. With an error what was read of it is returned.
func (k *Kernel) moduleUse(s *moduleShape, rec *record, modules int) (ModuleUse, error) {
	u := s.use
	out := ModuleUse{
		Counted:   true,
		Refs:      int(rec.int(u.refs)) - moduleRefBase,
		Permanent: rec.virt(u.init) != 0 && rec.virt(u.exit) == 0,
	}
	nodes, err := ring(k.space, rec.at(u.users), modules)
	for _, node := range nodes {
		use, e := u.user.read(k.space, node-mem.Virt(u.node.Offset))
		if e != nil {
			return out, e
		}
		user, e := s.shape.read(k.space, use.virt(u.source))
		if e != nil {
			return out, e
		}
		out.Users = append(out.Users, user.text(s.name))
	}
	return out, err
}

// taintLetters are those of the bits of struct module.taints, from the lowest: Linux
// 6.18 kernel/panic.c:taint_flags.
const taintLetters = "PFSRMBUDAWCIOELKXTNJ"

// taints writes the bits as /proc/modules does. One that is newer is a number.
func taints(v uint64) string {
	out := ""
	for ; v != 0; v &= v - 1 {
		if bit := bits.TrailingZeros64(v); bit < len(taintLetters) {
			out += taintLetters[bit : bit+1]
		} else {
			out += fmt.Sprintf("<%d>", bit)
		}
	}
	return out
}
