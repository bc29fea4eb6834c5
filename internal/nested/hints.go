package nested

import "nestdbg/internal/mem"

// Hint is what a person says of a guest: that there is one, and by what it is known.
type Hint struct {
	// Flag is how it was said: "--vmcb".
	Flag string
	// In is the machine in whose physical memory the address is.
	In string
	// Kind is the technology's name ("VMCB", "VMCS") of a control block at At, or, if
	// Root is set, the format of a second stage whose root is At: "npt4", "ept4".
	Kind string
	Root bool
	At   mem.Phys
}
