package printk_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

func read(t *testing.T, r printk.Ring) printk.Batch {
	t.Helper()
	b, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func since(t *testing.T, r printk.Ring, seq uint64) printk.Batch {
	t.Helper()
	b, err := r.Since(seq)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// texts joins what a batch holds, losses and problems included, into one line.
func texts(b printk.Batch) string {
	var out []string
	for _, r := range b.Records {
		out = append(out, fmt.Sprintf("%d:%s", r.Seq, r.Text))
	}
	for _, l := range b.Lost {
		out = append(out, fmt.Sprintf("lost %d-%d", l.From, l.To))
	}
	for _, p := range b.Problems {
		out = append(out, p.Error())
	}
	return strings.Join(append(out, fmt.Sprintf("next %d", b.Next)), " | ")
}

func check(t *testing.T, got printk.Batch, want string) {
	t.Helper()
	if diff := cmp.Diff(want, texts(got)); diff != "" {
		t.Error(diff)
	}
}

func TestRecord(t *testing.T) {
	f := newFakeRing(3, 9)
	id := f.reserve()
	f.write(id, "hello", 3<<5|8)
	f.bytes[f.info(id)+18-f.base] = 23
	f.put32(f.info(id)+20, 1<<31|5)
	copy(f.bytes[f.info(id)+24-f.base:], "pci\x00gone")
	copy(f.bytes[f.info(id)+40-f.base:], strings.Repeat("d", 48))
	f.setState(id, finalized)
	f.add("again")
	want := []printk.Record{{Seq: 0, TimeNs: 1000, Level: 3, Facility: 23,
		Caller: printk.Caller{Known: true, CPU: true, ID: 5}, Text: "hello", Continued: true,
		Subsystem: "pci", Device: strings.Repeat("d", 48)},
		{Seq: 1, TimeNs: 2000, Level: 6, Caller: printk.Caller{Known: true, ID: 42},
			Text: "again", Newline: true}}
	if diff := cmp.Diff(want, read(t, f.ring()).Records); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		caller printk.Caller
		want   string
	}{{want[0].Caller, "C5"}, {want[1].Caller, "T42"}, {printk.Caller{}, "?"}} {
		if got := tt.caller.String(); got != tt.want {
			t.Errorf("%+v is %s", tt.caller, got)
		}
	}
}

func TestEmptyRing(t *testing.T) {
	r := newFakeRing(3, 9).ring()
	check(t, read(t, r), "next 0")
	check(t, since(t, r, 0), "next 0")
}

// Through many wraps of both rings, a whole read gives the newest records in
// order, with their own texts.
func TestWrap(t *testing.T) {
	for _, bits := range [][2]uint32{{3, 9}, {3, 14}, {8, 9}, {1, 6}} {
		f := newFakeRing(bits[0], bits[1])
		for n := range uint64(3000) {
			text := message(n)
			f.add(text[:min(len(text), int(f.size)/2-16)])
			b := read(t, f.ring())
			if len(b.Lost)+len(b.Problems) > 0 || b.Next != n+1 {
				t.Fatalf("after %d: %s", n, texts(b))
			}
			for i, r := range b.Records {
				want := message(r.Seq)[:min(len(message(r.Seq)), int(f.size)/2-16)]
				if r.Seq != n+1-uint64(len(b.Records)-i) || r.Text != want {
					t.Fatalf("after %d: %+v, want %q", n, r, want)
				}
			}
		}
	}
}

func TestStates(t *testing.T) {
	tests := []struct {
		name        string
		spoil       func(*fakeRing, uint64) // of records 0 to 3, changes 2
		read, since string
	}{
		{"all well", func(*fakeRing, uint64) {},
			"0:a | 1:b | 2:c | 3:d | next 4", "1:b | 2:c | 3:d | next 4"},
		{"reserved", func(f *fakeRing, id uint64) { f.setState(id, reserved) },
			"0:a | 1:b | 3:d | lost 2-2 | a record is still being written | next 4", "1:b | next 2"},
		{"committed", func(f *fakeRing, id uint64) { f.setState(id, committed) },
			"0:a | 1:b | 2:c | 3:d | next 4", "1:b | next 2"},
		{"reusable", func(f *fakeRing, id uint64) { f.setState(id, reusable) },
			"0:a | 1:b | 3:d | lost 2-2 | next 4", "1:b | 3:d | lost 2-2 | next 4"},
		{"another id", func(f *fakeRing, id uint64) { f.put64(f.desc(id), 77|finalized<<62) },
			"0:a | 1:b | 3:d | lost 2-2 | next 4", "1:b | 3:d | lost 2-2 | next 4"},
		{"empty line", func(f *fakeRing, id uint64) { f.put64(f.desc(id)+8, 3); f.put64(f.desc(id)+16, 3) },
			"0:a | 1:b | 2: | 3:d | next 4", "1:b | 2: | 3:d | next 4"},
		{"text lost", func(f *fakeRing, id uint64) { f.put64(f.desc(id)+8, 1); f.put64(f.desc(id)+16, 1) },
			"0:a | 1:b | 3:d | lost 2-2 | next 4", "1:b | 3:d | lost 2-2 | next 4"},
		{"length too great", func(f *fakeRing, id uint64) { f.put16(f.info(id)+16, 9000) },
			"0:a | 1:b | 2:c\x00\x00\x00\x00\x00\x00\x00 | 3:d | next 4",
			"1:b | 2:c\x00\x00\x00\x00\x00\x00\x00 | 3:d | next 4"},
		{"seq goes back", func(f *fakeRing, id uint64) { f.put64(f.info(id), 0) },
			"0:a | 1:b | 3:d | lost 2-2 | kernel log corrupt: the numbers of 1 records are below that of one before them | next 4", "1:b | 3:d | lost 2-2 | next 4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeRing(3, 9)
			f.add("a")
			f.add("b")
			id := f.add("c")
			f.add("d")
			tt.spoil(f, id)
			check(t, read(t, f.ring()), tt.read)
			check(t, since(t, f.ring(), 1), tt.since)
		})
	}
}

