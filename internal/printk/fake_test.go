package printk_test

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// fakeMemory is one piece of memory. onRead runs before every read, and so can
// change it, as a running guest does; the failAt-th read fails.
type fakeMemory struct {
	base   uint64
	bytes  []byte
	reads  int
	failAt int
	onRead func()
}

func (m *fakeMemory) ReadVirt(p []byte, a mem.Virt) (int, error) {
	m.reads++
	if m.onRead != nil {
		m.onRead()
	}
	fault := &mem.FaultError{Space: "test", Addr: uint64(a)}
	at := uint64(a) - m.base
	if m.reads == m.failAt || at > uint64(len(m.bytes)) {
		return 0, fault
	}
	n := copy(p, m.bytes[at:])
	if n < len(p) {
		fault.Addr += uint64(n)
		return n, fault
	}
	return n, nil
}

func (m *fakeMemory) put64(at, v uint64) { binary.LittleEndian.PutUint64(m.bytes[at-m.base:], v) }
func (m *fakeMemory) put32(at uint64, v uint32) {
	binary.LittleEndian.PutUint32(m.bytes[at-m.base:], v)
}
func (m *fakeMemory) put16(at uint64, v uint16) {
	binary.LittleEndian.PutUint16(m.bytes[at-m.base:], v)
}

// fakeRing writes records the way the kernel does, in the layout of Linux 6.1:
// the ring at 0x1000, then descriptors, infos, text.
type fakeRing struct {
	*fakeMemory
	count, size        uint64 // of descriptors, of text in bytes
	descs, infos, data uint64
	head, tail         uint64 // ids
	headPos, tailPos   uint64 // logical positions in the text
	seq                uint64 // of the next record
	owners             []owner
}

// owner remembers which descriptor a block of text belongs to.
type owner struct{ id, end uint64 }

const (
	ringBase  = 0xffffffff82a62000
	idBits    = 1<<62 - 1
	reserved  = 0
	committed = 1
	finalized = 2
	reusable  = 3
)

func newFakeRing(countBits, sizeBits uint32) *fakeRing {
	f := &fakeRing{count: 1 << countBits, size: 1 << sizeBits}
	f.descs = ringBase + 0x100
	f.infos = f.descs + 24*f.count
	f.data = f.infos + 88*f.count
	f.fakeMemory = &fakeMemory{base: ringBase, bytes: make([]byte, f.data+f.size-ringBase)}
	f.put32(ringBase, countBits)
	f.put64(ringBase+8, f.descs)
	f.put64(ringBase+16, f.infos)
	f.put32(ringBase+48, sizeBits)
	f.put64(ringBase+56, f.data)
	// The first id is such that record 0 has index 0, the first position such that
	// it wraps at once. Both are ints in the kernel up to v6.x.
	f.head = uint64(uint32(-(1 << countBits) - 1))
	f.tail = f.head
	f.headPos = -f.size
	f.tailPos = f.headPos
	f.setState(f.head, reusable)
	f.putIDs()
	return f
}

func (f *fakeRing) ring() printk.Ring {
	return printk.Ring{Memory: f.fakeMemory, Address: ringBase, Layout: printk.DefaultLayout64()}
}

func (f *fakeRing) putIDs() {
	f.put64(ringBase+24, f.head&idBits)
	f.put64(ringBase+32, f.tail&idBits)
}

func (f *fakeRing) desc(id uint64) uint64 { return f.descs + 24*(id%f.count) }
func (f *fakeRing) info(id uint64) uint64 { return f.infos + 88*(id%f.count) }

func (f *fakeRing) setState(id, state uint64) { f.put64(f.desc(id), id&idBits|state<<62) }

// reserve takes the next descriptor, giving up the oldest record if it must.
func (f *fakeRing) reserve() uint64 {
	id := (f.head + 1) & idBits
	if (id-f.tail)&idBits >= f.count {
		f.setState(f.tail, reusable)
		f.tail = (f.tail + 1) & idBits
	}
	f.head = id
	f.putIDs()
	f.setState(id, reserved)
	f.put64(f.info(id), f.seq)
	f.seq++
	return id
}

// place finds room for a block of n bytes with its id, and makes the records
// whose text is in the way reusable. A block that would pass the end of the ring
// goes to its start.
func (f *fakeRing) place(id, n uint64) (begin, next, at uint64) {
	n = (n + 8 + 7) &^ 7
	begin = f.headPos
	next = begin + n
	at = begin % f.size
	if at+n > f.size {
		next = begin - at + f.size + n
		at = 0
	}
	for len(f.owners) > 0 && next-f.tailPos > f.size {
		if old := f.owners[0].id; old-f.tail < f.count { // not given up by reserve
			f.setState(old, reusable)
		}
		f.tailPos = f.owners[0].end
		f.owners = f.owners[1:]
	}
	f.headPos = next
	f.owners = append(f.owners, owner{id, next})
	return begin, next, f.data + at
}

