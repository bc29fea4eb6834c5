package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// unixPeers returns, for every connected unix socket of our network namespace, the
// inode of the socket at the other end. /proc/net/unix does not tell it.
//
// Source: Linux 6.1 include/uapi/linux/unix_diag.h and sock_diag(7).
func unixPeers() (map[uint64]uint64, error) {
	return askUnixDiag(diagRequest(unix.BPF_TCP_ESTABLISHED, showPeer), attrPeer)
}

// unixWaiting returns, for every unix socket of our network namespace that listens,
// how many connections wait to be accepted: sk_receive_queue.qlen, the first half of
// struct unix_diag_rqlen.
func unixWaiting() (map[uint64]uint64, error) {
	return askUnixDiag(diagRequest(unix.BPF_TCP_LISTEN, showQueue), attrQueue)
}

// askUnixDiag sends a request and returns an attribute of each socket, by inode.
func askUnixDiag(request []byte, attr uint16) (map[uint64]uint64, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	wait := unix.Timeval{Sec: 1}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask sock_diag: %w", err)
	}
	found := map[uint64]uint64{}
	buf := make([]byte, 64<<10)
	const maxMessages = 1 << 12 // of many sockets each
	for range maxMessages {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, fmt.Errorf("read sock_diag: %w", err)
		}
		done, err := parseUnixDiag(buf[:n], attr, found)
		if done || err != nil {
			return found, err
		}
	}
	return nil, errors.New("sock_diag does not end")
}

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	showPeer         = 4  // UDIAG_SHOW_PEER
	attrPeer         = 2  // UNIX_DIAG_PEER
	showQueue        = 16 // UDIAG_SHOW_RQLEN
	attrQueue        = 4  // UNIX_DIAG_RQLEN

	nlHeaderSize = 16 // struct nlmsghdr
	reqSize      = 24 // struct unix_diag_req
	msgSize      = 16 // struct unix_diag_msg
)

// diagRequest is a struct nlmsghdr and a struct unix_diag_req: dump what is to be
// shown of the sockets in a state.
func diagRequest(state int, show uint32) []byte {
	b := make([]byte, nlHeaderSize+reqSize)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], sockDiagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req := b[nlHeaderSize:]
	req[0] = unix.AF_UNIX
	ne.PutUint32(req[4:], 1<<state) // states
	ne.PutUint32(req[12:], show)
	return b
}

// parseUnixDiag adds what one datagram of answers says of an attribute to found, by
// inode. done means that it was the last one.
func parseUnixDiag(b []byte, attr uint16, found map[uint64]uint64) (done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= nlHeaderSize {
		size := int(ne.Uint32(b))
		if size < nlHeaderSize || size > len(b) {
			return false, errors.New("sock_diag: bad message length")
		}
		msg := b[nlHeaderSize:size]
		switch ne.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(msg) < 4 {
				return false, errors.New("sock_diag: short error")
			}
			return false, fmt.Errorf("sock_diag: %w", unix.Errno(-int32(ne.Uint32(msg))))
		case sockDiagByFamily:
			if len(msg) < msgSize {
				return false, errors.New("sock_diag: short message")
			}
			if v, ok := findAttr(msg[msgSize:], attr); ok {
				found[uint64(ne.Uint32(msg[4:]))] = uint64(v)
			}
		}
		b = b[min(align4(size), len(b)):]
	}
	return false, nil
}

// findAttr returns the first 32 bits of the first attribute (struct nlattr) of a kind.
func findAttr(b []byte, kind uint16) (uint32, bool) {
	ne := binary.NativeEndian
	for len(b) >= 4 {
		size := int(ne.Uint16(b))
		if size < 4 || size > len(b) {
			return 0, false
		}
		if ne.Uint16(b[2:]) == kind && size >= 8 {
			return ne.Uint32(b[4:]), true
		}
		b = b[min(align4(size), len(b)):]
	}
	return 0, false
}

func align4(n int) int { return (n + 3) &^ 3 }
