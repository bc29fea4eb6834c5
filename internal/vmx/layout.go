package vmx

import "slices"

// Layout is where an implementation of VMX has the fields of a VMCS. Layouts are
// shared and must not be changed.
type Layout struct {
	Name string // as in evidence: "KVM vmcs12"
	// Revisions are the revision identifiers it goes with; empty if the
	// implementation takes whatever its processor model has.
	Revisions []uint32
	places    map[Field]int // offset of each field in the page
	rotated   int           // by how many bits to the left it keeps access rights
}

// Layouts are those known, the likely ones under QEMU first.
var Layouts = []*Layout{KVM, EnlightenedVMCS, Bochs, BochsPacked, BochsPackedOld, Xen, VMware}

// Offset is where a field lies in the page; ok is false for one that the layout
// does not have.
func (l *Layout) Offset(f Field) (at int, ok bool) {
	at, ok = l.places[f]
	return at, ok
}

// Fields are the fields that the layout has, by area, then encoding.
func (l *Layout) Fields() []Field { return sortedFields(l.places) }

// goesWith reports whether the layout may have this revision identifier.
func (l *Layout) goesWith(revision uint32) bool {
	return len(l.Revisions) == 0 || slices.Contains(l.Revisions, revision)
}

// run is a row of fields without gaps, from an offset on.
type run struct {
	at     int
	fields []Field
}

// of lists fields first, first+2, ... of one group.
func of(first Field, count int) []Field {
	out := make([]Field, count)
	for i := range out {
		out[i] = first + Field(2*i)
	}
	return out
}

// runs makes the places of a layout that is a structure.
func runs(rows ...run) map[Field]int {
	places := make(map[Field]int)
	for _, r := range rows {
		at := r.at
		for _, f := range r.fields {
			places[f] = at
			at += f.Size()
		}
	}
	return places
}

// groups makes the places of a layout that is a table: group g has count(g) slots
// of 8 bytes from first(g) on, a field the slot of its index. A field behind the
// end of its group has no place.
func groups(first, count func(group int) int) map[Field]int {
	places := make(map[Field]int)
	for f := range fieldNames {
		if f.index() < count(f.group()) {
			places[f] = first(f.group()) + 8*f.index()
		}
	}
	return places
}

// KVM is struct vmcs12, what a guest of KVM's Intel module has for a VMCS, also in
// the device state that QEMU has of such a host (Linux 6.1 and 6.12
// arch/x86/kvm/vmx/vmcs12.h, whose offsets cannot change: migration depends on
// them).
var KVM = &Layout{Name: "KVM vmcs12", Revisions: []uint32{0x11e57ed0}, places: runs(
	run{40, slices.Concat(of(IOBitmapA, 6), of(0x2010, 4), []Field{EPTPointer}, of(0x201c, 4),
		[]Field{0x202c, GuestPhysical}, of(LinkPointer, 10), of(HostPAT, 3),
		[]Field{VMREADBitmap, VMWRITEBitmap, 0x2018, 0x2024, PMLAddress, 0x202e, 0x2032})},
	run{344, slices.Concat(of(0x6000, 8), []Field{Qualification, GuestLinear}, of(GuestCR0, 20), of(HostCR0, 12))},
	run{744, slices.Concat(of(PinControls, 16), of(InsnError, 8), of(GuestESLimit, 20),
		[]Field{GuestSysCS, HostSysCS, 0x482e})},
	run{960, slices.Concat(of(VPID, 2), of(GuestES, 9), of(HostES, 7), []Field{0x0812})},
)}

