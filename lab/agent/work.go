package agent

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// workRole makes a process that keeps the machine busy, a little: files are
// opened and written, processes come and go, something is computed, and most
// of the time the CPU idles, as in a real machine.
const workRole = "work"

// The threads of that process, by the names that the kernel knows. At most 15
// bytes fit.
const (
	WorkProcess   = "lab-work"
	WriterThread  = "lab-writer"
	ForkerThread  = "lab-forker"
	ComputeThread = "lab-compute"
	SleeperThread = "lab-sleeper"
)

// startWork runs the load for as long as the machine lives.
func startWork(children *children) {
	cmd := self(workRole)
	cmd.Stderr = os.Stderr
	if err := children.run(cmd); err != nil {
		fmt.Fprintln(os.Stderr, "nestdbg lab agent: work:", err)
	}
}

// work is the load itself; it does not return.
func work() error {
	os.WriteFile("/proc/self/comm", []byte(WorkProcess), 0)
	go every(WriterThread, 100*time.Millisecond, writeFile)
	go every(ForkerThread, time.Second, func() { exec.Command(Busybox, "true").Run() })
	go every(ComputeThread, 250*time.Millisecond, compute)
	every(SleeperThread, time.Hour, func() {})
	return nil
}

// every does f again and again on a thread of its own, with pauses.
func every(name string, pause time.Duration, f func()) {
	runtime.LockOSThread()
	os.WriteFile(fmt.Sprintf("/proc/self/task/%d/comm", unix.Gettid()), []byte(name), 0)
	for {
		f()
		ts := unix.NsecToTimespec(int64(pause))
		// Not time.Sleep: this thread, and not Go's scheduler, is to sleep in the kernel.
		unix.Nanosleep(&ts, nil)
	}
}

func writeFile() {
	f, err := os.OpenFile("/tmp/lab-work", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	for range 4 {
		f.Write([]byte("nested guests are guests too\n"))
	}
}

func compute() {
	var block [4096]byte
	for range 4 {
		sum := sha256.Sum256(block[:])
		copy(block[:], sum[:])
	}
}
