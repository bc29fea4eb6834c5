package qemu

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// unixSocket is a line of /proc/PID/net/unix.
type unixSocket struct {
	inode     uint64
	listening bool
	path      string // as it was bound, "@..." if abstract, "" if not bound
}

// parseUnixSockets parses /proc/net/unix:
//
//	Num       RefCount Protocol Flags    Type St Inode Path
//	00000000: 00000002 00000000 00010000 0001 01  6435 /run/qmp
//
// Lines that look otherwise are skipped. Source: Linux 6.1 net/unix/af_unix.c:unix_seq_show.
func parseUnixSockets(r io.Reader) ([]unixSocket, error) {
	const acceptsConnections = 0x10000 // __SO_ACCEPTCON
	var out []unixSocket
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// A path may hold blanks, so only the first seven fields are split off.
		fields, path := cutFields(lines.Text(), 7)
		if len(fields) < 7 {
			continue
		}
		flags, err1 := strconv.ParseUint(fields[3], 16, 64)
		inode, err2 := strconv.ParseUint(fields[6], 10, 64)
		if err1 != nil || err2 != nil {
			continue // the heading
		}
		out = append(out, unixSocket{inode, flags&acceptsConnections != 0, path})
	}
	return out, lines.Err()
}

// cutFields splits n fields off at blanks; rest begins behind one blank.
func cutFields(s string, n int) (fields []string, rest string) {
	for range n {
		s = strings.TrimLeft(s, " \t")
		if s == "" {
			return fields, ""
		}
		i := strings.IndexAny(s, " \t")
		if i < 0 {
			return append(fields, s), ""
		}
		fields, s = append(fields, s[:i]), s[i:]
	}
	return fields, strings.TrimPrefix(s, " ")
}

// tcpSocket is a line of /proc/PID/net/tcp or tcp6.
type tcpSocket struct {
	inode         uint64
	listening     bool
	local, remote netip.AddrPort
	waiting       uint64 // connections to be accepted, of one that listens
}

// parseTCPSockets parses /proc/net/tcp and tcp6:
//
//	sl  local_address rem_address   st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
//	0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0   0       12345 ...
//
// Source: Linux 6.1 net/ipv4/tcp_ipv4.c:get_tcp4_sock.
func parseTCPSockets(r io.Reader) ([]tcpSocket, error) {
	const stateListen = "0A" // TCP_LISTEN
	var out []tcpSocket
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		local, err1 := parseHexAddr(f[1])
		remote, err2 := parseHexAddr(f[2])
		inode, err3 := strconv.ParseUint(f[9], 10, 64)
		_, queue, _ := strings.Cut(f[4], ":")
		waiting, err4 := strconv.ParseUint(queue, 16, 64)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
			continue // the heading
		}
		s := tcpSocket{inode: inode, listening: f[3] == stateListen, local: local, remote: remote}
		if s.listening {
			s.waiting = waiting // sk_ack_backlog; else it is bytes
		}
		out = append(out, s)
	}
	return out, lines.Err()
}

// parseHexAddr parses "0100007F:04D2": 32-bit words in the host's byte order.
func parseHexAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("bad address %q", s)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("bad port in %q", s)
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// unixSockets returns the unix sockets of the process's network namespace.
func (p procFS) unixSockets(pid int) ([]unixSocket, error) {
	f, err := os.Open(p.path(pid, "net/unix"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseUnixSockets(f)
}

// tcpSockets returns the TCP sockets of the process's network namespace.
func (p procFS) tcpSockets(pid int) ([]tcpSocket, error) {
	var out []tcpSocket
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		f, err := os.Open(p.path(pid, name))
		if err != nil {
			continue // no IPv6, or no TCP
		}
		s, err := parseTCPSockets(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

// listeners returns the addresses of a network ("unix", "tcp") on which the process
// accepts connections, unix paths as it bound them.
func (p procFS) listeners(pid int, network string) ([]Address, error) {
	own, err := p.socketInodes(pid)
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		return p.tcpListeners(pid, own)
	}
	sockets, err := p.unixSockets(pid)
	if err != nil {
		return nil, err
	}
	var out []Address
	for _, s := range sockets {
		if s.listening && own[s.inode] && s.path != "" {
			out = append(out, Address{"unix", s.path})
		}
	}
	return out, nil
}

// tcpListeners is apart from the unix sockets because the kernel takes milliseconds
// to go through its TCP tables.
func (p procFS) tcpListeners(pid int, own map[uint64]bool) ([]Address, error) {
	sockets, err := p.tcpSockets(pid)
	if err != nil {
		return nil, err
	}
	var out []Address
	for _, s := range sockets {
		if s.listening && own[s.inode] {
			host, port := s.local.Addr().String(), strconv.Itoa(int(s.local.Port()))
			out = append(out, tcpAddress(host, port))
		}
	}
	return out, nil
}

// listens reports whether the process accepts connections at a; when its sockets
// cannot be seen, it is believed to.
func (p procFS) listens(pid int, a Address) bool {
	all, err := p.listeners(pid, a.Network)
	return err != nil || slices.Contains(all, a)
}
