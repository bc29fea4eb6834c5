package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// fakeStub answers packets from a table; it is a QEMU with one CPU and two registers.
type fakeStub struct {
	conn    net.Conn
	replies map[string][]string // by packet, in turn; the last one stays
	greet   string              // sent at connection, raw
	got     chan string         // the packets that came
}

const (
	fakeTarget = `l<target><xi:include href="a.xml"/></target>`
	fakeRegs   = `l<feature><reg name="rax" bitsize="64"/><reg name="other" bitsize="16"/><reg name="rip" bitsize="64"/></feature>`
)

func fakeReplies() map[string][]string {
	return map[string][]string{
		"qSupported:multiprocess+":             {"PacketSize=1000;vContSupported+;multiprocess+"},
		"?":                                    {"T05thread:p01.01;"},
		"qC":                                   {"QCp01.01"},
		"Qqemu.PhyMemMode:0":                   {"OK"},
		"Qqemu.PhyMemMode:1":                   {"OK"},
		"qfThreadInfo":                         {"mp01.01"},
		"qsThreadInfo":                         {"l"},
		"qqemu.sstep":                          {"0x7"},
		"qXfer:features:read:target.xml:0,ff0": {fakeTarget},
		"qXfer:features:read:a.xml:0,ff0":      {fakeRegs},
		"Hgp1.1":                               {"OK"},
		"Hcp1.1":                               {"OK"},
		"g":                                    {"0100000000000000xxxxf0ff000000000000"},
		"D;1":                                  {"OK"},
		"M1000,2:0102":                         {"OK"},
		"m1000,2":                              {"0102"},
		"P2=0807060504030201":                  {"OK"},
		"p2":                                   {"0807060504030201"},
		"vCont;c":                              {"T05thread:p01.01;"},
		"Z0,1000,1":                            {"OK"},
		"Z2,1000,4":                            {"E22"},
		"Z9,1000,4":                            {""},
		"Qqemu.sstep=1":                        {"OK"},
		"Qqemu.sstep=7":                        {"OK"},
		"qXfer:features:read:unused.xml:0,ff0": {"E00"},
		"this packet is not sent and never answered": nil,
	}
}

// newFakeStub starts the fake and returns a Stub that has not shaken hands yet.
func newFakeStub(t *testing.T, change func(*fakeStub)) *Stub {
	t.Helper()
	ours, theirs := net.Pipe()
	f := &fakeStub{conn: theirs, replies: fakeReplies(), got: make(chan string, 1000)}
	if change != nil {
		change(f)
	}
	go f.serve()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	ram, err := newRAM([]*ramPart{{size: 0x10000, ranges: []blockRange{{mem.Range{First: 0, Last: 0xffff}, 0}}}}, life{pidfd: -1})
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{ram: ram, info: Info{Arch: "x86_64"}}
	return &Stub{machine: m, c: stubConn{conn: ours, what: "fake stub", life: life{pidfd: -1}}}
}

func (f *fakeStub) serve() {
	defer f.conn.Close()
	out := make(chan string, 1000)
	go func() { // QEMU does not wait for us to read either
		for s := range out {
			if _, err := f.conn.Write([]byte(s)); err != nil {
				return
			}
		}
	}()
	defer close(out)
	if f.greet != "" {
		out <- f.greet
	}
	var d rsp.Decoder
	buf := make([]byte, 4096)
	for {
		n, err := f.conn.Read(buf)
		if err != nil {
			return
		}
		d.Feed(buf[:n])
		for {
			e, ok, err := d.Next()
			if err != nil || !ok {
				break
			}
			if e.Kind == rsp.Packet {
				f.got <- string(e.Payload)
				for _, s := range f.answer(string(e.Payload)) {
					out <- s
				}
			}
		}
	}
}

