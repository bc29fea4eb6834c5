package vmx

import (
	"fmt"
	"strings"

	"nestdbg/internal/mem"
)

// Check is one condition under which VM entry refuses a VMCS.
type Check struct {
	Name  string // the condition that must hold, in words
	Wrong string // what is wrong if it does not, as the manual lists it
	OK    bool
	Seen  string // the values it was judged by
}

// checker collects checks. A check whose fields the layout does not have is not
// made.
type checker struct {
	v      *VMCS
	on     Processor
	phys   uint64 // the bits of a physical address
	checks []Check
}

// Processor is what the checks depend on besides the VMCS. Of the zero value nothing is
// known.
type Processor struct {
	PhysBits uint           // of a physical address; 0: the architecture's maximum of 52
	Memory   mem.PhysReader // of the hypervisor; nil: what a VMCS points to is not judged
}

// must adds a check judged by fields.
func (c *checker) must(holds bool, name, wrong string, fields ...Field) {
	if !c.v.has(fields...) {
		return
	}
	var seen []string
	for _, f := range fields {
		seen = append(seen, fmt.Sprintf("%v %#x", f, c.v.get(f)))
	}
	c.checks = append(c.checks, Check{name, wrong, holds, strings.Join(seen, ", ")})
}

// Checks applies the checks of VM entry (SDM Vol. 3C, "VM Entries": "Checks on VMX
// Controls and Host-State Area", "Checking and Loading Guest State") as far as they
// can be made without the processor: of its optional features all are taken to be
// there. Fields that the layout does not have are not judged.
func (v *VMCS) Checks(on Processor) []Check {
	c := &checker{v: v, on: on, phys: physMask}
	if on.PhysBits > 0 && on.PhysBits < 52 {
		c.phys = 1<<on.PhysBits - 1
	}
	c.must(!v.Shadow(), "it is no shadow VMCS", "shadow VMCS")
	c.controls()
	c.addresses()
	c.injection()
	c.host()
	c.msrs()
	c.guest()
	c.segments()
	c.nonRegisterState()
	return c.checks
}

// Controls that are 1 on every processor, also on those that allow most of the
// default1 class to be 0 (SDM Vol. 3D, Appendix A.2 to A.5; the bits of the TRUE
// capability MSRs that can be 0 are left out).
const (
	pinDefault1     = 0x00000016
	primaryDefault1 = 0x04006172
	exitDefault1    = 0x00036dfb
	entryDefault1   = 0x000011fb
)

const (
	physMask = 1<<52 - 1
	pageMask = PageSize - 1
)