func TestBadText(t *testing.T) {
	size := uint64(512)
	tests := []struct {
		name        string
		begin, next uint64
	}{
		{"ends before it begins", 0x40, 0x20},
		{"no length", 0x40, 0x40},
		{"shorter than its id", 0x40, 0x44},
		{"two wraps", 0x40, 2*size + 0x40},
		{"wraps to less than an id", size - 8, size + 4},
		{"not aligned", 0x44, 0x60},
		{"of another record", 0x40, 0x60},
	}
	for _, tt := range tests {
		f := newFakeRing(3, 9)
		id := f.add("a")
		f.add("b")
		f.put64(f.desc(id)+8, tt.begin)
		f.put64(f.desc(id)+16, tt.next)
		b := read(t, f.ring())
		if len(b.Problems) != 1 || !errors.Is(b.Problems[0], printk.ErrCorrupt) || b.Problems[0].Seq != 0 {
			t.Errorf("%s: %s", tt.name, texts(b))
		}
		if len(b.Records) != 1 || b.Records[0].Text != "b" {
			t.Errorf("%s: the rest is gone: %s", tt.name, texts(b))
		}
	}
}

// A block may end exactly where the ring does; then it is not at the start.
func TestBlockAtEnd(t *testing.T) {
	f := newFakeRing(3, 6)
	f.add(strings.Repeat("x", 24))
	f.add(strings.Repeat("y", 24))
	check(t, read(t, f.ring()), "0:"+strings.Repeat("x", 24)+" | 1:"+strings.Repeat("y", 24)+" | next 2")
}