// answer returns what goes over the line: "raw:..." as it is, "" in the table for an
// empty packet, "silence" for nothing at all.
func (f *fakeStub) answer(packet string) []string {
	all, known := f.replies[packet]
	reply := ""
	if known && len(all) > 0 {
		reply = all[0]
		if len(all) > 1 {
			f.replies[packet] = all[1:]
		}
	}
	if reply == "silence" {
		return nil
	}
	if raw, ok := strings.CutPrefix(reply, "raw:"); ok {
		return []string{raw}
	}
	return []string{"+" + frame(reply)}
}

func frame(payload string) string { return string(rsp.AppendFrame(nil, []byte(payload))) }

func handshake(t *testing.T, s *Stub) {
	t.Helper()
	if err := s.handshake(deadline(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestHandshakeInStep: whatever QEMU sends unasked, replies belong to their
// questions afterwards.
func TestHandshakeInStep(t *testing.T) {
	stale := frame("T02thread:p01.01;")
	for name, change := range map[string]func(*fakeStub){
		"quiet":            nil,
		"greeted":          func(f *fakeStub) { f.greet = stale },
		"greeted twice":    func(f *fakeStub) { f.greet = stale + "+" + stale },
		"late":             func(f *fakeStub) { f.replies["?"] = []string{"raw:+" + stale + frame("T05thread:p01.01;")} },
		"no reply to ?":    func(f *fakeStub) { f.replies["?"] = []string{"raw:+"} },
		"bad checksum":     func(f *fakeStub) { f.replies["qC"] = []string{"raw:+$QCp01.01#00" + frame("QCp01.01")} },
		"command was lost": func(f *fakeStub) { f.replies["qC"] = []string{"raw:" + stale, "QCp01.01"} },
		"console output":   func(f *fakeStub) { f.replies["qC"] = []string{"raw:+" + frame("O6869") + frame("QCp01.01")} },
	} {
		s := newFakeStub(t, change)
		if err := s.handshake(deadline(t, 5*time.Second)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		r, err := s.Registers(t.Context(), 0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		rax, ok1 := r.Get("rax")
		rip, ok2 := r.Get("rip")
		if _, ok := r.Get("rbx"); rax != 1 || rip != 0xfff0 || !ok1 || !ok2 || ok {
			t.Errorf("%s: rax %#x, rip %#x, rbx known: %v", name, rax, rip, ok)
		}
	}
}

// TestHandshakeClearsEveryCPU: QEMU removes what the client before us has set from
// one CPU at a time.
func TestHandshakeClearsEveryCPU(t *testing.T) {
	var fake *fakeStub
	s := newFakeStub(t, func(f *fakeStub) {
		f.replies["qfThreadInfo"] = []string{"mp01.01,p01.02"}
		f.replies["Hcp1.2"] = []string{"OK"}
		fake = f
	})
	handshake(t, s)
	var got []string
	for len(fake.got) > 0 {
		if p := <-fake.got; p == "?" || strings.HasPrefix(p, "Hc") {
			got = append(got, p)
		}
	}
	if want := "Hcp1.2 ? Hcp1.1 ?"; strings.Join(got, " ") != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}

func TestHandshakeRefuses(t *testing.T) {
	many := "m" + strings.TrimSuffix(strings.Repeat("p01.01,", 3), ",")
	for packet, replies := range map[string][]string{
		"qSupported:multiprocess+":             {"PacketSize=1000"},
		"qfThreadInfo":                         {"mx", "m", many, "l", "E01", "m-1", "mp01.02"},
		"qsThreadInfo":                         {"", "mp01.01"},
		"qqemu.sstep":                          {"", "0x"},
		"qC":                                   {frameOf("W00")},
		"qXfer:features:read:target.xml:0,ff0": {"", "E00", "m", "l<a", `l<xi:include href="target.xml"/>`},
		"qXfer:features:read:a.xml:0,ff0":      {`l<reg name="rax" bitsize="x"/>`, `l<reg name="rax" bitsize="-8"/>`, `l<reg bitsize="99999999"/>`},
	} {
		for _, reply := range replies {
			s := newFakeStub(t, func(f *fakeStub) { f.replies[packet] = []string{reply} })
			err := s.handshake(deadline(t, 5*time.Second))
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrGone) {
				t.Errorf("%s answered %q: %v", packet, reply, err)
			}
		}
	}
}

func frameOf(payload string) string { return "raw:+" + frame(payload) }

func TestStubRefuses(t *testing.T) {
	read := func(s *Stub) error { _, err := s.ReadPhys(make([]byte, 2), 0x1000); return err }
	regs := func(s *Stub) error { _, err := s.Registers(context.Background(), 0); return err }
	write := func(s *Stub) error { return s.WritePhys(context.Background(), 0x1000, []byte{1, 2}) }
	poke := func(s *Stub) error {
		return s.WriteRegister(context.Background(), 0, s.regs[2].reg, []byte{8, 7, 6, 5, 4, 3, 2, 1})
	}
	tests := []struct {
		name, packet, reply string
		do                  func(*Stub) error
		class               error // nil for none
	}{
		{"short memory", "m1000,2", "01", read, ErrCorrupt},
		{"memory error", "m1000,2", "E14", read, ErrCorrupt},
		{"mode refused", "Qqemu.PhyMemMode:1", "E22", read, nil},
		{"write refused", "M1000,2:0102", "E14", write, nil},
		{"write unknown", "M1000,2:0102", "", write, nil},
		{"write ignored", "m1000,2", "0000", write, mem.ErrFault},
		{"short registers", "g", "01000000", regs, ErrCorrupt},
		{"odd registers", "g", "0", regs, ErrCorrupt},
		{"no CPU", "Hgp1.1", "E22", regs, nil},
		{"register refused", "P2=0807060504030201", "", poke, nil},
		{"register ignored", "p2", "0000000000000000", poke, nil},
		{"register garbled", "p2", "E01", poke, ErrCorrupt},
	}
	for _, tt := range tests {
		s := newFakeStub(t, func(f *fakeStub) { f.replies[tt.packet] = []string{tt.reply} })
		handshake(t, s)
		err := tt.do(s)
		if err == nil || tt.class != nil && !errors.Is(err, tt.class) || errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	s := newFakeStub(t, nil)
	handshake(t, s)
	for name, f := range map[string]func(*Stub) error{"read": read, "registers": regs, "write": write, "poke": poke} {
		if err := f(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for kind, ok := range map[BreakKind]bool{BreakSoftware: true, 9: false} {
		if err := s.SetBreak(t.Context(), kind, 0x1000, map[bool]int{true: 1, false: 4}[ok]); (err == nil) != ok {
			t.Errorf("break %d: %v", kind, err)
		}
	}
}

// TestPhysModeIsPutBack: also after an error in between.
func TestPhysModeIsPutBack(t *testing.T) {
	var got chan string
	s := newFakeStub(t, func(f *fakeStub) {
		f.replies["m1000,2"] = []string{"E14"}
		got = f.got
	})
	handshake(t, s)
	s.ReadPhys(make([]byte, 2), 0x1000)
	last := ""
	for len(got) > 0 {
		last = <-got
	}
	if last != "Qqemu.PhyMemMode:0" {
		t.Errorf("the last packet was %q", last)
	}
}

func TestStops(t *testing.T) {
	gone := "gone"
	tests := map[string]string{
		"T05thread:p01.01;":                 "{0 5 -1 0x0}",
		"T02thread:p01.02;":                 "{1 2 -1 0x0}",
		"T05thread:p01.02;watch:ffff8000;":  "{1 5 2 0xffff8000}",
		"T05thread:p01.01;rwatch:10;":       "{0 5 3 0x10}",
		"T05thread:p01.01;awatch:10;core:1": "{0 5 4 0x10}",
		"S05":                               "{0 5 -1 0x0}",
		"W00":                               gone,
		"X09":                               gone,
		"T0":                                "", "T0g": "", "OK": "", "E01": "",
		"T05thread:p01.03;": "", "T05thread:;": "", "T05watch:x;": "", "T05thread:p01.00;": "",
	}
	for packet, want := range tests {
		s := &Stub{threads: []rsp.ThreadID{{PID: 1, TID: 1}, {PID: 1, TID: 2}}}
		stop, err := s.parseStop(packet)
		got := fmt.Sprintf("{%d %d %d %#x}", stop.CPU, stop.Signal, stop.Watch, stop.Addr)
		if errors.Is(err, ErrGone) {
			got = gone
		} else if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%s: %s, %v; want %s", packet, got, err, want)
		}
	}
}

// TestStubOfAHungQEMU: a machine that is told to stop and does not is let go of
// after a while, with the reason.
func TestStubOfAHungQEMU(t *testing.T) {
	s := newFakeStub(t, nil)
	handshake(t, s)
	s.running, s.patience = true, 50*time.Millisecond // the fake does not know interrupts
	begin := time.Now()
	if err := s.Detach(t.Context()); !errors.Is(err, ErrHung) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took < s.patience || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestVCont(t *testing.T) {
	s := &Stub{}
	for i := range 12 {
		s.threads = append(s.threads, rsp.ThreadID{PID: 1, TID: i + 1})
	}
	all := func(steps ...int) (out []Action) {
		for i := range s.threads {
			a := Action{CPU: i}
			for _, st := range steps {
				a.Step = a.Step || st == i
			}
			out = append(out, a)
		}
		return out
	}
	for want, actions := range map[string][]Action{
		"vCont;c":                  all(),
		"vCont;s:p1.2;c":           all(1),
		"vCont;s:p1.2;s:p1.c;c":    all(1, 11),
		"vCont;s:p1.1":             {{CPU: 0, Step: true}},
		"vCont;c:p1.4;s:p1.3":      {{CPU: 3}, {CPU: 2, Step: true}},
		"none":                     {},
		"twice":                    {{CPU: 1}, {CPU: 1, Step: true}},
		"there is no such CPU":     {{CPU: 12}},
		"there is no such CPU too": {{CPU: -1}},
	} {
		got, err := s.vCont(actions)
		if refused := !strings.HasPrefix(want, "vCont"); refused != (err != nil) || !refused && string(got) != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
}

// TestStubCutOff fails every read in turn: the connection ends after n packets.
func TestStubCutOff(t *testing.T) {
	for n := 0; ; n++ {
		s := newFakeStub(t, func(f *fakeStub) { f.conn = &cutConn{Conn: f.conn, left: n} })
		err := s.handshake(deadline(t, 5*time.Second))
		if err == nil {
			if n < 8 {
				t.Errorf("only %d packets were needed", n)
			}
			return
		}
		if errors.Is(err, mem.ErrFault) || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("after %d packets: %v", n, err)
		}
	}
}

// cutConn ends after some writes.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.left == 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	c.left--
	return c.Conn.Write(b)
}

func FuzzParseStop(f *testing.F) {
	f.Add("T05thread:p01.01;watch:10;")
	f.Fuzz(func(t *testing.T, packet string) {
		s := &Stub{threads: []rsp.ThreadID{{PID: 1, TID: 1}}}
		if packet == "" {
			return
		}
		if stop, err := s.parseStop(packet); err == nil && (stop.CPU != 0 || stop.Signal > 255) {
			t.Errorf("%+v", stop)
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	f.Add(fakeTarget[1:])
	f.Add(fakeRegs[1:])
	f.Fuzz(func(t *testing.T, text string) {
		regs, _, err := parseTarget([]byte(text))
		for _, r := range regs {
			if err != nil || r.size <= 0 || r.size > 1<<13 {
				t.Errorf("%+v, %v", r, err)
			}
		}
	})
}
