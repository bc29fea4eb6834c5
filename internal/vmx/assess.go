package vmx

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
)

// maxAbort bounds the VMX-abort indicator of a page that is taken for a VMCS: the
// manual has 1 to 6 (SDM Vol. 3C, "VMX Aborts"), 0xd was seen elsewhere.
const maxAbort = 0xf

// QuickReject reports whether page cannot be a VMCS of any layout that is known. It
// looks at one cache line of most pages: the header must have a revision identifier
// and no, or a small, abort code. Of those that pass it looks where each layout has
// the link pointer. page must have PageSize bytes. What it lets through goes to
// Assess.
func QuickReject(page []byte) bool {
	_ = page[PageSize-1]
	le := binary.LittleEndian
	revision := le.Uint32(page[offRevision:])
	if revision == 0 || le.Uint32(page[offAbort:]) > maxAbort {
		return true
	}
	for i, l := range Layouts {
		if !l.goesWith(revision &^ shadowVMCS) {
			continue
		}
		if link := le.Uint64(page[links[i]:]); link != 0 && validLink(link) {
			return false
		}
	}
	return true
}

// links are where each of Layouts has the link pointer, for a test on every page.
var links = func() (out []int) {
	for _, l := range Layouts {
		out = append(out, l.places[LinkPointer])
	}
	return out
}()

// Assessment says how much a page looks like a VMCS.
type Assessment struct {
	// VMCS is the view by the layout that fits best; nil if the page has no size.
	VMCS *VMCS
	// Plausible means that every rule holds without which a VM entry would fail, and
	// that the fields stand where this layout has them. A VMCS of a machine that
	// ended stays so until its page is used again. One that was never entered is not
	// plausible, and neither is one of which the processor has everything but the
	// header in itself.
	Plausible bool
	// Score counts the rules that hold. It ranks plausible pages and layouts; by
	// itself it says nothing.
	Score    int
	Evidence []string // the rules that hold, in words
	Against  []string // those that do not
}

// rule records one rule. A necessary rule that fails ends plausibility.
func (a *Assessment) rule(necessary, holds bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if holds {
		a.Score++
		a.Evidence = append(a.Evidence, text)
		return
	}
	a.Plausible = a.Plausible && !necessary
	a.Against = append(a.Against, "not so: "+text)
}

// Assess judges a page by every layout and returns the best. inRAM reports whether a
// physical address of the machine the page is from is RAM; nil if that is not
// known. A page of another size than PageSize is not plausible.
func Assess(page []byte, inRAM func(mem.Phys) bool) Assessment {
	var best Assessment
	for _, l := range Layouts {
		a := AssessAs(page, l, inRAM)
		if best.VMCS == nil || a.Plausible && !best.Plausible || a.Plausible == best.Plausible && a.Score > best.Score {
			best = a
		}
	}
	return best
}

// AssessAs judges a page by one layout.
func AssessAs(page []byte, l *Layout, inRAM func(mem.Phys) bool) Assessment {
	v, err := View(page, l)
	if err != nil {
		return Assessment{Against: []string{err.Error()}}
	}
	a := Assessment{VMCS: v, Plausible: true}
	a.header(v)
	a.hostState(v)
	a.guestState(v)
	a.controls(v, inRAM)
	return a
}

func (a *Assessment) header(v *VMCS) {
	a.rule(true, v.Revision() != 0 && v.layout.goesWith(v.Revision()), "revision %#x goes with the layout of %s",
		v.Revision(), v.layout.Name)
	a.rule(true, v.Abort() <= maxAbort, "VMX-abort indicator %#x is small", v.Abort())
	a.rule(true, !v.Shadow(), "it is no shadow VMCS")
	link, _ := v.Get(LinkPointer)
	a.rule(true, link != 0 && validLink(link), "link pointer %#x is all ones or a page", link)
}

