// Package svmtest makes VMCB pages and host save areas for tests. It shares no
// table with package svm: the offsets are written down again from the AMD64
// Architecture Programmer's Manual Vol. 2, Appendix B.
package svmtest

import "fmt"

// place is an offset in the page and a size, in bytes.
type place struct{ at, size int }

var places = map[string]place{
	"CR reads": {0x000, 2}, "intercepts 3": {0x00c, 4}, "intercepts 4": {0x010, 4}, "intercepts 5": {0x014, 4},
	"reserved 018": {0x018, 8}, "reserved 038": {0x038, 4},
	"IOPM": {0x040, 8}, "MSRPM": {0x048, 8}, "TSC offset": {0x050, 8}, "ASID": {0x058, 4}, "TLB": {0x05c, 1},
	"V_INTR": {0x060, 4}, "EXITCODE": {0x070, 8}, "EXITINFO1": {0x078, 8}, "EXITINFO2": {0x080, 8},
	"NP_ENABLE": {0x090, 8}, "EVENTINJ": {0x0a8, 8}, "nCR3": {0x0b0, 8}, "nRIP": {0x0c8, 8},
	"AVIC backing page": {0x0e0, 8}, "AVIC logical table": {0x0f0, 8}, "AVIC physical table": {0x0f8, 8},
	"ES": {0x400, 2}, "CS": {0x410, 2}, "CS attrib": {0x412, 2}, "SS": {0x420, 2}, "SS attrib": {0x422, 2},
	"DS": {0x430, 2}, "ES base": {0x408, 8}, "CS base": {0x418, 8}, "SS base": {0x428, 8}, "DS base": {0x438, 8},
	"FS": {0x440, 2}, "FS base": {0x448, 8}, "GS": {0x450, 2}, "GS base": {0x458, 8},
	"GDTR limit": {0x464, 4}, "GDTR base": {0x468, 8}, "LDTR": {0x470, 2}, "LDTR base": {0x478, 8},
	"IDTR limit": {0x484, 4}, "IDTR base": {0x488, 8}, "TR": {0x490, 2}, "TR base": {0x498, 8},
	"CPL": {0x4cb, 1}, "reserved 4CC": {0x4cc, 4}, "EFER": {0x4d0, 8}, "CR4": {0x548, 8}, "CR3": {0x550, 8},
	"CR0": {0x558, 8}, "DR7": {0x560, 8}, "DR6": {0x568, 8}, "RFLAGS": {0x570, 8}, "RIP": {0x578, 8},
	"reserved 580": {0x580, 8}, "RSP": {0x5d8, 8}, "S_CET": {0x5e0, 8}, "RAX": {0x5f8, 8}, "STAR": {0x600, 8}, "LSTAR": {0x608, 8},
	"CSTAR": {0x610, 8}, "SFMASK": {0x618, 8}, "KernelGSBase": {0x620, 8}, "SYSENTER_CS": {0x628, 8},
	"SYSENTER_ESP": {0x630, 8}, "SYSENTER_EIP": {0x638, 8}, "CR2": {0x640, 8}, "G_PAT": {0x668, 8},
}

// Values are fields by name; Set says which names there are.
type Values map[string]uint64

// Page is a page with these values and zeros elsewhere.
func Page(values Values) []byte {
	p := make([]byte, 4096)
	Set(p, values)
	return p
}

// Set writes values into a page. A name it does not know panics.
func Set(page []byte, values Values) {
	for name, v := range values {
		w, ok := places[name]
		if !ok {
			panic(fmt.Sprintf("no field %q", name))
		}
		for i := range w.size {
			page[w.at+i] = byte(v >> (8 * i))
		}
	}
}

// VMCB is the VMCB of a 64-bit Linux guest in its kernel, with nested paging,
// as KVM has it after a #VMEXIT, changed by values.
func VMCB(values Values) []byte {
	p := Page(Values{
		"intercepts 3": 0xbd4c8027, "intercepts 4": 0x6e4f, "IOPM": 0x265c000, "MSRPM": 0x19d5a000,
		"ASID": 11, "V_INTR": 0x03000200, "EXITCODE": 0x60, "NP_ENABLE": 1, "nCR3": 0x194ed000,
		"CS": 0x10, "CS attrib": 0xa9b, "SS": 0x18, "SS attrib": 0xc93, "GS base": 0xffff88800f600000,
		"GDTR limit": 0x7f, "GDTR base": 0xfffffe0000001000, "IDTR limit": 0xfff, "IDTR base": 0xfffffe0000000000,
		"TR": 0x40, "TR base": 0xfffffe0000003000, "EFER": 0x1d01, "CR4": 0x711eb0, "CR3": 0x28ce000,
		"CR0": 0x80050033, "DR7": 0x400, "DR6": 0xffff0ff0, "RFLAGS": 0x202, "RIP": 0xffffffff81d02d61,
		"RSP": 0xffffc900005b7b08, "RAX": 0x42, "LSTAR": 0xffffffff82400080, "CR2": 0x7ffee04efdd8,
		"G_PAT": 0x0007040600070406,
	})
	Set(p, values)
	return p
}

// HostSave is the host save area of a Linux hypervisor under QEMU's TCG that
// runs the VMCB at this address, changed by values.
func HostSave(vmcb uint64, values Values) []byte {
	p := Page(Values{
		"CS": 0x10, "CS attrib": 0xa9b, "SS": 0x18, "SS attrib": 0xc93, "FS base": 0x7f822b07c6c0,
		"GS base": 0xffff88807bf00000, "GDTR limit": 0x7f, "GDTR base": 0xfffffe000003c000,
		"IDTR limit": 0xfff, "IDTR base": 0xfffffe0000000000, "TR": 0x40, "TR base": 0xfffffe000003e000,
		"EFER": 0x1d01, "CR4": 0x751ea0, "CR3": 0x19dc0000, "CR0": 0x80050033, "DR7": 0x400, "DR6": 0xffff0ff0,
		"RFLAGS": 0x246, "RIP": 0xffffffffc05e3dcc, "RSP": 0xffffc900803fb950, "RAX": vmcb,
		"LSTAR": 0xffffffff82000080,
	})
	Set(p, values)
	return p
}
