package tests

import (
	"slices"
	"strings"
	"testing"
	"time"
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
}
