package svm

import (
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/svm/svmtest"
)

func below2G(a mem.Phys) bool { return a < 2<<30 }

func TestAssess(t *testing.T) {
	for name, c := range map[string]struct {
		values    svmtest.Values
		plausible bool
		against   string // in the only rule that does not hold; "" if all hold
	}{
		"as after an exit":   {nil, true, ""},
		"not yet run":        {svmtest.Values{"EXITCODE": 0, "RFLAGS": 2, "RIP": 0xfff0, "CR0": 0x60000010, "EFER": 0x1000, "CR4": 0, "CR3": 0, "SS attrib": 0x93}, true, ""},
		"automatic IBRS":     {svmtest.Values{"EFER": 1<<21 | 0x1d01}, true, ""},
		"no nested paging":   {svmtest.Values{"NP_ENABLE": 0, "nCR3": 0x123456789}, true, ""},
		"user mode":          {svmtest.Values{"CPL": 3, "SS attrib": 0xcf3}, true, ""},
		"KVM's invalid":      {svmtest.Values{"EXITCODE": 1<<32 - 1}, true, ""},
		"not intercepted":    {svmtest.Values{"intercepts 4": 0xfffffffe}, false, "VMRUN"},
		"ASID 0":             {svmtest.Values{"ASID": 0}, false, "ASID"},
		"ASID too large":     {svmtest.Values{"ASID": 0x10000}, false, "ASID"},
		"reserved intercept": {svmtest.Values{"reserved 018": 1 << 63}, false, "intercepts end"},
		"reserved 038":       {svmtest.Values{"reserved 038": 1}, false, "intercepts end"},
		"no SVME":            {svmtest.Values{"EFER": 0xd01}, false, "EFER"},
		"EFER bit 1":         {svmtest.Values{"EFER": 0x1d03}, false, "EFER"},
		"EFER high":          {svmtest.Values{"EFER": 1<<32 | 0x1d01}, false, "EFER"},
		"CR0 high":           {svmtest.Values{"CR0": 1<<32 | 0x80050033}, false, "CR0"},
		"CR4 high":           {svmtest.Values{"CR4": 1<<32 | 0x711eb0}, false, "CR4"},
		"PG without PE":      {svmtest.Values{"CR0": 0x80050032}, false, "without protected mode"},
		"LMA without LME":    {svmtest.Values{"EFER": 0x1c01}, false, "long mode"},
		"LMA without PAE":    {svmtest.Values{"CR4": 0x711e90}, false, "long mode"},
		"LMA without PG":     {svmtest.Values{"CR0": 0x00050033}, false, "long mode"},
		"RFLAGS 0":           {svmtest.Values{"RFLAGS": 0}, false, "RFLAGS"},
		"RFLAGS bit 3":       {svmtest.Values{"RFLAGS": 0x20a}, false, "RFLAGS"},
		"RFLAGS high":        {svmtest.Values{"RFLAGS": 1<<32 | 2}, false, "RFLAGS"},
		"NP_ENABLE":          {svmtest.Values{"NP_ENABLE": 0x41}, false, "NP_ENABLE"},
		"exit code":          {svmtest.Values{"EXITCODE": 0x300}, false, "exit code"},
		"IOPM not aligned":   {svmtest.Values{"IOPM": 0x1008}, true, "I/O permission"},
		"IOPM 0":             {svmtest.Values{"IOPM": 0}, true, "I/O permission"},
		"IOPM past the end":  {svmtest.Values{"IOPM": 2<<30 - 0x2000}, true, "I/O permission"},
		"IOPM wraps":         {svmtest.Values{"IOPM": 1<<64 - 0x1000}, true, "I/O permission"},
		"MSRPM past the end": {svmtest.Values{"MSRPM": 2<<30 - 0x1000}, true, "MSR permission"},
		"root outside":       {svmtest.Values{"nCR3": 2 << 30}, true, "nested paging root"},
		"TLB_CONTROL":        {svmtest.Values{"TLB": 2}, true, "TLB_CONTROL"},
		"DR6 high":           {svmtest.Values{"DR6": 1 << 32}, true, "DR6"},
		"CPL is not SS's":    {svmtest.Values{"CPL": 3}, true, "CPL"},
		"reserved 4CC":       {svmtest.Values{"reserved 4CC": 1}, true, "reserved bytes"},
		"reserved 580":       {svmtest.Values{"reserved 580": 1}, true, "reserved bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			p := svmtest.VMCB(c.values)
			a := Assess(p, below2G)
			if a.Plausible != c.plausible || (len(a.Against) == 0) != (c.against == "") {
				t.Fatalf("assessed as %+v", a)
			}
			if c.against != "" && (len(a.Against) != 1 || !strings.Contains(a.Against[0], c.against)) {
				t.Errorf("against it: %q, want %q alone", a.Against, c.against)
			}
			if a.Score != len(a.Evidence) {
				t.Errorf("score %d with %d in favour", a.Score, len(a.Evidence))
			}
			if QuickReject(p) && a.Plausible {
				t.Error("rejected, but plausible")
			}
		})
	}
}

func TestAssessWithoutRAM(t *testing.T) {
	a := Assess(svmtest.VMCB(svmtest.Values{"nCR3": 1 << 40}), nil)
	if !a.Plausible || len(a.Against) != 0 {
		t.Errorf("assessed as %+v", a)
	}
}

