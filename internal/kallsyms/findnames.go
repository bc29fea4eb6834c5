package kallsyms

import (
	"encoding/binary"
	"slices"
)

// nameRegion is where the names are, as offsets in the image.
type nameRegion struct {
	numSyms  int // the word that holds count
	names    int
	namesEnd int // where they end, or the padding behind them
	count    int
	markers  []int // where blocks begin, counted from names
}

// namesBefore finds the names before a token table: first markers, which begin
// with zero and grow in steps of a certain size, then the names before them,
// which must agree with every marker and with the count before them.
func (f *finder) namesBefore(tokenTable int) (nameRegion, bool) {
	for word := 4; word <= 8; word += 4 {
		for at := f.alignUp(tokenTable-8, 4); at >= 0 && at > tokenTable-maxBack; at -= 4 {
			if f.work--; f.work <= 0 {
				return nameRegion{}, false
			}
			run := f.markerRun(at, tokenTable, word)
			if len(run) < 2 {
				continue
			}
			// What follows the last marker may go on growing by accident, so a few
			// shorter runs are tried as well.
			for last := len(run); last >= 2 && last > len(run)-4; last-- {
				if r, ok := f.namesWith(at, run[:last], word); ok {
					return r, true
				}
			}
		}
	}
	return nameRegion{}, false
}

// markerRun reads markers of word bytes each at offset at, for as long as they
// are such.
func (f *finder) markerRun(at, end, word int) []int {
	if f.word(at, word) != 0 {
		return nil
	}
	run := []int{0}
	for at += word; at+word <= end && len(run) <= maxSymbols/markerStep; at += word {
		v, last := f.word(at, word), uint64(run[len(run)-1])
		if v < last+minGroup || v > last+maxGroup {
			break
		}
		run = append(run, int(v))
	}
	return run
}

// namesWith finds the names that end where markers start. They begin about as
// many bytes before it as the last marker says, right behind a count that fits
// the number of markers.
func (f *finder) namesWith(at int, markers []int, word int) (nameRegion, bool) {
	full := (len(markers) - 1) * markerStep
	newest := at - markers[len(markers)-1] - 1
	for names := f.alignUp(newest-3, 4); names >= 8 && names >= newest-maxGroup; names -= 4 {
		f.work--
		// num_syms is padded to 8 bytes, since v7.0 to 4.
		for _, numSyms := range [2]int{names - 8, names - 4} {
			if numSyms+word > names {
				continue
			}
			count := f.word(numSyms, word)
			if count <= uint64(full) || count > uint64(full+markerStep) {
				continue
			}
			if end, ok := f.walkNames(names, at, int(count), markers); ok {
				return nameRegion{numSyms, names, end, int(count), markers}, true
			}
			if f.work <= 0 {
				return nameRegion{}, false
			}
		}
	}
	return nameRegion{}, false
}

// walkNames walks count names from offset names, requires every marker to be
// right and only padding before limit, and returns where the names end.
func (f *finder) walkNames(names, limit, count int, markers []int) (end int, ok bool) {
	at := names
	for i := range count {
		if i%markerStep == 0 {
			f.work -= markerStep
			if markers[i/markerStep] != at-names {
				return 0, false
			}
		}
		if _, at, ok = splitName(f.image[:limit], at); !ok {
			return 0, false
		}
	}
	return at, f.alignUp(at, 4) == limit || f.alignUp(at, 8) == limit
}

// damagedNamesBefore is namesBefore for what was overwritten in part. How many markers
// there are follows from their distance to the token table: nothing is between but
// padding, or seqs_of_names.
func (f *finder) damagedNamesBefore(tt *tokenTable) (nameRegion, bool) {
	for word := 4; word <= 8; word += 4 {
		for at := f.alignUp(tt.start-8, 4); at >= 0 && at > tt.start-maxBack; at -= 4 {
			if f.work--; f.work <= 0 {
				return nameRegion{}, false
			}
			if f.word(at, word) != 0 {
				continue
			}
			room := tt.start - at
			with := word + 3*markerStep // bytes per block with seqs_of_names
			for _, blocks := range [...]int{room / word, room/word - 1, room / with, room/with + 1} {
				if blocks > maxSymbols/markerStep {
					continue
				}
				if run := f.roughMarkers(at, blocks, word); run != nil {
					if r, ok := f.damagedNamesWith(at, run, word, tt.tokens); ok {
						return r, true
					}
				}
			}
		}
	}
	return nameRegion{}, false
}

// damagedNamesWith is namesWith for names or markers of which some are wrong. One of the
// last three markers is right.
func (f *finder) damagedNamesWith(at int, markers []int, word int, t *tokens) (nameRegion, bool) {
	full := (len(markers) - 1) * markerStep
	for back := 1; back <= min(3, len(markers)); back++ {
		newest := at - markers[len(markers)-back] - 1
		for names := f.alignUp(newest-3, 4); names >= 8 && names >= newest-back*maxGroup; names -= 4 {
			if f.work--; f.work <= 0 {
				return nameRegion{}, false
			}
			for _, numSyms := range [2]int{names - 8, names - 4} {
				if numSyms+word > names {
					continue
				}
				count := f.word(numSyms, word)
				if count <= uint64(full) || count > uint64(full+markerStep) {
					continue
				}
				f.work -= int(count)
				if _, err := markedNames(t, f.image[names:at], int(count), markers); err == nil {
					return nameRegion{numSyms, names, at, int(count), slices.Clone(markers)}, true
				}
			}
		}
	}
	return nameRegion{}, false
}

// word reads a little-endian word of 4 or 8 bytes, which must be in the image.
func (f *finder) word(at, size int) uint64 {
	if size == 8 {
		if at+8 > len(f.image) {
			return 0
		}
		return binary.LittleEndian.Uint64(f.image[at:])
	}
	return uint64(binary.LittleEndian.Uint32(f.image[at:]))
}
