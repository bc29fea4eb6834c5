package linux

import (
	"encoding/binary"
	"strings"
	"testing"

	"nestdbg/internal/arch"
)

// TestVCPUFloat: the registers are where KVM keeps them, those in their initial state
// as that, and of a thread that is on a CPU none.
func TestVCPUFloat(t *testing.T) {
	const areas = `
struct fpregs { long words[72]; }
struct fpstate { u32 size; long xfeatures; fpregs regs; }
struct fpu_guest { long xfeatures; ptr fpstate; }
`
	types := areas + strings.Replace(fakeNew, "long db[4]; }", "long db[4]; fpu_guest guest_fpu; }", 1)
	for name, c := range map[string]struct {
		features, used, format uint64
		onCPU                  uint64
		control, xmm0, mxcsr   uint64 // 0: not known
	}{
		"no XSAVE":       {control: 0x27f, xmm0: 0x4444, mxcsr: 0x1fa0},
		"all in use":     {features: 7, used: 7, control: 0x27f, xmm0: 0x4444, mxcsr: 0x1fa0},
		"x87 not in use": {features: 7, used: 6, control: 0x37f, xmm0: 0x4444, mxcsr: 0x1fa0},
		"SSE not in use": {features: 7, used: 5, control: 0x27f, mxcsr: 0x1fa0},
		"compacted":      {features: 7, used: 5, format: 1<<63 | 5, control: 0x27f, mxcsr: 0x1f80},
		"on a CPU":       {features: 7, used: 7, onCPU: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &fakeSystem{fake: newFake(t, types), isNew: true}
			s.addModules()
			s.addTasks()
			s.addKVM()
			s.addCPUs()
			s.addPages()
			s.tasks[2].set("on_cpu", c.onCPU)
			state := s.make("fpstate").set("xfeatures", c.features)
			area := make([]byte, 576)
			binary.LittleEndian.PutUint16(area, 0x27f)
			binary.LittleEndian.PutUint32(area[24:], 0x1fa0)
			binary.LittleEndian.PutUint16(area[160:], 0x4444)
			binary.LittleEndian.PutUint64(area[512:], c.used)
			binary.LittleEndian.PutUint64(area[520:], c.format)
			state.put(uint64(s.types.offset("fpstate", "regs")), area)
			s.vcpus[0].set("vcpu.arch.guest_fpu.fpstate", state.va)
			vms, problems, err := s.find().KVMs()
			if err != nil || len(problems) > 0 || len(vms) != 1 {
				t.Fatalf("%d VMs, %v, %v", len(vms), problems, err)
			}
			regs := vms[0].VCPUs[0].Regs
			control, known := regs.Get("fctrl")
			mxcsr, _ := regs.Get("mxcsr")
			i, _ := arch.X86.Index("xmm0")
			xmm0 := uint64(0)
			if b := regs.Bytes(i); b != nil {
				xmm0 = binary.LittleEndian.Uint64(b)
			}
			if known != (c.control != 0) || control != c.control || mxcsr != c.mxcsr || xmm0 != c.xmm0 {
				t.Errorf("fctrl %#x (%v), xmm0 %#x, mxcsr %#x", control, known, xmm0, mxcsr)
			}
			if _, known := vms[0].VCPUs[1].Regs.Get("fctrl"); known {
				t.Error("registers of a vCPU whose thread is not known")
			}
		})
	}
}