func TestSince(t *testing.T) {
	f := newFakeRing(2, 10)
	for n := range uint64(10) {
		f.add(fmt.Sprint(n))
	}
	r := f.ring()
	check(t, since(t, r, 0), "6:6 | 7:7 | 8:8 | 9:9 | lost 0-5 | next 10")
	check(t, since(t, r, 5), "6:6 | 7:7 | 8:8 | 9:9 | lost 5-5 | next 10")
	check(t, since(t, r, 6), "6:6 | 7:7 | 8:8 | 9:9 | next 10")
	check(t, since(t, r, 9), "9:9 | next 10")
	check(t, since(t, r, 10), "next 10")
	if b, err := r.Since(11); !errors.Is(err, printk.ErrAhead) || b.Next != 11 {
		t.Errorf("record 11: %+v, %v", b, err)
	}
	// A record that is begun and not written yet is no reason to complain.
	id := f.reserve()
	check(t, since(t, r, 10), "next 10")
	f.write(id, "ten", 0)
	f.setState(id, committed)
	check(t, since(t, r, 10), "next 10")
	f.setState(id, finalized)
	check(t, since(t, r, 10), "10:ten | next 11")
}

// The guest writes between any two reads. What is read must be whole, in order
// and once; read and lost together must be everything.
func TestFollowRunning(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		f := newFakeRing(2+uint32(seed%3), 7+uint32(seed%4))
		text := func(n uint64) string { s := message(n); return s[:min(len(s), int(f.size)/2-16)] }
		chance := 1 + random.IntN(20)
		var open uint64 // a record the guest has begun
		f.onRead = func() {
			for (f.seq < 500 || open != 0) && random.IntN(20) < chance {
				switch {
				case open != 0:
					f.write(open, text(f.seq-1), 0)
					f.setState(open, finalized)
					open = 0
				case random.IntN(3) == 0:
					open = f.reserve()
				default:
					f.add(text(f.seq))
				}
			}
		}
		var next, got, lost uint64
		for range 100000 {
			for _, p := range read(t, f.ring()).Problems { // one that is being written is none
				if errors.Is(p, printk.ErrCorrupt) {
					t.Fatalf("seed %d: whole: %v", seed, p)
				}
			}
			b := since(t, f.ring(), next)
			for _, r := range b.Records {
				if r.Seq < next || r.Text != text(r.Seq) {
					t.Fatalf("seed %d: after %d: %+v", seed, next, r)
				}
				next = r.Seq + 1
				got++
			}
			for _, l := range b.Lost {
				lost += l.To - l.From + 1
			}
			if len(b.Problems) > 0 {
				t.Fatalf("seed %d: %s", seed, texts(b))
			}
			next = b.Next
			if next >= 500 {
				break
			}
		}
		if got+lost != next || next < 500 || got == 0 {
			t.Errorf("seed %d: %d read, %d lost, next %d", seed, got, lost, next)
		}
	}
}

func TestBadRing(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*fakeRing, *printk.Ring)
		class error
	}{
		{"not mapped", func(_ *fakeRing, r *printk.Ring) { r.Address = 0 }, mem.ErrFault},
		{"no descriptors", func(f *fakeRing, _ *printk.Ring) { f.put32(ringBase, 0) }, printk.ErrCorrupt},
		{"too many", func(f *fakeRing, _ *printk.Ring) { f.put32(ringBase, 60) }, printk.ErrCorrupt},
		{"no text", func(f *fakeRing, _ *printk.Ring) { f.put32(ringBase+48, 0) }, printk.ErrCorrupt},
		{"too much", func(f *fakeRing, _ *printk.Ring) { f.put32(ringBase+48, 64) }, printk.ErrCorrupt},
		{"far too many ids", func(f *fakeRing, _ *printk.Ring) { f.put64(ringBase+24, 5); f.put64(ringBase+32, 1<<50) }, printk.ErrCorrupt},
		{"info too short", func(_ *fakeRing, r *printk.Ring) { r.Layout.InfoSize = 80 }, printk.ErrCorrupt},
		{"offset too great", func(_ *fakeRing, r *printk.Ring) { r.Layout.Begin = 1 << 63 }, printk.ErrCorrupt},
		{"descriptors too great", func(_ *fakeRing, r *printk.Ring) { r.Layout.DescSize = 1 << 40 }, printk.ErrCorrupt},
	}
	for _, tt := range tests {
		f := newFakeRing(3, 9)
		f.add("a")
		r := f.ring()
		tt.spoil(f, &r)
		if _, err := r.Read(); !errors.Is(err, tt.class) {
			t.Errorf("%s: Read: %v, want %v", tt.name, err, tt.class)
		}
		if _, err := r.Since(0); !errors.Is(err, tt.class) {
			t.Errorf("%s: Since: %v, want %v", tt.name, err, tt.class)
		}
	}
}