// controls: SDM "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry
// Control Fields", of "Checks on VMX Controls".
func (c *checker) controls() {
	v := c.v
	pin, primary, second := v.get(PinControls), v.get(PrimaryControls), v.second()
	exit, entry := v.get(ExitControls), v.get(EntryControls)
	c.must(pin&pinDefault1 == pinDefault1,
		"pin-based controls have their reserved bits",
		"pin-based controls: a reserved bit that must be 1 is clear", PinControls)
	c.must(primary&primaryDefault1 == primaryDefault1,
		"primary controls have their reserved bits",
		"primary controls: a reserved bit that must be 1 is clear", PrimaryControls)
	c.must(exit&exitDefault1 == exitDefault1,
		"VM-exit controls have their reserved bits",
		"VM-exit controls: a reserved bit that must be 1 is clear", ExitControls)
	c.must(entry&entryDefault1 == entryDefault1,
		"VM-entry controls have their reserved bits",
		"VM-entry controls: a reserved bit that must be 1 is clear", EntryControls)
	c.must(v.get(CR3TargetCount) <= 4, "CR3-target count is at most 4", "CR3-target count above 4", CR3TargetCount)
	c.must(pin&pinVirtualNMI == 0 || pin&pinNMI != 0,
		"virtual NMIs go with NMI exiting", "virtual NMIs without NMI exiting", PinControls)
	c.must(primary&primaryNMIWindow == 0 || pin&pinVirtualNMI != 0,
		"NMI-window exiting goes with virtual NMIs", "NMI-window exiting without virtual NMIs",
		PrimaryControls, PinControls)
	shadow := primary&primaryTPRShadow != 0
	apic := second & (secondX2APIC | secondAPICRegs | secondDelivery)
	c.must(shadow || apic == 0,
		"x2APIC mode, APIC registers and interrupt delivery are virtual only with a TPR shadow",
		"APIC virtualization without TPR shadow",
		PrimaryControls, SecondControls)
	c.must(second&secondX2APIC == 0 || second&secondAPICAccess == 0,
		"x2APIC mode and APIC accesses are not both virtual",
		"both x2APIC mode and APIC accesses virtual", SecondControls)
	c.must(second&secondDelivery == 0 || pin&pinExternal != 0,
		"virtual-interrupt delivery goes with external-interrupt exiting",
		"virtual-interrupt delivery without external-interrupt exiting", SecondControls, PinControls)
	c.must(pin&pinPosted == 0 || second&secondDelivery != 0 && exit&exitAck != 0,
		"posted interrupts go with virtual-interrupt delivery and acknowledgement on exit",
		"posted interrupts without virtual-interrupt delivery or acknowledgement on exit",
		PinControls, SecondControls, ExitControls)
	c.must(!shadow || second&secondDelivery != 0 || v.get(TPRThreshold)>>4 == 0,
		"TPR threshold has 4 bits", "TPR threshold: a bit above 3 set", TPRThreshold)
	c.must(second&secondVPID == 0 || v.get(VPID) != 0, "VPID is not 0", "VPID 0", VPID)
	pointer, ept := v.EPT()
	c.must(!ept || validEPT(pointer) && pointer&^c.phys == 0,
		"EPT pointer is valid", "EPT pointer: bad memory type, number of levels, or reserved bit set", EPTPointer)
	c.must(second&(secondUnrestricted|secondModeBased|secondPML|secondSubPage) == 0 || ept,
		"unrestricted guest, mode-based execute control, PML and sub-page permissions go with EPT",
		"unrestricted guest, mode-based execute control, PML or sub-page permissions without EPT", SecondControls)
	c.must(second&secondFunctions == 0 || v.get(VMFunctions)&functionEPTP == 0 || ept,
		"EPTP switching goes with EPT", "EPTP switching without EPT", SecondControls, VMFunctions)
	c.must(exit&exitSaveTimer == 0 || pin&pinPreemption != 0,
		"the VMX-preemption timer is saved only if it is active",
		"VMX-preemption timer to be saved but not active", ExitControls, PinControls)
	c.must(entry&(entrySMM|entryDual) == 0,
		"the entry is not to system-management mode", "entry to SMM outside SMM", EntryControls)
}

// validEPT applies SDM "Extended-Page-Table Pointer (EPTP)": memory type, 4 or 5
// levels, reserved bits.
func validEPT(p uint64) bool {
	levels := p>>3&7 + 1
	return (p&7 == 0 || p&7 == 6) && (levels == 4 || levels == 5) && p&0xf00 == 0 && p&^uint64(physMask) == 0
}

// addresses: the structures that controls point to.
func (c *checker) addresses() {
	v := c.v
	for _, s := range v.structures() {
		at := v.get(s.field)
		c.must(at%s.align == 0 && at&^c.phys == 0,
			fmt.Sprintf("%v is a physical address, aligned to %d bytes", s.field, s.align),
			fmt.Sprintf("%v beyond physical memory or not aligned to %d bytes", s.field, s.align), s.field)
		if s.count != 0 {
			last := at + s.size - 1
			c.must(last >= at && last&^c.phys == 0,
				fmt.Sprintf("%v ends at a physical address", s.field),
				fmt.Sprintf("%v: the area ends beyond physical memory", s.field), s.field, s.count)
		}
	}
	c.must(v.get(PinControls)&pinPosted == 0 || v.get(PostedVector) < 256,
		"posted-interrupt notification vector has 8 bits",
		"posted-interrupt notification vector: a bit above 7 set", PostedVector)
	c.pointedTo()
}

// pointedTo: what entry reads of structures: the TPR in the virtual-APIC page, the header
// of the VMCS that the link pointer leads to.
func (c *checker) pointedTo() {
	v := c.v
	const virtualTPR = 0x80
	at, has := v.Get(VirtualAPIC)
	if v.get(PrimaryControls)&primaryTPRShadow != 0 && v.second()&(secondAPICAccess|secondDelivery) == 0 && has && v.has(TPRThreshold) {
		c.memory(mem.Phys(at)+virtualTPR, "virtual TPR", func(tpr uint32) bool { return v.get(TPRThreshold)&0xf <= uint64(tpr)>>4&0xf },
			"TPR threshold is not above the virtual TPR", "TPR threshold above bits 7:4 of the virtual TPR", TPRThreshold)
	}
	if link, ok := v.Get(LinkPointer); ok && link != ^uint64(0) && validLink(link) {
		want := v.Revision()
		if v.second()&secondShadowing != 0 {
			want |= shadowVMCS
		}
		c.memory(mem.Phys(link), "its first word", func(header uint32) bool { return header == want },
			"the VMCS link pointer leads to a VMCS of this revision, a shadow VMCS with VMCS shadowing",
			"VMCS link pointer: no VMCS of this revision there, or its shadow bit is not that of VMCS shadowing", LinkPointer)
	}
}

