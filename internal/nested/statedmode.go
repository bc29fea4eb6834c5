package nested

import (
	"maps"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// moded is a technology whose control block says in which mode its hypervisor pages, and
// whose second stage does not depend on that.
type moded interface {
	// modeRegisters are the registers that tell the mode, and the root.
	modeRegisters() []string
}

// modeRegisters: the host-state area has them (Intel SDM Vol. 3C, "Host-State Area").
func (vmxTechnology) modeRegisters() []string {
	return []string{"cr0", "cr3", "cr4", "efer", "efer_mode"}
}

// statedMode is the paging mode of a hypervisor of which there is nothing but memory, as
// a control block has it whose guest makes sense; nil if there is none.
func (s *settler) statedMode(opt Options) *arch.Registers {
	for _, tech := range technologies[s.m.Arch.Name] {
		t, ok := tech.(moded)
		if !ok {
			continue
		}
		found := make(map[mem.Phys]*candidate)
		scan(s.m, tech, found, opt, s.problem)
		for _, at := range slices.Sorted(maps.Keys(found)) {
			host, _, err := tech.saved(s.m, at, 0)
			if err != nil || confirm(s.m, found[at]) != nil {
				continue
			}
			mode := arch.NewRegisters(s.m.Arch)
			for _, name := range t.modeRegisters() {
				if v, known := host.Get(name); known {
					mode.Set(name, v)
				}
			}
			return mode
		}
	}
	return nil
}