// TestRingEnds overwrites head_id or tail_id, or descriptors that they lead to, in a
// ring that is full and in one that is not. A record is there, or it is said that some
// are not, unless no record is missing.
func TestRingEnds(t *testing.T) {
	const bits, descriptors = 4, 16
	type edit func(f *fakeRing)
	head := func(v func(uint64) uint64) edit { return func(f *fakeRing) { f.put64(ringBase+24, v(f.head&idBits)) } }
	tail := func(v func(uint64) uint64) edit { return func(f *fakeRing) { f.put64(ringBase+32, v(f.tail&idBits)) } }
	less := func(n uint64) func(uint64) uint64 { return func(v uint64) uint64 { return (v - n) & idBits } }
	more := func(n uint64) func(uint64) uint64 { return func(v uint64) uint64 { return (v + n) & idBits } }
	state := func(back, v uint64) edit { return func(f *fakeRing) { f.put64(f.desc(f.head-back), v) } }
	for _, tt := range []struct {
		name  string
		edit  edit
		named string // "" if nothing is missing and nothing has to be said
		lost  int    // records
	}{
		{"whole", func(*fakeRing) {}, "", 0},
		{"head too low by one", head(less(1)), "head_id", 0},
		{"head too low", head(less(5)), "head_id", 0},
		{"head far too low", head(less(1 << 20)), "head_id", 0},
		{"head too high by one", head(more(1)), "?", 0},
		{"head too high", head(more(5)), "?", 0},
		{"head far too high", head(more(1 << 20)), "head_id", 0},
		{"head nowhere", head(more(1 << 61)), "head_id", 0},
		{"tail too high by one", tail(more(1)), "?", 0},
		{"tail too high", tail(more(5)), "tail_id", 0},
		{"tail far too high", tail(more(1 << 20)), "?", 0},
		{"tail nowhere", tail(more(1 << 61)), "tail_id", 0},
		{"tail too low", tail(less(5)), "", 0},
		{"the newest record's state", state(0, 1<<61|finalized<<62), "descriptors of 1 records", 1},
		{"the newest records' states", func(f *fakeRing) { state(0, 3|finalized<<62)(f); state(1, 5|finalized<<62)(f) }, "descriptors of 2 records", 2},
	} {
		for _, records := range []uint64{10, 100} {
			f := newFakeRing(bits, 14)
			for n := range records {
				f.add(fmt.Sprint(n))
			}
			want := min(records, descriptors)
			tt.edit(f)
			b := read(t, f.ring())
			said := texts(printk.Batch{Problems: b.Problems})
			if len(b.Records) != int(want)-tt.lost || b.Records[0].Seq != records-want || len(b.Lost) > 0 {
				t.Errorf("%s, %d records: %s", tt.name, records, texts(b))
			}
			switch {
			case tt.named == "" && len(b.Problems) > 0, len(b.Problems) > 1:
				t.Errorf("%s, %d records: %s", tt.name, records, said)
			case tt.named != "?" && !strings.Contains(said, tt.named):
				t.Errorf("%s, %d records: %q is not in %s", tt.name, records, tt.named, said)
			}
		}
	}
}

