package tests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"nestdbg/lab"
)

// write is "nestdbg write" of bytes, which must succeed and leave the machine as
// it was, running or not.
func write(t testing.TB, l *lab.Lab, machine, where string, data []byte) {
	t.Helper()
	before := runState(t, l)
	must(t, l, "write", "-m", machine, where, fmt.Sprintf("%x", data))
	if after := runState(t, l); after != before {
		t.Fatalf("write %s: the machine was %s and is %s", where, before, after)
	}
}

// examine reads bytes with "nestdbg x".
func examine(t testing.TB, l *lab.Lab, machine, where string, size int) []byte {
	t.Helper()
	r := decode[memoryReport](t, must(t, l, fmt.Sprintf("x/%dbx", size), "--json", "-m", machine, where))
	if len(r.Lines) == 0 || r.Fault != "" {
		t.Fatalf("x %s: %+v", where, r)
	}
	return r.bytes(t, uint64(r.Lines[0].Addr))
}

// TestWriteIsSeenByTheProcess writes into pages of the pattern, by physical and by
// virtual address, and asks L2 what its process has there.
func TestWriteIsSeenByTheProcess(t *testing.T) {
	l := sharedLab(t, "kaslr")
	p := patternOf(t, l, "vm0")
	base := binary.LittleEndian.Uint64(examine(t, l, "vm0", "page_offset_base", 8))
	for i, x := range []patternPage{p.pages[17], p.pages[len(p.pages)-2]} {
		const offset = 0x123
		where := fmt.Sprintf("pa:%#x", x.phys+offset)
		if i == 1 {
			where = fmt.Sprintf("%#x", base+x.phys+offset)
		}
		old, data := x.bytes()[offset:][:16], []byte("nested write #1.")
		write(t, l, "vm0", where, data)
		t.Cleanup(func() { write(t, l, "vm0", where, old) })
		// Around what was written too: not a byte more may change.
		dump := ask(t, l, "vm0", fmt.Sprintf("exec dd if=/proc/%d/mem bs=4096 skip=%d count=1 2>/dev/null | "+
			"dd bs=1 skip=%d count=18 2>/dev/null | od -An -v -t x1", p.pid, x.virt/4096, offset-1))
		want := append(append([]byte{x.bytes()[offset-1]}, data...), x.bytes()[offset+16])
		if got := unhex(t, strings.Join(strings.Fields(dump), "")); !bytes.Equal(got, want) {
			t.Errorf("write to %s: the process has %x, want %x", where, got, want)
		}
		if got := examine(t, l, "vm0", where, 16); !bytes.Equal(got, data) {
			t.Errorf("write to %s: read back %q", where, got)
		}
	}
}

// TestWriteToAVariable changes a variable of each kernel by name and asks the
// kernel for its value.
func TestWriteToAVariable(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, m := range []string{"l1", "vm0"} {
		const variable = "/proc/sys/kernel/panic_on_oops"
		old := strings.TrimSpace(ask(t, l, m, "cat "+variable))
		write(t, l, m, "panic_on_oops", []byte{1, 2, 0, 0})
		if got := strings.TrimSpace(ask(t, l, m, "cat "+variable)); got != "513" {
			t.Errorf("%s says %s is %s, want 513", m, variable, got)
		}
		ask(t, l, m, "exec echo "+old+" > "+variable)
	}
}

// TestWriteToCode changes an instruction that QEMU has translated already, in a
// running guest and in one that stands still: the shell's $PPID comes from getppid.
func TestWriteToCode(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, m := range []string{"l1", "vm0"} {
		parent := func() string { return strings.TrimSpace(ask(t, l, m, "exec echo $PPID")) }
		const function = "__x64_sys_getppid"
		old := examine(t, l, m, function, 6)
		for i, answer := range []string{"4711", "4712"} {
			if got := parent(); got != "1" {
				t.Fatalf("%s: the agent is process %s", m, got)
			}
			thaw := func() {}
			if i == 1 {
				thaw = freeze(t, l)
			}
			// mov $answer,%eax; ret
			code := append(binary.LittleEndian.AppendUint32([]byte{0xb8}, uint32(4711+i)), 0xc3)
			write(t, l, m, function, code)
			thaw()
			if got := parent(); got != answer {
				t.Errorf("%s: getppid gives %s, want %s", m, got, answer)
			}
			write(t, l, m, function, old)
		}
		if got := parent(); got != "1" {
			t.Errorf("%s: with its own code again, getppid gives %s", m, got)
		}
	}
}

// TestWriteIsWholeOrNotAtAll writes across the end of what is mapped.
func TestWriteIsWholeOrNotAtAll(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	st := decode[statusReport](t, must(t, l, "status", "--json"))
	end := st.RAM.Size - 4 // L1 has no RAM behind it
	where := fmt.Sprintf("pa:%#x", end)
	old := examine(t, l, "l1", where, 4)
	r := nestdbg(t, on(l, "write", "-m", "l1", where, "0102030405060708")...)
	checkRefused(t, r, fmt.Sprintf("%#x", st.RAM.Size>>4), "no RAM")
	if got := examine(t, l, "l1", where, 4); !bytes.Equal(got, old) {
		t.Errorf("a write that failed left %x, want %x", got, old)
	}
	if got := runState(t, l); got != "paused" {
		t.Errorf("after a write that failed the machine is %s, it was paused", got)
	}
}
