package tests

import (
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/lab"
)

// TestBothRoadsToEveryPage compares, for every page that a VM's second stage maps,
// where the hardware's tables lead with where KVM's memory slots and the page
// tables of its VMM's process lead. The machine stands still: both are of one moment.
func TestBothRoadsToEveryPage(t *testing.T) {
	for _, name := range []string{"kaslr", "two"} {
		t.Run(name, func(t *testing.T) {
			l := sharedLab(t, name)
			if high := checkBothRoads(t, l); l.Machines[0].MemBytes > 4<<30 && high == 0 {
				t.Error("no page lies above the hole of L1's RAM: the test shows less than it should")
			}
		})
	}
}

// checkBothRoads compares both roads to every page of every VM, and counts the
// pages that lie above 4 GiB in L1.
func checkBothRoads(t *testing.T, l *lab.Lab) (high int) {
	t.Helper()
	thaw := freeze(t, l)
	defer thaw()
	v := look(t, l)
	l1 := v.kernel(t, v.machine(t, "l1"))
	vms, problems, err := l1.KVMs()
	if err != nil || len(problems) > 0 {
		t.Fatalf("KVM's guests: %v, %v", err, problems)
	}
	compared := 0
	for _, m := range v.Tower().Machines[1:] {
		for _, vm := range vms {
			if uint64(vm.Addr) == m.ID {
				high += checkRoads(t, m, &vm, l1)
				compared++
			}
		}
	}
	if want := len(l.Machines) - 1; compared != want {
		t.Errorf("%d VMs compared, want %d", compared, want)
	}
	return high
}

// checkRoads compares both roads to every page of m, and counts those that lie
// above 4 GiB in L1.
func checkRoads(t *testing.T, m *machine.Machine, vm *linux.VM, l1 *linux.Kernel) (high int) {
	t.Helper()
	vmm, err := l1.UserSpace(vm.MM)
	if err != nil {
		t.Fatal(err)
	}
	pages, bad := 0, 0
	for x, err := range m.Second.Space.Ranges(mem.Range{Last: 1<<52 - 1}) {
		if err != nil {
			t.Errorf("%s: second stage: %v", m.Name, err)
			continue
		}
		for done := uint64(0); done < x.Size; done += 4096 {
			pages++
			first, second := x.Phys+mem.Phys(done), mem.Phys(0)
			if first >= 4<<30 {
				high++
			}
			slot, ok := slotOf(vm, mem.Phys(x.First+done))
			if ok {
				second, _, err = vmm.Translate(uint64(slot.User) + x.First + done - uint64(slot.Base))
			}
			if (!ok || err != nil || first != second) && bad < 10 {
				bad++
				t.Errorf("%s pa %#x: second stage gives %#x, slot %+v gives %#x, %v", m.Name, x.First+done, first, slot, second, err)
			}
		}
	}
	t.Logf("%s: %d pages, %d above the hole of L1's RAM", m.Name, pages, high)
	if pages < 1000 {
		t.Errorf("%s: only %d pages were mapped", m.Name, pages)
	}
	return high
}

// slotOf finds the memory slot of a guest-physical address.
func slotOf(vm *linux.VM, pa mem.Phys) (linux.Memslot, bool) {
	for _, s := range vm.Memslots {
		if s.AddressSpace == 0 && s.Base <= pa && uint64(pa-s.Base) < s.Size {
			return s, true
		}
	}
	return linux.Memslot{}, false
}