// memory adds a check judged by a word in memory, if that can be read.
func (c *checker) memory(at mem.Phys, what string, holds func(uint32) bool, name, wrong string, fields ...Field) {
	if c.on.Memory == nil {
		return
	}
	word, err := mem.Uint32(c.on.Memory, at)
	if err != nil {
		return
	}
	n := len(c.checks)
	if c.must(holds(word), name, wrong, fields...); len(c.checks) > n {
		c.checks[n].Seen += fmt.Sprintf(", %s %#x at %#x", what, word, uint64(at))
	}
}

// injection: SDM "VM-Entry Control Fields", event injection.
func (c *checker) injection() {
	v := c.v
	e := v.EventInjection()
	if !e.Valid {
		return
	}
	info := v.get(EntryInfo)
	c.must(info&eventReserved == 0,
		"the injected event has no reserved bit", "injected event: reserved bit set", EntryInfo)
	vector := true
	switch e.Type {
	case 1:
		vector = false
	case EventNMI:
		vector = e.Vector == 2
	case EventException:
		vector = e.Vector < 32
	case EventOther:
		vector = e.Vector == 0
	}
	c.must(vector,
		"the injected event is one that can be", "injected event: type and vector do not go together", EntryInfo)
	// An error code is delivered with #DF, #TS, #NP, #SS, #GP, #PF, #AC, and #CP, in
	// protected mode; whether #CP has one depends on the processor.
	const withError = 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<17
	protected := v.get(GuestCR0)&cr0PE != 0
	want := e.Type == EventException && protected && e.Vector < 32 && withError>>e.Vector&1 != 0
	c.must(e.HasError == want || e.Vector == 21,
		"the injected event has an error code if its vector has",
		"injected event: error code where the vector has none, or none where it has", EntryInfo, GuestCR0)
	c.must(!e.HasError || e.ErrorCode>>16 == 0,
		"the error code has 16 bits", "injected event: error code above 16 bits", EntryErrorCode)
	software := e.Type == EventSoftware || e.Type == EventICEBP || e.Type == EventSoftExc
	c.must(!software || v.get(EntryInsnLength) <= 15,
		"the instruction length of a software event is at most 15",
		"injected event: instruction length above 15", EntryInsnLength)
	c.must(e.Type != EventExternal || v.get(GuestRFLAGS)&flagIF != 0,
		"RFLAGS.IF is 1 for an external interrupt", "external interrupt injected with RFLAGS.IF clear",
		EntryInfo, GuestRFLAGS)
}

// Bits of the control registers (SDM Vol. 3A, "Control Registers") and EFER.
const (
	cr0PE      = 1 << 0
	cr0NE      = 1 << 5
	cr0WP      = 1 << 16
	cr0PG      = 1 << 31
	cr3LAM     = 1<<61 | 1<<62 // LAM_U57, LAM_U48
	cr4PAE     = 1 << 5
	cr4LA57    = 1 << 12
	cr4VMXE    = 1 << 13
	cr4PCIDE   = 1 << 17
	cr4CET     = 1 << 23
	cr4Defined = 0x7fff | 1<<16 | 1<<17 | 1<<18 | 1<<19 | 1<<20 | 1<<21 | 1<<22 | 1<<23 | 1<<24 | 1<<25 |
		1<<27 | 1<<28 | 1<<32
	eferLME     = 1 << 8
	eferLMA     = 1 << 10
	eferDefined = 1<<0 | eferLME | eferLMA | 1<<11
	flagOne     = 1 << 1
	flagTF      = 1 << 8
	flagIF      = 1 << 9
	flagVM      = 1 << 17
	flagsZero   = ^uint64(1<<22-1) | 1<<15 | 1<<5 | 1<<3
)

