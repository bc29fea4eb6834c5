package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"nestdbg/lab/wire"
)

// runL1 is the init of L1: it starts the VMs and joins each one's console and
// agent to L1's own virtio-serial ports.
func runL1(children *children, verbs verbs) error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	config, err := ParseConfig(string(line))
	if err != nil {
		return err
	}
	if err := loadModules(kvmModules); err != nil {
		return err
	}
	slots := make([]*vmSlot, MaxVMs)
	for i := range slots {
		slots[i] = newSlot(i, config, children)
	}
	// The VMs first, L1's channels while they boot.
	for _, s := range slots[:config.VMs] {
		if err := s.start(false); err != nil {
			fmt.Fprintln(os.Stderr, "nestdbg lab agent:", err)
		}
	}
	if err := loadModules(channelModules); err != nil {
		return err
	}
	own, err := openPort(AgentPort)
	if err != nil {
		return err
	}
	for _, s := range slots {
		go reportEnd("console", s, s.joinConsole)
		go reportEnd("agent", s, s.joinAgent)
	}
	go shell(children, "/dev/ttyS0")
	verbs["vm"] = simple(func(args string) ([]byte, error) { return vmVerb(slots, args) })
	fmt.Println("nestdbg lab: L1 is up")
	return serve(own, verbs)
}

// reportEnd runs a channel of a slot and says why it ended.
func reportEnd(what string, s *vmSlot, f func() error) {
	if err := f(); err != nil {
		fmt.Fprintf(os.Stderr, "nestdbg lab agent: vm%d %s: %v\n", s.index, what, err)
	}
}

// joinConsole copies between the VM's serial line and L1's virtio console of
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

// joinAgent passes requests from the slot's port on to the VM.
func (s *vmSlot) joinAgent() error {
	r := bufio.NewReaderSize(s.agent, wire.MaxRequest+256)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
		if req, ok := wire.ParseRequest(line); ok {
			s.forward(req)
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
