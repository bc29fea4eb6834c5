package nested

import (
	"nestdbg/internal/mem"
	"nestdbg/internal/vmx"
)

// Primary processor-based controls that make a processor use bitmaps, and the secondary
// ones (Intel SDM Vol. 3C, "Processor-Based VM-Execution Controls").
const (
	useIOBitmaps  = 1 << 25
	useMSRBitmaps = 1 << 28
)

// parts implements parted: the bitmaps, which say what the guest may do without its
// hypervisor.
func (vmxTechnology) parts(page []byte) (out []Critical) {
	v, err := recognise(page)
	if err != nil {
		return nil
	}
	controls, _ := v.Get(vmx.PrimaryControls)
	for _, x := range []struct {
		used  uint64
		field vmx.Field
		what  string
	}{
		{useIOBitmaps, vmx.IOBitmapA, "I/O bitmap A"}, {useIOBitmaps, vmx.IOBitmapB, "I/O bitmap B"},
		{useMSRBitmaps, vmx.MSRBitmaps, "MSR bitmaps"},
	} {
		if at, ok := v.Get(x.field); ok && controls&x.used != 0 && at != 0 {
			out = append(out, Critical{pageAt(mem.Phys(at)), x.what})
		}
	}
	return out
}
