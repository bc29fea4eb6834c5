package vmx

import "fmt"

// Access rights of a segment (SDM Vol. 3C, "Guest Register State"): type 3:0, S 4,
// DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
const (
	rightsType     = 0xf
	rightsS        = 1 << 4
	rightsP        = 1 << 7
	rightsL        = 1 << 13
	rightsDB       = 1 << 14
	rightsG        = 1 << 15
	rightsUnusable = 1 << 16
	rightsReserved = 0xfffe0f00
)

// segment is a segment register of the guest-state area.
type segment struct {
	name             string
	selector         Field
	base, limit, acc Field
}

// segmentAt is segment i in the manual's order: ES CS SS DS FS GS LDTR TR.
func segmentAt(i int) segment {
	o := Field(2 * i)
	return segment{[...]string{"ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"}[i],
		GuestES + o, GuestESBase + o, GuestESLimit + o, GuestESRights + o}
}

const (
	segES = iota
	segCS
	segSS
	segDS
	segFS
	segGS
	segLDTR
	segTR
)

// segments: SDM "Checks on Guest Segment Registers".
func (c *checker) segments() {
	v := c.v
	if v.get(GuestRFLAGS)&flagVM != 0 {
		c.virtual8086()
		return
	}
	for i := range segTR + 1 {
		c.segment(i, segmentAt(i))
	}
	unrestricted := v.second()&secondUnrestricted != 0
	cs, ss := v.get(GuestCSRights), v.get(GuestSSRights)
	c.must(unrestricted || v.get(GuestSS)&3 == v.get(GuestCS)&3,
		"guest SS.RPL is CS.RPL", "guest SS.RPL differs from CS.RPL", GuestSS, GuestCS)
	dpl := func(r uint64) uint64 { return r >> 5 & 3 }
	dplOK := true
	switch cs & rightsType {
	case 3:
		dplOK = dpl(cs) == 0
	case 9, 11:
		dplOK = dpl(cs) == dpl(ss)
	case 13, 15:
		dplOK = dpl(cs) <= dpl(ss)
	}
	c.must(dplOK,
		"guest CS.DPL fits its type and SS.DPL",
		"guest CS.DPL does not go with its type and SS.DPL", GuestCSRights, GuestSSRights)
	c.must(dpl(ss) == 0 || cs&rightsType != 3 && v.get(GuestCR0)&cr0PE != 0,
		"guest SS.DPL is 0 in real mode and with a data segment in CS",
		"guest SS.DPL above 0 in real mode or with a data segment in CS", GuestSSRights, GuestCSRights, GuestCR0)
	c.must(unrestricted || dpl(ss) == v.get(GuestSS)&3,
		"guest SS.DPL is SS.RPL", "guest SS.DPL differs from SS.RPL", GuestSSRights, GuestSS)
	long := v.get(EntryControls)&entryGuest64 != 0
	c.must(!long || cs&rightsL == 0 || cs&rightsDB == 0,
		"guest CS.L and CS.D are not both 1 in 64-bit mode", "guest CS.L and CS.D both set in 64-bit mode",
		GuestCSRights, EntryControls)
}

