package nested_test

import (
	"errors"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// gate is an interrupt gate of 64-bit mode (AMD APM Vol. 2, "Interrupt-Gate and
// Trap-Gate Descriptors").
func gate(handler uint64) []byte {
	b := make([]byte, 16)
	for i, at := range []int{0, 1, 6, 7, 8, 9, 10, 11} {
		b[at] = byte(handler >> (8 * i))
	}
	b[2], b[5] = 0x10, 0x8e
	return b
}

func TestLand(t *testing.T) {
	const handler = 0xffffffff81234567
	for name, c := range map[string]struct {
		values svmtest.Values
		pc     uint64
		sp     bool
		fault  bool
	}{
		"plain":              {nil, text + 0x10, false, false},
		"not valid":          {svmtest.Values{"EVENTINJ": 0x030e}, text + 0x10, false, false},
		"interrupt":          {svmtest.Values{"EVENTINJ": 0x80000030}, text + 0x10, true, false},
		"NMI":                {svmtest.Values{"EVENTINJ": 0x80000202}, text + 0x10, true, false},
		"page fault":         {svmtest.Values{"EVENTINJ": 0x2_80000b0e}, handler, false, false},
		"software interrupt": {svmtest.Values{"EVENTINJ": 0x8000040e}, handler, false, false},
		"gate not mapped":    {svmtest.Values{"EVENTINJ": 0x8000030e, "IDTR base": 0x1000}, 0, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := nestedtest.New()
			g := w.Guest()
			v := g.CPU(text+0x10, stack)
			g.Write(g.TextPhys(text+0x1000+14*16), gate(handler))
			tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
			// It was parked plainly when it was found; the event came since.
			values := svmtest.Values{"IDTR base": text + 0x1000}
			for k, x := range c.values {
				values[k] = x
			}
			v.Park(text+0x10, stack, values)
			vm := tower.Machines[1]
			l, err := nested.Land(vm, vm.CPUs[0])
			if c.fault {
				if !errors.Is(err, mem.ErrFault) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || l.PC != c.pc || (l.SP != nil) != c.sp || c.sp && *l.SP != stack {
				t.Errorf("%#x with SP %v, %v; want %#x", l.PC, l.SP, err, c.pc)
			}
		})
	}
}

func TestLandNowhere(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text+0x10, stack)
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
	vm := tower.Machines[1]
	w.RAM.Put(v.Control, make([]byte, 4096))
	if l, err := nested.Land(vm, vm.CPUs[0]); err == nil {
		t.Errorf("a VMCB that was freed lands at %#x", l.PC)
	}
	outside := *vm.CPUs[0]
	outside.Control = 0x900000
	if _, err := nested.Land(vm, &outside); !errors.Is(err, mem.ErrFault) {
		t.Errorf("a VMCB outside RAM: %v", err)
	}
}

func TestEntering(t *testing.T) {
	w := nestedtest.New()
	r := w.Host(0, text, stack)
	r.Set("rax", 0x123000)
	m := w.Machine(r)
	if at, ok := nested.Entering(m, m.CPUs[0]); !ok || at != 0x123000 {
		t.Errorf("%#x, %v", at, ok)
	}
	r.Forget("rax")
	if at, ok := nested.Entering(m, &machine.CPU{Regs: r}); ok {
		t.Errorf("%#x is made up", at)
	}
}
