package tests

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/session"
)

// TestVMStartsAndEnds starts and ends a VM while a client is attached: it is noticed
// at the next stop.
func TestVMStartsAndEnds(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	c := connect(t, s.addr)
	c.attach(1, 2)
	pause := func() {
		t.Helper()
		c.interrupt()
		if st, err := c.wait(stopLimit); err != nil || st.kind != 'T' || st.signal != 2 {
			t.Fatalf("interrupt: %q, %v", st.text, err)
		}
	}
	c.resume("c")
	ask(t, l, "l1", "vm start 1")
	t.Cleanup(func() { l.Ask(t.Context(), "l1", "vm kill 1") })
	eventually(t, "status shows the new VM", askLimit, func() bool {
		return strings.Contains(must(t, l, "status", "--json"), `"vm1"`)
	})
	pause()
	if text := c.console.String(); !strings.Contains(text, "new machine vm1") {
		t.Errorf("the client was told %q", text)
	}
	if text := c.monitor("status"); !strings.Contains(text, "vm1") {
		t.Errorf("monitor status: %s", text)
	}
	if threads := c.threads(); slices.Contains(threads, "p3.1") {
		t.Errorf("threads of what is not attached: %v", threads)
	}
	c.attach(3)
	if threads := c.threads(); !slices.Contains(threads, "p3.1") {
		t.Errorf("threads %v, want p3.1", threads)
	}
	c.reg(3, 1, "rip")

	c.resume("c")
	ask(t, l, "l1", "vm kill 1")
	pause()
	if text := c.console.String(); !strings.Contains(text, "vm1 ended") {
		t.Errorf("the client was told %q", text)
	}
	if text := c.monitor("status"); strings.Contains(text, "vm1") {
		t.Errorf("monitor status: %s", text)
	}
	// The end itself comes when gdb expects it: with the next resumption.
	if st := c.cont("c"); st.kind != 'W' || st.signal != 0 || st.pid != 3 {
		t.Errorf("resumed, and was told %q, want W00;process:3", st.text)
	}
	if threads := c.threads(); slices.ContainsFunc(threads, func(s string) bool { return strings.HasPrefix(s, "p3.") }) {
		t.Errorf("threads %v", threads)
	}
	c.resume("c")
	c.runs(300 * time.Millisecond)
	pause()
	c.ok("D;1", "D;2")
	checkLeftAlone(t, l)
	// What it left in memory is told from a guest without KVM's word, too.
	if got := decode[foundReport](t, must(t, l, "find", "--blind", "--json")).guests(); len(got) != 1 {
		t.Errorf("with one VM and the remains of another, %#x are taken for guests", got)
	}
}

// TestReboot lets a VM reboot in the same VMM, with its kernel somewhere else
// afterwards: a session that knew the old one, and a log that was followed, go on with
// the new one. The machine is the same.
func TestReboot(t *testing.T) {
	l := sharedLab(t, "kaslr")
	ask(t, l, "l1", "vm start 1 reboots")
	t.Cleanup(func() { l.Ask(context.Background(), "l1", "vm kill 1") })
	boot := ask(t, l, "vm1", "cat /proc/sys/kernel/random/boot_id") // answered when it is up
	v := look(t, l)
	vm := v.names(t, l)["vm1"]
	old := v.kernel(t, vm)
	_, lines := follow(t, l, vm.Name)
	eventually(t, "the log so far", commandLimit, func() bool { return len(lines()) > 10 })

	// Between the kernels there is none, and never the old one's word for the new one.
	ask(t, l, "vm1", "reboot")
	eventually(t, "another boot", askLimit, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		id, err := l.Ask(ctx, "vm1", "cat /proc/sys/kernel/random/boot_id")
		return err == nil && string(id) != boot
	})
	if _, err := v.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	again, err := v.Machine(vm.Name)
	if err != nil || again.ID != vm.ID {
		t.Fatalf("%s is another machine after it rebooted: %v", vm.Name, err)
	}
	k := v.kernel(t, again)
	text := guestSymbol(t, l, "vm1", "_text")
	if uint64(k.TextVA) != text || k == old {
		t.Errorf("the kernel is at %#x, it says %#x; the old one was at %#x", k.TextVA, text, old.TextVA)
	}
	mark := fmt.Sprintf("after the reboot %d", time.Now().UnixNano())
	ask(t, l, "vm1", "exec echo '"+mark+"' > /dev/kmsg")
	if text := must(t, l, "dmesg", "-m", vm.Name); !strings.Contains(text, mark) {
		t.Errorf("dmesg of another process lacks %q", mark)
	}
	eventually(t, "the log that was followed goes on", rebootNotice, func() bool {
		return strings.Contains(strings.Join(lines(), ""), mark)
	})
	zeros := 0
	for _, line := range lines() {
		if strings.Contains(line, `"seq":0,`) {
			zeros++
		}
	}
	if zeros != 2 {
		t.Errorf("the first record of a boot came %d times, want twice", zeros)
	}
}

// rebootNotice bounds how long it takes "dmesg -w" to find out that a guest rebooted.
const rebootNotice = 20 * time.Second
