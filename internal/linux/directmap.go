package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// directMapBase is the kernel's variable that says where all of physical memory is
// in its address space (Linux 6.1 arch/x86/include/asm/page_64.h).
const directMapBase = "page_offset_base"

// DirectMap is the address at which the kernel has physical address 0; ErrNotFound
// if it does not say.
func (k *Kernel) DirectMap() (mem.Virt, error) {
	a, ok := k.Lookup(directMapBase)
	if !ok {
		return 0, fmt.Errorf("symbol %s: %w", directMapBase, ErrNotFound)
	}
	base, err := mem.VirtUint64(k.Space(), a)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", directMapBase, err)
	}
	return mem.Virt(base), nil
}