// add writes a whole record.
func (f *fakeRing) add(text string) uint64 {
	id := f.reserve()
	f.write(id, text, 6<<5|2)
	f.setState(id, finalized)
	return id
}

// write fills a reserved record; flags is the byte with flags:5 and level:3.
func (f *fakeRing) write(id uint64, text string, flags byte) {
	begin, next, at := f.place(id, uint64(len(text)))
	f.put64(f.desc(id)+8, begin)
	f.put64(f.desc(id)+16, next)
	f.put64(at, id)
	copy(f.bytes[at+8-f.base:], text)
	info := f.info(id)
	f.put64(info+8, 1000*f.seq)
	f.put16(info+16, uint16(len(text)))
	f.bytes[info+18-f.base] = 0
	f.bytes[info+19-f.base] = flags
	f.put32(info+20, 42)
}

// fakeBuffer writes records the way kernels up to v5.9 do: the variables first,
// the buffer behind them.
type fakeBuffer struct {
	*fakeMemory
	size        uint32
	header      uint32
	first, next uint32
	firstSeq    uint64
	nextSeq     uint64
}

const bufferBase = 0xffffffff82000000

func newFakeBuffer(size uint32, caller bool) *fakeBuffer {
	f := &fakeBuffer{size: size, header: 16}
	if caller {
		f.header = 20
	}
	f.fakeMemory = &fakeMemory{base: bufferBase, bytes: make([]byte, 64+size)}
	f.put64(bufferBase, bufferBase+64)
	f.put32(bufferBase+8, size)
	return f
}

func (f *fakeBuffer) buffer() printk.Buffer {
	l := printk.DefaultBufferLayout()
	if f.header == 20 {
		l.Size, l.CallerID, l.HasCallerID = 20, 16, true
	}
	return printk.Buffer{Memory: f.fakeMemory, LogBuf: bufferBase, LogBufLen: bufferBase + 8,
		FirstIndex: bufferBase + 12, NextIndex: bufferBase + 16, FirstSeq: bufferBase + 24, Layout: l}
}

func (f *fakeBuffer) putVariables() {
	f.put32(bufferBase+12, f.first)
	f.put32(bufferBase+16, f.next)
	f.put64(bufferBase+24, f.firstSeq)
}

// record returns the address of the record at index, following the wrap mark.
func (f *fakeBuffer) length(index uint32) uint16 {
	return binary.LittleEndian.Uint16(f.bytes[64+index+8:])
}

// room tells whether n bytes and a wrap mark fit at next.
func (f *fakeBuffer) room(n uint32) bool {
	free := f.first - f.next
	if f.next > f.first || f.firstSeq == f.nextSeq {
		free = max(f.size-f.next, f.first)
	}
	return free >= n+f.header
}

func (f *fakeBuffer) add(text, dict string, flags byte) {
	n := (f.header + uint32(len(text)+len(dict)) + 3) &^ 3
	for f.firstSeq < f.nextSeq && !f.room(n) {
		if f.length(f.first) == 0 {
			f.first = 0
		}
		f.first += uint32(f.length(f.first))
		f.firstSeq++
		if f.length(f.first) == 0 && f.first > f.next {
			f.first = 0
		}
		f.putVariables()
	}
	if f.next+n+f.header > f.size {
		clear(f.bytes[64+f.next : min(64+f.next+f.header, 64+f.size)])
		f.next = 0
	}
	at := bufferBase + 64 + uint64(f.next)
	f.put64(at, 1000*f.nextSeq)
	f.put16(at+8, uint16(n))
	f.put16(at+10, uint16(len(text)))
	f.put16(at+12, uint16(len(dict)))
	f.bytes[at+14-f.base], f.bytes[at+15-f.base] = 0, flags
	if f.header == 20 {
		f.put32(at+16, 1<<31|3)
	}
	copy(f.bytes[at+uint64(f.header)-f.base:], text+dict)
	f.next += n
	f.nextSeq++
	f.putVariables()
}

// message is a text that shows when a piece of it is not its own.
func message(n uint64) string {
	text := fmt.Sprintf("message %d", n)
	for range n % 7 {
		text += fmt.Sprintf(", %d again", n)
	}
	return text
}
