package tests

import (
	"testing"

	"nestdbg/internal/session"
)

// TestLooksLeaveABusyGuestAlone looks at a running machine again and again while
// its guest computes and never halts: the kind of guest that QEMU hangs on when
// it is stopped at the wrong moment (see session.Peeker). Stopped at any moment,
// QEMU hung within two hundred stops in two tries of three.
func TestLooksLeaveABusyGuestAlone(t *testing.T) {
	const looks = 25
	l := sharedLab(t, "kaslr")
	keepBusy(t, l, "vm0", ":")
	v := look(t, l)
	inside := 0
	for range looks {
		tower, err := v.Look(t.Context(), session.Quick)
		if err != nil {
			t.Fatal(err)
		}
		if _, c := tower.At(0); c != nil && tower.Machines[1].CPUs[0] == c {
			inside++
		}
	}
	if got := runState(t, l); got != "running" {
		t.Errorf("the machine is %s", got)
	}
	t.Logf("%d of %d looks found CPU 0 of L1 in the guest", inside, looks)
}
