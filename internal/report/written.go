package report

import (
	"fmt"
	"io"
)

// Written is memory that was written.
type Written struct {
	Machine string `json:"machine"`
	Space   string `json:"space"` // "va" or "pa"
	Addr    Hex    `json:"addr"`
	Size    int    `json:"size"` // in bytes
}

// Text implements Report.
func (x *Written) Text(w io.Writer) {
	fmt.Fprintf(w, "%d bytes written at %s:%s of %s\n", x.Size, x.Space, x.Addr, x.Machine)
}
