package printk_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

func readBuffer(t *testing.T, b printk.Buffer) printk.Batch {
	t.Helper()
	out, err := b.Read()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBufferRecord(t *testing.T) {
	for _, caller := range []bool{false, true} {
		f := newFakeBuffer(1024, caller)
		f.add("hello", "SUBSYSTEM=pci\x00DEVICE=+pci:0000:00:1f.0\x00OTHER=1\x00nothing", 4<<5|8)
		want := printk.Record{Level: 4, Text: "hello", Continued: true,
			Subsystem: "pci", Device: "+pci:0000:00:1f.0"}
		if caller {
			want.Caller = printk.Caller{Known: true, CPU: true, ID: 3}
		}
		if diff := cmp.Diff([]printk.Record{want}, readBuffer(t, f.buffer()).Records); diff != "" {
			t.Error(diff)
		}
	}
}

func TestBufferWrap(t *testing.T) {
	for _, size := range []uint32{256, 400, 1024} {
		f := newFakeBuffer(size, size == 400)
		check(t, readBuffer(t, f.buffer()), "next 0")
		for n := range uint64(2000) {
			f.add(message(n), "", 6<<5|2)
			b := readBuffer(t, f.buffer())
			if len(b.Lost)+len(b.Problems) > 0 || b.Next != n+1 || len(b.Records) == 0 {
				t.Fatalf("size %d after %d: %s", size, n, texts(b))
			}
			for _, r := range b.Records {
				if r.Text != message(r.Seq) || r.TimeNs != 1000*r.Seq {
					t.Fatalf("size %d after %d: %+v", size, n, r)
				}
			}
		}
	}
}

func TestBufferSince(t *testing.T) {
	f := newFakeBuffer(256, false)
	for n := range uint64(20) {
		f.add(message(n*7), "", 0)
	}
	b := f.buffer()
	all := readBuffer(t, b)
	first := all.Records[0].Seq
	got, err := b.Since(first - 3)
	if err != nil || len(got.Records) != len(all.Records) ||
		!cmp.Equal(got.Lost, []printk.Lost{{From: first - 3, To: first - 1}}) {
		t.Errorf("%s, %v", texts(got), err)
	}
	if got, err := b.Since(20); err != nil || texts(got) != "next 20" {
		t.Errorf("%s, %v", texts(got), err)
	}
	if got, err := b.Since(21); !errors.Is(err, printk.ErrAhead) || got.Next != 21 {
		t.Errorf("%s, %v", texts(got), err)
	}
	b.FirstSeq = 0
	if _, err := b.Since(0); !errors.Is(err, printk.ErrCorrupt) {
		t.Errorf("without numbers: %v", err)
	}
	if all := readBuffer(t, b); all.Records[0].Seq != 0 || all.Records[0].Text != message(7*first) {
		t.Errorf("without numbers: %s", texts(all))
	}
}

// As TestFollowRunning. A guest that writes without a pause makes the reader give
// up, which must be an error and nothing else.
func TestBufferFollowRunning(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 2))
		f := newFakeBuffer(300+uint32(4*seed), false)
		chance := 1 + random.IntN(20)
		f.onRead = func() {
			for f.nextSeq < 300 && random.IntN(60) < chance {
				f.add(message(f.nextSeq), "", 0)
			}
		}
		var next, got, lost uint64
		for range 100000 {
			b, err := f.buffer().Since(next)
			if err != nil {
				if !errors.Is(err, printk.ErrCorrupt) {
					t.Fatalf("seed %d: %v", seed, err)
				}
				continue
			}
			for _, r := range b.Records {
				if r.Seq < next || r.Text != message(r.Seq) {
					t.Fatalf("seed %d: after %d: %+v", seed, next, r)
				}
				next = r.Seq + 1
				got++
			}
			for _, l := range b.Lost {
				lost += l.To - l.From + 1
			}
			if next = b.Next; next >= 300 {
				break
			}
		}
		if got+lost != next || next != 300 {
			t.Errorf("seed %d: %d read, %d lost, next %d", seed, got, lost, next)
		}
	}
}

