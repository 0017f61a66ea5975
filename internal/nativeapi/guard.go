package nativeapi

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"mime"
	"net"
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

// newGuard reads the files of the thread it runs on: a thread that works in
// another namespace for a while runs nothing else, but may be the process's
// first, whose files "self" means.
func newGuard() guard {
	return guard{uid: os.Getuid(), files: []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"}}
}

func (g guard) allow(r *http.Request) error {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return refuse(http.StatusForbidden, "cannot tell who is calling from %q", r.RemoteAddr)
	}
	here, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if here == nil {
		return refuse(http.StatusForbidden, "cannot tell where the call from %s came in", from)
	}
	to, err := netip.ParseAddrPort(here.String())
	if err != nil {
		return refuse(http.StatusForbidden, "cannot tell where the call from %s came in", from)
	}
	for _, f := range g.files {
		uid, ok, err := owner(f, unmapped(from), unmapped(to))
		if err != nil {
			return fmt.Errorf("tell who is calling: %w", err)
		}
		if !ok {
			continue
		}
		if uid == 0 || uid == g.uid {
			return byProgram(r)
		}
		return refuse(http.StatusForbidden, "networks and workloads are changed by root only; the call came from user %d. Use sudo", uid)
	}
	return refuse(http.StatusForbidden, "networks and workloads are changed from the agent's own host only; the call came from %s", from.Addr())
}

// byProgram refuses what a web page may have made a browser of a permitted user
// send (cross-site request forgery): requests with an Origin, bodies that are
// not declared as JSON, which a page cannot send unasked, and names other than
// localhost, which a page's own server may have pointed here (DNS rebinding).
func byProgram(r *http.Request) error {
	if o := r.Header.Get("Origin"); o != "" {
		return refuse(http.StatusForbidden, "networks and workloads are not changed by web pages; the call came from %q", o)
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !strings.EqualFold(host, "localhost") {
		return refuse(http.StatusForbidden, "networks and workloads are changed at an address of the agent, such as 127.0.0.1, or localhost; the call was for %q", host)
	}
	if r.ContentLength == 0 {
		return nil
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "Content-Type %q: want application/json", r.Header.Get("Content-Type"))
	}
	return nil
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// established is the state of a connection whose local end a process holds, as
// /proc/net/tcp writes it. What is left of one that its process has closed is
// shown as root's: in TIME_WAIT always, and before Linux 6.17 in every state.
const established = "01"

// owner finds the user that owns the local end of a connection.
func owner(file string, from, to netip.AddrPort) (uid int, ok bool, err error) {
	f, err := os.Open(file)
	if os.IsNotExist(err) {
		return 0, false, nil // no IPv6 in this kernel
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close() // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[3] != established {
			continue
		}
		local, err1 := parseProcAddr(fields[1])
		remote, err2 := parseProcAddr(fields[2])
		if err1 != nil || err2 != nil || local != from || remote != to {
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
