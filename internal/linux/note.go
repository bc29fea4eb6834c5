package linux

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"nestdbg/internal/mem"
)

// gnuBuildID is the start of a build-id note: name size 4, 20 bytes, type
// NT_GNU_BUILD_ID, name. (ELF gABI, "Note Section"; ld -z build-id.)
var gnuBuildID = []byte("\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00")

// buildIDSize is that of the SHA-1 ids that kernels and modules carry, bytes.
const buildIDSize = 20

// notesMax bounds a section of notes, bytes.
const notesMax = 64 << 10

// findBuildID takes the build id from VMCOREINFO (Linux 5.9), or from the notes
// of the image, and compares them where that is cheap.
func (k *Kernel) findBuildID() {
	id := k.VMCoreInfo["BUILD-ID"]
	if _, err := hex.DecodeString(id); err == nil && id != "" {
		k.BuildID = id
		return
	}
	if id, err := k.buildIDFromSymbols(); err == nil {
		k.BuildID = id
		k.Evidence = append(k.Evidence, "build id from the notes of the image")
		return
	}
	if id := k.image.buildID(); id != "" {
		k.BuildID = id
		k.Evidence = append(k.Evidence, "build id from a note in the image")
		return
	}
	k.problem("the kernel has no build id")
}

// buildIDFromSymbols reads the notes between __start_notes and __stop_notes.
func (k *Kernel) buildIDFromSymbols() (string, error) {
	b, err := k.between("__start_notes", "__stop_notes", notesMax)
	if err != nil {
		return "", err
	}
	return buildIDInNotes(b)
}

// between reads the bytes from one symbol up to another, at most max.
func (k *Kernel) between(first, end string, max uint64) ([]byte, error) {
	a, ok := k.lookupCore(first)
	z, ok2 := k.lookupCore(end)
	if !ok || !ok2 {
		return nil, fmt.Errorf("symbols %s, %s: %w", first, end, ErrNotFound)
	}
	if z <= a || uint64(z-a) > max {
		return nil, fmt.Errorf("%s %#x to %s %#x: %w", first, a, end, z, ErrCorrupt)
	}
	b := make([]byte, z-a)
	if _, err := k.space.ReadVirt(b, a); err != nil {
		return nil, fmt.Errorf("read %s: %w", first, err)
	}
	return b, nil
}

// buildIDInNotes returns the build id among ELF notes.
func buildIDInNotes(b []byte) (string, error) {
	for len(b) >= 12 {
		nameSize := uint64(binary.LittleEndian.Uint32(b))
		descSize := uint64(binary.LittleEndian.Uint32(b[4:]))
		typ := binary.LittleEndian.Uint32(b[8:])
		desc := 12 + (nameSize+3)&^3
		next := desc + (descSize+3)&^3
		if desc+descSize > uint64(len(b)) {
			return "", fmt.Errorf("ELF note of %d+%d bytes in %d: %w", nameSize, descSize, len(b), ErrCorrupt)
		}
		const ntGNUBuildID = 3
		if typ == ntGNUBuildID && nameSize == 4 && string(b[12:16]) == "GNU\x00" && descSize > 0 {
			return hex.EncodeToString(b[desc : desc+descSize]), nil
		}
		b = b[min(next, uint64(len(b))):]
	}
	return "", fmt.Errorf("build id among the notes: %w", ErrNotFound)
}

// buildID searches the image for a build-id note. Notes in the images of the vDSO,
// which the kernel carries as data, are passed over.
func (im *image) buildID() string {
	var id string
	im.windows(len(gnuBuildID)+buildIDSize, func(off uint64, b []byte) bool {
		for at := 0; ; {
			i := bytes.Index(b[at:], gnuBuildID)
			if i < 0 || at+i+len(gnuBuildID)+buildIDSize > len(b) {
				return false
			}
			at += i
			if !im.inELF(off + uint64(at)) {
				at += len(gnuBuildID)
				id = hex.EncodeToString(b[at : at+buildIDSize])
				return true
			}
			at += len(gnuBuildID)
		}
	})
	return id
}

// inELF reports whether one of the pages up to here, a vDSO's worth, starts an ELF file.
func (im *image) inELF(off uint64) bool {
	const vdsoPages = 4
	page := off &^ (pageSize - 1)
	for range vdsoPages {
		var magic [4]byte
		if _, err := im.phys.ReadPhys(magic[:], im.pa+mem.Phys(page)); err == nil && string(magic[:]) == "\x7fELF" {
			return true
		}
		if page == 0 {
			break
		}
		page -= pageSize
	}
	return false
}
