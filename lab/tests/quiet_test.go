package tests

import (
	"context"
	"fmt"
	"testing"

	"nestdbg/internal/session"
	"nestdbg/internal/target"
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

// TestLooksAsideDoNotStop asks the kernels of both layers while the machine runs:
// without one stop, and with the answers of a look that stops.
func TestLooksAsideDoNotStop(t *testing.T) {
	const looks = 20
	l := sharedLab(t, "kaslr")
	live, err := target.Open(t.Context(), fmt.Sprint(l.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	stopped := session.New(live)
	if _, err := stopped.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	stops := 0
	for range looks {
		aside := session.New(live)
		live.BeforeStop(func(context.Context) { stops++ })
		if _, err := aside.LookAside(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"l1", "vm0"} {
			m, err := aside.Machine(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := aside.Kernel(m)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			then, err := stopped.Machine(name)
			if err != nil {
				t.Fatal(err)
			}
			want, err := stopped.Kernel(then)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got.TextVA != want.TextVA || got.TextPA != want.TextPA || m.ID != then.ID || m.Second != nil && m.Second.Kind != then.Second.Kind {
				t.Errorf("%s: %#x at %#x, with a stop %#x at %#x", name, got.TextVA, got.TextPA, want.TextVA, want.TextPA)
			}
		}
	}
	if stops > 0 {
		t.Errorf("%d looks stopped the machine %d times", looks, stops)
	}
}