// hostState applies what every VM entry demands of the hypervisor's own state.
func (a *Assessment) hostState(v *VMCS) {
	cr0, cr3, cr4 := v.get(HostCR0), v.get(HostCR3), v.get(HostCR4)
	const always = cr0PE | cr0NE | cr0PG
	a.rule(true, cr0>>32 == 0 && cr0&always == always, "host CR0 %#x has PE, NE and PG", cr0)
	a.rule(true, cr4&cr4VMXE != 0 && cr4&^uint64(cr4Defined) == 0, "host CR4 %#x has VMXE and no undefined bit", cr4)
	a.rule(true, cr3 != 0 && cr3&^uint64(physMask|cr3LAM) == 0, "host CR3 %#x is a root", cr3)
	rip := v.get(HostRIP)
	a.rule(true, rip != 0 && canonical(rip), "host RIP %#x is canonical", rip)
}

// guestState applies what every VM entry demands of the guest's, apart from
// segments. A guest without paging and with a CR3 of 0 is one that starts.
func (a *Assessment) guestState(v *VMCS) {
	cr0, cr3, cr4, flags := v.get(GuestCR0), v.get(GuestCR3), v.get(GuestCR4), v.get(GuestRFLAGS)
	a.rule(true, cr0>>32 == 0 && cr0&cr0NE != 0 && (cr0&cr0PG == 0 || cr0&cr0PE != 0),
		"guest CR0 %#x has NE, and no paging without protected mode", cr0)
	a.rule(true, cr4&cr4VMXE != 0 && cr4&^uint64(cr4Defined) == 0, "guest CR4 %#x has VMXE and no undefined bit", cr4)
	a.rule(true, cr3&^uint64(physMask|cr3LAM) == 0 && (cr3 != 0 || cr0&cr0PG == 0), "guest CR3 %#x is a root", cr3)
	a.rule(true, flags&flagOne != 0 && flags&flagsZero == 0, "guest RFLAGS %#x has its fixed bits", flags)
	a.rule(true, canonical(v.get(GuestRIP)), "guest RIP %#x is canonical", v.get(GuestRIP))
}

// controls applies what VM entry demands of controls, where the layout has them.
func (a *Assessment) controls(v *VMCS, inRAM func(mem.Phys) bool) {
	ram := func(at uint64) bool {
		return at != 0 && at&pageMask == 0 && (inRAM == nil || inRAM(mem.Phys(at)))
	}
	for _, c := range []struct {
		field Field
		bits  uint64
	}{{PinControls, pinDefault1}, {PrimaryControls, primaryDefault1}, {ExitControls, exitDefault1}, {EntryControls, entryDefault1}} {
		if x, ok := v.Get(c.field); ok {
			a.rule(true, x&c.bits == c.bits, "%v %#x have their reserved bits", c.field, x)
		}
	}
	if v.has(EPTPointer, PrimaryControls, SecondControls) {
		if p, on := v.EPT(); on {
			a.rule(true, validEPT(p), "EPT pointer %#x is valid", p)
			a.rule(false, ram(p&physMask&^pageMask), "EPT root %#x is a page of RAM", p&physMask&^pageMask)
		}
	}
	if reason, ok := v.ExitReason(); ok {
		name, known := ExitName(reason)
		a.rule(true, known, "exit reason %#x is known: %s", reason, name)
	}
	if n, ok := v.Get(InsnError); ok {
		name, known := InsnErrorName(n)
		a.rule(false, known, "VM-instruction error %d is known: %s", n, name)
	}
	if at, ok := v.Get(MSRBitmaps); ok && v.get(PrimaryControls)&primaryMSRBitmaps != 0 {
		a.rule(false, ram(at), "MSR bitmaps at %#x are a page of RAM", at)
	}
	if sel, ok := v.Get(HostCS); ok {
		a.rule(false, sel != 0 && sel&7 == 0, "host CS %#x is a kernel's", sel)
	}
}
