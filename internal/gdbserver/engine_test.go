package gdbserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

const (
	text = 0xffffffff81000000
	// What gdb 13.1 and gdb 16.3 offer.
	offer13 = "qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;vfork-events+;exec-events+;" +
		"vContSupported+;QThreadEvents+;no-resumed+;memory-tagging+;xmlRegisters=i386"
	offer16 = offer13 + ";error-message+"
	answer  = "PacketSize=40000;QStartNoAckMode+;binary-upload+;qXfer:features:read+;qXfer:threads:read+;multiprocess+;"
	parts   = "no-resumed+;vContSupported+;swbreak+;hwbreak+;qXfer:exec-file:read+;qXfer:libraries:read+;qXfer:osdata:read+"
)

// session drives an engine with whole packets.
type session struct {
	t      *testing.T
	fake   *gdbservertest.Fake
	engine *gdbserver.Engine
}

// code is a toy kernel: nops, then "jmp ." at the end.
func code(n int) gdbservertest.Segment {
	return gdbservertest.Segment{Base: text, Data: append(bytes.Repeat([]byte{0x90}, n), 0xeb, 0xfe)}
}

func twoMachines() *gdbservertest.Fake {
	f := gdbservertest.New(
		gdbservertest.NewMachine(1, 2, text, code(64)),
		gdbservertest.NewMachine(2, 1, text, code(64)))
	f.Machines[1].File, f.Machines[1].Text, f.Machines[1].SlideBy = "/k/vmlinux", text+0x200000, 0x200000
	f.Machines[1].Libraries = []gdbserver.Library{{Path: "/k/a&b.ko", Sections: []uint64{0xffffffffc0000000, 0x10}},
		{Path: "/k/made", Segments: []uint64{0x1000, 0x5000}}}
	return f
}

// start begins a session in the state that the given packets bring about.
func start(t *testing.T, f *gdbservertest.Fake, packets ...string) *session {
	s := &session{t, f, gdbserver.New(f.Target(), gdbserver.Options{})}
	for _, p := range packets {
		if got := s.send(p); strings.HasPrefix(got, "E") {
			t.Fatalf("%s: %s", p, got)
		}
	}
	return s
}

// attached is a session of gdb 13 with both machines attached and 2 current.
func attached(t *testing.T) *session {
	return start(t, twoMachines(), offer13, "QStartNoAckMode", "!", "?", "vAttach;1", "vAttach;2")
}

// raw feeds bytes and returns all that comes back, running the machines if asked to.
func (s *session) raw(in string) string {
	s.engine.Feed([]byte(in))
	return string(s.drain(nil))
}

func (s *session) drain(out []byte) []byte {
	ctx := context.Background()
	for turn := 0; ; turn++ {
		if turn > 100000 {
			s.t.Fatal("the engine does not come to rest")
		}
		b, ok := s.engine.Step(ctx)
		out = append(out, b...)
		switch {
		case ok:
		case s.engine.Running():
			out = append(out, s.engine.Stopped(ctx, s.engine.Run(ctx))...)
		default:
			return out
		}
	}
}

// send sends one packet and returns the payloads of the replies, joined by "|".
func (s *session) send(packet string) string {
	return payloads(s.t, s.raw(string(rsp.AppendFrame(nil, []byte(packet)))))
}

func payloads(t *testing.T, wire string) string {
	t.Helper()
	var d rsp.Decoder
	d.Feed([]byte(wire))
	var all []string
	for {
		e, ok, err := d.Next()
		if err != nil {
			t.Fatalf("%q: %v", wire, err)
		}
		if !ok {
			return strings.Join(all, "|")
		}
		if e.Kind == rsp.Packet {
			all = append(all, string(e.Payload))
		}
	}
}

// check sends packets in turn and compares the replies.
func (s *session) check(exchange ...string) {
	s.t.Helper()
	for i := 0; i+1 < len(exchange); i += 2 {
		if got := s.send(exchange[i]); got != exchange[i+1] {
			s.t.Errorf("%s:\n got %q\nwant %q", exchange[i], got, exchange[i+1])
		}
	}
}

