package printk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// Ring is the log of a kernel since v5.10.
//
// It is a ring of descriptors, each with a struct printk_info beside it, and a
// ring of text. Descriptors have ids that count up for ever; id modulo the
// number of descriptors is the index. head_id is the newest, tail_id the oldest.
// A descriptor's state_var holds its id and its state together, so one word says
// whether it is still the same record.
type Ring struct {
	Memory mem.VirtReader
	// Address is that of struct printk_ringbuffer, which is the value of the
	// kernel's variable prb. The kernel may change it once, at boot.
	Address mem.Virt
	Layout  Layout
}

// Read returns all there is. Records that are written but not final are among
// them: in a kernel that died while printing they are the ones that matter. Ends of
// the ring that are wrong, and records at them that were overwritten, are problems. To
// follow a log begin with Since(0).
func (r Ring) Read() (Batch, error) {
	g, err := r.geometry()
	if err != nil {
		return Batch{}, err
	}
	w := walk{ring: r, geometry: g, lenient: true}
	if err := w.settle(); err != nil {
		return Batch{}, err
	}
	return w.from(w.tail, 0, false), nil
}

// Since returns the final records from seq on, and no others: it stops at one
// that the kernel is still writing, so that calls with Batch.Next, one after the
// other, give every record once and in order. Nothing new is an empty Batch.
// ErrAhead means that the log ends before seq-1.
func (r Ring) Since(seq uint64) (Batch, error) {
	g, err := r.geometry()
	if err != nil {
		return Batch{}, err
	}
	if err := g.bound(); err != nil {
		return Batch{}, err
	}
	w := walk{ring: r, geometry: g}
	start, newest, ok := w.locate(seq)
	switch {
	case ok && seq > newest+1:
		return Batch{Next: seq}, fmt.Errorf("%w: asked for record %d, the newest is %d",
			ErrAhead, seq, newest)
	case ok && seq == newest+1:
		return Batch{Next: seq}, nil
	}
	return w.from(start, seq, true), nil
}

const (
	// Sizes that are believed: 256 MiB of text, one descriptor per 32 bytes.
	// CONFIG_LOG_BUF_SHIFT is at most 25; log_buf_len= could ask for more.
	maxSizeBits  = 28
	maxCountBits = maxSizeBits - 5
	// maxAhead bounds how far the head can run ahead between two reads.
	maxAhead = 1 << 32
	// retries is how often something that changed while it was read is read again.
	retries = 4
	// maxProblems bounds the problems of one batch; one more says that it did.
	maxProblems = 1000
)

// States of a descriptor, the top bits of state_var (enum desc_state).
const (
	stateReserved  = 0
	stateCommitted = 1
	stateFinalized = 2
	idMask         = 1<<62 - 1
)

// geometry is what the ring says of itself at one moment.
type geometry struct {
	descs, infos, data  uint64
	countMask, sizeMask uint64
	sizeBits            uint32
	head, tail          uint64
}

// count is the number of ids from tail to head.
func (g geometry) count() uint64 { return (g.head-g.tail)&idMask + 1 }

// geometry reads the ring's own structure.
func (r Ring) geometry() (geometry, error) {
	if err := r.Layout.check(); err != nil {
		return geometry{}, err
	}
	l, desc, text := r.Layout, r.Layout.DescRing, r.Layout.TextDataRing
	w := words{memory: r.Memory, base: uint64(r.Address)}
	countBits := w.uint32(desc + l.CountBits)
	g := geometry{
		descs: w.uint64(desc + l.Descs), infos: w.uint64(desc + l.Infos),
		data: w.uint64(text + l.Data), sizeBits: w.uint32(text + l.SizeBits),
	}
	g.tail = w.uint64(desc+l.TailID) & idMask
	g.head = w.uint64(desc+l.HeadID) & idMask
	if w.err != nil {
		return geometry{}, fmt.Errorf("read the ring of the kernel log: %w", w.err)
	}
	if countBits == 0 || countBits > maxCountBits || g.sizeBits < 4 || g.sizeBits > maxSizeBits {
		return geometry{}, fmt.Errorf("%w: 2^%d descriptors, 2^%d bytes of text",
			ErrCorrupt, countBits, g.sizeBits)
	}
	g.countMask, g.sizeMask = 1<<countBits-1, 1<<g.sizeBits-1
	return g, nil
}

// words reads fields of one structure and keeps the first error.
type words struct {
	memory mem.VirtReader
	base   uint64
	err    error
}

func (w *words) uint64(offset uint64) uint64 {
	v, err := mem.VirtUint64(w.memory, mem.Virt(w.base+offset))
	w.err = errors.Join(w.err, err)
	return v
}

