package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// Jiffies is the kernel's clock in ticks, which goes while one of its CPUs takes timer
// interrupts: it stands while all of them wait (NO_HZ), and while none takes
// interrupts.
func (k *Kernel) Jiffies() (uint64, error) {
	at, ok := k.lookupCore("jiffies_64")
	if !ok {
		if at, ok = k.lookupCore("jiffies"); !ok {
			return 0, k.missingSymbol("jiffies_64", "")
		}
	}
	v, err := mem.VirtUint64(k.space, at)
	if err != nil {
		return 0, fmt.Errorf("read jiffies: %w", err)
	}
	return v, nil
}
