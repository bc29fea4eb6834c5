package gdbserver_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/gdbserver"
)

// script makes Resume return these stops, one for each call, then an interrupt.
func (s *session) script(stops ...gdbserver.Stop) {
	s.fake.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
		if len(stops) == 0 {
			return gdbserver.Stop{}, errors.New("end of script")
		}
		stop := stops[0]
		stops = stops[1:]
		return stop, nil
	}
	s.calls()
}

// The stops that happen in these tests.
var (
	trap1   = gdbserver.Stop{PID: 1, TID: 1, Signal: 5, Core: -1}
	trap2   = gdbserver.Stop{PID: 2, TID: 1, Signal: 5, Core: -1}
	break1  = gdbserver.Stop{PID: 1, TID: 2, Signal: 5, Reason: gdbserver.HwBreak, Core: 1}
	exited2 = gdbserver.Stop{PID: 2, Reason: gdbserver.Exited}
	killed2 = gdbserver.Stop{PID: 2, Reason: gdbserver.Killed}
	event   = gdbserver.Stop{Text: "vm1 appeared\n", Core: -1}
)

// stays is the reply to a resumption that failed: the thread stands where it was.
func stays(thread, why string) string {
	return "O" + hexOf("[nestdbg: "+why+"]\n") + "|T00thread:" + thread + ";"
}

var endOfScript = stays("p2.1", "end of script")

func TestActions(t *testing.T) {
	for _, c := range []struct{ packet, seen, reply string }{
		{"vCont;c", ";c:-1.-1", endOfScript},
		{"vCont;c:p-1.-1", ";c:-1.-1", endOfScript},
		{"vCont;c:-1", ";c:-1.-1", endOfScript},
		{"vCont;c:p2.-1", ";c:2.-1", endOfScript},
		{"vCont;c:p2", ";c:2.-1", endOfScript},
		{"vCont;s:p2.1;c", ";s:2.1;c:-1.-1", endOfScript},
		{"vCont;s:1;c", ";s:2.1;c:-1.-1", endOfScript},
		{"vCont;C0b:p1.2;S0f:p2.1", ";c!b:1.2;s!f:2.1", endOfScript},
		{"vCont;r10,20:p1.1;c:p1.-1", ";r10,20:1.1;c:1.-1", stays("p1.1", "end of script")},
		{"vCont;r10,10:p1.1", ";s:1.1", stays("p1.1", "end of script")},
		{"vCont;r0,1:p1.1", ";s:1.1", stays("p1.1", "end of script")},
		{"vCont;t:p1.1;c", ";t:1.1;c:-1.-1", endOfScript},
		{"c", ";c:-1.-1", endOfScript},
		{"C05", ";c!5:-1.-1", endOfScript},
		{"s", ";s:2.1;c:-1.-1", endOfScript},
		{"S05", ";s!5:2.1;c:-1.-1", endOfScript},
		{"vCont;c:p7.-1", "", "N"},
		{"vCont;t", "", "N"},
		{"vCont", "", "E01"}, {"vCont;", "", "E01"}, {"vCont;x", "", "E01"}, {"vCont;c:p", "", "E01"}, {"vCont;cc", "", "E01"},
		{"vCont;Cxx", "", "E01"}, {"vCont;C100", "", "E01"}, {"vCont;rx,y", "", "E01"}, {"vCont;r1", "", "E01"},
		{"vCont:c", "", "E01"}, {"vCont" + strings.Repeat(";c", 1001), "", "E01"},
		{"c10", "", "E01"}, {"C", "", "E01"},
	} {
		s := attached(t)
		s.script()
		s.check(c.packet, c.reply)
		s.wantCalls(strings.TrimSuffix("resume "+c.seen, "resume "))
	}
	s := attached(t)
	s.script()
	s.check("Hcp1.2", "OK", "s", endOfScript)
	s.wantCalls("resume ;s:1.2;c:-1.-1")
}

