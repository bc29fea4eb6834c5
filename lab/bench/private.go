package main

import (
	"fmt"
	"os"
	"strings"
)

// privateTarget is the most private memory that a server may have, in bytes.
const privateTarget = 100 << 20

// privateMemory is the row for what a smaps file of nestdbg says.
func (f *frozen) privateMemory(smaps string) (row, error) {
	text, err := os.ReadFile(smaps)
	if err != nil {
		return row{}, err
	}
	private, anonymous := privateBytes(string(text), f.lab.MemoryFile)
	if private == 0 {
		return row{}, fmt.Errorf("%s says nothing of private memory", smaps)
	}
	ram := f.lab.Machine("l1").MemBytes
	return row{
		question: fmt.Sprintf("private memory, RAM of %d MiB", ram>>20),
		ours:     fmt.Sprintf("%.1f MB", float64(private)/1e6),
		target:   fmt.Sprintf("< %d MB", privateTarget>>20),
		verdict:  judge(private < privateTarget),
		notes: []string{fmt.Sprintf("nestdbg with gdb attached to all machines, after the last read of the row above: "+
			"Private_Clean and Private_Dirty of all mappings but the RAM file; %.1f MB of it anonymous", float64(anonymous)/1e6)},
	}, nil
}

// privateBytes adds up the private memory in a smaps file (Linux document "The
// /proc Filesystem"), the mappings of one file left out; anonymous is the part
// that comes from no file at all.
func privateBytes(smaps, without string) (private, anonymous uint64) {
	counts := false
	for line := range strings.Lines(smaps) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var kB uint64
		fmt.Sscanf(value, "%d kB", &kB)
		switch {
		case strings.Contains(key, "-") && !strings.HasPrefix(key, "Vm"):
			// A mapping begins: FIRST-END PERMISSIONS OFFSET DEVICE INODE PATH.
			counts = !strings.HasSuffix(strings.TrimSpace(line), " "+without)
		case !counts:
		case key == "Private_Clean" || key == "Private_Dirty":
			private += kB << 10
		case key == "Anonymous":
			anonymous += kB << 10
		}
	}
	return private, anonymous
}
