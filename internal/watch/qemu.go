package watch

import (
	"encoding/json"
	"fmt"
	"time"
)

// self is the name of QEMU in incidents.
const self = "qemu"

// eventData is what events have in common that matters here.
type eventData struct {
	Guest  bool
	Reason string
	Action string
}

// Reasons of RESET and SHUTDOWN (QEMU 7.2 qapi/run-state.json, ShutdownCause).
const (
	reasonGuestReset = "guest-reset"
	reasonGuestPanic = "guest-panic"
	reasonQMPReset   = "host-qmp-system-reset"
)

const lateReset = "QEMU says it when the machine is reset already: its registers are gone, and firmware overwrites its memory; " +
	"with -no-reboot -no-shutdown it stands still instead"

// Event takes an event of QEMU's. Its data is not believed further than it goes: what
// is not understood is as if it had none.
func (w *Watcher) Event(name string, data json.RawMessage) []Incident {
	var d eventData
	if err := json.Unmarshal(data, &d); err != nil {
		d = eventData{}
	}
	s := w.of(first)
	switch name {
	case "GUEST_PANICKED", "GUEST_CRASHLOADED":
		return w.end(Incident{Class: Crash, Machine: first, What: "tells QEMU that it has panicked"})
	case "WATCHDOG":
		if !w.wants(Hang) || s.over {
			return nil
		}
		return []Incident{{Class: Hang, Machine: first, What: fmt.Sprintf("lets its watchdog run out; QEMU's action is %.20q", d.Action)}}
	case "RESET":
		if w.resumed {
			w.resumed = false
			return nil
		}
		out := w.end(Incident{Class: Reset, Machine: first, What: "was reset" + because(d), Late: lateReset})
		clear(w.machines) // whatever was in it
		return out
	case "SHUTDOWN":
		w.ending = true
		return w.shutdown(d)
	}
	return nil
}

// shutdown is for a machine that QEMU ends, or stops where it was told so.
func (w *Watcher) shutdown(d eventData) []Incident {
	i := Incident{Class: Shutdown, Machine: first, What: "shut down" + because(d)}
	w.reset, w.reason = d.Reason == reasonGuestReset || d.Reason == reasonQMPReset, d.Reason
	switch d.Reason {
	case reasonGuestReset, reasonQMPReset:
		i.Class, i.What = Reset, "was about to be reset, and QEMU ends or stops it instead"+because(d)
	case reasonGuestPanic:
		i.Class = Crash
	}
	return w.end(i)
}

func because(d eventData) string {
	switch {
	case d.Reason != "":
		return fmt.Sprintf(", says QEMU: %.40q", d.Reason)
	case d.Guest:
		return " by itself"
	}
	return ""
}

// State takes QEMU's name for the state of its machine, whether it changed or not.
func (w *Watcher) State(state string) []Incident {
	if state == w.qemu {
		return nil
	}
	w.qemu = state
	switch state {
	case "guest-panicked":
		return w.end(Incident{Class: Crash, Machine: first, What: "stands: it told QEMU that it has panicked"})
	case "io-error":
		return w.stopped(Incident{Class: Crash, What: "stopped its machine: a disk failed (state io-error)"})
	case "internal-error":
		return w.stopped(Incident{Class: Crash, What: "stopped its machine: a CPU did what cannot be executed (state internal-error)"})
	case "watchdog":
		return w.stopped(Incident{Class: Hang, What: "stopped its machine: its watchdog has run out"})
	case "shutdown":
		w.ending = true
		return w.end(Incident{Class: Shutdown, Machine: first, What: "stands after its end (state shutdown)"})
	}
	return nil
}

// stopped is for a machine that QEMU stopped and that may go on.
func (w *Watcher) stopped(i Incident) []Incident {
	if i.Machine = self; !w.wants(i.Class) {
		return nil
	}
	return []Incident{i}
}

// WasReset reports whether the machine stands because it was about to be reset; known
// is false if QEMU's word for that was not heard.
func (w *Watcher) WasReset() (reset, known bool) { return w.reset, w.reason != "" }

// Resumed is for a machine that stood after its end and that is now reset, by whoever
// asks here: everything in it begins anew.
func (w *Watcher) Resumed() {
	clear(w.machines)
	w.resumed, w.reset, w.ending, w.qemu, w.reason, w.looked = true, false, false, "", "", time.Time{}
}

// Ended is for a QEMU whose process has ended: the last that is told. deaf says that
// somebody else had its socket, and heard what it said.
func (w *Watcher) Ended(deaf bool) []Incident {
	if w.ending {
		return w.end(Incident{Class: Shutdown, Machine: first, What: "has ended with its QEMU, as that had said"})
	}
	if !w.wants(Crash) {
		return nil
	}
	i := Incident{Class: Crash, Machine: self, What: "has ended and had not said that it would: it was killed, or it crashed",
		Late: "registers went with it"}
	if deaf {
		i.What = "has ended; somebody else had its QMP socket, so what it said is not known"
	}
	return []Incident{i}
}
