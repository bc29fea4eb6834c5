package linux

import (
	"errors"
	"fmt"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// AmbiguousError lists several kernels that all verify in one machine, as without
// registers after a reboot, which leaves the old kernel in memory. It is an
// ErrNotFound: the one kernel that was asked for was not determined. Finding again
// with a CPU whose page-table root is that of a contender chooses it.
type AmbiguousError struct{ Contenders []Contender }

// Contender is one of several kernels that fit.
type Contender struct {
	Release  string
	TextVA   mem.Virt
	TextPA   mem.Phys
	Root     mem.Phys // of its page tables
	Evidence []string
}

func (c Contender) String() string {
	return fmt.Sprintf("%s at %#x, page tables at %#x (%s)", c.Release, c.TextVA, c.Root, strings.Join(c.Evidence, ", "))
}

func (e *AmbiguousError) Error() string {
	all := make([]string, len(e.Contenders))
	for i, c := range e.Contenders {
		all[i] = c.String()
	}
	return fmt.Sprintf("%d Linux kernels fit this machine: %s", len(all), strings.Join(all, "; "))
}

// Is makes it an ErrNotFound.
func (e *AmbiguousError) Is(target error) bool { return target == ErrNotFound }

// candidate is a kernel that may be the machine's.
type candidate struct {
	image    image
	root     mem.Phys // whose tables mapped the image
	space    AddressSpace
	banner   string
	info     VMCoreInfo
	others   int // further roots that map the same image
	evidence []string
	problems []string
}

// finder is one search.
type finder struct {
	src    Source
	layout *layout
	found  []*candidate
	notes  []string // what was looked at and why it was not it
}

// Find finds the machine's Linux kernel. With registers it follows the page
// tables of a CPU to the kernel image and reads the rest from there; without, or
// if no CPU runs on Linux's page tables, it searches memory for VMCOREINFO. That
// search also meets the kernels of guests inside this machine: a candidate counts
// only if its addresses are true here.
//
// ErrNotFound if there is no Linux, *AmbiguousError if there are several.
func Find(src Source) (*Kernel, error) {
	l := layoutOf(src.Arch)
	if l == nil {
		return nil, fmt.Errorf("find Linux on %s: %w", src.Arch.Name, ErrUnsupported)
	}
	f := &finder{src: src, layout: l}
	f.fromCPUs()
	if len(f.found) == 0 {
		f.fromMemory()
	}
	switch len(f.found) {
	case 0:
		return nil, fmt.Errorf("find Linux: %s: %w", f.why(), ErrNotFound)
	case 1:
		return f.kernel(f.found[0])
	}
	e := &AmbiguousError{}
	for _, c := range f.found {
		e.Contenders = append(e.Contenders, Contender{Release: releaseOf(c.banner), TextVA: c.image.va,
			TextPA: c.image.pa, Root: c.root, Evidence: c.evidence})
	}
	return nil, e
}

func (f *finder) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// why summarises the notes of a search that found nothing.
func (f *finder) why() string {
	if len(f.notes) == 0 {
		return "no CPU and no VMCOREINFO in memory"
	}
	return strings.Join(f.notes, "; ")
}

// fromCPUs follows the page-table root of each CPU.
func (f *finder) fromCPUs() {
	tried := map[mem.Phys]bool{}
	for i, cpu := range f.src.CPUs {
		if cpu == nil {
			continue
		}
		v, ok := cpu.Get(f.layout.rootReg)
		if !ok {
			f.note("%s of cpu %d is not known", f.layout.rootReg, i)
			continue
		}
		root := mem.Phys(v & f.layout.rootMask)
		if tried[root] {
			continue
		}
		tried[root] = true
		f.fromCPU(i, root)
	}
}

// fromCPU tries the root of CPU number i. In user mode, a kernel that isolates
// its page tables maps little of itself; its own tables lie beside the user's.
func (f *finder) fromCPU(i int, root mem.Phys) {
	var notes []string
	roots := []mem.Phys{root}
	if bit := mem.Phys(f.layout.userRootBit); root&bit != 0 {
		roots = []mem.Phys{root &^ bit, root}
	}
	for _, r := range roots {
		how := fmt.Sprintf("%s %#x of cpu %d", f.layout.rootReg, root, i)
		if r != root {
			how = fmt.Sprintf("kernel half %#x of ", r) + how
		}
		err := f.fromRoot(r, how)
		if err == nil {
			return
		}
		notes = append(notes, fmt.Sprintf("%s: %v", how, err))
	}
	f.notes = append(f.notes, notes...)
}

// fromRoot tries the page tables at root.
func (f *finder) fromRoot(root mem.Phys, how string) error {
	space, err := f.src.Space(root)
	if err != nil {
		return err
	}
	im, err := locateImage(f.layout, f.src.Phys, space)
	if err != nil {
		return err
	}
	evidence := fmt.Sprintf("%s maps an image at %#x to %#x", how, im.va, im.pa)
	if c := f.known(im); c != nil {
		c.others++
		return nil
	}
	banner, err := im.banner()
	if err != nil {
		return err
	}
	c := &candidate{image: im, root: root, space: space, banner: banner, evidence: []string{evidence}}
	c.findInfo(f.layout)
	f.found = append(f.found, c)
	return nil
}

// known returns the candidate whose image this is.
func (f *finder) known(im image) *candidate {
	for _, c := range f.found {
		if c.image.va == im.va && c.image.pa == im.pa {
			return c
		}
	}
	return nil
}

// findInfo looks for VMCOREINFO through the image and keeps it if it fits.
func (c *candidate) findInfo(l *layout) {
	info, err := c.image.vmcoreinfo(l, c.space)
	if err != nil {
		c.problems = append(c.problems, err.Error())
		return
	}
	if err := c.checkInfo(l, info); err != nil {
		c.problems = append(c.problems, "VMCOREINFO found through the image is not its own: "+err.Error())
		return
	}
	c.info = info
	c.evidence = append(c.evidence, "VMCOREINFO through the kernel's own pointer")
}

// errOther says that VMCOREINFO describes another kernel, or another boot.
var errOther = errors.New("another kernel's")

// checkInfo tests VMCOREINFO against the image and banner.
func (c *candidate) checkInfo(l *layout, info VMCoreInfo) error {
	if r := releaseOf(c.banner); info["OSRELEASE"] != r {
		return fmt.Errorf("release %s, banner says %s: %w", info["OSRELEASE"], r, errOther)
	}
	if base, ok := l.physBase(info); ok && base != c.image.physBase(l) {
		return fmt.Errorf("phys_base %#x, page tables say %#x: %w", base, c.image.physBase(l), errOther)
	}
	if stext, ok := info.Symbol("_stext"); ok && !c.image.contains(uint64(stext)) {
		return fmt.Errorf("_stext %#x is outside the image at %#x: %w", stext, c.image.va, errOther)
	}
	return nil
}

// fromMemory searches the machine's memory for VMCOREINFO that is true in it.
func (f *finder) fromMemory() {
	if f.src.Ranges == nil {
		return
	}
	seen := map[string]bool{}
	scanVMCoreInfo(f.src.Phys, f.src.Ranges(), func(pa mem.Phys, info VMCoreInfo) {
		// The page and the note hold the same; so do copies that kexec made.
		key := fmt.Sprint(info)
		if seen[key] {
			return
		}
		seen[key] = true
		c, err := f.fromInfo(info)
		if err != nil {
			f.note("VMCOREINFO of %s at %#x: %v", info["OSRELEASE"], pa, err)
			return
		}
		c.evidence = append(c.evidence, fmt.Sprintf("VMCOREINFO at %#x is true here", pa))
		if old := f.known(c.image); old != nil {
			old.evidence = append(old.evidence, c.evidence...)
			return
		}
		f.found = append(f.found, c)
	})
}

// fromInfo follows VMCOREINFO to the kernel it describes: its root table must map
// an image to where VMCOREINFO says, and the image must have the same release.
func (f *finder) fromInfo(info VMCoreInfo) (*candidate, error) {
	base, ok := f.layout.physBase(info)
	if !ok {
		return nil, fmt.Errorf("no phys_base: %w", ErrUnsupported)
	}
	va, ok := rootVA(f.layout, info.Symbol)
	if !ok {
		return nil, fmt.Errorf("no kernel root table: %w", ErrUnsupported)
	}
	root := f.layout.physOf(uint64(va), base)
	space, err := f.src.Space(root)
	if err != nil {
		return nil, err
	}
	c := &candidate{root: root, space: space}
	if c.image, err = locateImage(f.layout, f.src.Phys, space); err != nil {
		return nil, err
	}
	if c.banner, err = c.image.banner(); err != nil {
		return nil, err
	}
	if err := c.checkInfo(f.layout, info); err != nil {
		return nil, err
	}
	c.info = info
	return c, nil
}

// physOf is the physical address behind a virtual one of the kernel image.
func (l *layout) physOf(va uint64, physBase int64) mem.Phys {
	return mem.Phys(va - l.mapBase + uint64(physBase))
}

// rootVA is the address of the kernel's own root table.
func rootVA(l *layout, symbol func(string) (mem.Virt, bool)) (mem.Virt, bool) {
	for _, name := range l.rootSymbols {
		if va, ok := symbol(name); ok && uint64(va)%pageSize == 0 {
			return va, true
		}
	}
	return 0, false
}

// kernel makes the answer from the only candidate.
func (f *finder) kernel(c *candidate) (*Kernel, error) {
	k := &Kernel{
		Banner: c.banner, Release: releaseOf(c.banner),
		TextVA: c.image.va, TextPA: c.image.pa, Size: c.image.size,
		PhysBase: c.image.physBase(f.layout), Slide: uint64(c.image.va) - f.layout.linkText,
		VMCoreInfo: c.info, Evidence: c.evidence, Problems: c.problems,
		src: f.src, layout: f.layout, image: c.image, space: c.space, Root: c.root,
	}
	if slide, ok := c.info.slide(); ok && slide != k.Slide {
		// A kernel built with another CONFIG_PHYSICAL_START is linked elsewhere.
		k.Evidence = append(k.Evidence, fmt.Sprintf("linked at %#x", uint64(k.TextVA)-slide))
		k.Slide = slide
	}
	if c.others > 0 {
		k.Evidence = append(k.Evidence, fmt.Sprintf("so do the page tables of %d other CPUs", c.others))
	}
	for _, note := range f.notes {
		k.Evidence = append(k.Evidence, "set aside: "+note)
	}
	k.adoptRoot()
	k.findBuildID()
	k.checkTextRegs(f.src.CPUs)
	return k, nil
}

// adoptRoot moves to the kernel's own root table: a process's may go away.
func (k *Kernel) adoptRoot() {
	va, ok := rootVA(k.layout, k.VMCoreInfo.Symbol)
	if !ok {
		va, ok = rootVA(k.layout, k.lookupCore)
	}
	if !ok {
		k.problem("the kernel's own root table is not known; using that of a CPU, %#x", k.Root)
		return
	}
	root := k.layout.physOf(uint64(va), k.PhysBase)
	space, err := k.src.Space(root)
	if err == nil {
		var pa mem.Phys
		if pa, _, err = space.Translate(uint64(k.TextVA)); err == nil && pa != k.TextPA {
			err = fmt.Errorf("it maps %#x to %#x: %w", k.TextVA, pa, ErrCorrupt)
		}
	}
	if err != nil {
		k.problem("kernel root table at %#x: %v; using that of a CPU, %#x", root, err, k.Root)
		return
	}
	k.Root, k.space = root, space
}

func (k *Kernel) problem(format string, args ...any) {
	k.Problems = append(k.Problems, fmt.Sprintf(format, args...))
}

// entersGuest reports whether a CPU is in the code that enters guests.
func (k *Kernel) entersGuest(cpu *arch.Registers) bool {
	pc, ok := cpu.PC()
	return ok && k.InGuestEntry(mem.Virt(pc))
}

// checkTextRegs compares with registers that point into the kernel's text. One CPU
// may hold another value without harm: a hypervisor loads its guest's around an
// entry (Linux 6.1 arch/x86/kvm/svm/vmenter.S:__svm_vcpu_run), on VMX until it
// returns to user mode (arch/x86/kvm/x86.c:kvm_set_user_return_msr).
func (k *Kernel) checkTextRegs(cpus []*arch.Registers) {
	for _, name := range k.layout.textRegs {
		inside := 0
		var outside []string
		for i, cpu := range cpus {
			if cpu == nil {
				continue
			}
			v, ok := cpu.Get(name)
			switch {
			case !ok || v == 0: // not known, or not set up yet
			case k.image.contains(v):
				inside++
			case k.entersGuest(cpu):
			default:
				outside = append(outside, fmt.Sprintf("%s of cpu %d is %#x, outside the image", name, i, v))
			}
		}
		if inside == 0 {
			for _, text := range outside {
				k.problem("%s", text)
			}
		}
		if inside > 0 {
			k.Evidence = append(k.Evidence, fmt.Sprintf("%s of %d CPUs is in the image", name, inside))
		}
	}
}
