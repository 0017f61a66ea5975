package netdrv

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// holdsState are the ports held by this Host.
type holdsState struct {
	mu   sync.Mutex // guards following
	held map[heldPort]bool
}

type heldPort struct {
	proto model.Protocol
	port  uint16
}

// HoldPort takes a port of the host on all its addresses, so that no other
// program can while it is published: by a bound socket that does not listen
// (TCP), or that never gets a datagram (UDP). Close gives it up. A port that
// anybody uses gives ErrPortTaken.
func (h *Host) HoldPort(proto model.Protocol, port uint16) (io.Closer, error) {
	key := heldPort{proto, port}
	kind := map[model.Protocol]int{model.TCP: unix.SOCK_STREAM, model.UDP: unix.SOCK_DGRAM}[proto]
	if kind == 0 || port == 0 {
		return nil, fmt.Errorf("port %d/%s: not a port that can be published", port, proto)
	}
	h.holds.mu.Lock()
	defer h.holds.mu.Unlock()
	if h.holds.held[key] {
		return nil, fmt.Errorf("port %d/%s is %w (published by an endpoint)", port, proto, ErrPortTaken)
	}
	fd := -1
	err := h.inHost(func() (err error) {
		fd, err = bindAll(kind, port)
		return err
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("port %d/%s is %w", port, proto, ErrPortTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("hold port %d/%s: %w", port, proto, err)
	}
	if h.holds.held == nil {
		h.holds.held = map[heldPort]bool{}
	}
	h.holds.held[key] = true
	return &hold{host: h, key: key, fd: fd}, nil
}

// bindAll binds the port on every address of both families, or of IPv4 where
// IPv6 is off.
func bindAll(kind int, port uint16) (int, error) {
	fd, err := bindPort(unix.AF_INET6, kind, &unix.SockaddrInet6{Port: int(port)})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return bindPort(unix.AF_INET, kind, &unix.SockaddrInet4{Port: int(port)})
	}
	return fd, err
}

func bindPort(family, kind int, addr unix.Sockaddr) (_ int, err error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return -1, err
		}
	}
	if kind == unix.SOCK_DGRAM {
		if err := refuseAll(fd); err != nil {
			return -1, err
		}
	}
	err = unix.Bind(fd, addr)
	if kind == unix.SOCK_STREAM && errors.Is(err, unix.EADDRINUSE) {
		// Connections of a server that just ended linger for a minute; only a
		// living listener is in the way with this option. It is not set at
		// first, since it lets others bind beside us.
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
			err = unix.Bind(fd, addr)
		}
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// refuseAll filters out every datagram, so that nobody can fill the socket's
// buffer, which nobody empties.
func refuseAll(fd int) error {
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
}

// hold is a held port.
type hold struct {
	host *Host
	key  heldPort
	fd   int
	once sync.Once
}

// Close gives the port up; further calls do nothing.
func (p *hold) Close() (err error) {
	p.once.Do(func() {
		p.host.holds.mu.Lock()
		defer p.host.holds.mu.Unlock()
		delete(p.host.holds.held, p.key)
		if e := unix.Close(p.fd); e != nil {
			err = fmt.Errorf("give up port %d/%s: %w", p.key.port, p.key.proto, e)
		}
	})
	return err
}
