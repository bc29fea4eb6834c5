package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"

	"nestdbg/lab/wire"
)

// Told marks what a machine without channels says of itself and its VMs on its console,
// so that the truth is there to compare with when the machine is gone:
//
//	=== vm0: tasks
//	one line or more
//	===
//
// and behind the last one a line TellEnd.
const (
	Told    = "=== "
	ToldEnd = "==="
	TellEnd = "=== that is all"
)

// Requests of those that are told of each machine.
const (
	TellSymbols = "exec grep -E ' (_text|_etext|schedule|init_task|linux_banner|jiffies_64|vfs_read|init_uts_ns)$' /proc/kallsyms"
	TellStacks  = "exec grep -H . /proc/[0-9]*/task/[0-9]*/stack; true"
)

// tellRequests are all of them; what changes soonest comes last.
var tellRequests = []string{"ping", "modules", "kmsg", TellSymbols, "tasks", TellStacks}

// told is a channel's other side where there is no machine beyond this one: what a VM's
// agent answers is read here.
type told struct {
	*io.PipeReader
	*io.PipeWriter
}

func newTold() told {
	r, w := io.Pipe()
	return told{r, w}
}

// tell says on the console what VMs and the machine itself answer. A machine that does
// not is said to.
func tell(slots []*vmSlot, verbs verbs, console io.Writer) error {
	for _, s := range slots {
		if s.run == nil {
			continue
		}
		if err := s.attach(console); err != nil {
			return err
		}
		r := bufio.NewReaderSize(s.channels[0].up, 1<<16)
		for i, request := range tellRequests {
			id := fmt.Sprintf("tell%d", i)
			go s.forward(0, wire.Request{ID: id, Text: request})
			body, err := wire.ReadAnswer(r, id)
			if err := say(console, vmName(s.index), request, body, err); err != nil {
				return err
			}
		}
	}
	for _, request := range tellRequests {
		body, _, err := verbs.answer(request)
		if err := say(console, "l1", request, body, err); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(console, TellEnd)
	return err
}

// say writes one answer, in one piece.
func say(w io.Writer, machine, request string, body []byte, err error) error {
	if err != nil {
		body = fmt.Appendf(nil, "error: %v\n", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "\n%s%s: %s\n%s\n%s\n", Told, machine, request, bytes.TrimRight(body, "\n"), ToldEnd)
	_, err = w.Write(b.Bytes())
	return err
}

// runTelling is the rest of L1's init on a machine that has no channels.
func runTelling(children *children, slots []*vmSlot, verbs verbs) error {
	fmt.Println("nestdbg lab: L1 is up")
	if err := tell(slots, verbs, os.Stdout); err != nil {
		return err
	}
	shell(children, "/dev/ttyS0")
	select {}
}