func (w *words) uint32(offset uint64) uint32 {
	v, err := mem.VirtUint32(w.memory, mem.Virt(w.base+offset))
	w.err = errors.Join(w.err, err)
	return v
}

// walk is one pass over the ring.
type walk struct {
	ring Ring
	geometry
	lenient bool // take records that are not final, pass over unfinished ones

	problems []Problem // with the ring itself
	mended   bool      // head and tail are only bounds of where records may be
}

// What can be wrong with a record, other than a fault.
var (
	errPending = errors.New("a record is still being written")
	errGone    = errors.New("overwritten")
)

// from walks from id start to head and collects the records from seq on. exact
// says that seq is meant: what is missing before the first record is lost.
func (w *walk) from(start, seq uint64, exact bool) Batch {
	b := Batch{Next: seq, Problems: w.problems}
	var missing gap // behind the last record so far
	back := 0       // records whose number is below that of one before
	// The texts of real records do not overlap, so all together are not longer
	// than the ring, but for what changes during the walk.
	text, limit := uint64(0), 2*(w.sizeMask+1)
	for n := (w.head-start)&idMask + 1; n > 0; n, start = n-1, (start+1)&idMask {
		rec, err := w.record(start)
		switch {
		case errors.Is(err, errPending) && !w.lenient:
			return b
		case errors.Is(err, errGone):
			// The next record that is there shows what is missing, if there was one before.
			if !w.lenient || w.mended {
				continue
			}
			if err := missing.at(w, start); err != nil && !b.problem(0, err) {
				return b
			}
		case err != nil:
			if !b.problem(rec.Seq, err) {
				return b
			}
		case !exact || rec.Seq >= b.Next:
			if !exact {
				exact, b.Next = true, rec.Seq
				b.overwritten(rec.Seq, missing.bad)
			}
			missing = gap{}
			if text += uint64(len(rec.Text)); text > limit {
				b.problem(rec.Seq, fmt.Errorf("%w: more text than the ring holds", ErrCorrupt))
				return b
			}
			b.add(rec)
		case w.lenient:
			back++
		}
	}
	if back > 0 {
		b.problem(0, fmt.Errorf("%w: the numbers of %d records are below that of one before them", ErrCorrupt, back))
	}
	b.overwritten(b.Next, missing.lost(exact))
	return b
}

// overwritten notes that descriptors of records before or behind number at are.
func (b *Batch) overwritten(at uint64, count int) {
	if count > 0 {
		b.problem(at, fmt.Errorf("%w: the descriptors of %d records next to it are overwritten", ErrCorrupt, count))
	}
}

// locate finds the id of record seq, or the oldest if it is gone, and the newest
// record's seq. Ids and seqs count in step, so one record that is certain, near
// the head, is enough. Without one the walk must begin at the tail.
func (w *walk) locate(seq uint64) (start, newest uint64, ok bool) {
	count := w.count()
	for back := range min(count, 64) {
		id := (w.head - back) & idMask
		d, err := w.descriptor(id)
		if err != nil || (d.state != stateCommitted && d.state != stateFinalized) {
			continue
		}
		info, err := w.info(id)
		if err != nil || w.recheck(id, d) != nil {
			continue
		}
		newest = binary.LittleEndian.Uint64(info[w.ring.Layout.Seq:]) + back
		if distance := newest - seq; seq <= newest && distance < count {
			return (w.head - distance) & idMask, newest, true
		}
		return w.tail, newest, true
	}
	return w.tail, 0, false
}

// descriptor is a decoded struct prb_desc.
type descriptor struct {
	stateVar    uint64
	state       uint64
	begin, next uint64
}

// descriptor reads the descriptor of id; errGone if it belongs to another by now.
func (w *walk) descriptor(id uint64) (descriptor, error) {
	l := w.ring.Layout
	b := make([]byte, l.DescSize)
	at := w.descs + (id&w.countMask)*l.DescSize
	if _, err := w.ring.Memory.ReadVirt(b, mem.Virt(at)); err != nil {
		return descriptor{}, fmt.Errorf("read the descriptor: %w", err)
	}
	d := descriptor{
		stateVar: binary.LittleEndian.Uint64(b[l.StateVar:]),
		begin:    binary.LittleEndian.Uint64(b[l.Begin:]),
		next:     binary.LittleEndian.Uint64(b[l.Next:]),
	}
	d.state = d.stateVar >> 62
	if d.stateVar&idMask != id {
		return descriptor{}, errGone
	}
	return d, nil
}

