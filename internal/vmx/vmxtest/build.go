// Package vmxtest makes VMCS pages for tests, in the layouts that are published. It
// shares no table with package vmx: fields have names here and no encodings, and the
// offsets are written down again from where they are published.
package vmxtest

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// The implementations that Page knows, with the revision that goes with each.
const (
	KVM    = "KVM vmcs12"
	HyperV = "Hyper-V enlightened VMCS"
	Bochs  = "Bochs 2.7"
	VMware = "VMware nested VMX"
)

// Kinds are those of which all is known that a guest is found by: VMware is not, since
// nobody has published where it has the EPT pointer.
var Kinds = []string{KVM, HyperV, Bochs}

var kinds = map[string]struct {
	revision uint32
	places   map[string]place
}{KVM: {0x11e57ed0, kvmPlaces}, HyperV: {1, hypervPlaces}, Bochs: {0x2b, bochsPlaces}, VMware: {1, vmwarePlaces}}

// place is an offset in the page and a size, in bytes.
type place struct{ at, size int }

// table reads "OFFSET SIZE NAME; ...".
func table(text string) map[string]place {
	out := make(map[string]place)
	for row := range strings.SplitSeq(text, ";") {
		if strings.TrimSpace(row) == "" {
			continue
		}
		f := strings.SplitN(strings.TrimSpace(row), " ", 3)
		at, err := strconv.ParseInt(f[0], 0, 0)
		size, err2 := strconv.Atoi(f[1])
		if err != nil || err2 != nil {
			panic(row)
		}
		out[f[2]] = place{int(at), size}
	}
	return out
}

// Names are the fields that a kind has, with the offset and the size of each.
func Names(kind string) map[string][2]int {
	out := make(map[string][2]int)
	for name, p := range kinds[kind].places {
		out[name] = [2]int{p.at, p.size}
	}
	return out
}

// Values are fields by name.
type Values map[string]uint64

// Page is a page of a kind with these values, its header, and zeros elsewhere. Fields
// that the kind is not known to have are left out.
func Page(kind string, values Values) []byte {
	p := make([]byte, 4096)
	binary.LittleEndian.PutUint32(p, kinds[kind].revision)
	Set(p, kind, values)
	return p
}

// Set writes values into a page. A name that no kind has panics.
func Set(page []byte, kind string, values Values) {
	for name, v := range values {
		w, ok := kinds[kind].places[name]
		if !ok {
			if _, some := kvmPlaces[name]; !some {
				panic(fmt.Sprintf("no field %q", name))
			}
			continue
		}
		for i := range w.size {
			page[w.at+i] = byte(v >> (8 * i))
		}
	}
}

// VMCS is that of a 64-bit Linux guest in its kernel, with EPT, as a 64-bit Linux
// host has it after an exit, changed by values.
func VMCS(kind string, values Values) []byte {
	p := Page(kind, Linux())
	Set(p, kind, values)
	return p
}

// Linux are the values of VMCS.
func Linux() Values {
	v := Values{
		"VPID": 1, "MSR bitmaps": 0x2653000, "EPT pointer": 0x194ed05e, "VMCS link pointer": 1<<64 - 1,
		"pin-based controls": 0x7f, "primary controls": 0xb5a06dfa, "secondary controls": 0x10ee,
		"VM-exit controls": 0x2befff, "VM-entry controls": 0xd3ff, "exit reason": 48,
		"guest IA32_PAT": 0x0007040600070406, "guest IA32_EFER": 0xd01, "host IA32_PAT": 0x0007040600070406,
		"host IA32_EFER": 0xd01, "virtual-APIC address": 0x2655000, "posted-interrupt descriptor address": 0x2656040,
		"guest CR0": 0x80050033, "guest CR3": 0x28ce000, "guest CR4": 0x7526b0, "guest DR7": 0x400,
		"guest RSP": 0xffffc900005b7b08, "guest RIP": 0xffffffff81d02d61, "guest RFLAGS": 0x202,
		"guest GS base": 0xffff88800f600000, "guest GDTR base": 0xfffffe0000001000, "guest GDTR limit": 0x7f,
		"guest IDTR base": 0xfffffe0000000000, "guest IDTR limit": 0xfff, "guest TR base": 0xfffffe0000003000,
		"guest CS": 0x10, "guest SS": 0x18, "guest TR": 0x40, "guest CS limit": 0xffffffff, "guest SS limit": 0xffffffff,
		"guest TR limit": 0x206f, "guest CS access rights": 0xa09b, "guest SS access rights": 0xc093,
		"guest TR access rights": 0x8b, "guest LDTR access rights": 0x10000, "guest IA32_SYSENTER_CS": 0x10,
		"host CR0": 0x80050033, "host CR3": 0x19dc0000, "host CR4": 0x7726f0, "host CS": 0x10, "host SS": 0x18,
		"host TR": 0x40, "host FS base": 0x7f822b07c6c0, "host GS base": 0xffff88807bf00000,
		"host TR base": 0xfffffe000003e000, "host GDTR base": 0xfffffe000003c000,
		"host IDTR base": 0xfffffe0000000000, "host RSP": 0xffffc900803fb950, "host RIP": 0xffffffffc05e3dcc,
		"host IA32_SYSENTER_CS": 0x10,
	}
	for _, s := range []string{"ES", "DS", "FS", "GS"} {
		v["guest "+s+" access rights"] = 0x1c000
	}
	return v
}
