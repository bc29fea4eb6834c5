package linux

import (
	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Runs reports whether this kernel is still the one that a machine runs, whose
// CPUs have these registers now. A machine that was reset keeps the old kernel and
// its page tables in memory until something overwrites them, so the memory alone
// does not tell: one of the CPUs must run on tables that map the image where it
// was. If no CPU's tables are known, the memory has to do.
func (k *Kernel) Runs(cpus []*arch.Registers) bool {
	if !k.maps(k.space) || !k.hasBanner() {
		return false
	}
	known := false
	for _, cpu := range cpus {
		if cpu == nil {
			continue
		}
		v, ok := cpu.Get(k.layout.rootReg)
		if !ok {
			continue
		}
		known = true
		root := v & k.layout.rootMask
		for _, r := range [...]uint64{root, root &^ k.layout.userRootBit} {
			space, err := k.src.Space(mem.Phys(r))
			if err == nil && k.maps(space) {
				return true
			}
		}
	}
	return !known
}

// maps reports whether an address space has the image where it was found.
func (k *Kernel) maps(space AddressSpace) bool {
	pa, _, err := space.Translate(uint64(k.TextVA))
	return err == nil && pa == k.TextPA
}

// hasBanner reports whether the image still has the banner that was found in it:
// without KASLR the next kernel is loaded to the same place.
func (k *Kernel) hasBanner() bool {
	b := make([]byte, len(k.Banner))
	_, err := k.src.Phys.ReadPhys(b, k.TextPA+mem.Phys(k.image.bannerAt))
	return err == nil && string(b) == k.Banner
}