// segment checks one register by itself.
func (c *checker) segment(i int, s segment) {
	v := c.v
	sel, base, limit, acc := v.get(s.selector), v.get(s.base), v.get(s.limit), v.get(s.acc)
	usable := acc&rightsUnusable == 0
	if i == segTR || i == segLDTR {
		c.must(!usable || sel>>2&1 == 0, fmt.Sprintf("guest %s is of the GDT", s.name),
			fmt.Sprintf("guest %s: TI set", s.name), s.selector, s.acc)
	}
	switch i {
	case segFS, segGS, segTR:
		c.must(canonical(base),
			fmt.Sprintf("guest %s base is canonical", s.name), fmt.Sprintf("guest %s base not canonical", s.name), s.base)
	case segLDTR:
		c.must(!usable || canonical(base),
			"guest LDTR base is canonical", "guest LDTR base not canonical", s.base, s.acc)
	case segCS:
		c.must(base>>32 == 0, "guest CS base has 32 bits", "guest CS base: a bit above 31 set", s.base)
	default:
		c.must(!usable || base>>32 == 0, fmt.Sprintf("guest %s base has 32 bits", s.name),
			fmt.Sprintf("guest %s base: a bit above 31 set", s.name), s.base, s.acc)
	}
	if i != segCS && i != segTR && !usable {
		return
	}
	c.must(typeFits(i, acc, v.second()&secondUnrestricted != 0, v.get(EntryControls)&entryGuest64 != 0),
		fmt.Sprintf("guest %s has a type that can be loaded", s.name),
		fmt.Sprintf("guest %s: type that cannot be loaded", s.name), s.acc)
	c.must((acc&rightsS != 0) == (i < segLDTR),
		fmt.Sprintf("guest %s.S is as it must be", s.name), fmt.Sprintf("guest %s.S wrong", s.name), s.acc)
	c.must(acc&rightsP != 0, fmt.Sprintf("guest %s.P is 1", s.name), fmt.Sprintf("guest %s.P clear", s.name), s.acc)
	c.must(acc&rightsReserved == 0, fmt.Sprintf("guest %s has no reserved access right", s.name),
		fmt.Sprintf("guest %s access rights: reserved bit set", s.name), s.acc)
	if i != segCS && i != segSS && i < segLDTR && v.second()&secondUnrestricted == 0 && acc&rightsType <= 11 {
		c.must(acc>>5&3 >= sel&3, fmt.Sprintf("guest %s.DPL is not below its RPL", s.name),
			fmt.Sprintf("guest %s.DPL below its RPL", s.name), s.acc, s.selector)
	}
	if i == segTR {
		c.must(usable, "guest TR is usable", "guest TR unusable", s.acc)
	}
	granularity := (acc&rightsG == 0 || limit&0xfff == 0xfff) && (acc&rightsG != 0 || limit>>20 == 0)
	c.must(granularity, fmt.Sprintf("guest %s.G fits its limit", s.name),
		fmt.Sprintf("guest %s.G does not go with its limit", s.name), s.acc, s.limit)
}

// typeFits applies the rules for the type of a segment.
func typeFits(i int, acc uint64, unrestricted, long bool) bool {
	switch t := acc & rightsType; i {
	case segCS:
		return t == 9 || t == 11 || t == 13 || t == 15 || t == 3 && unrestricted
	case segSS:
		return t == 3 || t == 7
	case segLDTR:
		return t == 2
	case segTR:
		return t == 11 || t == 3 && !long
	default:
		return t&1 == 1 && (t&8 == 0 || t&2 != 0) // accessed, and readable if it is code
	}
}

// virtual8086 checks segments of a guest in virtual-8086 mode.
func (c *checker) virtual8086() {
	v := c.v
	for i := range segLDTR {
		s := segmentAt(i)
		c.must(v.get(s.base) == v.get(s.selector)<<4 && v.get(s.limit) == 0xffff && v.get(s.acc) == 0xf3,
			fmt.Sprintf("guest %s is as virtual-8086 mode has it", s.name),
			fmt.Sprintf("guest %s: base, limit or access rights not those of virtual-8086 mode", s.name), s.selector, s.base, s.limit, s.acc)
	}
}

// Activity states and interruptibility (SDM Vol. 3C, "Guest Non-Register State").
const (
	activityHLT      = 1
	activityShutdown = 2
	activitySIPI     = 3

	blockedSTI     = 1 << 0
	blockedMOVSS   = 1 << 1
	blockedSMI     = 1 << 2
	blockedNMI     = 1 << 3
	blockedEnclave = 1 << 4
)

// nonRegisterState: SDM "Checks on Guest Non-Register State" and "Checks on Guest
// Page-Directory-Pointer-Table Entries".
func (c *checker) nonRegisterState() {
	v := c.v
	activity, blocking := v.get(ActivityState), v.get(Interruptible)
	flags, info := v.get(GuestRFLAGS), v.get(EntryInfo)
	c.must(activity <= activitySIPI,
		"the activity state is one that there is", "activity state above 3", ActivityState)
	c.must(activity != activityHLT || v.get(GuestSSRights)>>5&3 == 0,
		"a halted guest has SS.DPL 0", "activity state HLT with SS.DPL above 0", ActivityState, GuestSSRights)
	c.must(activity == 0 || blocking&3 == 0,
		"a guest that is not active is not blocked by STI or MOV SS",
		"activity state not active with blocking by STI or MOV SS",
		ActivityState, Interruptible)
	c.must(blocking>>5 == 0,
		"the interruptibility state has no reserved bit", "interruptibility state: reserved bit set", Interruptible)
	c.must(blocking&3 != 3,
		"interrupts are not blocked by both STI and MOV SS",
		"interruptibility state: blocking by STI and by MOV SS", Interruptible)
	c.must(blocking&1 == 0 || flags&flagIF != 0,
		"RFLAGS.IF is 1 with blocking by STI", "blocking by STI with RFLAGS.IF clear", Interruptible, GuestRFLAGS)
	external := info&eventValid != 0 && info>>8&7 == EventExternal
	c.must(!external || blocking&3 == 0,
		"an external interrupt is not injected into a blocked guest",
		"external interrupt injected with blocking by STI or MOV SS", EntryInfo, Interruptible)
	const debugDefined = 0x1500f | 1<<11 // B3 to B0, enabled breakpoint, BS, RTM; bus lock
	c.must(v.get(PendingDebug)&^uint64(debugDefined) == 0,
		"pending debug exceptions have no reserved bit", "pending debug exceptions: reserved bit set", PendingDebug)
	c.delivered()
	c.singleStep()
	c.must(validLink(v.get(LinkPointer)),
		"the VMCS link pointer is all ones or a page",
		"VMCS link pointer: neither all ones nor an aligned physical address", LinkPointer)
	c.pdptes()
}