func TestStopReplies(t *testing.T) {
	at1 := func(s gdbserver.Stop) gdbserver.Stop {
		s.PID, s.TID, s.Signal, s.Core = 1, 1, 5, -1
		return s
	}
	watch := func(kind gdbserver.BreakKind, addr uint64) gdbserver.Stop {
		return at1(gdbserver.Stop{Reason: gdbserver.Watch, Access: kind, Addr: addr})
	}
	for _, c := range []struct {
		stop  gdbserver.Stop
		reply string
	}{
		{trap1, "T05thread:p1.1;"},
		{gdbserver.Stop{PID: 1, TID: 2, Signal: 0x1e, Core: 17}, "T1ethread:p1.2;core:11;"},
		{gdbserver.Stop{PID: 1, Core: -1}, "T00thread:p1.1;"},
		{break1, "T05thread:p1.2;core:1;hwbreak:;"},
		{at1(gdbserver.Stop{Reason: gdbserver.SwBreak}), "T05thread:p1.1;swbreak:;"},
		{watch(gdbserver.WriteWatch, 0xffffffff82000000), "T05thread:p1.1;watch:ffffffff82000000;"},
		{watch(gdbserver.ReadWatch, 1), "T05thread:p1.1;rwatch:1;"},
		{watch(gdbserver.AccessWatch, 1), "T05thread:p1.1;awatch:1;"},
		{at1(gdbserver.Stop{Reason: gdbserver.LibraryLoad}), "T05thread:p1.1;library:;"},
		{event, "O" + hexOf("vm1 appeared\n") + "|T00thread:p2.1;"},
		{exited2, "W00;process:2"},
		{killed2, "X09;process:2"},
		{gdbserver.Stop{PID: 2, Reason: gdbserver.Killed, Signal: 6, Text: "panic"}, "O" + hexOf("panic") + "|X06;process:2"},
	} {
		s := attached(t)
		s.script(c.stop)
		s.check("vCont;c", c.reply)
	}
	// Without the client's word no reason is told.
	s := start(t, twoMachines(), "qSupported:multiprocess+", "?")
	s.script(break1, gdbserver.Stop{PID: 1, TID: 1, Signal: 5, Reason: gdbserver.SwBreak, Core: -1})
	s.check("vCont;c", "T05thread:p1.2;core:1;", "vCont;c", "T05thread:p1.1;", "qC", "QCp1.1")
}

// TestStopSetsThread: gdb takes the thread of a stop reply for the one of Hg.
func TestStopSetsThread(t *testing.T) {
	s := attached(t)
	s.script(break1)
	s.check("qC", "QCp2.1", "vCont;c", "T05thread:p1.2;core:1;hwbreak:;", "qC", "QCp1.2", "p1", "0201000000000000")
}

func TestExit(t *testing.T) {
	s := attached(t)
	s.script(exited2, trap1)
	s.check(
		"Z1,10,1", "OK",
		"vCont;c", "W00;process:2",
		"qC", "QCp1.1", "Hgp2.1", "E01", "vCont;c:p2.-1", "N",
		"vCont;c", "T05thread:p1.1;")
	s.wantCalls("set 2 1 0x10 1|resume ;c:-1.-1|detach 2|resume ;c:-1.-1")
	s.script(exited2)
	s.check("vAttach;2", "T05thread:p2.1;", "vCont;c", "W00;process:2")
}

// TestHeldStop: gdb aborts when told of a thread that it did not resume.
func TestHeldStop(t *testing.T) {
	s := attached(t)
	s.script(break1, trap2, trap2, trap1)
	s.check("vCont;c:p2.-1", "T05thread:p2.1;")
	s.wantCalls("resume ;c:2.-1|resume ;t:1.2;c:2.-1")
	s.check("vCont;s:p2.1", "T05thread:p2.1;") // step over a breakpoint: still held
	s.wantCalls("resume ;t:1.2;s:2.1")
	s.check("vCont;c:p1.-1", "T05thread:p1.2;core:1;hwbreak:;", "qC", "QCp1.2")
	s.wantCalls("")
	s.check("vCont;c", "T05thread:p1.1;")
	s.wantCalls("resume ;c:-1.-1")
}

