package printk_test

import (
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// checkBatch checks what holds for every batch, of any bytes.
func checkBatch(t *testing.T, b printk.Batch, from uint64) {
	t.Helper()
	next := from
	for i, r := range b.Records {
		if i > 0 && r.Seq < next {
			t.Fatalf("record %d after %d", r.Seq, next)
		}
		next = r.Seq + 1
	}
	for _, l := range b.Lost {
		if l.From > l.To {
			t.Fatalf("lost %+v", l)
		}
	}
}

// FuzzRing reads a ring of arbitrary bytes.
func FuzzRing(f *testing.F) {
	for _, n := range []uint64{0, 3, 40} {
		r := newFakeRing(2, 7)
		for range n {
			r.add(message(r.seq)[:9])
		}
		f.Add(r.bytes, n)
	}
	f.Fuzz(func(t *testing.T, data []byte, seq uint64) {
		r := printk.Ring{Memory: &fakeMemory{base: ringBase, bytes: data}, Address: ringBase,
			Layout: printk.DefaultLayout64()}
		if b, err := r.Read(); err == nil {
			checkBatch(t, b, 0)
		}
		if b, err := r.Since(seq); err == nil {
			checkBatch(t, b, seq)
		}
	})
}

// FuzzBuffer reads a record buffer of arbitrary bytes.
func FuzzBuffer(f *testing.F) {
	for _, n := range []uint64{0, 3, 40} {
		b := newFakeBuffer(256, n == 3)
		for range n {
			b.add(message(b.nextSeq), "DEVICE=x", 8)
		}
		f.Add(b.bytes, n, n == 3)
	}
	f.Fuzz(func(t *testing.T, data []byte, seq uint64, caller bool) {
		b := newFakeBuffer(256, caller).buffer()
		b.Memory = &fakeMemory{base: bufferBase, bytes: data}
		if out, err := b.Read(); err == nil {
			checkBatch(t, out, 0)
		}
		if out, err := b.Since(seq); err == nil {
			checkBatch(t, out, seq)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	f := fullRing()
	for b.Loop() {
		if out, err := f.ring().Read(); err != nil || len(out.Records) < 1000 {
			b.Fatal(len(out.Records), err)
		}
	}
}

// What following costs when there is nothing new.
func BenchmarkSinceNothing(b *testing.B) {
	f := fullRing()
	for b.Loop() {
		if _, err := f.ring().Since(f.seq); err != nil {
			b.Fatal(err)
		}
	}
}

// fullRing has the size of a distribution kernel's.
func fullRing() *fakeRing {
	f := newFakeRing(12, 17)
	for range 10000 {
		f.add(message(f.seq))
	}
	return f
}

var _ mem.VirtReader = (*fakeMemory)(nil)
