package nativeapi

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// guard decides who may change networks and workloads: local callers that run as
// root or as the agent's own user. The kernel says whose socket the request came
// from: /proc/net/tcp lists the owner of every socket of this network namespace
// (proc(5)), and a caller on this host has its own end there.
type guard struct {
	uid   int
	files []string
}

func newGuard() guard {
	return guard{uid: os.Getuid(), files: []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"}}
}

func (g guard) allow(r *http.Request) error {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return refuse(http.StatusForbidden, "cannot tell who is calling from %q", r.RemoteAddr)
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	for _, f := range g.files {
		uid, ok, err := owner(f, from)
		if err != nil {
			return fmt.Errorf("tell who is calling: %w", err)
		}
		if !ok {
			continue
		}
		if uid == 0 || uid == g.uid {
			return nil
		}
		return refuse(http.StatusForbidden, "networks and workloads are changed by root only; the call came from user %d. Use sudo", uid)
	}
	return refuse(http.StatusForbidden, "networks and workloads are changed from the agent's own host only; the call came from %s", from.Addr())
}

// owner finds the user that owns the socket whose local end is at.
func owner(file string, at netip.AddrPort) (uid int, ok bool, err error) {
	f, err := os.Open(file)
	if os.IsNotExist(err) {
		return 0, false, nil // no IPv6 in this kernel
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close() //nolint:errcheck // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 {
			continue
		}
		local, err := parseProcAddr(fields[1])
		if err != nil || local != at {
			continue
		}
		uid, err := strconv.Atoi(fields[7])
		return uid, err == nil, nil
	}
	return 0, false, lines.Err()
}

// parseProcAddr reads "0100007F:1F90": the address in words of host byte order
// (little endian wherever Fairlead runs), then the port, all in hexadecimal.
func parseProcAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %q: %w", s, err)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}
