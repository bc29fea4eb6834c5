// Package snapshot keeps a machine as files: its RAM, its device state, and a
// manifest that says what they are. A snapshot is a directory:
//
//	manifest.json  what is there, written last
//	ram            the bytes of RAM, one range after the other; a sparse file
//	ram.crc32c     CRC-32C of each chunk of ram, 4 bytes little-endian each
//	devices        QEMU's device state (a migration stream without RAM)
//
// A directory without a manifest is no snapshot, and Create gives the directory
// its name when everything is on the disk: what was interrupted does not look
// whole. Reading checks each chunk of RAM when it is first needed; a damaged one
// cannot be read, and says so.
package snapshot

// The names of the files.
const (
	manifestFile = "manifest.json"
	ramFile      = "ram"
	sumsFile     = "ram.crc32c"
	devicesFile  = "devices"
)
