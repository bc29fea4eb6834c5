package symfile

import (
	"encoding/hex"
	"testing"

	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
)

// TestArguments counts the parameters of prototypes that have a register. In the
// prototypes i is int, p a pointer, w 16 bytes, s a structure of 8 bytes, b one of
// 24, v void, x a float; the first is the result.
func TestArguments(t *testing.T) {
	for proto, want := range map[string]int{
		"v": 0, "vi": 1, "vpippip": 6, "vipippipi": 6, "vip": 2,
		"ipwp": 1, "isp": 0, "sip": 2, "wip": 2, "bip": 0, "vxi": 0, "vpv": 1,
	} {
		var b rawBTF
		id := map[rune]uint32{
			'v': 0,
			'i': b.add("int", btf.Int, 0, 4, 1<<24|32),
			'w': b.add("__int128", btf.Int, 0, 16, 1<<24|128),
			's': b.add("s", btf.Struct, 1, 8, b.name("m"), 1, 0),
			'b': b.add("b", btf.Struct, 0, 24),
			'x': b.add("float", btf.Float, 0, 4),
		}
		id['p'] = b.add("t", btf.Typedef, 0, b.add("", btf.Const, 0, b.add("", btf.Ptr, 0, 1)))
		var parameters []uint32
		for _, c := range proto[1:] {
			parameters = append(parameters, b.name("a"), id[c])
		}
		b.add("", btf.FuncProto, uint32(len(proto)-1), id[rune(proto[0])], parameters...)
		table, err := parseBTF(b.bytes(), nil)
		if err != nil {
			t.Fatal(err)
		}
		d := describer{types: types{own: table}, notes: &notes{}}
		d.check(d.notes)
		r := table.record(table.Len() - 1)
		if got := d.arguments(&r); got != want {
			t.Errorf("%s: %d arguments, want %d", proto, got, want)
		}
	}
}

// codeAt is memory that holds some bytes at an address and nothing behind them.
type codeAt []byte

func (c codeAt) ReadVirt(p []byte, a mem.Virt) (int, error) {
	n := copy(p, c)
	if n < len(p) {
		return n, &mem.FaultError{Space: "test", Addr: uint64(a) + uint64(n)}
	}
	return n, nil
}

func TestEntrySize(t *testing.T) {
	for _, c := range []struct {
		name, code string
		want       uint64
	}{
		{"nothing to read", "", 0},
		{"other code", "4889f8c3", 0},
		{"endbr64", "f30f1efa4889f8", 4},
		{"sealed endbr64", "660f1f00c3", 4},
		{"ftrace", "0f1f440000c3", 5},
		{"all", "f30f1efa0f1f440000554889e5", 13},
		{"without ftrace", "f30f1efa554889e5c3", 8},
		{"push only", "5531ed", 1},
		{"call of fentry", "f30f1efae800000000", 4},
		{"wrong order", "55f30f1efa", 1},
		{"cut off", "f30f1e", 0},
	} {
		code, err := hex.DecodeString(c.code)
		if err != nil {
			t.Fatal(err)
		}
		if got := entrySize(&codeWindow{code: codeAt(code)}, text); got != c.want {
			t.Errorf("%s: %d bytes, want %d", c.name, got, c.want)
		}
	}
	if got := entrySize(&codeWindow{}, text); got != 0 {
		t.Errorf("no code: %d bytes", got)
	}
}