func TestBadBuffer(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*fakeBuffer, *printk.Buffer)
		class error
	}{
		{"not mapped", func(_ *fakeBuffer, b *printk.Buffer) { b.NextIndex = 0 }, mem.ErrFault},
		{"buffer not mapped", func(f *fakeBuffer, _ *printk.Buffer) { f.put64(bufferBase, 0) }, mem.ErrFault},
		{"no buffer", func(f *fakeBuffer, _ *printk.Buffer) { f.put32(bufferBase+8, 0) }, printk.ErrCorrupt},
		{"too great", func(f *fakeBuffer, _ *printk.Buffer) { f.put32(bufferBase+8, 1<<31) }, printk.ErrCorrupt},
		{"begins outside", func(f *fakeBuffer, _ *printk.Buffer) { f.put32(bufferBase+12, 9999) }, printk.ErrCorrupt},
		{"ends outside", func(f *fakeBuffer, _ *printk.Buffer) { f.put32(bufferBase+16, 9999) }, printk.ErrCorrupt},
		{"bad layout", func(_ *fakeBuffer, b *printk.Buffer) { b.Layout.Size = 8 }, printk.ErrCorrupt},
		{"bad caller", func(_ *fakeBuffer, b *printk.Buffer) { b.Layout.HasCallerID, b.Layout.CallerID = true, 14 },
			printk.ErrCorrupt},
	}
	for _, tt := range tests {
		f := newFakeBuffer(256, false)
		f.add("a", "", 0)
		b := f.buffer()
		tt.spoil(f, &b)
		if _, err := b.Read(); !errors.Is(err, tt.class) {
			t.Errorf("%s: Read: %v, want %v", tt.name, err, tt.class)
		}
		if _, err := b.Since(0); !errors.Is(err, tt.class) {
			t.Errorf("%s: Since: %v, want %v", tt.name, err, tt.class)
		}
	}
}

// Nothing can be read behind a record whose length is wrong, so that is a
// problem, and the records before it are kept.
func TestBadBufferRecord(t *testing.T) {
	second := uint64(bufferBase + 64 + 20)
	tests := []struct {
		name  string
		spoil func(*fakeBuffer)
	}{
		{"longer than the buffer", func(f *fakeBuffer) { f.put16(second+8, 0xfffc) }},
		{"not aligned", func(f *fakeBuffer) { f.put16(second+8, 21) }},
		{"shorter than its text", func(f *fakeBuffer) { f.put16(second+10, 900) }},
		{"shorter than its properties", func(f *fakeBuffer) { f.put16(second+12, 900) }},
		{"wraps for ever", func(f *fakeBuffer) {
			f.put16(second+8, 0)
			f.put32(bufferBase+16, 200)
		}},
	}
	for _, tt := range tests {
		f := newFakeBuffer(256, false)
		f.add("a", "", 0)
		f.add("b", "", 0)
		tt.spoil(f)
		b := readBuffer(t, f.buffer())
		if len(b.Problems) != 1 || !errors.Is(b.Problems[0], printk.ErrCorrupt) || len(b.Records) < 1 {
			t.Errorf("%s: %s", tt.name, texts(b))
		}
	}
}

func TestBufferFaults(t *testing.T) {
	for n := 1; ; n++ {
		f := newFakeBuffer(256, false)
		f.add("a", "", 0)
		f.failAt = n
		b, err := f.buffer().Read()
		if f.reads < n {
			check(t, b, "0:a | next 1")
			if n < 10 {
				t.Errorf("only %d reads", n-1)
			}
			return
		}
		if !errors.Is(err, mem.ErrFault) {
			t.Errorf("read %d: %v", n, err)
		}
	}
}

func TestBufferLayoutFrom(t *testing.T) {
	lines := map[string]uint64{"SIZE(printk_log)": 16, "OFFSET(printk_log.ts_nsec)": 0,
		"OFFSET(printk_log.len)": 8, "OFFSET(printk_log.text_len)": 10, "OFFSET(printk_log.dict_len)": 12}
	get := func(key string) (uint64, bool) { v, ok := lines[key]; return v, ok }
	if l, err := printk.BufferLayoutFrom(get); err != nil || l != printk.DefaultBufferLayout() {
		t.Errorf("got %+v, %v", l, err)
	}
	for key, v := range lines {
		delete(lines, key)
		if _, err := printk.BufferLayoutFrom(get); !errors.Is(err, printk.ErrCorrupt) {
			t.Errorf("without %s: %v", key, err)
		}
		lines[key] = 1 << 63
		if _, err := printk.BufferLayoutFrom(get); !errors.Is(err, printk.ErrCorrupt) {
			t.Errorf("with a strange %s: %v", key, err)
		}
		lines[key] = v
	}
	lines["SIZE(printk_log)"], lines["OFFSET(printk_log.caller_id)"] = 20, 16
	if l, err := printk.BufferLayoutFrom(get); err != nil || !l.HasCallerID || l.CallerID != 16 {
		t.Errorf("got %+v, %v", l, err)
	}
}
