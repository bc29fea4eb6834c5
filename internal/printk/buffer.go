package printk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
)

// Buffer is the log of kernels from v3.5 to v5.9: records of different lengths,
// one behind the other, in a buffer that wraps. The fields are the addresses of
// the kernel's variables.
type Buffer struct {
	Memory mem.VirtReader
	// In VMCOREINFO: log_buf (a pointer), log_buf_len, log_first_idx and
	// log_next_idx (u32).
	LogBuf, LogBufLen, FirstIndex, NextIndex mem.Virt
	// log_first_seq (u64), not in VMCOREINFO. If 0, records are counted from 0 at
	// the oldest one that is left, and Since cannot be used.
	FirstSeq mem.Virt
	Layout   BufferLayout
}

// BufferLayout is where the fields of struct printk_log are, in bytes. Facility
// and level follow DictLen.
type BufferLayout struct {
	Size, TimeNs, Len, TextLen, DictLen uint64
	// CallerID exists with CONFIG_PRINTK_CALLER, since v5.1.
	CallerID    uint64
	HasCallerID bool
}

// DefaultBufferLayout is the layout of every kernel from v3.5 to v5.9 without
// CONFIG_PRINTK_CALLER.
func DefaultBufferLayout() BufferLayout {
	return BufferLayout{Size: 16, TimeNs: 0, Len: 8, TextLen: 10, DictLen: 12}
}

// BufferLayoutFrom makes a BufferLayout of the lines of VMCOREINFO. get returns
// the value of a line by its key, such as "OFFSET(printk_log.len)".
func BufferLayoutFrom(get func(key string) (uint64, bool)) (BufferLayout, error) {
	var l BufferLayout
	for _, f := range []struct {
		key string
		to  *uint64
	}{
		{"SIZE(printk_log)", &l.Size},
		{"OFFSET(printk_log.ts_nsec)", &l.TimeNs},
		{"OFFSET(printk_log.len)", &l.Len},
		{"OFFSET(printk_log.text_len)", &l.TextLen},
		{"OFFSET(printk_log.dict_len)", &l.DictLen},
	} {
		v, ok := get(f.key)
		if !ok {
			return BufferLayout{}, fmt.Errorf("%w: no %s", ErrCorrupt, f.key)
		}
		*f.to = v
	}
	l.CallerID, l.HasCallerID = get("OFFSET(printk_log.caller_id)")
	return l, l.check()
}

func (l BufferLayout) check() error {
	offsets := [][2]uint64{{l.TimeNs, 8}, {l.Len, 2}, {l.TextLen, 2}, {l.DictLen, 4}}
	if l.HasCallerID {
		offsets = append(offsets, [2]uint64{l.CallerID, 4})
	}
	for _, o := range offsets {
		if l.Size < 16 || l.Size > maxStruct || o[0] > l.Size-o[1] {
			return fmt.Errorf("%w: a field at %d in a printk_log of %d bytes", ErrCorrupt, o[0], l.Size)
		}
	}
	return nil
}

// maxBuffer bounds log_buf_len. CONFIG_LOG_BUF_SHIFT is at most 25.
const maxBuffer = 256 << 20

// Read returns all records there are.
func (b Buffer) Read() (Batch, error) {
	s, err := b.snapshot()
	if err != nil {
		return Batch{}, err
	}
	out, _ := b.parse(s, s.firstSeq)
	return out, nil
}

// Since returns the records from seq on, by the rules of Ring.Since.
func (b Buffer) Since(seq uint64) (Batch, error) {
	if b.FirstSeq == 0 {
		return Batch{}, fmt.Errorf("%w: no log_first_seq to count from", ErrCorrupt)
	}
	s, err := b.snapshot()
	if err != nil {
		return Batch{}, err
	}
	out, next := b.parse(s, seq)
	if seq > next && len(out.Problems) == 0 {
		return Batch{Next: seq}, fmt.Errorf("%w: asked for record %d, the newest is %d",
			ErrAhead, seq, next-1)
	}
	return out, nil
}

// variables are the values of the kernel's variables.
type variables struct {
	logBuf      uint64
	size        uint32
	first, next uint32
	firstSeq    uint64
}

// snapshot is a copy of the buffer with the variables that fit it.
type snapshot struct {
	variables
	data []byte
}

