package cli

import (
	"os"
	"testing"
)

func TestParseSymbols(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSymbols([]string{"/usr/lib/x", "vm0.vm1=" + self, "l1=" + self + "@0x123400000", "./l1=x", "vm0.vm1=" + self + "@f000"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.dirs) != 2 || got.dirs[1] != "./l1=x" || len(got.byMachine) != 2 || len(got.byMachine["vm0.vm1"]) != 2 {
		t.Fatalf("%+v", got)
	}
	for _, i := range append(got.byMachine["vm0.vm1"], got.byMachine["l1"]...) {
		if i.Path != self {
			t.Errorf("path %s", i.Path)
		}
	}
	if i := got.byMachine["l1"][0]; i.Base != 0x123400000 {
		t.Errorf("base %#x", i.Base)
	}
	for _, wrong := range []string{"l1=/nowhere", "l1=" + self + "@xyz", "vm0=/etc/passwd"} {
		if _, err := parseSymbols([]string{wrong}); !isUsage(err) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}
