package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// A guest that runs a guest itself: no processor runs a guest of a guest, so KVM
// combines the control block that its guest made with its own and runs that. What
// KVM knows of it is in the vendor's structure (Linux 6.1
// arch/x86/kvm/svm/svm.h:struct svm_nested_state; vmx/vmx.h:struct nested_vmx, whose
// current_vmptr is all ones if there is none, and whose cached_vmcs12 is read from the
// guest's memory by VMPTRLD and goes back there by VMCLEAR, vmx/nested.c).

// InGuest reports whether the vCPU is in a guest of its own, as far as KVM is
// concerned: then Current is what a processor executes for that guest.
func (c ControlBlock) InGuest() bool { return c.Inner != 0 }

// Between reports that KVM is taking the vCPU into a guest of its own or out of it:
// which of the two its registers are of is not to be said.
func (c ControlBlock) Between() bool { return c.Current != c.Phys && !c.InGuest() }

// ControlReader reads the control block of one vCPU again, without all that leads to it.
type ControlReader struct {
	space   AddressSpace
	flavour *flavourShape
	vendor  mem.Virt // of the vendor's structure
}

// Read reads it as it is now.
func (c *ControlReader) Read() (ControlBlock, error) { return c.flavour.read(c.space, c.vendor) }

// nestedShape is where a flavour keeps the guest of a guest.
type nestedShape struct {
	merged, inner, pending, last, save, kept                   Field
	hasMerged, hasInner, hasPending, hasLast, hasSave, hasKept bool
}

func newNestedShape(s *shape, f *kvmFlavour) (n nestedShape) {
	for _, x := range []struct {
		path string
		at   *Field
		has  *bool
	}{
		{f.merged, &n.merged, &n.hasMerged}, {f.inner, &n.inner, &n.hasInner}, {f.pending, &n.pending, &n.hasPending},
		{f.last, &n.last, &n.hasLast}, {f.save, &n.save, &n.hasSave}, {f.kept, &n.kept, &n.hasKept},
	} {
		if x.path != "" {
			*x.at, *x.has = s.want(x.path)
		}
	}
	return n
}

// read completes c by what KVM has of a guest of the guest.
func (n *nestedShape) read(space AddressSpace, rec *record, c *ControlBlock) error {
	if !n.hasMerged && c.Current != c.Phys {
		c.Merged, c.Untold = c.Current, true
	}
	if !n.hasMerged || rec.uint(n.merged) == 0 {
		return nil // none was ever entered, or there cannot be one
	}
	var err error
	if c.Merged, err = blockAt(space, rec.uint(n.merged)); err != nil {
		return fmt.Errorf("merged %s: %w", c.Kind, err)
	}
	if n.hasSave {
		if at := rec.uint(n.save); at%pageSize == 0 {
			c.HostSave = mem.Phys(at)
		}
	}
	if n.hasLast {
		if at := rec.uint(n.last); at%pageSize == 0 {
			c.LastInner = mem.Phys(at)
		}
	}
	if n.hasKept && c.LastInner != 0 {
		if at, err := blockAt(space, rec.uint(n.kept)); err == nil {
			c.Kept = at
		}
	}
	if c.Current != c.Merged || !n.hasInner {
		return nil
	}
	if at := rec.uint(n.inner); at%pageSize == 0 {
		c.Inner = mem.Phys(at) // SVM: 0 as soon as KVM begins to leave
	}
	c.Pending = n.hasPending && rec.uint(n.pending) != 0
	return nil
}
