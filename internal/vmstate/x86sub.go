package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// subsection is one subsection of a section, without its header.
type subsection struct {
	name string
	body []byte
}

const (
	subsectionVersion = 1
	// maxSubsections bounds the list; a CPU has at most as many as x86Subsections.
	maxSubsections = 64
)

// x86Split finds the subsections in rest, what follows the fixed part of a
// section "cpu". Each begins with 0x05, name length u8, name, version be32. One
// that is not in x86Subsections (a QEMU newer than we know) has no known size:
// it is taken to end where a known one begins from which known ones lead to the
// end of rest, or at that end. Several such places are an error. unknown are the
// names of these.
func x86Split(rest []byte) (subs []subsection, unknown []string, err error) {
	for p := 0; p < len(rest); {
		if len(subs) == maxSubsections {
			return nil, nil, fmt.Errorf("more than %d subsections", maxSubsections)
		}
		name, body, ok := subsectionHeader(rest, p)
		if !ok {
			return nil, nil, fmt.Errorf("no subsection at %#x behind the fixed part", p)
		}
		if find(subs, name) != nil {
			return nil, nil, fmt.Errorf("subsection %q is there twice", name)
		}
		size, known := x86Subsections[name]
		if !known {
			unknown = append(unknown, name)
			if size, err = unknownSize(rest, body); err != nil {
				return nil, nil, fmt.Errorf("subsection %q: %w", name, err)
			}
		}
		if size > len(rest)-body {
			return nil, nil, fmt.Errorf("subsection %q needs %d bytes, has %d", name, size, len(rest)-body)
		}
		subs = append(subs, subsection{name, rest[body : body+size : body+size]})
		p = body + size
	}
	return subs, unknown, nil
}

// subsectionHeader reads the header at p; body is the offset behind it.
func subsectionHeader(b []byte, p int) (name string, body int, ok bool) {
	r := reader{b: b, at: p}
	kind, name, version := r.u8(), r.counted(), r.u32()
	ok = !r.short && kind == recordSubsection && version == subsectionVersion &&
		strings.HasPrefix(name, "cpu/") && printable(name)
	return name, r.at, ok
}

// unknownSize is the size of a subsection whose fields begin at body.
func unknownSize(rest []byte, body int) (int, error) {
	var found []int
	for p := body; p < len(rest); p++ {
		n := bytes.IndexByte(rest[p:], recordSubsection)
		if n < 0 {
			break
		}
		p += n
		if knownToTheEnd(rest, p) {
			found = append(found, p-body)
		}
	}
	switch {
	case len(found) == 0:
		return len(rest) - body, nil
	case !sameChain(rest, body, found):
		return 0, fmt.Errorf("may end in several places, the first is %#x bytes long", found[0])
	}
	return found[0], nil
}

// knownToTheEnd reports whether known subsections lead from p exactly to the
// end of b.
func knownToTheEnd(b []byte, p int) bool {
	for range maxSubsections {
		if p == len(b) {
			return true
		}
		name, body, ok := subsectionHeader(b, p)
		size, known := x86Subsections[name]
		if !ok || !known || size > len(b)-body {
			return false
		}
		p = body + size
	}
	return false
}

// sameChain reports whether all of found are members of the chain that begins
// at the first of them: from each member of a chain known subsections lead to the
// end, which makes them one answer, not several.
func sameChain(b []byte, body int, found []int) bool {
	members := map[int]bool{}
	for p := body + found[0]; p < len(b); {
		members[p-body] = true
		name, at, _ := subsectionHeader(b, p)
		p = at + x86Subsections[name]
	}
	for _, f := range found {
		if !members[f] {
			return false
		}
	}
	return true
}

// find returns the body of a subsection, or nil.
func find(subs []subsection, name string) []byte {
	for _, s := range subs {
		if s.name == name {
			return s.body
		}
	}
	return nil
}

// nestedState puts the subsections of KVM's nested state together, or returns
// nil if there are none. QEMU 7.2 target/i386/machine.c:
//
//	cpu/nested_state           flags u16, format u16, size u32
//	cpu/kvm_nested_state/vmx   vmxon_pa u64, vmcs12_pa u64, smm.flags u16
//	                 /vmx/...  pages, as they are in memory
//	cpu/kvm_nested_state/svm   vmcb_pa u64, page
func nestedState(subs []subsection) (*Nested, error) {
	head := find(subs, "cpu/nested_state")
	if head == nil {
		return nil, nil
	}
	n := &Nested{
		Flags: binary.BigEndian.Uint16(head),
		Kind:  NestedKind(binary.BigEndian.Uint16(head[2:])),
	}
	vmx, svm := find(subs, "cpu/kvm_nested_state/vmx"), find(subs, "cpu/kvm_nested_state/svm")
	switch {
	case n.Kind == NestedVMX && svm == nil:
		if vmx != nil {
			n.VMXON, n.VMCS12 = phys(vmx), phys(vmx[8:])
		}
		n.Page = find(subs, "cpu/kvm_nested_state/vmx/vmcs12")
		n.Shadow = find(subs, "cpu/kvm_nested_state/vmx/shadow_vmcs12")
	case n.Kind == NestedSVM && vmx == nil:
		if svm != nil {
			n.VMCB, n.Page = phys(svm), svm[8:]
		}
	default:
		return nil, fmt.Errorf("nested state of %v with parts of another kind", n.Kind)
	}
	return n, nil
}
