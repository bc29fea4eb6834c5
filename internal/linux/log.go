package linux

import (
	"fmt"
	"strings"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// LogRecord is one message of the kernel's log.
type LogRecord = printk.Record

// LogBatch is what one look at the kernel's log gave.
type LogBatch = printk.Batch

// LogProblem is a record that is there but could not be read.
type LogProblem = printk.Problem

// ErrLogAhead says that a log ends before the record asked for: the machine was
// started anew.
var ErrLogAhead = printk.ErrAhead

// Log is the kernel's log. Its methods read memory at the time of the call.
type Log struct {
	reader interface {
		Read() (LogBatch, error)
		Since(seq uint64) (LogBatch, error)
	}
}

// Read returns all records there are, those that are not final included: in a
// kernel that died while printing they are the ones that matter.
func (l *Log) Read() (LogBatch, error) { return l.reader.Read() }

// Since returns the final records from seq on; calls with LogBatch.Next give every
// record once and in order. ErrLogAhead if the log ends before seq-1.
func (l *Log) Since(seq uint64) (LogBatch, error) { return l.reader.Since(seq) }

// Log finds the kernel's log: the ring that the variable prb points to (Linux
// 5.10), else the buffer of records before it. Where fields are is asked of
// VMCOREINFO, then of the types. ErrNotFound if the kernel has neither, as
// without CONFIG_PRINTK, or nothing that says where they are.
func (k *Kernel) Log() (*Log, error) {
	prb, ok := k.logSymbol("prb")
	if !ok {
		return k.logBuffer()
	}
	layout, err := printk.LayoutFrom(k.offsets())
	if err != nil {
		return nil, fmt.Errorf("log of %s: layout of the ring: %w", k.Release, k.whyNoLayout(err))
	}
	ring, err := mem.VirtUint64(k.space, prb)
	if err != nil {
		return nil, fmt.Errorf("log of %s: read prb: %w", k.Release, err)
	}
	return &Log{printk.Ring{Memory: k.space, Address: mem.Virt(ring), Layout: layout}}, nil
}

// logBuffer finds the log of kernels before 5.10.
func (k *Kernel) logBuffer() (*Log, error) {
	b := printk.Buffer{Memory: k.space}
	for _, v := range []struct {
		name string
		to   *mem.Virt
	}{
		{"log_buf", &b.LogBuf}, {"log_buf_len", &b.LogBufLen},
		{"log_first_idx", &b.FirstIndex}, {"log_next_idx", &b.NextIndex},
	} {
		at, ok := k.logSymbol(v.name)
		if !ok {
			// Kernels with a ring have some of these too, so prb is what is missing.
			return nil, fmt.Errorf("log of %s: %w", k.Release, k.orInfo(k.missingSymbol("prb", optionLog)))
		}
		*v.to = at
	}
	b.FirstSeq, _ = k.logSymbol("log_first_seq") // where it is not known, records count from 0
	layout, err := printk.BufferLayoutFrom(k.offsets())
	if err != nil {
		return nil, fmt.Errorf("log of %s: layout of the buffer: %w", k.Release, k.whyNoLayout(err))
	}
	b.Layout = layout
	return &Log{b}, nil
}

// whyNoLayout says what would have said where the fields are, if there are no types to
// ask; else it is what is wrong with what they say.
func (k *Kernel) whyNoLayout(err error) error {
	if _, missing := k.Types(); missing != nil {
		return k.orInfo(missing)
	}
	return err
}

// orInfo adds to why the log is not found that VMCOREINFO, if there was one, would do.
func (k *Kernel) orInfo(err error) error {
	if k.VMCoreInfo != nil {
		return err
	}
	return fmt.Errorf("%w; nor has it VMCOREINFO, which %s gives", err, optionInfo)
}

// logSymbol is a variable of the log. VMCOREINFO has them where kallsyms leaves
// data out.
func (k *Kernel) logSymbol(name string) (mem.Virt, bool) {
	if a, ok := k.VMCoreInfo.Symbol(name); ok {
		return a, true
	}
	return k.lookupCore(name)
}

// offsets answers keys of VMCOREINFO, "OFFSET(type.member)" and "SIZE(type)": from
// there, and what it does not list from the types.
func (k *Kernel) offsets() func(key string) (uint64, bool) {
	return func(key string) (uint64, bool) {
		if v, ok := k.VMCoreInfo.count(key); ok {
			return v, true
		}
		what, arg, _ := strings.Cut(strings.TrimSuffix(key, ")"), "(")
		t, err := k.Types()
		if err != nil {
			return 0, false
		}
		if what == "SIZE" {
			n, err := t.SizeOf(arg)
			return uint64(n), err == nil
		}
		name, member, _ := strings.Cut(arg, ".")
		at, _, err := t.Offset(name, member)
		return uint64(at), err == nil
	}
}