// TestNotVMCBs has pages of the kinds that memory is full of.
func TestNotVMCBs(t *testing.T) {
	ascending, ones, odd := make([]byte, PageSize), make([]byte, PageSize), make([]byte, PageSize)
	for i := range ascending {
		ones[i], odd[i] = 0xff, 0x01
		ascending[i] = byte(i >> 1 * (i & 1))
		if i&1 == 0 {
			ascending[i] = byte(i / 2)
		}
	}
	for name, p := range map[string][]byte{
		"zeros": make([]byte, PageSize), "ones": ones, "bytes of 1": odd, "ascending words": ascending,
		"host save area": svmtest.HostSave(0x18dce000, nil),
	} {
		if a := Assess(p, nil); a.Plausible || !QuickReject(p) {
			t.Errorf("%s: rejected %v, assessed as %+v", name, QuickReject(p), a)
		}
	}
}

func TestIsHostSave(t *testing.T) {
	const vmcb = 0x18dce000
	for name, c := range map[string]struct {
		values svmtest.Values
		want   bool
	}{
		"as in use":       {nil, true},
		"without VMSAVE":  {svmtest.Values{"TR base": 0, "GS base": 0, "LSTAR": 0}, true},
		"a control area":  {svmtest.Values{"ASID": 1}, false},
		"no SVME":         {svmtest.Values{"EFER": 0xd01}, false},
		"EFER":            {svmtest.Values{"EFER": 1<<40 | 0x1d01}, false},
		"real mode":       {svmtest.Values{"CR0": 0x10, "EFER": 0x1000}, false},
		"CR0 high":        {svmtest.Values{"CR0": 1<<32 | 0x80050033}, false},
		"CR4 high":        {svmtest.Values{"CR4": 1 << 32}, false},
		"LMA without PAE": {svmtest.Values{"CR4": 0}, false},
		"RFLAGS":          {svmtest.Values{"RFLAGS": 0}, false},
		"RAX no page":     {svmtest.Values{"RAX": 0x1234}, false},
		"RAX 0":           {svmtest.Values{"RAX": 0}, false},
	} {
		if got := IsHostSave(svmtest.HostSave(vmcb, c.values)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestChecks(t *testing.T) {
	for failing, values := range map[string]svmtest.Values{
		"":                                              nil,
		"VMRUN is intercepted":                          {"intercepts 4": 0},
		"ASID is not 0":                                 {"ASID": 0},
		"EFER.SVME is 1":                                {"EFER": 0xd01},
		"EFER has no undefined bit":                     {"EFER": 1<<9 | 0x1d01},
		"CR0.NW is 0 unless CR0.CD is 1":                {"CR0": 1<<29 | 0x80050033},
		"CR0 has 32 bits":                               {"CR0": 1<<32 | 0x80050033},
		"CR3 has no reserved bit":                       {"CR3": 1 << 52},
		"CR4 has no undefined bit":                      {"CR4": 1<<15 | 0x711eb0},
		"DR6 has 32 bits":                               {"DR6": 1 << 32},
		"DR7 has 32 bits":                               {"DR7": 1 << 32},
		"long mode with paging has CR4.PAE":             {"CR4": 0x711e90},
		"long mode with paging has CR0.PE":              {"CR0": 0x80050032},
		"CS.L and CS.D are not both 1 in long mode":     {"CS attrib": 0xe9b},
		"the I/O permission map has a physical address": {"IOPM": 1 << 52},
		"the MSR permission map has a physical address": {"MSRPM": 1<<52 - 4096},
		"N_CR3 is a physical address":                   {"nCR3": 1 << 52},
		"the injected event is one that can be":         {"EVENTINJ": 1<<31 | 1<<8 | 0x20},
		"G_PAT has memory types only":                   {"G_PAT": 0x0007040600070402},
		"S_CET has no reserved bit":                     {"S_CET": 4},
		"CR4.CET needs CR0.WP":                          {"CR4": 1<<23 | 0x711eb0, "CR0": 0x80040033},
	} {
		for _, c := range view(t, svmtest.VMCB(values)).Checks(0) {
			if c.OK == (c.Name == failing) || c.Seen == "" || c.Wrong == "" {
				t.Errorf("with %v: %+v", values, c)
			}
		}
	}
	narrow := map[string]bool{}
	for _, c := range view(t, svmtest.VMCB(svmtest.Values{"nCR3": 1 << 45, "CR3": 1 << 45, "IOPM": 1<<40 - 4096})).Checks(40) {
		narrow[c.Name] = !c.OK
	}
	if !narrow["N_CR3 is a physical address"] || !narrow["CR3 has no reserved bit"] || !narrow["the I/O permission map has a physical address"] {
		t.Errorf("with 40 bits: %v", narrow)
	}
	cdnw := view(t, svmtest.VMCB(svmtest.Values{"CR0": 3<<29 | 0x80050033, "NP_ENABLE": 0, "nCR3": 1 << 60}))
	for _, c := range cdnw.Checks(0) {
		if !c.OK {
			t.Errorf("%+v", c)
		}
	}
}

func TestLegalEvent(t *testing.T) {
	const valid = 1 << 31
	for inj, want := range map[uint64]bool{
		0: true, 7 << 8: true, valid | 0x20: true, valid | 2<<8 | 2: true, valid | 3<<8 | 14: true, valid | 4<<8 | 0x80: true,
		valid | 1<<8: false, valid | 5<<8: false, valid | 7<<8: false, valid | 3<<8 | 2: false, valid | 3<<8 | 32: false,
	} {
		if got := legalEvent(inj); got != want {
			t.Errorf("EVENTINJ %#x: %v, want %v", inj, got, want)
		}
	}
}