// TestHeldStopIsDropped: when it is no longer true.
func TestHeldStopIsDropped(t *testing.T) {
	for _, packet := range []string{"D;1", "P10=00000081ffffffff"} {
		s := attached(t)
		s.script(break1, trap2, trap2)
		s.check("vCont;c:p2.-1", "T05thread:p2.1;", "Hgp1.2", "OK", packet, "OK", "Hgp2.1", "OK", "vCont;c", "T05thread:p2.1;")
	}
	// Writing another register does not make it untrue.
	s := attached(t)
	s.script(break1, trap2)
	s.check("vCont;c:p2.-1", "T05thread:p2.1;", "Hgp1.2", "OK", "P1=0000000000000000", "OK",
		"vCont;c", "T05thread:p1.2;core:1;hwbreak:;")
}

// TestExitDuringLoneStep: gdb's step-over state leaks unless the step ends first.
func TestExitDuringLoneStep(t *testing.T) {
	s := attached(t)
	g := s.send("g")
	s.script(killed2, trap1)
	s.check("vCont;s:p2.1", "T05thread:p2.1;core:0;")
	delete(s.fake.Machines, 2)
	s.check(
		// The last registers, but with the PC behind the breakpoint.
		"g", strings.Replace(g, "00000081ffffffff", "01000081ffffffff", 1),
		"p1", g[16:32],
		"m0,1", "E01", "X0,1:a", "E01", "P1=0000000000000000", "E01",
		"Tp2.1", "OK",
		"qfThreadInfo", "mp1.1,p1.2,p2.1",
		"vCont;c:p1.-1", "T05thread:p1.1;",
		"vCont;c", "X09;process:2",
		"qfThreadInfo", "mp1.1,p1.2")

	// The exit of another process waits in the same way.
	s = attached(t)
	s.send("g")
	s.script(exited2, trap1)
	s.check("vCont;s:p1.1", "T05thread:p1.1;", "Hgp2.1", "OK", "g", g, "vCont;c", "W00;process:2")
	s.wantCalls("resume ;s:1.1|resume ;s:1.1|detach 2")

	// An exit makes an older stop of the machine pointless.
	s = attached(t)
	s.script(trap2, exited2, trap1, trap1)
	s.check("vCont;c:p1.-1", "T05thread:p1.1;", "vCont;c", "W00;process:2", "vCont;c", "T05thread:p1.1;")

	// Detached before it was told.
	s = attached(t)
	s.script(exited2, trap1, trap1)
	s.check("vCont;c:p1.-1", "T05thread:p1.1;", "D;2", "OK", "vCont;c", "T05thread:p1.1;")
}

// TestUnattached: a machine that the client did not attach is never named.
func TestUnattached(t *testing.T) {
	s := start(t, twoMachines(), offer13, "!", "vAttach;2")
	s.script(trap1, gdbserver.Stop{PID: 1, Reason: gdbserver.Exited}, trap2)
	s.check("vCont;c", "T05thread:p2.1;")
	s.wantCalls("resume ;c:-1.-1|resume ;c:-1.-1|resume ;c:-1.-1")

	// But what it stopped for may be news.
	s = start(t, twoMachines(), offer13, "!", "vAttach;2")
	s.script(gdbserver.Stop{PID: 1, TID: 1, Signal: 5, Text: "vm1"}, trap2)
	s.check("vCont;c", "O"+hexOf("vm1")+"|T05thread:p2.1;")
}

