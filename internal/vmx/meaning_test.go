package vmx

import (
	"fmt"
	"testing"

	"nestdbg/internal/vmx/vmxtest"
)

func TestMeaning(t *testing.T) {
	for _, c := range []struct {
		field Field
		value uint64
		want  string
	}{
		{PinControls, 0x7f, "external-interrupt exiting, NMI exiting, virtual NMIs, VMX-preemption timer"},
		{PrimaryControls, 1<<31 | 1<<28 | 1<<21 | 1<<7, "HLT exiting, TPR shadow, MSR bitmaps, secondary controls"},
		{SecondControls, 1<<22 | 1<<14 | 1<<7 | 1<<1, "EPT, unrestricted guest, VMCS shadowing, mode-based execute control"},
		{ExitControls, 1<<22 | 1<<21 | 1<<9, "host address-space size, load IA32_EFER, save VMX-preemption timer"},
		{EntryControls, 1<<15 | 1<<9, "IA-32e mode guest, load IA32_EFER"},
		{ExitReason, 12, "HLT"}, {InsnError, 0, "none"}, {ActivityState, 1, "HLT"}, {ActivityState, 7, ""},
		{LinkPointer, 1<<64 - 1, "none"}, {LinkPointer, 0x1000, ""},
		{EPTPointer, 0x194ed05e, "root 0x194ed000, 4 levels, write-back, accessed and dirty flags"},
		{EPTPointer, 0x1020, "root 0x1000, 5 levels, uncached"},
		{EntryInfo, 0x80000b0e, "exception, vector 14, with an error code"}, {EntryInfo, 0, "none"},
		{GuestCSRights, 0xa09b, "type 11, DPL 0, S, P, L, G"}, {GuestESRights + 14, 0x10000, "unusable"},
		{GuestCR4, 0x2020, "PAE, VMXE"}, {GuestRIP, 7, ""}, {GuestRFLAGS, 0x202, "IF"},
	} {
		if got := c.field.Meaning(c.value); got != c.want {
			t.Errorf("%v %#x means %q, want %q", c.field, c.value, got, c.want)
		}
	}
}

func TestExitDetails(t *testing.T) {
	for _, c := range []struct {
		values vmxtest.Values
		want   string
	}{
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x182, "guest-physical address": 0xfee00000, "guest-linear address": 0x42},
			"[{guest-physical address 0xfee00000} {access write, not present} {guest-linear address 0x42}]"},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x99},
			"[{guest-physical address 0x0} {access read, permitted: read, write, while the guest's page tables were read} {guest-linear address 0x0}]"},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x1c4, "secondary controls": mbec},
			"[{guest-physical address 0x0} {access instruction fetch, permitted: user fetch} {guest-linear address 0x0}]"},
		{vmxtest.Values{"exit reason": 49, "guest-physical address": 0x1000}, "[{guest-physical address 0x1000}]"},
		{vmxtest.Values{"exit reason": 30, "exit qualification": 0x3f80009}, "[{access IN of 2 bytes, port 0x3f8}]"},
		{vmxtest.Values{"exit reason": 28, "exit qualification": 0x3}, "[{access write to CR3}]"},
		{vmxtest.Values{"exit reason": 28, "exit qualification": 0x20}, "[{access CLTS}]"},
		{vmxtest.Values{"exit reason": 0, "VM-exit interruption information": 0x80000b0e, "VM-exit interruption error code": 2},
			"[{event exception, vector 14, with an error code} {VM-exit interruption error code 0x2}]"},
		{vmxtest.Values{"exit reason": 1<<31 | 33, "exit qualification": 2}, "[{cause loading the PDPTEs}]"},
	} {
		if got := fmt.Sprint(view(t, vmxtest.VMCS(vmxtest.KVM, c.values), vmxtest.KVM).ExitDetails()); got != c.want {
			t.Errorf("%v: %s, want %s", c.values, got, c.want)
		}
	}
}

// mbec are secondary controls with mode-based execute control.
const mbec = 0x4010ee

func TestEPTFault(t *testing.T) {
	for _, c := range []struct {
		values vmxtest.Values
		want   EPTFault
		ok     bool
	}{
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x18a, "guest-physical address": 0x2000},
			EPTFault{Addr: 0x2000, Qualification: 0x18a, Write: true, Permitted: 1}, true},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x84, "guest-physical address": 0x2000},
			EPTFault{Addr: 0x2000, Qualification: 0x84, Fetch: true, Tables: true}, true},
		// A bit that without mode-based execute control means nothing, and with it.
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x1c4}, EPTFault{Qualification: 0x1c4, Fetch: true}, true},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x1c4, "secondary controls": mbec},
			EPTFault{Qualification: 0x1c4, Fetch: true, Permitted: 8}, true},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x1ac, "secondary controls": mbec},
			EPTFault{Qualification: 0x1ac, Fetch: true, User: true, Permitted: 5}, true},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x18c, "secondary controls": mbec},
			EPTFault{Qualification: 0x18c, Fetch: true, Permitted: 1}, true},
		{vmxtest.Values{"exit reason": 48, "exit qualification": 0x18c, "secondary controls": mbec, "guest SS access rights": 0xc0f3},
			EPTFault{Qualification: 0x18c, Fetch: true, User: true, Permitted: 1}, true},
		{vmxtest.Values{"exit reason": 49, "guest-physical address": 0x3000}, EPTFault{Addr: 0x3000, Misconfigured: true}, true},
		{vmxtest.Values{"exit reason": 12}, EPTFault{}, false},
	} {
		f, ok := view(t, vmxtest.VMCS(vmxtest.KVM, c.values), vmxtest.KVM).EPTFault()
		if ok != c.ok || ok && f != c.want {
			t.Errorf("%v: %+v, %v", c.values, f, ok)
		}
	}
}
