package qemu

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// holders returns who is connected to the socket at a, which the process listens
// on, apart from the connection with the inode mine. It is empty when nobody is, or
// nobody whom we may see.
func (p procFS) holders(pid int, a Address, mine uint64) []Holder {
	own, err := p.socketInodes(pid)
	if err != nil {
		return nil
	}
	find := p.unixClients
	if a.Network == "tcp" {
		find = p.tcpClients
	}
	clients := find(pid, a, own)
	delete(clients, mine)
	return p.owners(clients)
}

// inodeOf is the inode of a connection's socket, 0 if it has none.
func inodeOf(c net.Conn) uint64 {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	var st unix.Stat_t
	if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); err != nil {
		return 0
	}
	return st.Ino
}

// unixClients looks for the sockets that QEMU got by accepting a connection: they
// bear the name of the one it listens on. A client that still waits to be accepted
// has no socket in QEMU yet.
func (p procFS) unixClients(pid int, a Address, own map[uint64]bool) map[uint64]bool {
	sockets, err := p.unixSockets(pid)
	if err != nil {
		return nil
	}
	peers, err := unixPeers()
	if err != nil {
		return nil
	}
	clients := map[uint64]bool{}
	for _, s := range sockets {
		peer, connected := peers[s.inode]
		if connected && own[s.inode] && !s.listening && p.resolve(pid, s.path) == a.Addr {
			clients[peer] = true
		}
	}
	return clients
}

func (p procFS) tcpClients(pid int, a Address, own map[uint64]bool) map[uint64]bool {
	sockets, err := p.tcpSockets(pid)
	if err != nil {
		return nil
	}
	byEnds := map[[2]string]uint64{} // local and remote address to inode
	for _, s := range sockets {
		byEnds[[2]string{s.local.String(), s.remote.String()}] = s.inode
	}
	clients := map[uint64]bool{}
	for _, s := range sockets {
		if s.listening || !own[s.inode] || s.local.String() != a.Addr {
			continue
		}
		if inode, ok := byEnds[[2]string{s.remote.String(), s.local.String()}]; ok {
			clients[inode] = true
		}
	}
	return clients
}
