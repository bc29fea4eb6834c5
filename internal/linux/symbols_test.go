package linux

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"nestdbg/internal/kallsyms"
)

// TestSymbolsFailForAWhile: the search of the whole image is not done again for each
// of the questions that need a symbol, but it is some time later.
func TestSymbolsFailForAWhile(t *testing.T) {
	s := newFakeSystem(t, true)
	src := s.finish()
	image := s.ram[fakeImagePA:][:fakeBannerAt]
	tables := bytes.Clone(image)
	clear(image)
	k, err := Find(src)
	if err != nil {
		t.Fatal(err)
	}
	k.symbols.until = time.Time{} // Find may have asked already
	_, first := k.Symbols()
	if !errors.Is(first, kallsyms.ErrNotFound) {
		t.Fatalf("no tables: %v", first)
	}
	if rest := time.Until(k.symbols.until); rest > 10*time.Second {
		t.Errorf("the next search is in %v", rest)
	}
	copy(image, tables)
	k.symbols.until = time.Now().Add(time.Hour)
	if _, err := k.Symbols(); err != first {
		t.Errorf("asked again: %v, want %v", err, first)
	}
	k.symbols.until = time.Now()
	if table, err := k.Symbols(); err != nil || table.Len() == 0 {
		t.Errorf("later: %v", err)
	}
}
