package linux

import (
	"errors"
	"testing"

	"nestdbg/internal/orc"
)

// TestORCVersionIsFoundOnce: a failure is not kept, a version is.
func TestORCVersionIsFoundOnce(t *testing.T) {
	var c orcCache
	broken := errors.New("broken")
	asked := 0
	for _, answer := range []struct {
		version orc.Version
		err     error
		want    orc.Version
	}{{0, broken, 0}, {orc.V2, nil, orc.V2}, {orc.V3, nil, orc.V2}, {0, broken, orc.V2}} {
		got, err := c.version(func() (orc.Version, error) { asked++; return answer.version, answer.err })
		if got != answer.want || (err == nil) != (answer.want != 0) {
			t.Errorf("%d, %v; want %d", got, err, answer.want)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}