// calls returns what the target was asked since the last call of calls.
func (s *session) calls() string {
	s.fake.Lock()
	defer s.fake.Unlock()
	all := strings.Join(s.fake.Calls, "|")
	s.fake.Calls = nil
	return all
}

func (s *session) wantCalls(want string) {
	s.t.Helper()
	if got := s.calls(); got != want {
		s.t.Errorf("target saw %q, want %q", got, want)
	}
}

func TestAcknowledgements(t *testing.T) {
	s := start(t, twoMachines())
	for _, c := range []struct{ in, want string }{
		{"+$vMustReplyEmpty#3a", "+$#00"},
		{"$vMustReplyEmpty#3b", "-"},
		{"$qAttached#8f", "+$1#31"},
		{"-", "$1#31"},
		{"-", "$1#31"},
		{"junk\x03", ""},
		{"$a}#de", "+$E01#a6"},
		{"$QStartNoAckMode#b0", "+$OK#9a"},
		{"+$qAttached#8f", "$1#31"},
		{"$qAttached#8e", "$E01#a6"},
		{"$qAttached#8f$vMustReplyEmpty#3a", "$1#31$#00"},
	} {
		if got := s.raw(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestSupported(t *testing.T) {
	start(t, twoMachines()).check(
		offer13, answer+parts,
		offer16, answer+"error-message+;"+parts,
		"qSupported", "PacketSize=40000;QStartNoAckMode+;binary-upload+;qXfer:features:read+;qXfer:threads:read+;"+
			"vContSupported+;qXfer:exec-file:read+;qXfer:libraries:read+;qXfer:osdata:read+",
		"vMustReplyEmpty", "", "qTStatus", "", "qSymbol::", "", "vFile:setfs:0", "", "vCtrlC", "", "vRun;", "",
		"QThreadEvents:1", "", "QNonStop:1", "", "qP0", "", "R00", "", "\xff", "", "", "")

	core := gdbserver.New(gdbserver.Target{Core: twoMachines()}, gdbserver.Options{})
	s := &session{t: t, engine: core}
	cannot := stays("p1.1", "nothing can run here: this is not a live machine")
	s.check(
		offer13, answer+"no-resumed+",
		"vCont?", "", "vCont;c", cannot, "c", cannot,
		"Z0,0,1", "", "z0,0,1", "", "M0,1:00", "", "X0,0:", "", "P0=0", "", "G00", "", "qOffsets", "", "qRcmd,00", "",
		"qXfer:libraries:read::0,100", "", "qXfer:osdata:read::0,100", "", "qXfer:exec-file:read:1:0,100", "")
}

func TestExtendedRemote(t *testing.T) {
	s := start(t, twoMachines())
	s.check(
		offer13, answer+parts,
		"!", "OK",
		"Hgp0.0", "OK",
		"qXfer:features:read:target.xml:0,1000", "E01",
		"qTStatus", "",
		"?", "W00",
		"qXfer:threads:read::0,1000", "l<threads></threads>",
		"qfThreadInfo", "l",
		"qC", "E01", "g", "E01", "m0,1", "E01", "vCont;c", "E01", "Hgp1.1", "E01", "Tp1.1", "E01", "D;1", "E01",
		"qXfer:exec-file:read:1:0,1000", "E01", "Z0,0,1", "E01")
	s.wantCalls("")
	s.check(
		"vAttach;3", "E.there is no machine 3",
		"vAttach;0", "E01", "vAttach", "E01", "vAttach;x", "E01",
		"vAttach;2", "T05thread:p2.1;",
		"Hgp0.0", "OK",
		"qC", "QCp2.1",
		"vAttach;2", "E.machine 2 is already attached",
		"qXfer:threads:read::0,1000", `l<threads><thread id="p2.1" core="0" name="m2-cpu0">&lt;toy&gt;</thread></threads>`,
		"Hgp1.1", "E01",
		"vAttach;1", "T05thread:p1.1;",
		"qC", "QCp1.1",
		"Hgp1.2", "OK", "qC", "QCp1.2",
		"Hgp0.0", "OK", "qC", "QCp1.2",
		"Hg0", "OK", "qC", "QCp1.2",
		"Hgp1.-1", "OK", "qC", "QCp1.2",
		"Hgp2.0", "OK", "qC", "QCp2.1",
		"Hgp1.3", "E01", "qC", "QCp2.1",
		"Hc-1", "OK", "Hx1", "", "H", "E01",
		"?", "T05thread:p2.1;",
		"qfThreadInfo", "mp1.1,p1.2,p2.1", "qsThreadInfo", "l",
		"Tp1.2", "OK", "Tp1.3", "E01", "Tp3.1", "E01",
		"qThreadExtraInfo,p1.2", hexOf("m1-cpu1 <toy>"),
		"qAttached:1", "1", "qAttached", "1",
		"vKill;2", "E.machines are not killed from here; use detach",
		"D;2", "OK", "qC", "QCp1.1", "D;2", "E01", "D", "OK", "qC", "E01", "?", "W00")
	s.wantCalls("attach 2|attach 1|detach 2|detach 1")
	s.check("vAttach;1", "T05thread:p1.1;", "k", "")
	if !s.engine.Closed() {
		t.Error("k did not end the session")
	}
	s.engine.Close()
	s.engine.Close()
	if s.fake.Closed != 1 {
		t.Errorf("Core.Close was called %d times", s.fake.Closed)
	}
}

func hexOf(s string) string { return fmt.Sprintf("%x", s) }

func TestPlainRemote(t *testing.T) {
	s := start(t, twoMachines())
	s.check(
		offer13, answer+parts,
		"Hgp0.0", "OK")
	if got := s.send("qXfer:features:read:target.xml:0,20"); got != "m"+arch.X86.TargetXML[:0x20] {
		t.Errorf("target.xml: %q", got)
	}
	s.check(
		"?", "T05thread:p1.1;",
		"qXfer:threads:read::0,1000", `l<threads><thread id="p1.1" core="0" name="m1-cpu0">&lt;toy&gt;</thread>`+
			`<thread id="p1.2" core="1" name="m1-cpu1">&lt;toy&gt;</thread></threads>`,
		"D;1", "OK",
		"?", "E01", "g", "E01")
	s.wantCalls("attach 1|detach 1")
}

// TestPlainIDs: a client that knows of one process only.
func TestPlainIDs(t *testing.T) {
	f := twoMachines()
	s := &session{t, f, gdbserver.New(f.Target(), gdbserver.Options{Process: 2})}
	s.check(
		"qSupported:xmlRegisters=i386", answer[:len(answer)-len("multiprocess+;")]+
			"vContSupported+;qXfer:exec-file:read+;qXfer:libraries:read+;qXfer:osdata:read+",
		"?", "T05thread:1;",
		"qC", "QC1", "Hg1", "OK", "Hg0001", "OK", "Hgp2.1", "E01", "T1", "OK", "T2", "E01",
		"qfThreadInfo", "m1", "qsThreadInfo", "l",
		"vCont;s:1", "T05thread:1;core:0;",
		"D", "OK")
	s.wantCalls("attach 2|resume ;s:2.1|detach 2")
}

func TestLLDB(t *testing.T) {
	s := start(t, twoMachines())
	s.check(
		"QStartNoAckMode", "OK",
		"qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+", answer+
			"vContSupported+;qXfer:exec-file:read+;qXfer:libraries:read+;qXfer:osdata:read+",
		"QThreadSuffixSupported", "", "QListThreadsInStopReply", "", "qHostInfo", "",
		"vCont?", "vCont;c;C;s;S;t;r",
		"qC", "QCp1.1", "Hg1", "OK", "x0,0", "b",
		"qOffsets", "Text=200000;Data=200000;Bss=200000",
		"vCont;s:0002", "T05thread:p1.2;core:1;",
		"D;0000000000000001", "OK")
}

func TestRegisters(t *testing.T) {
	s := attached(t)
	g := s.send("g")
	if want := 2 * 608; len(g) != want { // FORMATS: QEMU's own 'g' has 608 bytes
		t.Fatalf("g has %d digits, want %d", len(g), want)
	}
	if !strings.HasPrefix(g, "0000000000000000"+"0102000000000000") {
		t.Errorf("g starts %s, want rbx 0x201 second", g[:32])
	}
	if st0 := g[2*236 : 2*246]; st0 != strings.Repeat("x", 20) {
		t.Errorf("st0, not known, is %s", st0)
	}
	s.check(
		"p1", "0102000000000000", "p10", "00000081ffffffff", "p21", strings.Repeat("x", 20),
		"p42", "E01", "p", "E01", "pffffffffffffffff", "E01",
		"P1=8877665544332211", "OK", "p1", "8877665544332211",
		"P1=88", "E01", "P99=00", "E01", "P1", "E01", "P1=zz77665544332211", "E01",
		"Hgp1.2", "OK", "p1", "0201000000000000", "P11=46000000", "OK", "p11", "46000000")
	s.wantCalls("attach 1|attach 2|register 2.1 rbx 8877665544332211|register 1.2 eflags 46000000")

	g = s.send("g")
	changed := "efbeadde00000000" + g[16:]
	s.check("G"+changed, "OK", "g", changed, "G"+changed[:20], "E01", "Gzz", "E01", "G", "E01")
	s.wantCalls("register 1.2 rax efbeadde00000000")
}

func TestMemory(t *testing.T) {
	s := attached(t)
	s.check(
		"mffffffff81000000,4", "90909090",
		"mffffffff8100003f,10", "90ebfe", // a short read
		"m1000,4", "E14",
		"mffffffffffffffff,8", "E14",
		"mffffffff81000000,0", "", "m", "E01", "mx,1", "E01", "m1", "E01",
		"xffffffff81000000,3", "b\x90\x90\x90",
		"x1000,1", "E14",
		"Xffffffff81000000,0:", "OK",
		"Xffffffff81000000,4:#$}*", "OK",
		"mffffffff81000000,5", "23247d2a90",
		"xffffffff81000000,4", "b#$}*",
		"Mffffffff81000001,2:0102", "OK",
		"mffffffff81000000,4", "2301022a",
		"M1000,1:00", "E14", "M1000,2:00", "E01", "M1000,1:0", "E01", "X1000,1:", "E01", "X", "E01",
		"Hgp1.1", "OK", "mffffffff81000000,4", "90909090")
	s.wantCalls("attach 1|attach 2|write 2.1 0xffffffff81000000 23247d2a|write 2.1 0xffffffff81000001 0102|write 2.1 0x1000 00")
}

// TestLargePackets: the client may fill PacketSize, and gets it filled.
func TestLargePackets(t *testing.T) {
	f := gdbservertest.New(gdbservertest.NewMachine(1, 1, text,
		gdbservertest.Segment{Base: 0, Data: bytes.Repeat([]byte("$ab"), 1<<20)}))
	s := start(t, f, offer13, "QStartNoAckMode", "!", "vAttach;1")
	for _, c := range []struct {
		packet  string
		payload int
	}{
		{"m0,1fffe", 0x1fffe * 2},
		{"m0,ffffffff", 0x1fffe * 2},
		{"m0,20000", 0x1fffe * 2},
		{"xc00,100", 0x101},
	} {
		out := s.raw(string(rsp.AppendFrame(nil, []byte(c.packet))))
		if got := len(payloads(t, out)); got != c.payload || len(out) > gdbserver.PacketSize {
			t.Errorf("%s: %d bytes in a frame of %d, want %d", c.packet, got, len(out), c.payload)
		}
	}
	out := s.raw(string(rsp.AppendFrame(nil, []byte("x0,40000"))))
	if len(out) > gdbserver.PacketSize || len(out) < gdbserver.PacketSize-1 {
		t.Errorf("x with escapes: frame of %#x bytes", len(out))
	}
	data := strings.Repeat("q", gdbserver.PacketSize-40)
	s.check(fmt.Sprintf("X0,%x:%s", len(data), data), "OK", "m0,2", "7171")
}

func TestBreakpoints(t *testing.T) {
	s := attached(t)
	s.check(
		"Z1,ffffffff81000000,1", "OK",
		"Z1,ffffffff81000000,1", "OK",
		"Hgp1.1", "OK",
		"Z1,ffffffff81000000,1", "OK",
		"Z0,10,1", "OK", "Z2,10,8", "OK", "Z3,10,4", "OK", "Z4,10,2;X1,0", "OK",
		"z1,20,1", "OK", // never set
		"z1,ffffffff81000000,1", "OK",
		"Z5,0,1", "", "Z", "E01", "Z1", "E01", "Z1,0", "E01", "Z1,x,1", "E01", "Z1,0,80000000", "E01", "Z11,0,1", "E01")
	s.wantCalls("attach 1|attach 2|set 2 1 0xffffffff81000000 1|set 1 1 0xffffffff81000000 1|" +
		"set 1 0 0x10 1|set 1 2 0x10 8|set 1 3 0x10 4|set 1 4 0x10 2|clear 1 1 0xffffffff81000000 1")
	// A machine that was detached has no breakpoints any more.
	s.check("D;2", "OK", "vAttach;2", "T05thread:p2.1;", "Z1,ffffffff81000000,1", "OK")
	s.wantCalls("detach 2|attach 2|set 2 1 0xffffffff81000000 1")

	s.fake.Fail = func(string) error { return fmt.Errorf("all in use") }
	s.check("Z1,30,1", "E01")
	s.fake.Fail = func(string) error { return gdbserver.ErrUnsupported }
	s.check("Z1,30,1", "")
	s.fake.Fail = nil
	s.calls()
	s.check("Z1,30,1", "OK")
	s.wantCalls("set 2 1 0x30 1")
}

func TestTransfers(t *testing.T) {
	s := attached(t)
	xml := arch.X86.TargetXML
	s.check(
		"qXfer:features:read:target.xml:0,10", "m"+xml[:16],
		"qXfer:features:read:target.xml:10,10", "m"+xml[16:32],
		"qXfer:features:read:target.xml:10,ffff", "l"+xml[16:],
		fmt.Sprintf("qXfer:features:read:target.xml:%x,10", len(xml)), "l",
		"qXfer:features:read:target.xml:100000,10", "E01",
		"qXfer:features:read:x.xml:0,10", "E01",
		"qXfer:features:read:target.xml:0,0", "E01",
		"qXfer:nonsense:read::0,10", "", "qXfer:features:write:target.xml:0,10", "", "qXfer", "",
		"qXfer:exec-file:read:1:0,1000", "l/k/vmlinux",
		"qXfer:exec-file:read:2:0,1000", "E.no file for the kernel of machine 2",
		"qXfer:exec-file:read:3:0,1000", "E01",
		"qXfer:libraries:read::0,1000", "l<library-list></library-list>",
		"qOffsets", "",
		"Hgp1.1", "OK",
		"qXfer:exec-file:read::0,1000", "l/k/vmlinux",
		"qXfer:libraries:read::0,1000", `l<library-list><library name="/k/a&amp;b.ko"><section address="0xffffffffc0000000"/>`+
			`<section address="0x10"/></library><library name="/k/made"><segment address="0x1000"/><segment address="0x5000"/></library></library-list>`,
		"qOffsets", "TextSeg=ffffffff81200000",
		"qXfer:osdata:read::0,1000", `l<osdata type="types"><item><column name="Type">machines</column>`+
			`<column name="Description">all there are</column><column name="Title">Machines</column></item></osdata>`,
		"qXfer:osdata:read:machines:0,1000", `l<osdata type="machines"><item><column name="pid">1</column>`+
			`<column name="level">L1</column></item><item><column name="pid">2</column><column name="level">L2 &lt;nested&gt;</column></item></osdata>`,
		"qXfer:osdata:read:x:0,1000", "E01")

	// A document does not change under a client that reads it in pieces.
	whole := s.send("qXfer:threads:read::0,1000")[1:]
	first := s.send("qXfer:threads:read::0,30")
	s.fake.Machines[1] = gdbservertest.NewMachine(1, 1, text)
	if got := first[1:] + s.send("qXfer:threads:read::30,1000")[1:]; got != whole {
		t.Errorf("pieces make %s, want %s", got, whole)
	}
	if s.send("qXfer:threads:read::0,1000")[1:] == whole {
		t.Error("a new transfer got the old document")
	}
}

func TestMonitor(t *testing.T) {
	s := attached(t)
	s.check(
		"qRcmd,"+hexOf("status"), "O"+hexOf("2.1 status\n")+"|OK",
		"qRcmd,"+hexOf("fail"), "O"+hexOf("told to fail\n")+"|OK",
		"qRcmd,"+hexOf("panic"), "Eff",
		"qRcmd,"+hexOf("status"), "O"+hexOf("2.1 status\n")+"|OK",
		"qRcmd,0", "E01", "D", "OK",
		"qRcmd,"+hexOf("status"), "O"+hexOf("0.0 status\n")+"|OK")
	var text string
	for _, p := range strings.Split(s.send("qRcmd,"+hexOf("long")), "|") {
		if p == "OK" {
			break
		}
		b, err := rsp.DecodeHex(nil, p[1:])
		if err != nil || len(p) > gdbserver.PacketSize-4 {
			t.Fatalf("O packet of %d bytes: %v", len(p), err)
		}
		text += string(b)
	}
	if text != strings.Repeat("0123456789abcdef", 20000) {
		t.Errorf("%d bytes of output", len(text))
	}
}

func TestErrorMessages(t *testing.T) {
	s := start(t, twoMachines(), offer16, "!", "vAttach;1")
	s.fake.Fail = func(name string) error { return errors.New("went away: $5 #1 " + strings.Repeat("x", 1000)) }
	s.check("g", "E.went away: ?5 ?1 "+strings.Repeat("x", 400-17))
	s.fake.Fail = nil
	s.check("m1000,1", "E14")
}

// TestTargetFailures: whatever call of the target fails, every packet is answered
// and the session goes on.
func TestTargetFailures(t *testing.T) {
	packets := []string{offer13, "QStartNoAckMode", "!", "?", "vAttach;1", "vAttach;2", "qfThreadInfo",
		"qXfer:features:read:target.xml:0,100", "qXfer:threads:read::0,100", "g", "p1", "P1=0000000000000000",
		"mffffffff81000000,4", "Xffffffff81000000,1:a", "Z1,10,1", "z1,10,1", "vCont;s:p2.1", "vCont;c:p1.-1", "D;1", "D"}
	for n := 0; ; n++ {
		f := twoMachines()
		count, call := 0, ""
		f.Fail = func(name string) error {
			count++
			if count-1 == n {
				call = name
				return &mem.FaultError{Space: "injected", Addr: uint64(n)}
			}
			return nil
		}
		f.OnResume = everyStop()
		s := start(t, f)
		failed := 0
		for _, p := range packets {
			got := s.send(p)
			if got == "" {
				t.Fatalf("call %d failed: %s was not answered", n, p)
			}
			if got == "E14" || strings.HasPrefix(got, "E.") && strings.Contains(got, "injected") ||
				strings.HasPrefix(got, "O") && strings.Contains(got, hexOf("injected")) {
				failed++
			}
		}
		s.check("qAttached", "1")
		s.engine.Close()
		if f.Closed != 1 {
			t.Errorf("call %d failed: Core.Close called %d times", n, f.Closed)
		}
		if count <= n {
			return // all calls had their turn
		}
		// Nobody is told of a machine that ended, or after the client left.
		if failed != 1 && call != "detach" && call != "close" {
			t.Errorf("call %d, %s, failed: %d packets tell so", n, call, failed)
		}
	}
}
