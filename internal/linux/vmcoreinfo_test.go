package linux

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"nestdbg/internal/mem"
)

func TestParseVMCoreInfo(t *testing.T) {
	tests := []struct {
		name, text string
		want       VMCoreInfo
		err        error
	}{
		{name: "lines", text: "OSRELEASE=6.1\nSYMBOL(a)=ff00\n\x00junk", want: VMCoreInfo{"OSRELEASE": "6.1", "SYMBOL(a)": "ff00"}},
		{name: "value with =", text: "OSRELEASE=6.1\nCRASHTIME=a=b\n", want: VMCoreInfo{"OSRELEASE": "6.1", "CRASHTIME": "a=b"}},
		{name: "cut line", text: "OSRELEASE=6.1\nSYMBOL(a)=ff", want: VMCoreInfo{"OSRELEASE": "6.1"}},
		{name: "other", text: "RELEASE=6.1\n", err: ErrNotFound},
		{name: "empty", text: "", err: ErrNotFound},
		{name: "binary", text: "OSRELEASE=6.1\n\x01=x\n", err: ErrCorrupt},
		{name: "no value", text: "OSRELEASE=6.1\nfoo\n", err: ErrCorrupt},
		{name: "no release", text: "OSRELEASE=\n", err: ErrCorrupt},
		{name: "longer than a page", text: "OSRELEASE=6.1\n" + strings.Repeat("x=1\n", 2000),
			want: VMCoreInfo{"OSRELEASE": "6.1", "x": "1"}},
	}
	for _, tt := range tests {
		got, err := ParseVMCoreInfo([]byte(tt.text))
		if !errors.Is(err, tt.err) || !maps.Equal(got, tt.want) {
			t.Errorf("%s: got %v, %v; want %v, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func TestVMCoreInfoValues(t *testing.T) {
	i := VMCoreInfo{"SYMBOL(a)": "ffffffff81000000", "SYMBOL(z)": "xyz", "NUMBER(phys_base)": "-16777216",
		"NUMBER(mask)": "0xffffffffffffffff", "OFFSET(page.flags)": "0", "SIZE(page)": "64", "LENGTH(m)": "2048",
		"KERNELOFFSET": "19000000", "OFFSET(bad)": "-1"}
	if a, ok := i.Symbol("a"); !ok || a != 0xffffffff81000000 {
		t.Errorf("symbol %#x, %v", a, ok)
	}
	if _, ok := i.Symbol("z"); ok {
		t.Error("symbol that is no number")
	}
	if n, ok := i.Number("phys_base"); !ok || n != -16777216 {
		t.Errorf("number %d, %v", n, ok)
	}
	if n, ok := i.Number("mask"); !ok || n != -1 {
		t.Errorf("number %d, %v", n, ok)
	}
	if n, ok := i.Offset("page.flags"); !ok || n != 0 {
		t.Errorf("offset %d, %v", n, ok)
	}
	if _, ok := i.Offset("bad"); ok {
		t.Error("negative offset")
	}
	if n, ok := i.SizeOf("page"); !ok || n != 64 {
		t.Errorf("size %d, %v", n, ok)
	}
	if n, ok := i.Length("m"); !ok || n != 2048 {
		t.Errorf("length %d, %v", n, ok)
	}
	if n, ok := i.slide(); !ok || n != 0x19000000 {
		t.Errorf("slide %#x, %v", n, ok)
	}
	if _, ok := (VMCoreInfo)(nil).Symbol("a"); ok {
		t.Error("symbol of nothing")
	}
}

func FuzzVMCoreInfo(f *testing.F) {
	f.Add([]byte("OSRELEASE=6.1\nSYMBOL(a)=ff00\nNUMBER(x)=-1\n\x00"))
	f.Add([]byte("\x0b\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00VMCOREINFO\x00\x00OSRELEASE=6.1\n"))
	f.Fuzz(func(t *testing.T, page []byte) {
		if text := vmcoreinfoIn(page); text != nil && !strings.HasPrefix(string(text), "OSRELEASE=") {
			t.Fatal("not the text")
		}
		info, err := ParseVMCoreInfo(page)
		if (info == nil) == (err == nil) {
			t.Fatalf("value %v and error %v", info, err)
		}
		for key := range info {
			name, _ := strings.CutPrefix(strings.TrimSuffix(key, ")"), "SYMBOL(")
			info.Symbol(name)
			info.Number(name)
			info.Offset(name)
		}
		scanVMCoreInfo(fakeRAM(page), []mem.Range{{First: 0, Last: ^uint64(0) >> 40}}, func(_ mem.Phys, i VMCoreInfo) {
			if i["OSRELEASE"] == "" {
				t.Fatal("VMCOREINFO without release")
			}
		})
	})
}
