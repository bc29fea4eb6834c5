package nested

import "nestdbg/internal/vmx"

// parts implements parted.
func (vmxTechnology) parts(page []byte) (out []Critical) {
	a := vmx.Assess(page, nil)
	if a.VMCS == nil {
		return nil
	}
	for _, s := range a.VMCS.Structures() {
		out = append(out, critical(s.What, s.At, s.Size))
	}
	return out
}
