package arch

import (
	"encoding/binary"
	"math"
	"testing"
)

// TestFXSAVE has an image with each byte of a register its own, two of three values
// on the stack.
func TestFXSAVE(t *testing.T) {
	var image [FXSAVESize]byte
	binary.LittleEndian.PutUint16(image[0:], 0x37f)
	binary.LittleEndian.PutUint16(image[2:], 6<<11) // TOP is 6: st0 is physical register 6
	image[4] = 1<<6 | 1<<7                          // st0 and st1 have values
	binary.LittleEndian.PutUint16(image[6:], 0x123)
	binary.LittleEndian.PutUint64(image[8:], 0xffff80001234)
	binary.LittleEndian.PutUint64(image[16:], 0x7ffe00005678)
	binary.LittleEndian.PutUint32(image[24:], 0x1fa0)
	binary.LittleEndian.PutUint64(image[32:], 1<<63) // st0 is 1
	binary.LittleEndian.PutUint16(image[40:], 0x3fff)
	image[160+16*15] = 0x77 // xmm15; st1 is 0
	r := NewRegisters(X86)
	r.X87(&image)
	r.SSE(&image)
	for name, want := range map[string]uint64{
		"fctrl": 0x37f, "fstat": 6 << 11, "ftag": 0x4fff, "fop": 0x123, "fioff": 0x80001234, "fiseg": 0xffff,
		"fooff": 0x5678, "foseg": 0x7ffe,
	} {
		if got, ok := r.Get(name); !ok || got != want {
			t.Errorf("%s is %#x, %v; want %#x", name, got, ok, want)
		}
	}
	if _, ok := r.Get("mxcsr"); ok {
		t.Error("MXCSR is known before it was taken")
	}
	r.MXCSR(&image)
	if got, _ := r.Get("mxcsr"); got != 0x1fa0 {
		t.Errorf("mxcsr is %#x", got)
	}
	for name, want := range map[string][]byte{"st0": image[32:42], "st1": make([]byte, 10), "xmm15": image[400:416]} {
		i, _ := X86.Index(name)
		if string(r.Bytes(i)) != string(want) {
			t.Errorf("%s is % x, want % x", name, r.Bytes(i), want)
		}
	}
}

// TestX87Tag has the kinds of numbers of Intel SDM Vol. 1, "x87 FPU Data Types".
func TestX87Tag(t *testing.T) {
	for _, c := range []struct {
		name               string
		mantissa, exponent uint64
		want               uint64
	}{
		{"one", 1 << 63, 0x3fff, 0}, {"minus one", 1 << 63, 0xbfff, 0}, {"zero", 0, 0, 1}, {"minus zero", 0, 0x8000, 1},
		{"infinity", 1 << 63, 0x7fff, 2}, {"NaN", 3 << 62, 0xffff, 2}, {"denormal", 1, 0, 2},
		{"pseudo-denormal", 1 << 63, 0, 2}, {"unnormal", 1 << 62, 0x3fff, 2}, {"MMX", math.MaxUint64, 0xffff, 2},
	} {
		if got := X87Tag(c.mantissa, c.exponent); got != c.want {
			t.Errorf("%s: tag %d, want %d", c.name, got, c.want)
		}
	}
}