// host: SDM "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host
// Segment and Descriptor-Table Registers", "Checks Related to Address-Space Size".
func (c *checker) host() {
	v := c.v
	exit := v.get(ExitControls)
	cr0, cr4, long := v.get(HostCR0), v.get(HostCR4), exit&exitHost64 != 0
	const always = cr0PE | cr0NE | cr0PG
	c.must(cr0&always == always && cr0>>32 == 0,
		"host CR0 has PE, NE and PG, and 32 bits", "host CR0: PE, NE or PG clear, or a bit above 31 set", HostCR0)
	c.must(cr4&cr4VMXE != 0, "host CR4.VMXE is 1", "host CR4.VMXE clear", HostCR4)
	c.must(cr4&^uint64(cr4Defined) == 0, "host CR4 has no undefined bit", "host CR4: reserved bit set", HostCR4)
	c.must(cr4&cr4CET == 0 || cr0&cr0WP != 0,
		"host CR0.WP is 1 with CR4.CET", "host CR4.CET set with CR0.WP clear", HostCR0, HostCR4)
	c.must(v.get(HostCR3)&^(c.phys|cr3LAM) == 0,
		"host CR3 has no reserved bit", "host CR3: reserved bit set", HostCR3)
	for _, f := range []Field{HostFSBase, HostGSBase, HostTRBase, HostGDTRBase, HostIDTRBase, HostSysESP, HostSysEIP} {
		c.must(canonical(v.get(f)), fmt.Sprintf("%v is canonical", f), fmt.Sprintf("%v not canonical", f), f)
	}
	for _, f := range []Field{HostES, HostCS, HostSS, HostDS, HostFS, HostGS, HostTR} {
		c.must(v.get(f)&7 == 0, fmt.Sprintf("%v has RPL 0 and is of the GDT", f),
			fmt.Sprintf("%v: RPL or TI not 0", f), f)
	}
	c.must(v.get(HostCS) != 0, "host CS is not 0", "host CS 0", HostCS)
	c.must(v.get(HostTR) != 0, "host TR is not 0", "host TR 0", HostTR)
	c.must(long || v.get(HostSS) != 0,
		"host SS is not 0 outside 64-bit mode", "host SS 0 outside 64-bit mode", HostSS, ExitControls)
	c.must(!long || cr4&cr4PAE != 0,
		"host CR4.PAE is 1 in 64-bit mode", "host CR4.PAE clear in 64-bit mode", HostCR4, ExitControls)
	c.must(long || cr4&cr4PCIDE == 0,
		"host CR4.PCIDE is 0 outside 64-bit mode", "host CR4.PCIDE set outside 64-bit mode", HostCR4, ExitControls)
	c.must(long || v.get(EntryControls)&entryGuest64 == 0,
		"a 64-bit guest has a 64-bit host",
		"64-bit guest with a host outside 64-bit mode", EntryControls, ExitControls)
	rip := v.get(HostRIP)
	c.must(long && canonical(rip) && (cr4&cr4LA57 != 0 || canonical(rip<<9)) || !long && rip>>32 == 0,
		"host RIP is canonical", "host RIP not canonical", HostRIP, HostCR4, ExitControls)
	if exit&exitLoadEFER != 0 {
		efer := v.get(HostEFER)
		c.must(efer&^uint64(eferDefined) == 0 && (efer&eferLMA != 0) == long && (efer&eferLME != 0) == long,
			"host EFER has no undefined bit and is of the host's address-space size", "host EFER: reserved bit set, or LMA and LME not the host's address-space size", HostEFER, ExitControls)
	}
}

// canonical is judged for 57-bit addresses: whether the processor has these is not
// known, and if it has, bases and MSRs may have them whatever CR4.LA57 is (Linux commit
// 9245fd6b8531 ("KVM: x86: model canonical checks more precisely")). The RIP of a guest
// need not even be canonical.
func canonical(a uint64) bool { return uint64(int64(a<<7)>>7) == a }

// validPAT: SDM Vol. 3A, "IA32_PAT MSR": types 0, 1, 4, 5, 6, 7.
func validPAT(pat uint64) bool {
	for range 8 {
		if t := pat & 0xff; t > 7 || t == 2 || t == 3 {
			return false
		}
		pat >>= 8
	}
	return true
}

