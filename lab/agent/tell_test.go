package agent

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// What is told of the machine itself is there in blocks, refusals too, and has an end.
func TestTell(t *testing.T) {
	all := verbs{}
	for _, r := range tellRequests {
		name, _, _ := strings.Cut(r, " ")
		all[name] = simple(func(args string) ([]byte, error) { return []byte(name + " says " + args + "\n"), nil })
	}
	all["modules"] = simple(func(string) ([]byte, error) { return nil, errors.New("no such thing") })
	var b bytes.Buffer
	if err := tell([]*vmSlot{{index: 0}}, all, &b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"\n=== l1: ping\nping says \n===\n", "\n=== l1: modules\nerror: no such thing\n===\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "vm0") || !strings.HasSuffix(text, "\n"+TellEnd+"\n") {
		t.Errorf("told\n%s", text)
	}
}
