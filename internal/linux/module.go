package linux

import (
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// modulesMax bounds the list of modules; large distributions load some 300.
const modulesMax = 8192

// ModuleState is how far a module's loading is.
type ModuleState int

// Linux 6.1 include/linux/module.h, enum module_state.
const (
	ModuleLive ModuleState = iota
	ModuleComing
	ModuleGoing
	ModuleUnformed
)

func (s ModuleState) String() string {
	names := [...]string{"live", "coming", "going", "unformed"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("state %d", int(s))
	}
	return names[s]
}

// Module is a loaded kernel module.
type Module struct {
	Name    string
	State   ModuleState
	Addr    mem.Virt // of its struct module
	Base    mem.Virt // where its text begins, as in /proc/modules
	Size    uint64   // bytes in all regions, as in /proc/modules
	Regions []Region // text first
	BuildID string   // hexadecimal; empty if it has none
	Use     ModuleUse
	Taints  string // letters as in /proc/modules: what the module did to the kernel

	Sections []Section // by their order in the file; empty if the kernel does not keep them

	kallsyms mem.Virt // its struct mod_kallsyms
}

// Region is one allocation of a module.
type Region struct {
	Name string // "core" and "init" before Linux 6.4, else text, data, rodata, ...
	Base mem.Virt
	Size uint64 // bytes
}

// Section is an ELF section of a module at its place in memory.
type Section struct {
	Name string
	Addr mem.Virt
}

// Contains reports whether an address lies in one of the module's regions.
func (m *Module) Contains(a mem.Virt) bool {
	for _, r := range m.Regions {
		if uint64(a-r.Base) < r.Size {
			return true
		}
	}
	return false
}

// Problem is something that could not be read on the way to an answer that is
// still worth having.
type Problem struct {
	What string
	Err  error
}

func (p Problem) String() string { return p.What + ": " + p.Err.Error() }

// moduleShape is where struct module keeps what we want; two generations.
type moduleShape struct {
	shape                                 *shape
	list, state, name, sections, kallsyms Field
	buildID, taints                       Field
	hasSections, hasKallsyms, hasBuildID  bool
	hasTaints                             bool
	regions                               []regionShape
	use                                   *moduleUseShape // nil if the kernel does not count
}

type regionShape struct {
	name       string
	base, size Field
}

// memTypes are the names of struct module.mem[], Linux 6.12 include/linux/module.h
// enum mod_mem_type.
var memTypes = [...]string{"text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata"}

func newModuleShape(t *Types) (*moduleShape, error) {
	s := newShape(t, "module")
	m := &moduleShape{shape: s, list: s.need("list"), state: s.need("state"), name: s.need("name")}
	m.sections, m.hasSections = s.want("sect_attrs")
	m.kallsyms, m.hasKallsyms = s.want("kallsyms")
	m.buildID, m.hasBuildID = s.want("build_id")
	m.taints, m.hasTaints = s.want("taints")
	var err error
	if m.use, err = newModuleUseShape(t, s); err != nil {
		return nil, err
	}
	if all, ok := s.want("mem"); ok { // Linux 6.4
		for i := range min(all.Count, 64) {
			name := fmt.Sprintf("mem %d", i)
			if int(i) < len(memTypes) {
				name = memTypes[i]
			}
			path := fmt.Sprintf("mem[%d].", i)
			m.regions = append(m.regions, regionShape{name, s.need(path + "base"), s.need(path + "size")})
		}
	} else {
		// Linux 4.5, and before it.
		m.regions = []regionShape{
			{"core", s.need("core_layout.base", "module_core"), s.need("core_layout.size", "core_size")},
			{"init", s.need("init_layout.base", "module_init"), s.need("init_layout.size", "init_size")},
		}
	}
	return m, s.err
}

// Modules lists the loaded modules in the order of /proc/modules. Problems are
// about single modules; with an error the list may still hold those that were reached.
func (k *Kernel) Modules() ([]Module, []Problem, error) {
	t, err := k.Types()
	if err != nil {
		return nil, nil, fmt.Errorf("modules: %w", err)
	}
	head, ok := k.lookupCore("modules")
	if !ok {
		return nil, nil, fmt.Errorf("modules: %w", k.missingSymbol("modules", optionModules))
	}
	shape, err := newModuleShape(t)
	if err != nil {
		return nil, nil, fmt.Errorf("modules: %w", err)
	}
	nodes, listErr := ring(k.space, head, modulesMax)
	var list []Module
	var problems []Problem
	for _, node := range nodes {
		m, more, err := k.readModule(t, shape, node-mem.Virt(shape.list.Offset), len(nodes))
		problems = append(problems, more...)
		if err != nil {
			problems = append(problems, Problem{fmt.Sprintf("module at %#x", node), err})
			continue
		}
		list = append(list, m)
	}
	if listErr != nil {
		return list, problems, fmt.Errorf("modules: %w", listErr)
	}
	return list, problems, nil
}

// regionMax bounds a region of a module that is believed, bytes.
const regionMax = 1 << 30

// readModule reads one of so many modules.
func (k *Kernel) readModule(t *Types, s *moduleShape, addr mem.Virt, modules int) (Module, []Problem, error) {
	rec, err := s.shape.read(k.space, addr)
	if err != nil {
		return Module{}, nil, err
	}
	m := Module{Addr: addr, Name: rec.text(s.name), State: ModuleState(rec.int(s.state))}
	for _, r := range s.regions {
		region := Region{r.name, rec.virt(r.base), rec.uint(r.size)}
		if region.Base == 0 || region.Size == 0 {
			continue
		}
		if region.Size > regionMax {
			return Module{}, nil, fmt.Errorf("region %s of %q has %#x bytes: %w", r.name, m.Name, region.Size, ErrCorrupt)
		}
		m.Regions = append(m.Regions, region)
		m.Size += region.Size
	}
	if len(m.Regions) > 0 {
		m.Base = m.Regions[0].Base
	}
	var problems []Problem
	if s.use != nil {
		if m.Use, err = k.moduleUse(s, &rec, modules); err != nil {
			problems = append(problems, Problem{"users of " + m.Name, err})
		}
	}
	if s.hasTaints {
		m.Taints = taints(rec.uint(s.taints))
	}
	if s.hasKallsyms {
		m.kallsyms = rec.virt(s.kallsyms)
	}
	if at := rec.virt(s.sections); s.hasSections && at != 0 {
		if m.Sections, err = k.moduleSections(t, at); err != nil {
			problems = append(problems, Problem{"sections of " + m.Name, err})
		}
	}
	if m.BuildID, err = k.moduleBuildID(s, &rec, &m); err != nil {
		problems = append(problems, Problem{"build id of " + m.Name, err})
	}
	return m, problems, nil
}

// moduleBuildID takes the build id that the kernel keeps for backtraces (Linux
// 5.14, CONFIG_STACKTRACE_BUILD_ID), else the module's note.
func (k *Kernel) moduleBuildID(s *moduleShape, rec *record, m *Module) (string, error) {
	if s.hasBuildID {
		for _, c := range rec.bytes(s.buildID) {
			if c != 0 {
				return fmt.Sprintf("%x", rec.bytes(s.buildID)), nil
			}
		}
	}
	for _, section := range m.Sections {
		if section.Name != ".note.gnu.build-id" {
			continue
		}
		note := make([]byte, len(gnuBuildID)+buildIDSize)
		if _, err := k.space.ReadVirt(note, section.Addr); err != nil {
			return "", err
		}
		return buildIDInNotes(note)
	}
	return "", nil
}

// Bounds of a module's sections: how many, how long a name.
const (
	sectionsMax    = 4096
	sectionNameMax = 256
)

// sectionShape is where struct module_sect_attrs keeps names and addresses.
type sectionShape struct {
	head          *shape
	count, list   Field
	counted       bool
	name, address Field // within one element
	stride        uint32
}

// newSectionShape knows three generations: an array of struct module_sect_attr
// with its length; since Linux 6.14 an array of struct bin_attribute whose private
// is the address, and whose end is that of the array of pointers to it.
func newSectionShape(t *Types) (*sectionShape, error) {
	s := &sectionShape{head: newShape(t, "module_sect_attrs")}
	element := newShape(t, "module_sect_attr")
	if _, err := t.SizeOf("module_sect_attr"); errors.Is(err, ErrNotFound) {
		element = newShape(t, "bin_attribute")
		s.name, s.address = element.need("attr.name"), element.need("private")
	} else {
		s.name, s.address = element.need("battr.attr.name", "name"), element.need("address")
	}
	s.count, s.counted = s.head.want("nsections")
	if !s.counted {
		s.count = s.head.need("grp.bin_attrs_new", "grp.bin_attrs")
	}
	if err := errors.Join(s.head.err, element.err); err != nil {
		return nil, err
	}
	// The array is flexible: it must not be part of the span that is read.
	var err error
	if s.list, err = t.Field("module_sect_attrs", "attrs"); err != nil {
		return nil, err
	}
	s.stride = s.list.Stride
	if s.stride < element.end || s.stride > pageSize {
		return nil, fmt.Errorf("element of module_sect_attrs.attrs has %d bytes: %w", s.stride, ErrCorrupt)
	}
	return s, nil
}

// moduleSections reads the struct module_sect_attrs at addr.
func (k *Kernel) moduleSections(t *Types, addr mem.Virt) ([]Section, error) {
	s, err := newSectionShape(t)
	if err != nil {
		return nil, err
	}
	rec, err := s.head.read(k.space, addr)
	if err != nil {
		return nil, err
	}
	count := rec.uint(s.count)
	if !s.counted {
		if count, err = k.pointersAt(rec.virt(s.count), sectionsMax); err != nil {
			return nil, err
		}
	}
	if count > sectionsMax {
		return nil, fmt.Errorf("%d sections: %w", count, ErrCorrupt)
	}
	elements := make([]byte, count*uint64(s.stride))
	at := addr + mem.Virt(s.list.Offset)
	if _, err := k.space.ReadVirt(elements, at); err != nil {
		return nil, err
	}
	var out []Section
	for i := range count {
		e := record{b: elements[i*uint64(s.stride):][:s.stride]}
		name, err := mem.CString(k.space, e.virt(s.name), sectionNameMax)
		if err != nil {
			return out, fmt.Errorf("name of section %d: %w", i, err)
		}
		out = append(out, Section{cleanText([]byte(name)), e.virt(s.address)})
	}
	return out, nil
}

// pointersAt counts the pointers of an array that ends with NULL.
func (k *Kernel) pointersAt(addr mem.Virt, limit uint64) (uint64, error) {
	for n := range limit {
		p, err := mem.VirtUint64(k.space, addr+mem.Virt(8*n))
		if err != nil {
			return 0, err
		}
		if p == 0 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("array of pointers at %#x has no end within %d: %w", addr, limit, ErrCorrupt)
}