// guest: SDM "Checks on Guest Control Registers, Debug Registers, and MSRs",
// "Checks on Guest Descriptor-Table Registers", "Checks on Guest RIP, RFLAGS, and
// SSP".
func (c *checker) guest() {
	v := c.v
	entry := v.get(EntryControls)
	cr0, cr4, flags, long := v.get(GuestCR0), v.get(GuestCR4), v.get(GuestRFLAGS), entry&entryGuest64 != 0
	unrestricted := v.second()&secondUnrestricted != 0
	c.must(cr0&cr0NE != 0, "guest CR0.NE is 1", "guest CR0.NE clear", GuestCR0)
	c.must(unrestricted || cr0&cr0PE != 0 && cr0&cr0PG != 0,
		"guest CR0.PE and PG are 1, or the guest is unrestricted",
		"guest CR0.PE or PG clear without unrestricted guest",
		GuestCR0, SecondControls)
	c.must(cr0&cr0PG == 0 || cr0&cr0PE != 0,
		"guest CR0.PE is 1 with CR0.PG", "guest CR0.PG set with CR0.PE clear", GuestCR0)
	c.must(cr0>>32 == 0, "guest CR0 has 32 bits", "guest CR0: a bit above 31 set", GuestCR0)
	c.must(cr4&cr4VMXE != 0, "guest CR4.VMXE is 1", "guest CR4.VMXE clear", GuestCR4)
	c.must(cr4&^uint64(cr4Defined) == 0, "guest CR4 has no undefined bit", "guest CR4: reserved bit set", GuestCR4)
	c.must(cr4&cr4CET == 0 || cr0&cr0WP != 0,
		"guest CR0.WP is 1 with CR4.CET", "guest CR4.CET set with CR0.WP clear", GuestCR0, GuestCR4)
	c.must(!long || cr0&cr0PG != 0 && cr4&cr4PAE != 0,
		"guest CR0.PG and CR4.PAE are 1 in 64-bit mode", "guest CR0.PG or CR4.PAE clear in 64-bit mode",
		GuestCR0, GuestCR4, EntryControls)
	c.must(long || cr4&cr4PCIDE == 0,
		"guest CR4.PCIDE is 0 outside 64-bit mode",
		"guest CR4.PCIDE set outside 64-bit mode", GuestCR4, EntryControls)
	c.must(v.get(GuestCR3)&^(c.phys|cr3LAM) == 0,
		"guest CR3 has no reserved bit", "guest CR3: reserved bit set", GuestCR3)
	c.must(entry&entryLoadDebug == 0 || v.get(GuestDR7)>>32 == 0,
		"guest DR7 has 32 bits", "guest DR7: a bit above 31 set", GuestDR7)
	for _, f := range []Field{GuestSysESP, GuestSysEIP, GuestGDTRBase, GuestIDTRBase} {
		c.must(canonical(v.get(f)), fmt.Sprintf("%v is canonical", f), fmt.Sprintf("%v not canonical", f), f)
	}
	for _, f := range []Field{GuestGDTRLimit, GuestIDTRLimit} {
		c.must(v.get(f)>>16 == 0, fmt.Sprintf("%v has 16 bits", f), fmt.Sprintf("%v: a bit above 15 set", f), f)
	}
	if entry&entryLoadEFER != 0 {
		efer := v.get(GuestEFER)
		lma := efer&eferLMA != 0
		c.must(efer&^uint64(eferDefined) == 0,
			"guest EFER has no undefined bit", "guest EFER: reserved bit set", GuestEFER)
		c.must(lma == long,
			"guest EFER.LMA is the mode of the VM-entry controls",
			"guest EFER.LMA differs from IA-32e mode guest", GuestEFER, EntryControls)
		c.must(cr0&cr0PG == 0 || lma == (efer&eferLME != 0),
			"guest EFER.LMA is EFER.LME with paging",
			"guest EFER.LMA differs from EFER.LME with CR0.PG set", GuestEFER, GuestCR0)
	}
	c.must(flags&flagOne != 0, "guest RFLAGS bit 1 is 1", "guest RFLAGS bit 1 clear", GuestRFLAGS)
	c.must(flags&flagsZero == 0, "guest RFLAGS has no reserved bit", "guest RFLAGS: reserved bit set", GuestRFLAGS)
	c.must(flags&flagVM == 0 || !long && cr0&cr0PE != 0,
		"guest RFLAGS.VM is 0 in 64-bit and real mode", "guest RFLAGS.VM set in 64-bit or real mode",
		GuestRFLAGS, EntryControls, GuestCR0)
	code64 := long && v.get(GuestCSRights)&rightsL != 0
	rip := v.get(GuestRIP)
	c.must(code64 && canonical(rip) || !code64 && rip>>32 == 0,
		"guest RIP is canonical, or has 32 bits", "guest RIP not canonical, or above 32 bits outside 64-bit mode",
		GuestRIP, GuestCSRights, EntryControls)
}
