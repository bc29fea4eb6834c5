package arch

import (
	"encoding/binary"
	"fmt"
)

// FXSAVESize is the size of the image that FXSAVE writes, bytes.
const FXSAVESize = 512

// Places in an FXSAVE image, 64-bit form (Intel SDM Vol. 1, "FXSAVE Area").
const (
	fxStatus = 2
	fxValid  = 4 // bit i: physical register i is not empty
	fxOp     = 6
	fxIP     = 8
	fxDP     = 16
	fxMXCSR  = 24
	fxST     = 32  // st(i), 16 bytes each
	fxXMM    = 160 // 16 bytes each
)

// X87 takes the x87 registers from an FXSAVE image.
func (r *Registers) X87(image *[FXSAVESize]byte) {
	u16 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint16(image[at:])) }
	status, top := u16(fxStatus), int(u16(fxStatus)>>11&7)
	r.Set("fctrl", u16(0))
	r.Set("fstat", status)
	var tags uint64
	for i := range 8 {
		v := image[fxST+16*i:][:10]
		r.set(fmt.Sprintf("st%d", i), v)
		physical, tag := (top+i)%8, uint64(X87Empty)
		if image[fxValid]>>physical&1 != 0 {
			tag = X87Tag(binary.LittleEndian.Uint64(v), uint64(binary.LittleEndian.Uint16(v[8:])))
		}
		tags |= tag << (2 * physical)
	}
	r.Set("ftag", tags)
	r.Set("fop", u16(fxOp))
	// The selectors' places hold bits 47:32 of the pointers, which is what gdb shows.
	r.Set("fioff", binary.LittleEndian.Uint64(image[fxIP:]))
	r.Set("fiseg", u16(fxIP+4))
	r.Set("fooff", binary.LittleEndian.Uint64(image[fxDP:]))
	r.Set("foseg", u16(fxDP+4))
}

// SSE takes the vector registers from an FXSAVE image, without MXCSR.
func (r *Registers) SSE(image *[FXSAVESize]byte) {
	for i := range 16 {
		r.set(fmt.Sprintf("xmm%d", i), image[fxXMM+16*i:][:16])
	}
}

// MXCSR takes that register from an FXSAVE image.
func (r *Registers) MXCSR(image *[FXSAVESize]byte) {
	r.Set("mxcsr", uint64(binary.LittleEndian.Uint32(image[fxMXCSR:])))
}

func (r *Registers) set(name string, b []byte) {
	i, _ := r.arch.Index(name)
	if err := r.SetBytes(i, b); err != nil {
		panic(err) // a size in this file is wrong
	}
}

// X87Empty is the tag of an x87 register without a value.
const X87Empty = 3

// X87Tag classifies an x87 register that is not empty: 0 valid, 1 zero, 2 special
// (Intel SDM Vol. 1, "x87 FPU Tag Word").
func X87Tag(mantissa, exponent uint64) uint64 {
	switch exponent &= 0x7fff; {
	case exponent == 0 && mantissa == 0:
		return 1
	case exponent == 0, exponent == 0x7fff, mantissa>>63 == 0:
		return 2
	}
	return 0
}
