package agent

import "sync"

// latePort is a port that is opened by its first use: the VMs are started
// before L1's channels exist.
type latePort struct {
	name string
	open func() (*port, error)
	mu   sync.Mutex // makes one Write whole
}

func newLatePort(name string) *latePort {
	return &latePort{name: name, open: sync.OnceValues(func() (*port, error) { return openPort(name) })}
}

func (l *latePort) Read(b []byte) (int, error) {
	p, err := l.open()
	if err != nil {
		return 0, err
	}
	return p.Read(b)
}

func (l *latePort) Write(b []byte) (int, error) {
	p, err := l.open()
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.Write(b)
}
