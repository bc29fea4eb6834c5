package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

// memoryFile is the lower memory of a made-up machine, which is all that is left of it.
func memoryFile(t *testing.T, w *nestedtest.World) string {
	t.Helper()
	b := make([]byte, 4<<20)
	if _, err := w.RAM.ReadPhys(b, 0); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// What an author says of the guests of a hypervisor, as command lines: the control block that
// no entry takes is described by what is wrong with it, and memory is read by what is given.
func TestHintFlags(t *testing.T) {
	const va = uint64(nestedtest.Text) + 0x10
	for name, c := range map[string]struct {
		make func(w *nestedtest.World) (args string)
		want []string
	}{
		"a VMCB": {func(w *nestedtest.World) string {
			v := w.Guest().CPU(va, va)
			v.Park(va, va, svmtest.Values{"EFER": 0xd01})
			return fmt.Sprintf("--vmcb %#x vmcs -m vm0", uint64(v.Control))
		}, []string{"vm0 CPU 0  parked, VMCB at ", "VM entry would fail: EFER.SVME clear (EFER 0xd01)"}},
		"a VMCS": {func(w *nestedtest.World) string {
			at, g := w.Take(), w.EPTGuest()
			w.RAM.Put(at, g.VMCS(vmxtest.KVM, va, va, vmxtest.Values{"guest CR4": 0x7406b0, "guest RFLAGS": 0x200}))
			return fmt.Sprintf("--vmcs l1=%x vmcs -m vm0", uint64(at))
		}, []string{"vm0 CPU 0  parked, VMCS at ", "VM entry would fail: guest CR4.VMXE clear", "VM entry would fail: guest RFLAGS bit 1 clear"}},
		"a VMCS and its second stage": {func(w *nestedtest.World) string {
			at, g := w.Take(), w.EPTGuest()
			w.RAM.Put(at, g.VMCS(vmxtest.VMware, va, va, nil))
			return fmt.Sprintf("--vmcs %#x --second-stage ept4:%#x vtop -m vm0 %#x", uint64(at), uint64(g.NPT.Root()), va)
		}, []string{"stage 2 ept4", "pa 0x40010 in vm0"}},
		"tables of both stages": {func(w *nestedtest.World) string {
			g := w.Guest()
			return fmt.Sprintf("--second-stage npt4:%#x --cr3 vm0=%x vtop -m vm0 %#x", uint64(g.NPT.Root()), uint64(g.Tables.Root()), va)
		}, []string{"stage 1 x86-4level", "stage 2 npt4", "pa 0x40010 in vm0"}},
		"what a search finds": {func(w *nestedtest.World) string {
			v := w.Guest().CPU(va, va)
			v.Park(va, va, svmtest.Values{"ASID": 0})
			return fmt.Sprintf("--vmcb %#x find", uint64(v.Control))
		}, []string{": given, vm0 CPU 0", "- not so: ASID 0x0"}},
	} {
		w := nestedtest.New()
		args := append([]string{"-t", "", "--layout", "flat"}, strings.Fields(c.make(w))...)
		args[1] = memoryFile(t, w)
		var out, errs bytes.Buffer
		status := Run(t.Context(), args, nil, &out, &errs)
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s%s", name, want, &out, &errs)
			}
		}
		if status != exitDone {
			t.Errorf("%s: status %d, %s", name, status, &errs)
		}
	}
}