// TestRingElsewhere: a ring whose descriptors are not where they were has no records, or
// few, which is said.
func TestRingElsewhere(t *testing.T) {
	for name, edit := range map[string]func(f *fakeRing){
		"a number too high":     func(f *fakeRing) { f.put64(f.info(f.tail+1), 1<<60) },
		"descriptors in zeros":  func(f *fakeRing) { f.put64(ringBase+8, f.data+f.size/2) },
		"descriptors nearby":    func(f *fakeRing) { f.put64(ringBase+8, f.descs+24) },
		"fewer descriptors":     func(f *fakeRing) { f.put32(ringBase, 2) },
		"only two descriptors":  func(f *fakeRing) { f.put32(ringBase, 1) },
		"many more descriptors": func(f *fakeRing) { f.put32(ringBase, 5) },
	} {
		f := newFakeRing(4, 14)
		for n := range 10 {
			f.add(fmt.Sprint(n))
		}
		edit(f)
		if b := read(t, f.ring()); len(b.Records) < 10 && len(b.Lost)+len(b.Problems) == 0 {
			t.Errorf("%s: %s", name, texts(b))
		}
	}
}

// Descriptors that are nowhere: all of them problems, but not endless ones.
func TestManyProblems(t *testing.T) {
	f := newFakeRing(3, 9)
	f.put32(ringBase, 20)
	f.put64(ringBase+8, 0x1000)
	f.put64(ringBase+24, 500000)
	f.put64(ringBase+32, 1)
	b := read(t, f.ring())
	if len(b.Problems) != 1001 || !errors.Is(b.Problems[0], mem.ErrFault) {
		t.Errorf("%d problems", len(b.Problems))
	}
}

// A read that fails is an error or a problem of one record, and no other record
// suffers.
func TestRingFaults(t *testing.T) {
	for n := 1; ; n++ {
		f := newFakeRing(3, 9)
		f.add("a")
		f.add("b")
		f.add("c")
		f.failAt = n
		b, err := f.ring().Read()
		if f.reads < n {
			check(t, b, "0:a | 1:b | 2:c | next 3")
			if n < 15 {
				t.Errorf("only %d reads", n-1)
			}
			return
		}
		switch {
		case err != nil:
			if !errors.Is(err, mem.ErrFault) {
				t.Errorf("read %d: %v", n, err)
			}
		case len(b.Problems) != 1 || !errors.Is(b.Problems[0], mem.ErrFault) || len(b.Records) < 2:
			t.Errorf("read %d: %s", n, texts(b))
		}
	}
}

func TestLayoutFrom(t *testing.T) {
	// Linux 6.1, VMCOREINFO.
	lines := map[string]uint64{
		"OFFSET(printk_ringbuffer.desc_ring)": 0, "OFFSET(printk_ringbuffer.text_data_ring)": 48,
		"OFFSET(prb_desc_ring.count_bits)": 0, "OFFSET(prb_desc_ring.descs)": 8,
		"OFFSET(prb_desc_ring.infos)": 16, "OFFSET(prb_desc_ring.head_id)": 24,
		"OFFSET(prb_desc_ring.tail_id)": 32, "OFFSET(prb_data_ring.size_bits)": 0,
		"OFFSET(prb_data_ring.data)": 8, "SIZE(prb_desc)": 24, "OFFSET(prb_desc.state_var)": 0,
		"OFFSET(prb_desc.text_blk_lpos)": 8, "OFFSET(prb_data_blk_lpos.begin)": 0,
		"OFFSET(prb_data_blk_lpos.next)": 8, "SIZE(printk_info)": 88, "OFFSET(printk_info.seq)": 0,
		"OFFSET(printk_info.ts_nsec)": 8, "OFFSET(printk_info.text_len)": 16,
		"OFFSET(printk_info.caller_id)": 20, "OFFSET(printk_info.dev_info)": 24,
	}
	get := func(key string) (uint64, bool) { v, ok := lines[key]; return v, ok }
	l, err := printk.LayoutFrom(get)
	if err != nil || l != printk.DefaultLayout64() {
		t.Errorf("got %+v, %v", l, err)
	}
	for key, v := range lines {
		delete(lines, key)
		if _, err := printk.LayoutFrom(get); !errors.Is(err, printk.ErrCorrupt) {
			t.Errorf("without %s: %v", key, err)
		}
		lines[key] = 1 << 63
		if _, err := printk.LayoutFrom(get); !errors.Is(err, printk.ErrCorrupt) {
			t.Errorf("with a strange %s: %v", key, err)
		}
		lines[key] = v
	}
}
