package arch

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// errUnknownInsn is what bytes are that nobody decodes.
var errUnknownInsn = errors.New("unrecognized instruction")

// bareX86 are instructions without operands that x86asm does not know: those of
// hypervisors and of kernels' entries. Source: AMD APM Vol. 3 and Intel SDM Vol. 2,
// "Opcode Map".
var bareX86 = map[string]string{
	"\x0f\x01\xc1": "vmcall", "\x0f\x01\xc2": "vmlaunch", "\x0f\x01\xc3": "vmresume", "\x0f\x01\xc4": "vmxoff",
	"\x0f\x01\xd4": "vmfunc", "\x0f\x01\xd8": "vmrun", "\x0f\x01\xd9": "vmmcall", "\x0f\x01\xda": "vmload",
	"\x0f\x01\xdb": "vmsave", "\x0f\x01\xdc": "stgi", "\x0f\x01\xdd": "clgi", "\x0f\x01\xde": "skinit",
	"\x0f\x01\xdf": "invlpga", "\x0f\x01\xca": "clac", "\x0f\x01\xcb": "stac", "\x0f\x01\xe8": "serialize",
	"\x0f\x01\xee": "rdpkru", "\x0f\x01\xef": "wrpkru", "\x0f\x01\xfa": "monitorx", "\x0f\x01\xfb": "mwaitx",
	"\x0f\x01\xfc": "clzero", "\x0f\x01\xfe": "invlpgb", "\x0f\x01\xff": "tlbsync",
	"\xf3\x0f\x1e\xfa": "endbr64", "\xf3\x0f\x1e\xfb": "endbr32",
}

func disassembleX86(code []byte, pc uint64, name func(uint64) string) (string, int, error) {
	for _, n := range []int{3, 4} {
		if len(code) >= n && bareX86[string(code[:n])] != "" {
			return bareX86[string(code[:n])], n, nil
		}
	}
	if a, ok := vmxAlias(code); ok {
		text, n, err := decodeX86(a.code, pc+uint64(a.shorter), name)
		if err != nil {
			return "", 0, err
		}
		_, operands, ok := strings.Cut(text, a.known+" ")
		if !ok {
			return "", 0, fmt.Errorf("no instruction at %#x: %w", pc, errUnknownInsn)
		}
		return a.mnemonic + " " + operands, n + a.shorter, nil
	}
	return decodeX86(code, pc, name)
}

func decodeX86(code []byte, pc uint64, name func(uint64) string) (string, int, error) {
	inst, err := x86asm.Decode(code, 64)
	if err == nil && (inst.Op == 0 || isVEX(inst.Prefix[0])) {
		err = errUnknownInsn // it takes a prefix for an instruction, and VEX for another
	}
	if err != nil {
		return "", 0, fmt.Errorf("no instruction at %#x: %w", pc, err)
	}
	lookup := func(a uint64) (string, uint64) {
		if name == nil {
			return "", 0
		}
		return name(a), a
	}
	return x86asm.GNUSyntax(inst, pc, lookup), inst.Len, nil
}

// isVEX reports whether the first byte begins a VEX or EVEX instruction.
func isVEX(p x86asm.Prefix) bool { return p&0xff == 0xc4 || p&0xff == 0xc5 || p&0xff == 0x62 }

// alias is an instruction that x86asm knows, with the operands of one that it does
// not know.
type alias struct {
	code     []byte
	known    string // its mnemonic
	mnemonic string // of the unknown one
	shorter  int    // how many bytes longer that one is
}

// vmxAlias recognises the instructions of VMX that have operands (Intel SDM Vol. 3,
// "VMX Instruction Reference").
func vmxAlias(code []byte) (alias, bool) {
	i, prefix, rex := 0, byte(0), byte(0)
	if i < len(code) && (code[i] == 0x66 || code[i] == 0xf3) {
		prefix = code[i]
		i++
	}
	if i < len(code) && code[i]&0xf0 == 0x40 {
		rex = code[i]
		i++
	}
	op := code[min(i, len(code)):]
	if len(op) < 3 || op[0] != 0x0f {
		return alias{}, false
	}
	switch modRM := op[2]; {
	case op[1] == 0x38 && prefix == 0x66 && (op[2] == 0x80 || op[2] == 0x81):
		b := append([]byte(nil), code...)
		b[i+2] = 0x82 // INVPCID
		return alias{b, "invpcid", map[byte]string{0x80: "invept", 0x81: "invvpid"}[op[2]], 0}, true
	case prefix == 0 && (op[1] == 0x78 || op[1] == 0x79):
		mov := map[byte]byte{0x78: 0x89, 0x79: 0x8b}[op[1]]
		b := append([]byte{0x48 | rex, mov}, op[2:]...)
		return alias{b, "mov", map[byte]string{0x78: "vmread", 0x79: "vmwrite"}[op[1]], i + 2 - 2}, true
	case op[1] == 0xc7 && modRM>>6 != 3:
		mnemonic := map[[2]byte]string{
			{0, 6}: "vmptrld", {0, 7}: "vmptrst", {0x66, 6}: "vmclear", {0xf3, 6}: "vmxon",
		}[[2]byte{prefix, modRM >> 3 & 7}]
		if mnemonic == "" {
			return alias{}, false
		}
		b := append([]byte{0x40 | rex&^8, 0x0f, 0xc7, modRM&^0x38 | 1<<3}, op[3:]...) // CMPXCHG8B
		return alias{b, "cmpxchg8b", mnemonic, i + 3 - 4}, true
	}
	return alias{}, false
}
