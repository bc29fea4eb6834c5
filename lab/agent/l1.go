package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"nestdbg/lab/wire"
)

// runL1 is the init of L1: it starts the VMs and joins each one's console and
// agent to L1's own virtio-serial ports. A VM with VMs does the same one level deeper.
func runL1(children *children, verbs verbs, line string) error {
	// The VMs first, L1's channels while they boot.
	slots, err := startVMs(children, line, Config.MaxVMs)
	if err != nil {
		return err
	}
	if config, err := ParseConfig(line); err == nil && config.Tell {
		return runTelling(children, slots, verbs)
	}
	if err := loadModules(channelModules); err != nil {
		return err
	}
	own, err := openPort(AgentPort)
	if err != nil {
		return err
	}
	joinVMs(slots, verbs)
	go shell(children, "/dev/ttyS0")
	fmt.Println("nestdbg lab: L1 is up")
	return serve(own, verbs)
}

// startVMs loads KVM and starts the VMs that a kernel command line asks for. room is
// how many there can be.
func startVMs(children *children, line string, room func(Config) int) ([]*vmSlot, error) {
	config, err := ParseConfig(line)
	if err != nil {
		return nil, err
	}
	if err := loadModules(kvmModules); err != nil {
		return nil, err
	}
	slots := make([]*vmSlot, room(config))
	for i := range slots {
		slots[i] = newSlot(i, config, children)
	}
	for _, s := range slots[:config.VMs] {
		if err := s.start(false); err != nil {
			fmt.Fprintln(os.Stderr, "nestdbg lab agent:", err)
		}
	}
	return slots, nil
}

// joinVMs joins the slots' channels to the machine's own, and lets the agent control
// the VMs.
func joinVMs(slots []*vmSlot, verbs verbs) {
	if len(slots) == 0 {
		return
	}
	for _, s := range slots {
		go reportEnd("console", s, s.joinConsole)
		for i := range s.channels {
			go reportEnd("agent", s, func() error { return s.joinAgent(i) })
		}
		for i, name := range s.inside {
			go reportEnd("console of "+name, s, func() error { return joinInnerConsole(name, (i+1)*len(slots)+s.index) })
		}
	}
	verbs["vm"] = simple(func(args string) ([]byte, error) { return vmVerb(slots, args) })
}

// reportEnd runs a channel of a slot and says why it ended.
func reportEnd(what string, s *vmSlot, f func() error) {
	if err := f(); err != nil {
		fmt.Fprintf(os.Stderr, "nestdbg lab agent: vm%d %s: %v\n", s.index, what, err)
	}
}

// redial is how often a console that is not there yet, or not any more, is looked for.
const redial = 200 * time.Millisecond

// joinInnerConsole copies between the console of a machine inside a VM, as that VM's
// QEMU offers it, and the machine's own virtio console of a number.
func joinInnerConsole(name string, number int) error {
	tty, err := openRaw(fmt.Sprintf("/dev/hvc%d", number))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var now net.Conn // guarded by mu: nil while there is none
	go func() {
		buf := make([]byte, 4096)
		for n, err := tty.Read(buf); err == nil; n, err = tty.Read(buf) {
			mu.Lock()
			if now != nil {
				now.Write(buf[:n])
			}
			mu.Unlock()
		}
	}()
	for {
		conn, err := net.Dial("unix", consoleSocket(name))
		if err == nil {
			mu.Lock()
			now = conn
			mu.Unlock()
			io.Copy(tty, conn)
			conn.Close()
		}
		time.Sleep(redial)
	}
}

// joinConsole copies between the VM's serial line and the machine's virtio console of
// the same number. A console, and not a port: it takes bytes also when nobody
// is connected, and QEMU on L0 writes them to its log.
func (s *vmSlot) joinConsole() error {
	tty, err := openRaw(fmt.Sprintf("/dev/hvc%d", s.index))
	if err != nil {
		return err
	}
	if err := s.attach(tty); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := tty.Read(buf)
		if err != nil {
			return err
		}
		s.typed(buf[:n])
	}
}

// attach makes console the one of the VM and shows there what was said before.
func (s *vmSlot) attach(console io.Writer) error {
	// Under the lock, so that nothing overtakes what was said before.
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := console.Write(s.early)
	s.early, s.console = nil, console
	return err
}

// typed passes on what came from the console; nobody reads it if no VM runs.
func (s *vmSlot) typed(b []byte) {
	s.mu.Lock()
	run := s.run
	s.mu.Unlock()
	if run.alive() {
		run.stdin.Write(b)
	}
}

// joinAgent passes requests from a channel's port on to the VM.
func (s *vmSlot) joinAgent(index int) error {
	r := bufio.NewReaderSize(s.channels[index].up, wire.MaxRequest+256)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
		if req, ok := wire.ParseRequest(line); ok {
			s.forward(index, req)
		}
	}
}

// vmVerb is the request "vm": list, start N [reboots], kill N.
func vmVerb(slots []*vmSlot, args string) ([]byte, error) {
	verb, number, _ := strings.Cut(args, " ")
	if verb == "list" {
		var b bytes.Buffer
		for _, s := range slots {
			fmt.Fprintln(&b, s)
		}
		return b.Bytes(), nil
	}
	number, reboots := strings.CutSuffix(number, " reboots")
	index, err := strconv.Atoi(strings.TrimPrefix(number, "vm"))
	if err != nil || index < 0 || index >= len(slots) {
		return nil, fmt.Errorf("vm %s takes a number from 0 to %d, not %q", verb, len(slots)-1, number)
	}
	switch verb {
	case "start":
		return nil, slots[index].start(reboots)
	case "kill":
		return nil, slots[index].kill()
	}
	return nil, errors.New("vm takes: list, start N [reboots], kill N")
}