func (b Buffer) variables() (variables, error) {
	w := words{memory: b.Memory}
	v := variables{logBuf: w.uint64(uint64(b.LogBuf)), size: w.uint32(uint64(b.LogBufLen))}
	v.first = w.uint32(uint64(b.FirstIndex))
	if b.FirstSeq != 0 {
		v.firstSeq = w.uint64(uint64(b.FirstSeq))
	}
	// This must be the last: what lies between the two indices belongs together
	// only if the first has not moved since.
	v.next = w.uint32(uint64(b.NextIndex))
	if w.err != nil {
		return v, fmt.Errorf("read the variables of the kernel log: %w", w.err)
	}
	if v.size < 16 || v.size > maxBuffer || v.first >= v.size || v.next >= v.size {
		return v, fmt.Errorf("%w: records from %#x to %#x in %#x bytes",
			ErrCorrupt, v.first, v.next, v.size)
	}
	return v, nil
}

// snapshot copies the buffer. The kernel moves log_first_idx before it writes
// over the records behind it, so a copy is whole if that has not moved. Records
// that were added meanwhile do no harm: they are not looked at.
func (b Buffer) snapshot() (snapshot, error) {
	if err := b.Layout.check(); err != nil {
		return snapshot{}, err
	}
	for range 2 * retries {
		before, err := b.variables()
		if err != nil {
			return snapshot{}, err
		}
		s := snapshot{before, make([]byte, before.size)}
		if _, err := b.Memory.ReadVirt(s.data, mem.Virt(before.logBuf)); err != nil {
			return snapshot{}, fmt.Errorf("read the kernel log: %w", err)
		}
		after, err := b.variables()
		if err != nil {
			return snapshot{}, err
		}
		after.next = before.next
		if after == before {
			return s, nil
		}
	}
	return snapshot{}, fmt.Errorf("%w: it changes faster than it can be read", ErrCorrupt)
}

// parse returns the records from seq on, and the number that the next record of
// the log will have.
func (b Buffer) parse(s snapshot, seq uint64) (out Batch, next uint64) {
	out.Next, next = seq, s.firstSeq
	wrapped := false
	for at := s.first; at != s.next; {
		rec, size, err := b.record(s.data[at:])
		switch {
		case err == nil && size == 0 && !wrapped:
			at, wrapped = 0, true
			continue
		case err == nil && size == 0:
			err = fmt.Errorf("%w: the records wrap twice", ErrCorrupt)
		case err == nil && uint64(at)+uint64(size) >= uint64(s.size):
			// There is always room for the record that says to wrap.
			err = fmt.Errorf("%w: a record at the end of the buffer", ErrCorrupt)
		}
		if err != nil {
			out.problem(next, err)
			break
		}
		if rec.Seq = next; rec.Seq >= out.Next {
			out.add(rec)
		}
		next++
		at += size
	}
	return out, next
}

// record decodes the record at the start of data. Size 0 without an error is the
// mark that says to go on at the start of the buffer.
func (b Buffer) record(data []byte) (rec Record, size uint32, err error) {
	l := b.Layout
	if uint64(len(data)) < l.Size {
		return rec, 0, fmt.Errorf("%w: a record cut short by the end of the buffer", ErrCorrupt)
	}
	length := uint64(binary.LittleEndian.Uint16(data[l.Len:]))
	textLen := uint64(binary.LittleEndian.Uint16(data[l.TextLen:]))
	dictLen := uint64(binary.LittleEndian.Uint16(data[l.DictLen:]))
	if length == 0 {
		return rec, 0, nil
	}
	if l.Size+textLen+dictLen > length || length > uint64(len(data)) || length%4 != 0 {
		return rec, 0, fmt.Errorf("%w: %d bytes of text and %d of properties in a record of %d",
			ErrCorrupt, textLen, dictLen, length)
	}
	rec.TimeNs = binary.LittleEndian.Uint64(data[l.TimeNs:])
	rec.Facility = int(data[l.DictLen+2])
	rec.setLevel(data[l.DictLen+3])
	if l.HasCallerID {
		rec.Caller = callerFromID(binary.LittleEndian.Uint32(data[l.CallerID:]))
	}
	rec.Text = string(data[l.Size : l.Size+textLen])
	rec.setProperties(data[l.Size+textLen : l.Size+textLen+dictLen])
	return rec, uint32(length), nil
}

// setProperties decodes KEY=value pairs with NULs between them.
func (r *Record) setProperties(dict []byte) {
	for pair := range bytes.SplitSeq(dict, []byte{0}) {
		key, value, _ := bytes.Cut(pair, []byte{'='})
		switch string(key) {
		case "SUBSYSTEM":
			r.Subsystem = string(value)
		case "DEVICE":
			r.Device = string(value)
		}
	}
}
