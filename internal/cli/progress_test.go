package cli

import (
	"bytes"
	"testing"
	"time"
)

// A search says nothing until it takes long, then how far it is, and leaves the line clean.
func TestSearchProgress(t *testing.T) {
	var out bytes.Buffer
	p := &percent{app: &app{errOut: &out}, name: "searching memory", wait: true}
	p.show(1, 4)
	if p.clear(); out.Len() != 0 {
		t.Errorf("at once: %q", &out)
	}
	p.begun = time.Now().Add(-progressAfter)
	p.show(2, 4)
	if p.clear(); out.String() != "\r\x1b[Ksearching memory: 50 %\r\x1b[K" {
		t.Errorf("after a while: %q", &out)
	}
}