// recheck makes sure that what was read since belongs to the same record. The
// kernel changes state_var before it reuses a descriptor, its info or its text.
func (w *walk) recheck(id uint64, d descriptor) error {
	l := w.ring.Layout
	at := w.descs + (id&w.countMask)*l.DescSize + l.StateVar
	v, err := mem.VirtUint64(w.ring.Memory, mem.Virt(at))
	if err != nil {
		return fmt.Errorf("read the descriptor again: %w", err)
	}
	if v != d.stateVar {
		return errGone
	}
	return nil
}

func (w *walk) info(id uint64) ([]byte, error) {
	b := make([]byte, w.ring.Layout.InfoSize)
	at := w.infos + (id&w.countMask)*w.ring.Layout.InfoSize
	if _, err := w.ring.Memory.ReadVirt(b, mem.Virt(at)); err != nil {
		return nil, fmt.Errorf("read the record's info: %w", err)
	}
	return b, nil
}

// record reads one record. A committed record can become final meanwhile, which
// changes state_var too; then it is read again.
func (w *walk) record(id uint64) (Record, error) {
	var rec Record
	err := errGone
	for range retries {
		var d descriptor
		if d, err = w.descriptor(id); err != nil {
			return Record{}, err
		}
		if err := w.acceptable(d); err != nil {
			return Record{}, err
		}
		var textErr error
		rec, textErr = w.contents(id, d)
		if err = w.recheck(id, d); err == nil {
			return rec, textErr
		}
		if !errors.Is(err, errGone) {
			break
		}
	}
	return Record{}, err
}

// acceptable says whether a descriptor in this state is a record.
func (w *walk) acceptable(d descriptor) error {
	switch {
	case d.state == stateFinalized, d.state == stateCommitted && w.lenient:
		return nil
	case d.state == stateCommitted, d.state == stateReserved:
		return errPending
	}
	return errGone
}

// contents reads a record's info and text.
func (w *walk) contents(id uint64, d descriptor) (Record, error) {
	l := w.ring.Layout
	info, err := w.info(id)
	if err != nil {
		return Record{}, err
	}
	rec := Record{
		Seq:       binary.LittleEndian.Uint64(info[l.Seq:]),
		TimeNs:    binary.LittleEndian.Uint64(info[l.TimeNs:]),
		Facility:  int(info[l.TextLen+2]),
		Caller:    callerFromID(binary.LittleEndian.Uint32(info[l.CallerID:])),
		Subsystem: cString(info[l.DevInfo:][:subsystemSize]),
		Device:    cString(info[l.DevInfo+subsystemSize:][:deviceSize]),
	}
	rec.setLevel(info[l.TextLen+3])
	rec.Text, err = w.textOf(id, d, binary.LittleEndian.Uint16(info[l.TextLen:]))
	return rec, err
}

// textOf reads the text of a record. begin and next are logical positions, which
// count up for ever like ids; position modulo the size is the offset in the ring.
// A block that does not fit before the end of the ring is at its start as a
// whole, id included.
func (w *walk) textOf(id uint64, d descriptor, length uint16) (string, error) {
	const (
		noData    = 1 // bit 0 of begin: no text; both words tell why
		emptyLine = 3
		idSize    = 8
	)
	if d.begin&noData != 0 {
		if d.begin == emptyLine && d.next == emptyLine {
			return "", nil
		}
		// The kernel found no room for it.
		return "", errGone
	}
	// The count of wraps wraps itself, at the very first: positions begin at
	// minus the size of the ring.
	at, size := d.begin&w.sizeMask, d.next-d.begin
	wraps := (d.next-1)>>w.sizeBits - d.begin>>w.sizeBits
	switch wraps & (1<<(64-w.sizeBits) - 1) {
	case 0:
	case 1:
		at, size = 0, d.next&w.sizeMask
	default:
		size = 0
	}
	if size < idSize || size > w.sizeMask+1 || d.begin%idSize != 0 {
		return "", fmt.Errorf("%w: text from %#x to %#x", ErrCorrupt, d.begin, d.next)
	}
	b := make([]byte, min(uint64(length)+idSize, size))
	if _, err := w.ring.Memory.ReadVirt(b, mem.Virt(w.data+at)); err != nil {
		return "", fmt.Errorf("read the text: %w", err)
	}
	if got := binary.LittleEndian.Uint64(b); got&idMask != id {
		return "", fmt.Errorf("%w: text of record id %#x at that of %#x", ErrCorrupt, got, id)
	}
	return string(b[idSize:]), nil
}

// cString cuts b at its first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
