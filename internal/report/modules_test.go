package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
)

// TestModules: who needs a module is shown as lsmod does, and what the kernel does not
// count is not zero.
func TestModules(t *testing.T) {
	r := Modules{Machine: "l1", Problems: []string{"module at 0x10: cannot be read"}}
	for _, m := range []linux.Module{
		{Name: "kvm", Size: 1142784, Base: 0xffffffffc0500000, BuildID: strings.Repeat("ab", 20), Taints: "OE",
			Use: linux.ModuleUse{Counted: true, Refs: 3, Users: []string{"kvm_amd", "irq\x1bby"}}},
		{Name: "alone", Size: 4096, State: linux.ModuleGoing, Use: linux.ModuleUse{Counted: true, Refs: -1}},
		{Name: "stays", Use: linux.ModuleUse{Counted: true, Refs: 1, Users: []string{"kvm"}, Permanent: true}},
		{Name: "old"},
	} {
		r.Modules = append(r.Modules, newModule(&m))
	}
	const want = `
NAME                          SIZE BASE               STATE      BUILD ID                                 USED BY
kvm                        1142784 0xffffffffc0500000 live (OE)  abababababababababababababababababababab 3 kvm_amd,irq\x1bby
alone                         4096 0x0                going      unknown                                  -1
stays                            0 0x0                live       unknown                                  1 kvm,[permanent]
old                              0 0x0                live       unknown                                  -
not read: module at 0x10: cannot be read
`
	var text, script bytes.Buffer
	r.Text(&text)
	if diff := cmp.Diff(want[1:], text.String()); diff != "" {
		t.Error(diff)
	}
	if err := JSON(&script, &r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Modules []map[string]any
	}
	if err := json.Unmarshal(script.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"3 [kvm_amd irq\x1bby] <nil> OE", "-1 [] <nil> <nil>", "1 [kvm] true <nil>", "<nil> <nil> <nil> <nil>"} {
		m := got.Modules[i]
		if s := fmt.Sprint(m["refs"], " ", m["used_by"], " ", m["permanent"], " ", m["taints"]); s != want {
			t.Errorf("%v: %s, want %s", m["name"], s, want)
		}
	}
}