// delivered: what is injected has to be taken in the state that the guest is in.
func (c *checker) delivered() {
	v := c.v
	blocking, e := v.get(Interruptible), v.EventInjection()
	c.must(blocking&blockedSMI == 0,
		"SMIs are not blocked, outside system-management mode", "blocking by SMI outside system-management mode", Interruptible)
	c.must(blocking&blockedEnclave == 0 || blocking&blockedMOVSS == 0,
		"an enclave is not interrupted with blocking by MOV SS", "enclave interruption with blocking by MOV SS", Interruptible)
	if !e.Valid {
		return
	}
	nmi := e.Type == EventNMI
	c.must(!nmi || blocking&blockedMOVSS == 0,
		"an NMI is not injected into a guest that is blocked by MOV SS", "NMI injected with blocking by MOV SS", EntryInfo, Interruptible)
	c.must(!nmi || v.get(PinControls)&pinVirtualNMI == 0 || blocking&blockedNMI == 0,
		"a virtual NMI is not injected into a guest that is blocked by NMI", "virtual NMI injected with blocking by NMI",
		EntryInfo, Interruptible, PinControls)
	const db, mc = 1, 18
	machineCheck := e.Type == EventException && e.Vector == mc
	taken := true
	switch v.get(ActivityState) {
	case activityHLT:
		taken = nmi || machineCheck || e.Type == EventExternal || e.Type == EventException && e.Vector == db || e.Type == EventOther && e.Vector == 0
	case activityShutdown:
		taken = nmi || machineCheck
	case activitySIPI:
		taken = false
	}
	c.must(taken, "the activity state takes the injected event", "injected event that the activity state does not take", EntryInfo, ActivityState)
}

// singleStep: where a trap of a single step cannot be taken at once, it has to be pending,
// and only there.
func (c *checker) singleStep() {
	v := c.v
	const btf, bs = 1 << 1, 1 << 14
	if v.get(Interruptible)&(blockedSTI|blockedMOVSS) == 0 && v.get(ActivityState) != activityHLT {
		return
	}
	steps := v.get(GuestRFLAGS)&flagTF != 0 && v.get(GuestDebugCtl)&btf == 0
	c.must(steps == (v.get(PendingDebug)&bs != 0),
		"a single step is pending if and only if the guest single-steps",
		"pending debug exceptions: BS is not as RFLAGS.TF and DEBUGCTL.BTF have it, with blocking or in HLT",
		PendingDebug, GuestRFLAGS, GuestDebugCtl)
}

// validLink reports whether a link pointer is one that no entry refuses for itself.
func validLink(p uint64) bool { return p == ^uint64(0) || p&pageMask == 0 && p&^uint64(physMask) == 0 }

// pdptes checks the entries that a guest with PAE paging under EPT loads from here.
func (c *checker) pdptes() {
	v := c.v
	_, ept := v.EPT()
	pae := v.get(GuestCR0)&cr0PG != 0 && v.get(GuestCR4)&cr4PAE != 0 && v.get(EntryControls)&entryGuest64 == 0
	if !ept || !pae {
		return
	}
	reserved := 1<<1 | 1<<2 | 0x1e0 | ^c.phys
	for _, f := range of(GuestPDPTE0, 4) {
		e := v.get(f)
		c.must(e&1 == 0 || e&reserved == 0, fmt.Sprintf("%v has no reserved bit", f),
			fmt.Sprintf("%v: reserved bit set", f), f)
	}
}
