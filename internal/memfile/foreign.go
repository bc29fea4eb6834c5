package memfile

import (
	"bytes"
	"fmt"
)

// signature is what files of a kind begin with that are no memory of a machine as it
// is, and would pass for some: any bytes could be that.
type signature struct {
	at   int
	text string
	kind string // in words
	do   string // what a person can do, or why nothing
}

const (
	unpackFirst = "unpack it first"
	noMemory    = "it has no memory of a machine"
	forLinux    = "nestdbg knows dumps of QEMU, of makedumpfile and of the kernel itself"
)

// signatures are those of the formats' own descriptions. What a firmware or an operating
// system keeps at the beginning of memory is none of them.
var signatures = []signature{
	{0, "\x1f\x8b\x08", "a file packed by gzip", unpackFirst},
	{0, "\xfd7zXZ\x00", "a file packed by xz", unpackFirst},
	{0, "\x28\xb5\x2f\xfd", "a file packed by zstd", unpackFirst},
	{0, "\x04\x22\x4d\x18", "a file packed by lz4", unpackFirst},
	{0, "\x89LZO\x00\r\n\x1a\n", "a file packed by lzop", unpackFirst},
	{0, "BZh", "a file packed by bzip2", unpackFirst},
	{0, "PK\x03\x04", "a zip archive", unpackFirst},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive", unpackFirst},
	{257, "ustar", "a tar archive", unpackFirst},
	{0, "LibvirtQemudSave", "a machine that libvirt saved", "restore it and use virsh dump --memory-only"},
	{0, "LibvirtQemudPart", "a machine that libvirt began to save", "it is not complete"},
	{0, "EMiL", "memory in the form of LiME", "what its format=padded writes is bare memory, with --layout flat"},
	{0, "AVML", "memory in the form of AVML", "avml-convert makes a raw file of it"},
	{0, "PAGEDU64", "a crash dump of Windows", "WinDbg reads it"},
	{0, "PAGEDUMP", "a crash dump of Windows of 32 bits", "WinDbg reads it"},
	{0, "\xed\x23\x8f\x61\x73\x01\x19\xa8", "a dump of LKCD", forLinux},
	{0, "LinuxGuestRecord", "a machine that Xen saved", forLinux},
	{0, "LibxenFmt", "a machine that Xen saved", forLinux},
	{0, "\x7fVirtualBox SavedState", "a machine that VirtualBox saved", "VBoxManage debugvm NAME dumpvmcore writes an ELF core"},
	{0, "\xd2\xbe\xd2\xbe", "a machine that VMware suspended", "its memory is in the .vmem file beside it"},
	{0, "\xd1\xba\xd1\xba", "a snapshot of VMware", "its memory is in the .vmem file beside it"},
	{0, "\xd3\xbe\xd2\xbe", "a machine that VMware suspended", "its memory is in the .vmem file beside it"},
	{0, "QFI\xfb", "a disk image in the form of qcow2", noMemory},
	{0, "QED\x00", "a disk image in the form of QED", noMemory},
	{0, "KDMV", "a disk image of VMware", noMemory},
	{0, "# Disk DescriptorFile", "a disk image of VMware", noMemory},
	{64, "\x7f\x10\xda\xbe", "a disk image of VirtualBox", noMemory},
	{0, "vhdxfile", "a disk image of Hyper-V", noMemory},
	{0, "conectix", "a disk image of Hyper-V", noMemory},
	{512, "EFI PART", "a disk image", noMemory},
	{4086, "S1SUSPEND", "a disk on which Linux hibernates", noMemory + " that can be read"},
	{4086, "SWAPSPACE2", "a swap area of Linux", noMemory},
	{4086, "SWAP-SPACE", "a swap area of Linux", noMemory},
	{0, "hibr", "a hibernation file of Windows", forLinux},
	{0, "HIBR", "a hibernation file of Windows", forLinux},
}

// foreign says that a file that begins like this is of a kind that is not read, nil if
// it is of none that is known.
func foreign(head []byte) error {
	for _, s := range signatures {
		if len(head) > s.at && bytes.HasPrefix(head[s.at:], []byte(s.text)) {
			return fmt.Errorf("at %#x: it is %s: %s: %w", s.at, s.kind, s.do, ErrForeign)
		}
	}
	return nil
}