// EnlightenedVMCS is Hyper-V's, version 1: plain memory that a nested hypervisor
// writes itself, so always current while that runs (Hyper-V TLFS,
// "HV_VMX_ENLIGHTENED_VMCS"; Linux 6.12 arch/x86/include/asm/hyperv-tlfs.h). KVM
// takes its own revision in it, too.
var EnlightenedVMCS = &Layout{Name: "Hyper-V enlightened VMCS", Revisions: []uint32{1, 0x11e57ed0}, places: runs(
	run{0x008, of(HostES, 7)},
	run{0x018, slices.Concat(of(HostPAT, 2), of(HostCR0, 3), []Field{HostSysESP, HostSysEIP, HostRIP},
		[]Field{HostSysCS, PinControls, ExitControls, SecondControls}, of(IOBitmapA, 3), of(GuestES, 8),
		of(GuestESLimit, 18), of(GuestESBase, 10))},
	run{0x140, slices.Concat(of(ExitStoreAddr, 3), of(0x6008, 4),
		[]Field{0x4006, 0x4008, CR3TargetCount, ExitStoreCount, ExitLoadCount, EntryLoadCount},
		[]Field{0x2010, VirtualAPIC}, of(LinkPointer, 4), of(GuestPDPTE0, 4), of(PendingDebug, 3),
		[]Field{ActivityState, GuestSysCS}, of(0x6000, 4), of(GuestCR0, 3), []Field{GuestDR7},
		of(HostFSBase, 5), []Field{HostRSP, EPTPointer, VPID})},
	run{0x2a8, slices.Concat([]Field{GuestPhysical}, of(InsnError, 8), of(Qualification, 6),
		[]Field{GuestRSP, GuestRFLAGS, Interruptible, PrimaryControls, 0x4004, EntryControls},
		of(EntryInfo, 4), []Field{GuestRIP})},
	run{0x380, []Field{0x2812, 0x2808, 0x6828, 0x682a, 0x682c, 0x2816}},
	run{0x3c0, []Field{0x202c, 0x202e, 0x2c04, 0x2032, 0x6c18, 0x6c1a, 0x6c1c}},
)}

// Bochs is the layout of Bochs 2.7 and older: 64 slots of 4 bytes for each group,
// by the encoding's low 10 bits (Bochs 2.7 cpu/vmcs.cc, init_VMCS; seen on a KVM
// guest of Debian's build). Access rights are rotated, as a descriptor has them.
var Bochs = &Layout{Name: "Bochs 2.7", rotated: 8, places: groups(
	func(g int) int { return 0x10 + g*0x100 },
	func(int) int { return 32 })}

// BochsPacked is that of newer ones: the groups are as long as they have to be, and
// ordered as the encodings are (Bochs 783b58fd cpu/vmx.h, vmcs.cc; not seen
// running). BochsPackedOld is the same before November 2023.
var (
	BochsPacked    = &Layout{Name: "Bochs 3", rotated: 8, places: packed(0x20, 0x54, 0x30, 0x30)}
	BochsPackedOld = &Layout{Name: "Bochs before November 2023", rotated: 8, places: packed(0x20, 0x50, 0x30, 0x30)}
)

// packed makes the places of four rows of groups, for each width in the order of
// its number. slots are how many 4-byte slots a group of that width has.
func packed(slots ...int) map[Field]int {
	return groups(func(g int) int {
		at := 0x10
		for i := range g {
			at += 4 * slots[i>>2]
		}
		return at
	}, func(g int) int { return slots[g>>2] / 2 })
}

// Xen is nested VMX without the processor's own VMCS shadowing: 8 bytes for each
// field, by width, area and the low 5 bits of the index (Xen c447b730
// xen/arch/x86/include/asm/hvm/vmx/vvmx.h, vvmcs_offset). The header lies
// where VPID would, which is moved to slot 63. The revision is the processor's.
var Xen = &Layout{Name: "Xen nested VMX", places: func() map[Field]int {
	places := groups(
		func(g int) int { return g * 0x100 },
		func(int) int { return 32 })
	places[VPID] = 63 * 8
	return places
}()}

// VMware is nested VMX of Workstation 10 as far as it is known, by five offsets that
// the tool Actaeon found; the rest of a run follows from the distance of two of
// them. Where the EPT pointer lies is not known.
var VMware = &Layout{Name: "VMware nested VMX", Revisions: []uint32{1}, places: runs(
	run{0x2e8, []Field{LinkPointer}},
	run{0x8a8, of(GuestCR0, 17)},
	run{0xa18, of(HostCR0, 12)},
)}
