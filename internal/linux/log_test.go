package linux

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// The log's structures, with members in another order than in any real kernel, and
// the record of kernels before 5.10.
const fakeLogTypes = `
struct prb_data_blk_lpos { long next; long begin; }
struct prb_desc { prb_data_blk_lpos text_blk_lpos; long state_var; }
struct prb_data_ring { ptr data; u32 size_bits; }
struct prb_desc_ring { ptr infos; ptr descs; long tail_id; long head_id; u32 count_bits; }
struct printk_ringbuffer { prb_data_ring text_data_ring; int fail; prb_desc_ring desc_ring; }
struct dev_printk_info { char subsystem[16]; char device[48]; }
struct printk_info { long ts_nsec; long seq; u16 text_len; u8 facility; u8 flags; u32 caller_id; dev_printk_info dev_info; }
struct printk_log { long ts_nsec; u16 len; u16 text_len; u16 dict_len; u8 facility; u8 flags; }
`

// addRing makes a ring of eight records, of which those with these texts are used.
func addRing(f *fake, texts ...string) object {
	const count, size = 8, 1 << 10
	array := func(kind string) object {
		o := f.alloc(count*uint64(f.types.size(kind)), 64)
		o.kind = kind
		return o
	}
	ring, descs, infos, data := f.make("printk_ringbuffer"), array("prb_desc"), array("printk_info"), f.alloc(size, 64)
	ring.set("desc_ring.count_bits", 3).set("desc_ring.descs", descs.va).set("desc_ring.infos", infos.va)
	ring.set("text_data_ring.size_bits", 10).set("text_data_ring.data", data.va)
	ring.set("desc_ring.tail_id", count).set("desc_ring.head_id", uint64(count+len(texts)-1))
	at := uint64(0)
	for i, text := range texts {
		id := uint64(count + i)
		next := (at + 8 + uint64(len(text)) + 7) &^ 7
		descs.shift(uint64(i)*uint64(f.types.size("prb_desc"))).set("state_var", 2<<62|id).
			set("text_blk_lpos.begin", at).set("text_blk_lpos.next", next)
		infos.shift(uint64(i)*uint64(f.types.size("printk_info"))).set("seq", uint64(i)).set("ts_nsec", uint64(1000*i)).
			set("text_len", uint64(len(text))).set("flags", uint64(i%8)<<5|2).set("caller_id", 7).text("dev_info.subsystem", "pci")
		data.put64(at, id)
		data.put(at+8, []byte(text))
		at = next
	}
	f.variable("prb", 8).put64(0, ring.va)
	return ring
}

func readLog(t *testing.T, k *Kernel) LogBatch {
	t.Helper()
	log, err := k.Log()
	if err != nil {
		t.Fatal(err)
	}
	b, err := log.Read()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLogRing(t *testing.T) {
	want := []LogRecord{
		{Seq: 0, Level: 0, Newline: true, Text: "one", Subsystem: "pci", Caller: printk.Caller{Known: true, ID: 7}},
		{Seq: 1, TimeNs: 1000, Level: 1, Newline: true, Text: "two\nlines", Subsystem: "pci", Caller: printk.Caller{Known: true, ID: 7}},
	}
	for _, name := range []string{"types", "VMCOREINFO", "VMCOREINFO in part"} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, fakeLogTypes)
			addRing(f, "one", "two\nlines")
			if name != "types" {
				f.info["SIZE(prb_desc)"] = fmt.Sprint(f.types.size("prb_desc"))
				f.info["SYMBOL(prb)"] = hexText(f.symbols["prb"])
			}
			if name == "VMCOREINFO" {
				delete(f.symbols, "prb") // as without CONFIG_KALLSYMS_ALL
			}
			k := f.find()
			b := readLog(t, k)
			if diff := cmp.Diff(want, b.Records); diff != "" || len(b.Problems) > 0 {
				t.Errorf("%s, %v", diff, b.Problems)
			}
			log, _ := k.Log()
			if b, err := log.Since(1); err != nil || len(b.Records) != 1 || b.Next != 2 {
				t.Errorf("since 1: %+v, %v", b, err)
			}
			if _, err := log.Since(9); !errors.Is(err, ErrLogAhead) {
				t.Errorf("since 9: %v", err)
			}
		})
	}
}

func TestLogBuffer(t *testing.T) {
	f := newFake(t, fakeLogTypes)
	data := f.alloc(256, 64)
	rec := data
	rec.kind = "printk_log"
	rec.set("ts_nsec", 5000).set("len", 24).set("text_len", 5).set("flags", 4<<5|2)
	rec.put(uint64(f.types.size("printk_log")), []byte("hello"))
	f.variable("log_buf", 8).put64(0, data.va)
	f.variable("log_buf_len", 4).put(0, []byte{0, 1, 0, 0})
	f.variable("log_first_idx", 4)
	f.variable("log_next_idx", 4).put(0, []byte{24, 0, 0, 0})
	f.variable("log_first_seq", 8).put64(0, 77)
	b := readLog(t, f.find())
	want := []LogRecord{{Seq: 77, TimeNs: 5000, Level: 4, Newline: true, Text: "hello"}}
	if diff := cmp.Diff(want, b.Records); diff != "" || len(b.Problems) > 0 {
		t.Errorf("%s, %v", diff, b.Problems)
	}
}

func TestLogBroken(t *testing.T) {
	for _, tt := range []struct {
		name  string
		types string
		spoil func(f *fake)
		want  error
	}{
		{"no log", fakeLogTypes, func(f *fake) {}, ErrNotFound},
		{"no layout", "struct list_head { ptr next; ptr prev; }", func(f *fake) { f.variable("prb", 8) }, printk.ErrCorrupt},
		{"wild prb", fakeLogTypes, func(f *fake) { f.variable("prb", 8).put64(0, 0x1234) }, mem.ErrFault},
		{"giant ring", fakeLogTypes, func(f *fake) { addRing(f, "x").set("desc_ring.count_bits", 0xffffffff) }, printk.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.types)
			tt.spoil(f)
			log, err := f.find().Log()
			if err == nil {
				_, err = log.Read()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

func TestLookupAll(t *testing.T) {
	s := newFakeSystem(t, true)
	s.variable("kvm_init", 8) // a module has one too
	k := s.find()
	type place struct{ Name, Module string }
	got := map[place]uint64{}
	list, problems := k.LookupAll("kvm_init")
	for _, x := range list {
		got[place{x.Name, x.Module}] = x.Addr
	}
	want := map[place]uint64{{"kvm_init", ""}: s.symbols["kvm_init"], {"kvm_init", "kvm"}: s.textOf[0].va + 0x100}
	if diff := cmp.Diff(want, got); diff != "" || len(problems) > 0 || len(list) != 2 || list[1].Size != 0x40 {
		t.Errorf("%s, %v, %+v", diff, problems, list)
	}
	if list, problems := k.LookupAll("nothing"); len(list)+len(problems) > 0 {
		t.Errorf("%v, %v", list, problems)
	}
}
