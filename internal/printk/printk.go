// Package printk reads the Linux kernel log from memory: the ring of v5.10 and
// later (Ring), and the record buffer of v3.5 to v5.9 (Buffer).
//
// Both can be read while the guest runs. A record is never torn: whatever the
// kernel uses to give its space away again is checked after the copy. What was
// overwritten before it could be read is reported as lost, by sequence numbers.
//
// Sources: Linux kernel/printk/printk_ringbuffer.{h,c} (v5.10, v6.1, v6.12) and
// kernel/printk/printk.c (v5.9), struct printk_info and struct printk_log.
package printk

import (
	"errors"
	"fmt"
)

// The classes of error. Reads that fail are also mem.ErrFault.
var (
	// ErrCorrupt: what is there is not a log of this layout.
	ErrCorrupt = errors.New("kernel log corrupt")
	// ErrAhead: the log ends before the sequence number asked for. The guest may
	// have been started anew.
	ErrAhead = errors.New("kernel log ends before this")
)

// Record is one message of the log.
type Record struct {
	Seq uint64
	// TimeNs is the kernel's local clock, in nanoseconds since boot.
	TimeNs   uint64
	Level    int // 0 emergency to 7 debug
	Facility int // of syslog; 0 is the kernel
	Caller   Caller
	// Text has no final newline; it may have others, and any bytes at all.
	Text string
	// Newline: the message ended with a newline. Continued: it is the next piece
	// of one that did not.
	Newline, Continued bool
	// Subsystem and Device are what dev_printk adds: "pci" and "+pci:0000:00:1f.0".
	Subsystem, Device string
}

// Caller says who wrote a record.
type Caller struct {
	Known bool
	CPU   bool   // ID is a CPU, and the writer was not a task
	ID    uint32 // a thread id, or a CPU
}

func (c Caller) String() string {
	switch {
	case !c.Known:
		return "?"
	case c.CPU:
		return fmt.Sprintf("C%d", c.ID)
	}
	return fmt.Sprintf("T%d", c.ID)
}

// callerFromID decodes a caller_id: bit 31 means a CPU.
func callerFromID(id uint32) Caller {
	return Caller{Known: true, CPU: id>>31 != 0, ID: id &^ (1 << 31)}
}

// Lost is a run of records that are gone, both ends included.
type Lost struct{ From, To uint64 }

// Problem is a record that is there but could not be read, or something wrong with the
// log itself.
type Problem struct {
	Seq uint64 // 0 if not known
	Err error
}

func (p Problem) Error() string {
	if p.Seq == 0 {
		return p.Err.Error()
	}
	return fmt.Sprintf("record %d: %v", p.Seq, p.Err)
}

func (p Problem) Unwrap() error { return p.Err }

// Batch is what one look at the log gave.
type Batch struct {
	Records  []Record // ascending by Seq
	Lost     []Lost   // ascending; includes the records of Problems
	Problems []Problem
	// Next is the sequence number to go on with.
	Next uint64
}

// add appends a record and notes what is missing before it.
func (b *Batch) add(r Record) {
	if r.Seq > b.Next {
		b.Lost = append(b.Lost, Lost{b.Next, r.Seq - 1})
	}
	b.Records = append(b.Records, r)
	b.Next = r.Seq + 1
}

// problem appends a problem, and reports whether there may be more.
func (b *Batch) problem(seq uint64, err error) bool {
	if len(b.Problems) == maxProblems {
		err = fmt.Errorf("%w: more than %d problems, the rest is not read", ErrCorrupt, maxProblems)
	}
	b.Problems = append(b.Problems, Problem{seq, err})
	return len(b.Problems) <= maxProblems
}

// setLevel decodes the byte that holds flags:5 and level:3.
func (r *Record) setLevel(b byte) {
	const newline, cont = 2, 8 // enum log_flags
	r.Level = int(b >> 5)
	r.Newline, r.Continued = b&newline != 0, b&cont != 0
}
