package lab

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
)

// fakeProcess is memory of a process: mappings with bytes, the large one with none.
type fakeProcess map[uint64][]byte

func (f fakeProcess) ReadAt(p []byte, at int64) (int, error) {
	for first, b := range f {
		if uint64(at) >= first && uint64(at) < first+uint64(len(b)) {
			return copy(p, b[uint64(at)-first:]), nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}

func TestFindBlocks(t *testing.T) {
	const count, ramAt, heapAt = 64, 0x7f0000001000, 0x5500_0000_0000
	maps := []mapping{{heapAt, heapAt + 0x2000}, {ramAt, ramAt + count*bochsBlock}}
	heap := func(change func(blocks []uint64)) fakeProcess {
		blocks := make([]uint64, count)
		for i := range uint64(40) { // in the order of first touch
			blocks[(7*i)%count] = ramAt + i*bochsBlock
		}
		change(blocks)
		b := make([]byte, 0x2000)
		binary.LittleEndian.PutUint64(b[0x400:], 8*count+16|1)
		for i, x := range blocks {
			binary.LittleEndian.PutUint64(b[0x408+8*i:], x)
		}
		return fakeProcess{heapAt: b}
	}
	var want []uint64
	found, err := findBlocks(heap(func(b []uint64) { want = slices.Clone(b) }), maps, count)
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("%#x, %v", found, err)
	}
	for name, change := range map[string]func([]uint64){
		"outside the mapping": func(b []uint64) { b[7] = ramAt - bochsBlock },
		"not a block":         func(b []uint64) { b[7] += 8 },
		"one twice":           func(b []uint64) { b[7] = b[14] },
		"nothing at 0":        func(b []uint64) { b[0] = 0 },
		"nearly empty":        func(b []uint64) { clear(b[1:]) },
	} {
		if found, err := findBlocks(heap(change), maps, count); err == nil {
			t.Errorf("%s: %#x", name, found)
		}
	}
	if _, err := findBlocks(heap(func([]uint64) {}), maps[:1], count); err == nil || !strings.Contains(err.Error(), "no array") {
		t.Errorf("without a large mapping: %v", err)
	}
}

// TestFindBlocksJoined has an array that is large enough for a mapping of its own, which is joined
// with that of the blocks.
func TestFindBlocksJoined(t *testing.T) {
	const count, at, pages = 20480, 0x7f0000000000, 41 // of 20480 addresses and two words
	const ramAt = at + pages*4096 + 0x10
	text := make([]byte, ramAt-at)
	binary.LittleEndian.PutUint64(text[8:], pages*4096|2)
	for i := range uint64(40) {
		binary.LittleEndian.PutUint64(text[16+8*(7*i):], ramAt+i*bochsBlock)
	}
	maps := []mapping{{at, ramAt + bochsHost}}
	found, err := findBlocks(fakeProcess{at: text}, maps, count)
	if err != nil || len(found) != count || found[0] != ramAt || found[7] != ramAt+bochsBlock || found[1] != 0 {
		t.Errorf("%d blocks, %v", len(found), err)
	}
}

func TestWritable(t *testing.T) {
	got := writable("7f0000000000-7f0000002000 rw-p 00000000 00:00 0\n" +
		"7f0000002000-7f0000003000 r-xp 00000000 08:01 42 /usr/lib/x.so\n" +
		"7f0000003000-7f0000004000 rw-s 00000000 08:01 42 /tmp/x\nnonsense\n")
	if len(got) != 1 || got[0] != (mapping{0x7f0000000000, 0x7f0000002000}) {
		t.Errorf("%#x", got)
	}
}
