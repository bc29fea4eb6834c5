package linux

import (
	"bytes"
	"fmt"
	"sync"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// orcMax bounds an ORC table; the one of Linux 6.1 has some 800,000 entries of 10 bytes.
const orcMax = 64 << 20

// Unwind is the ORC table of the kernel itself. ErrNotFound if it was built
// without (CONFIG_UNWINDER_ORC).
func (k *Kernel) Unwind() (*orc.Table, error) {
	ip, err := k.between("__start_orc_unwind_ip", "__stop_orc_unwind_ip", orcMax)
	if err != nil {
		return nil, fmt.Errorf("ORC table of %s: %w", k.Release, err)
	}
	entries, err := k.between("__start_orc_unwind", "__stop_orc_unwind", orcMax)
	if err != nil {
		return nil, fmt.Errorf("ORC table of %s: %w", k.Release, err)
	}
	at, _ := k.lookupCore("__start_orc_unwind_ip")
	version, err := k.orc.version(func() (orc.Version, error) { return k.detectORC(entries) })
	if err != nil {
		return nil, err
	}
	return orc.New(ip, entries, uint64(at), version)
}

// orcCache keeps the version of the ORC tables, which is the same for a kernel and
// all its modules: to tell it takes a look at megabytes of entries.
type orcCache struct {
	mu    sync.Mutex
	known orc.Version // guarded by mu; 0 if not known yet
}

func (c *orcCache) version(detect func() (orc.Version, error)) (orc.Version, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != 0 {
		return c.known, nil
	}
	v, err := detect()
	if err == nil {
		c.known = v
	}
	return v, err
}

// readORCVersion is detectORC with the kernel's own entries.
func (k *Kernel) readORCVersion() (orc.Version, error) {
	entries, err := k.between("__start_orc_unwind", "__stop_orc_unwind", orcMax)
	if err != nil {
		return 0, err
	}
	return k.detectORC(entries)
}

// detectORC tells the version of the kernel's ORC tables, by their header where
// there is one (since Linux 6.3.10).
func (k *Kernel) detectORC(entries []byte) (orc.Version, error) {
	header, err := k.between("__start_orc_header", "__stop_orc_header", pageSize)
	if err != nil {
		header = nil
	}
	return orc.Detect(header, entries)
}

// ModuleUnwind is the ORC table of a module (struct module.arch, Linux 6.1
// arch/x86/include/asm/module.h). ErrNotFound if it has none.
func (k *Kernel) ModuleUnwind(m *Module) (*orc.Table, error) {
	t, err := k.Types()
	if err != nil {
		return nil, err
	}
	s := newShape(t, "module")
	count, ip, entries := s.need("arch.num_orcs"), s.need("arch.orc_unwind_ip"), s.need("arch.orc_unwind")
	if s.err != nil {
		return nil, s.err
	}
	rec, err := s.read(k.space, m.Addr)
	if err != nil {
		return nil, fmt.Errorf("ORC table of module %s: %w", m.Name, err)
	}
	n, ipAt := rec.uint(count), rec.virt(ip)
	switch {
	case n == 0:
		return nil, fmt.Errorf("ORC table of module %s: %w", m.Name, ErrNotFound)
	case n > orcMax/10:
		return nil, fmt.Errorf("ORC table of module %s: %d entries: %w", m.Name, n, ErrCorrupt)
	}
	ips, table := make([]byte, 4*n), make([]byte, 6*n)
	for _, x := range []struct {
		b  []byte
		at mem.Virt
	}{{ips, ipAt}, {table, rec.virt(entries)}} {
		if _, err := k.space.ReadVirt(x.b, x.at); err != nil {
			return nil, fmt.Errorf("ORC table of module %s: %w", m.Name, err)
		}
	}
	version, err := k.orc.version(k.readORCVersion)
	if err != nil {
		return nil, err
	}
	return orc.New(ips, table, uint64(ipAt), version)
}

// UserRange is where user programs can be, with 5-level paging.
func (k *Kernel) UserRange() mem.Range { return k.layout.userRange }

// RawBTF is a copy of the BTF of the kernel itself. ErrNotFound if it
// was built without (CONFIG_DEBUG_INFO_BTF).
func (k *Kernel) RawBTF() ([]byte, error) {
	raw, err := k.rawBTF()
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", k.Release, err)
	}
	return bytes.Clone(raw), nil
}
