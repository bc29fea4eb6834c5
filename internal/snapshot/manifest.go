package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"nestdbg/internal/mem"
)

// Format is the version of the form of a snapshot that this package writes, and
// the only one that it reads.
const Format = 1

// ErrCorrupt is the class of snapshots that are damaged or incomplete, and
// ErrNone that of directories that are none.
var (
	ErrCorrupt = errors.New("damaged snapshot")
	ErrNone    = errors.New("no snapshot")
)

// Machine is what a snapshot was taken of, in QEMU's words.
type Machine struct {
	Version string `json:"version"` // of QEMU
	Accel   string `json:"accel"`
	Arch    string `json:"arch"` // "x86_64"
	Type    string `json:"machine"`
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	CPUs    int    `json:"cpus"`
	// PhysBits is how many bits their physical addresses have; 0 if it did not say.
	PhysBits uint `json:"phys_bits,omitempty"`
}

// Range is a part of physical memory in the file ram.
type Range struct {
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
	Offset uint64 `json:"offset"` // of First in the file
}

// Manifest says what a snapshot is.
type Manifest struct {
	Format  int       `json:"format"`
	Nestdbg string    `json:"nestdbg,omitempty"` // the version that wrote it
	Created time.Time `json:"created"`
	Machine Machine   `json:"qemu"`
	// Live says that the machine ran on while its memory was copied: the pages are
	// not of one moment, and the device state is of its beginning.
	Live bool `json:"live"`
	// WasRunning says whether the machine ran before it was stopped for this.
	WasRunning bool `json:"was_running"`
	// DevicesLost says why there is no device state, and so no register: it went with
	// QEMU. Empty if it is there.
	DevicesLost string `json:"devices_lost,omitempty"`
	// StoppedSeconds is how long the machine stood still for it.
	StoppedSeconds float64 `json:"stopped_seconds"`

	Ranges      []Range `json:"ranges"`
	RAMSize     uint64  `json:"ram_size"`       // bytes of the file ram
	RAMStored   uint64  `json:"ram_stored"`     // bytes of it that are not zero pages
	ChunkSize   uint64  `json:"chunk_size"`     // bytes of ram that a checksum is for
	SumsHash    string  `json:"sums_sha256"`    // of the file ram.crc32c
	DevicesHash string  `json:"devices_sha256"` // of the file devices

	// Checksum is the CRC-32C of this manifest's JSON with an empty Checksum.
	Checksum string `json:"checksum"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode is the manifest's JSON. With Checksum empty it is what is summed.
func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

func (m *Manifest) sum() (string, error) {
	bare := *m
	bare.Checksum = ""
	b, err := bare.encode()
	return fmt.Sprintf("%08x", crc32.Checksum(b, castagnoli)), err
}

// Bounds of a manifest and of what it may ask for.
const (
	maxManifest = 1 << 20
	maxRanges   = 4096
	maxChunk    = 64 << 20
)

// readManifest reads and checks the manifest of a directory.
func readManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, manifestFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no %s", ErrNone, dir, manifestFile)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// parseManifest checks everything that the rest of the package relies on.
func parseManifest(b []byte) (*Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: at byte %d: %w", ErrCorrupt, d.InputOffset(), err)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("%w: it has format %d, and format %d is understood", ErrCorrupt, m.Format, Format)
	}
	// Keys of another case or other white space are damage too.
	if again, err := m.encode(); err != nil || !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: it is not as it was written", ErrCorrupt)
	}
	if sum, err := m.sum(); err != nil || sum != m.Checksum {
		return nil, fmt.Errorf("%w: its checksum is %s, not %.20q", ErrCorrupt, sum, m.Checksum)
	}
	if m.ChunkSize == 0 || m.ChunkSize%pageSize != 0 || m.ChunkSize > maxChunk || len(m.Ranges) > maxRanges {
		return nil, fmt.Errorf("%w: chunks of %d bytes, %d ranges", ErrCorrupt, m.ChunkSize, len(m.Ranges))
	}
	end := uint64(0) // of the ranges so far, in the file
	for i, r := range m.Ranges {
		span := mem.Range{First: r.First, Last: r.Last}
		if r.Last < r.First || r.Offset != end || span.Size() > m.RAMSize-end ||
			i > 0 && r.First <= m.Ranges[i-1].Last {
			return nil, fmt.Errorf("%w: range %#x to %#x at %#x of %#x bytes", ErrCorrupt, r.First, r.Last, r.Offset, m.RAMSize)
		}
		end += span.Size()
	}
	if end != m.RAMSize {
		return nil, fmt.Errorf("%w: ranges of %#x bytes in a file of %#x", ErrCorrupt, end, m.RAMSize)
	}
	return &m, nil
}

// chunks is how many checksums there are.
func (m *Manifest) chunks() uint64 {
	n := m.RAMSize / m.ChunkSize
	if m.RAMSize%m.ChunkSize != 0 {
		n++
	}
	return n
}

func hashOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

const pageSize = 4096
