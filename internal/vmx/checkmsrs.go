package vmx

// Bits that are reserved in MSRs that an entry or an exit loads (SDM Vol. 4 "Architectural
// MSRs"; Vol. 1 "CET Control MSRs"; Vol. 1, "IA32_BNDCFGS"). Of performance counters there
// are as many as the format allows, since a processor may have them.
const (
	reservedPerf    = ^uint64(1<<49 - 1) // counters 31:0, fixed ones 47:32, metrics 48
	reservedDebug   = ^uint64(0xffff) | 7<<3
	reservedBounds  = 0xffc // bits 11:2; the rest is a linear address
	reservedCET     = 0xf << 6
	cetSuppress     = 1 << 10
	cetTracker      = 1 << 11
	cetLegacyBitmap = ^uint64(0xfff)
)

// msrs: SDM "Checks on Host Control Registers, MSRs, and SSP" and "Checks on Guest Control
// Registers, Debug Registers, and MSRs", of those MSRs that a control makes the processor
// load, and of SSP.
func (c *checker) msrs() {
	v := c.v
	exit, entry := v.get(ExitControls), v.get(EntryControls)
	for _, x := range []struct {
		on                  bool
		pat, perf, pkrs     Field
		onPerf, onPKRS, cet bool
		sCET, ssp, table    Field
		side                string
	}{
		{exit&exitLoadPAT != 0, HostPAT, HostPerf, HostPKRS, exit&exitLoadPerf != 0, exit&exitLoadPKRS != 0, exit&exitLoadCET != 0,
			HostSCET, HostSSP, HostSSPTable, "host"},
		{entry&entryLoadPAT != 0, GuestPAT, GuestPerf, GuestPKRS, entry&entryLoadPerf != 0, entry&entryLoadPKRS != 0, entry&entryLoadCET != 0,
			GuestSCET, GuestSSP, GuestSSPTable, "guest"},
	} {
		if x.on {
			c.must(validPAT(v.get(x.pat)), x.side+" PAT has valid memory types", x.side+" PAT: reserved memory type", x.pat)
		}
		if x.onPerf {
			c.must(v.get(x.perf)&reservedPerf == 0, x.side+" IA32_PERF_GLOBAL_CTRL has no reserved bit",
				x.side+" IA32_PERF_GLOBAL_CTRL: reserved bit set", x.perf)
		}
		if x.onPKRS {
			c.must(v.get(x.pkrs)>>32 == 0, x.side+" PKRS has 32 bits", x.side+" PKRS: a bit above 31 set", x.pkrs)
		}
		if x.cet {
			c.cet(x.side, x.sCET, x.ssp, x.table)
		}
	}
	if entry&entryLoadDebug != 0 {
		c.must(v.get(GuestDebugCtl)&reservedDebug == 0, "guest IA32_DEBUGCTL has no reserved bit",
			"guest IA32_DEBUGCTL: reserved bit set", GuestDebugCtl)
	}
	if entry&entryLoadBounds != 0 {
		b := v.get(GuestBndCfgs)
		c.must(b&reservedBounds == 0 && canonical(b&^0xfff), "guest IA32_BNDCFGS has no reserved bit and a canonical address",
			"guest IA32_BNDCFGS: reserved bit set, or address not canonical", GuestBndCfgs)
	}
}

// cet checks what control-flow enforcement is loaded with.
func (c *checker) cet(side string, control, ssp, table Field) {
	s, p := c.v.get(control), c.v.get(ssp)
	c.must(s&reservedCET == 0 && s&(cetSuppress|cetTracker) != cetSuppress|cetTracker && canonical(s&cetLegacyBitmap),
		side+" IA32_S_CET has no reserved bit, a canonical address, and not both SUPPRESS and TRACKER",
		side+" IA32_S_CET: reserved bit, both SUPPRESS and TRACKER, or address not canonical", control)
	c.must(p&3 == 0 && canonical(p), side+" SSP is canonical and aligned to 4 bytes", side+" SSP not canonical, or not aligned to 4 bytes", ssp)
	c.must(canonical(c.v.get(table)), side+" IA32_INTERRUPT_SSP_TABLE_ADDR is canonical",
		side+" IA32_INTERRUPT_SSP_TABLE_ADDR not canonical", table)
}
