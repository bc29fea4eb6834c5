package printk

import "fmt"

// Layout is where the fields of the ring's structures are, in bytes. The offset
// of a field that is itself a structure leads to that structure's first byte.
type Layout struct {
	// struct printk_ringbuffer
	DescRing, TextDataRing uint64
	// struct prb_desc_ring
	CountBits, Descs, Infos, HeadID, TailID uint64
	// struct prb_data_ring
	SizeBits, Data uint64
	// struct prb_desc; Begin and Next are those of its text_blk_lpos
	DescSize, StateVar, Begin, Next uint64
	// struct printk_info. Facility and level follow TextLen.
	InfoSize, Seq, TimeNs, TextLen, CallerID, DevInfo uint64
}

// DefaultLayout64 is the layout of 64-bit kernels from v5.12 to v6.x. Kernels
// describe their own in VMCOREINFO, which is better: v5.10 has a shorter
// prb_desc_ring, v7.x may have a longer printk_info.
func DefaultLayout64() Layout {
	return Layout{
		DescRing: 0, TextDataRing: 48,
		CountBits: 0, Descs: 8, Infos: 16, HeadID: 24, TailID: 32,
		SizeBits: 0, Data: 8,
		DescSize: 24, StateVar: 0, Begin: 8, Next: 16,
		InfoSize: 88, Seq: 0, TimeNs: 8, TextLen: 16, CallerID: 20, DevInfo: 24,
	}
}

// LayoutFrom makes a Layout of the lines of VMCOREINFO. get returns the value of
// a line by its key, such as "OFFSET(printk_info.seq)". All lines must be there.
func LayoutFrom(get func(key string) (uint64, bool)) (Layout, error) {
	var l Layout
	var lpos, begin, next uint64
	for _, f := range []struct {
		key string
		to  *uint64
	}{
		{"OFFSET(printk_ringbuffer.desc_ring)", &l.DescRing},
		{"OFFSET(printk_ringbuffer.text_data_ring)", &l.TextDataRing},
		{"OFFSET(prb_desc_ring.count_bits)", &l.CountBits},
		{"OFFSET(prb_desc_ring.descs)", &l.Descs},
		{"OFFSET(prb_desc_ring.infos)", &l.Infos},
		{"OFFSET(prb_desc_ring.head_id)", &l.HeadID},
		{"OFFSET(prb_desc_ring.tail_id)", &l.TailID},
		{"OFFSET(prb_data_ring.size_bits)", &l.SizeBits},
		{"OFFSET(prb_data_ring.data)", &l.Data},
		{"SIZE(prb_desc)", &l.DescSize},
		{"OFFSET(prb_desc.state_var)", &l.StateVar},
		{"OFFSET(prb_desc.text_blk_lpos)", &lpos},
		{"OFFSET(prb_data_blk_lpos.begin)", &begin},
		{"OFFSET(prb_data_blk_lpos.next)", &next},
		{"SIZE(printk_info)", &l.InfoSize},
		{"OFFSET(printk_info.seq)", &l.Seq},
		{"OFFSET(printk_info.ts_nsec)", &l.TimeNs},
		{"OFFSET(printk_info.text_len)", &l.TextLen},
		{"OFFSET(printk_info.caller_id)", &l.CallerID},
		{"OFFSET(printk_info.dev_info)", &l.DevInfo},
	} {
		v, ok := get(f.key)
		if !ok {
			return Layout{}, fmt.Errorf("%w: no %s", ErrCorrupt, f.key)
		}
		*f.to = v
	}
	l.Begin, l.Next = lpos+begin, lpos+next
	return l, l.check()
}

const (
	// maxStruct bounds the size of every structure.
	maxStruct = 4096
	// struct dev_printk_info is char subsystem[16], device[48].
	subsystemSize, deviceSize = 16, 48
)

// check makes sure that the structures can be decoded without looking again.
func (l Layout) check() error {
	for _, f := range []struct {
		name                string
		offset, width, size uint64
	}{
		{"printk_ringbuffer.desc_ring", l.DescRing, 8, maxStruct},
		{"printk_ringbuffer.text_data_ring", l.TextDataRing, 8, maxStruct},
		{"prb_desc_ring.count_bits", l.CountBits, 4, maxStruct},
		{"prb_desc_ring.descs", l.Descs, 8, maxStruct},
		{"prb_desc_ring.infos", l.Infos, 8, maxStruct},
		{"prb_desc_ring.head_id", l.HeadID, 8, maxStruct},
		{"prb_desc_ring.tail_id", l.TailID, 8, maxStruct},
		{"prb_data_ring.size_bits", l.SizeBits, 4, maxStruct},
		{"prb_data_ring.data", l.Data, 8, maxStruct},
		{"prb_desc.state_var", l.StateVar, 8, l.DescSize},
		{"prb_desc.text_blk_lpos.begin", l.Begin, 8, l.DescSize},
		{"prb_desc.text_blk_lpos.next", l.Next, 8, l.DescSize},
		{"printk_info.seq", l.Seq, 8, l.InfoSize},
		{"printk_info.ts_nsec", l.TimeNs, 8, l.InfoSize},
		{"printk_info.text_len", l.TextLen, 4, l.InfoSize},
		{"printk_info.caller_id", l.CallerID, 4, l.InfoSize},
		{"printk_info.dev_info", l.DevInfo, subsystemSize + deviceSize, l.InfoSize},
	} {
		if f.size > maxStruct || f.width > f.size || f.offset > f.size-f.width {
			return fmt.Errorf("%w: %s at %d in %d bytes", ErrCorrupt, f.name, f.offset, f.size)
		}
	}
	return nil
}
