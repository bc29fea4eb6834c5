package linux

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"nestdbg/internal/mem"
)

// typeCache keeps types once they were parsed. Failures are not kept.
type typeCache struct {
	mu      sync.Mutex
	core    *Types            // guarded by mu
	modules map[string]*Types // guarded by mu; by name and address of the BTF
}

// Types are the C types of the kernel itself, from its BTF. ErrNotFound if it was
// built without.
func (k *Kernel) Types() (*Types, error) {
	k.types.mu.Lock()
	defer k.types.mu.Unlock()
	if k.types.core != nil {
		return k.types.core, nil
	}
	raw, err := k.rawBTF()
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", k.Release, err)
	}
	t, err := parseTypes("the kernel", raw, nil)
	if err != nil {
		return nil, err
	}
	k.types.core = t
	return t, nil
}

// rawBTF is the BTF of the kernel: between its symbols, or searched in the image
// where data symbols are not listed. It is the memory's own bytes where they lie
// together, which they do in a machine that is no guest: a copy would be the largest
// thing that most questions need.
func (k *Kernel) rawBTF() ([]byte, error) {
	if raw, ok := k.sliceBTF(); ok {
		return raw, nil
	}
	if raw, err := k.between("__start_BTF", "__stop_BTF", btfMax); err == nil || errors.Is(err, mem.ErrFault) {
		return raw, err // a part that cannot be read would be zeros below
	}
	all, unread := k.image.contents()
	for at := 0; ; at++ {
		i := bytes.Index(all[at:], btfHeader)
		switch {
		case i < 0 && len(unread) > 0:
			return nil, fmt.Errorf("no types in what can be read of the kernel's image (%d pages cannot): %w", len(unread), ErrNotFound)
		case i < 0:
			return nil, &MissingError{What: "types (BTF)", Option: optionTypes}
		}
		at += i
		if n := btfSize(all[at:]); n != 0 && n <= uint64(len(all)-at) {
			if err := k.image.unreadIn(unread, uint64(at), n); err != nil {
				return nil, err
			}
			return all[at:][:n], nil
		}
	}
}

// sliceBTF is the BTF between its symbols without a copy.
func (k *Kernel) sliceBTF() ([]byte, bool) {
	slicer, ok := k.image.phys.(mem.PhysSlicer)
	first, found := k.lookupCore("__start_BTF")
	end, found2 := k.lookupCore("__stop_BTF")
	if !ok || !found || !found2 || !k.image.contains(uint64(first)) || end <= first || end-first > btfMax {
		return nil, false
	}
	size := int(end - first)
	raw := slicer.SlicePhys(k.image.pa+mem.Phys(first-k.image.va), size)
	return raw, len(raw) == size
}

// btfModulesMax bounds the list of modules with BTF.
const btfModulesMax = 4096

// ModuleTypes are the C types a module adds, together with the kernel's. What is
// built in is in the kernel's own types: for a module that is not loaded it is
// ErrNotFound.
func (k *Kernel) ModuleTypes(name string) (*Types, error) {
	core, err := k.Types()
	if err != nil {
		return nil, err
	}
	data, size, err := k.moduleBTF(core, name)
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	key := fmt.Sprintf("%s@%#x+%#x", name, data, size)
	k.types.mu.Lock()
	defer k.types.mu.Unlock()
	if t := k.types.modules[key]; t != nil {
		return t, nil
	}
	raw, err := k.readModuleBTF(name, data, size)
	if err != nil {
		return nil, err
	}
	t, err := parseTypes("module "+name, raw, core)
	if err != nil {
		return nil, err
	}
	t.module = name
	if k.types.modules == nil {
		k.types.modules = map[string]*Types{}
	}
	k.types.modules[key] = t
	return t, nil
}

// RawModuleBTF is the BTF of a module, as it lies in memory: it continues that of
// the kernel. ErrNotFound for a module that has none or is not loaded.
func (k *Kernel) RawModuleBTF(name string) ([]byte, error) {
	core, err := k.Types()
	if err != nil {
		return nil, err
	}
	data, size, err := k.moduleBTF(core, name)
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	return k.readModuleBTF(name, data, size)
}

func (k *Kernel) readModuleBTF(name string, data mem.Virt, size uint64) ([]byte, error) {
	if size > btfMax {
		return nil, fmt.Errorf("types of module %s: %d bytes: %w", name, size, ErrCorrupt)
	}
	raw := make([]byte, size)
	if _, err := k.space.ReadVirt(raw, data); err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	return raw, nil
}

// moduleBTF finds a module's BTF in the kernel's list of them. struct
// module.btf_data points to memory that was freed after loading, in every kernel so
// far; the copy that is kept hangs in btf_modules (Linux 6.1
// kernel/bpf/btf.c:btf_module_notify).
func (k *Kernel) moduleBTF(core *Types, name string) (data mem.Virt, size uint64, err error) {
	head, ok := k.lookupCore("btf_modules")
	if !ok {
		return 0, 0, k.missingSymbol("btf_modules", optionModuleTypes)
	}
	entry := newShape(core, "btf_module")
	link, object := entry.need("list"), entry.need("btf")
	content := newShape(core, "btf")
	dataField, sizeField, nameField := content.need("data"), content.need("data_size"), content.need("name")
	if err := errors.Join(entry.err, content.err); err != nil {
		return 0, 0, err
	}
	nodes, listErr := ring(k.space, head, btfModulesMax)
	for _, node := range nodes {
		e, err := entry.read(k.space, node-mem.Virt(link.Offset))
		if err != nil {
			listErr = errors.Join(listErr, err)
			continue
		}
		b, err := content.read(k.space, e.virt(object))
		if err != nil {
			listErr = errors.Join(listErr, err)
			continue
		}
		if b.text(nameField) == name {
			return b.virt(dataField), b.uint(sizeField), nil
		}
	}
	if listErr != nil {
		return 0, 0, listErr
	}
	return 0, 0, fmt.Errorf("not in btf_modules: %w", ErrNotFound)
}
