package mem_test

import (
	"errors"
	"os"
	"sync"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// TestShortenedFile: what is gone of a mapped file is an error with its place, whoever
// touches it, and what is left is read on.
func TestShortenedFile(t *testing.T) {
	f, data := memtest.Map(t, 15*4096, 4096)
	if _, err := f.WriteAt([]byte("here"), 4096); err != nil {
		t.Fatal(err)
	}
	copied := func(from int) (text string, err error) {
		defer mem.Catch(&err)()
		p := make([]byte, 4)
		copy(p, data[from:])
		return string(p), nil
	}
	if got, err := copied(0); got != "here" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := f.Truncate(3 * 4096); err != nil {
		t.Fatal(err)
	}
	_, err := copied(5*4096 + 8)
	var lost *mem.LostError
	if !errors.As(err, &lost) || *lost != (mem.LostError{Path: f.Name(), Offset: 6*4096 + 8}) {
		t.Errorf("%v", err)
	}
	if got, err := copied(0); got != "here" || err != nil {
		t.Errorf("behind a fault: %q, %v", got, err)
	}
	// A worker's fault becomes that of the function that waits for it.
	search := func() (err error) {
		defer mem.Catch(&err)()
		var worker sync.WaitGroup
		var of error
		worker.Go(func() { _, of = copied(4 * 4096) })
		worker.Wait()
		panic(of)
	}
	if err := search(); !errors.As(err, &lost) || lost.Offset != 5*4096 {
		t.Errorf("by a worker: %v", err)
	}
}

// TestOtherPanics: what is no loss of a mapped file is not taken for one.
func TestOtherPanics(t *testing.T) {
	panics := map[string]func(){
		"a nil pointer": func() { var p *struct{ n int }; p.n++ },
		"an index":      func() { var s []int; _ = s[len(os.Args)] },
		"a word":        func() { panic("word") },
	}
	for name, f := range panics {
		got := func() (got any) {
			defer func() { got = recover() }()
			var err error
			func() {
				defer mem.Catch(&err)()
				f()
			}()
			return err
		}()
		if err, ok := got.(error); got == nil || ok && errors.As(err, new(*mem.LostError)) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