func TestInterrupt(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		vCont string
		stop  gdbserver.Stop // what Resume returns when interrupted
		reply string
	}{
		{"vCont;c", gdbserver.Stop{Reason: gdbserver.Interrupted}, "T02thread:p2.1;"},
		{"vCont;c", gdbserver.Stop{PID: 1, TID: 2, Reason: gdbserver.Interrupted}, "T02thread:p2.1;"},
		{"vCont;c:p1.-1", gdbserver.Stop{Reason: gdbserver.Interrupted}, "T02thread:p1.1;"},
		{"vCont;s:p1.2", gdbserver.Stop{Reason: gdbserver.Interrupted}, "T02thread:p1.2;"},
		{"vCont;c:p2.-1", break1, "T02thread:p2.1;"},           // held
		{"vCont;c", break1, "T05thread:p1.2;core:1;hwbreak:;"}, // gdb takes any stop
		{"vCont;c", gdbserver.Stop{PID: 3, TID: 1, Signal: 5}, "T02thread:p2.1;"},
		{"vCont;c", gdbserver.Stop{Reason: gdbserver.Interrupted, Text: "vm1"}, "O" + hexOf("vm1") + "|T02thread:p2.1;"},
	} {
		s := attached(t)
		s.fake.OnResume = func(_ []gdbserver.Action, interrupted <-chan struct{}) (gdbserver.Stop, error) {
			<-interrupted
			return c.stop, nil
		}
		s.engine.Feed([]byte("$" + c.vCont + "#"))
		var sum byte
		for _, b := range []byte(c.vCont) {
			sum += b
		}
		s.engine.Feed([]byte{"0123456789abcdef"[sum>>4], "0123456789abcdef"[sum&15]})
		for ok := true; ok; {
			_, ok = s.engine.Step(ctx)
		}
		if !s.engine.Running() {
			t.Fatalf("%s does not run", c.vCont)
		}
		result := make(chan gdbserver.Result)
		go func() { result <- s.engine.Run(ctx) }()
		s.engine.Feed([]byte("\x03\x03"))
		if out, ok := s.engine.Step(ctx); ok {
			t.Errorf("an interrupt was answered at once: %q", out)
		}
		out := s.engine.Stopped(ctx, <-result)
		if got := payloads(t, string(out)); got != c.reply || s.engine.Running() {
			t.Errorf("%s: got %s, want %s", c.vCont, got, c.reply)
		}
	}

	// One that nobody asked for is a leftover, and one between packets is late.
	s := attached(t)
	s.script(gdbserver.Stop{Reason: gdbserver.Interrupted}, trap2)
	if got := s.raw("\x03"); got != "" {
		t.Errorf("a late interrupt was answered: %q", got)
	}
	s.check("vCont;c", "T05thread:p2.1;")
	s.wantCalls("resume ;c:-1.-1|resume ;c:-1.-1")
}

func TestRangeStepping(t *testing.T) {
	const (
		first  = "rffffffff81000000,ffffffff81000004:"
		second = "rffffffff81000004,ffffffff81000010:"
	)
	s := attached(t)
	s.check("vCont;"+first+"p2.1;c", "T05thread:p2.1;core:0;", "p10", "04000081ffffffff")
	s.calls()
	// A breakpoint within the range ends it.
	s.check("Z1,ffffffff81000006,1", "OK",
		"vCont;"+second+"p2.1", "T05thread:p2.1;core:0;", "p10", "06000081ffffffff")
	s.wantCalls("set 2 1 0xffffffff81000006 1|resume ;" + second + "2.1|resume ;" + second + "2.1")
	// Everything but a plain step ends it.
	for _, stop := range []gdbserver.Stop{
		{PID: 2, TID: 1, Signal: 4, Core: -1},
		{PID: 2, TID: 1, Signal: 5, Reason: gdbserver.LibraryLoad, Core: -1},
		trap1,
	} {
		s := attached(t)
		s.script(stop)
		if got := s.send("vCont;" + first + "p2.1;c"); !strings.HasPrefix(got, "T0") {
			t.Errorf("%v: %s", stop, got)
		}
		s.wantCalls("resume ;" + first + "2.1;c:-1.-1")
	}
}

func TestResumePanics(t *testing.T) {
	s := attached(t)
	s.fake.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) { panic("told to") }
	s.check("vCont;c", "Eff", "qC", "QCp2.1")
}

// TestPacketsWhileRunning: they wait, within bounds.
func TestPacketsWhileRunning(t *testing.T) {
	s := attached(t)
	s.script(trap1)
	if got := payloads(t, s.raw("$vCont;c#a8$qC#b4$qAttached#8f")); got != "T05thread:p1.1;|QCp1.1|1" {
		t.Errorf("got %s", got)
	}
	for _, in := range []string{"$k#6b", strings.Repeat("$qC#b4", 65)} {
		s = attached(t)
		s.engine.Feed([]byte("$vCont;c#a8" + in))
		for ok := true; ok; {
			_, ok = s.engine.Step(context.Background())
		}
		if !s.engine.Closed() {
			t.Errorf("%.10s: still open", in)
		}
	}
}
