package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// peerDomain ends the names under which members find each other. Addresses of
// servers come and go and a member's name stays, as etcd's membership has it:
// addresses there cannot change without a quorum.
const peerDomain = ".peer.internal"

// peerTTL is for how long an address holds, in seconds; nobody keeps it.
const peerTTL = 1

// Servers is every server's present address, by the member's name, for all
// stores of this process.
var servers = addressBook{addrs: map[string]netip.Addr{}}

type addressBook struct {
	mu    sync.RWMutex
	addrs map[string]netip.Addr
}

// SetPeer says where a member is from now on. Servers that know better say it
// again at any time; connections that stand are kept.
func SetPeer(member string, a netip.Addr) {
	servers.mu.Lock()
	defer servers.mu.Unlock()
	servers.addrs[strings.ToLower(member)] = a.Unmap()
}

// Peer is where a member was last said to be.
func Peer(member string) (netip.Addr, bool) {
	servers.mu.RLock()
	defer servers.mu.RUnlock()
	a, ok := servers.addrs[strings.ToLower(member)]
	return a, ok
}

// etcd dials its peers with the process's resolver and takes no other. So ours
// answers for peerDomain, and asks the system's servers for everything else, as
// the one before it did in a program without cgo.
func init() {
	system := net.DefaultResolver.Dial
	if system == nil {
		system = (&net.Dialer{}).DialContext
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, server string) (net.Conn, error) {
		return &lookupConn{dial: system, network: network, server: server}, nil
	}}
}

// lookupConn is a connection to a name server as the resolver sees it: a stream
// of messages, each after its length. Questions about peers never leave it.
type lookupConn struct {
	dial            func(ctx context.Context, network, addr string) (net.Conn, error)
	network, server string

	deadline time.Time
	answer   bytes.Buffer
	up       net.Conn // to the name server, once it was asked
}

func (c *lookupConn) Write(b []byte) (int, error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return 0, errors.New("resolver: want one whole message")
	}
	if answer, ours := answerPeer(b[2:]); ours {
		c.put(answer)
		return len(b), nil
	}
	if c.up == nil {
		ctx, cancel := context.WithDeadline(context.Background(), c.limit())
		defer cancel()
		up, err := c.dial(ctx, c.network, c.server)
		if err != nil {
			return 0, err
		}
		c.up = up
	}
	if err := c.up.SetDeadline(c.limit()); err != nil {
		return 0, err
	}
	if c.packets() {
		_, err := c.up.Write(b[2:])
		return len(b), err
	}
	return c.up.Write(b)
}

func (c *lookupConn) Read(b []byte) (int, error) {
	if c.answer.Len() > 0 {
		return c.answer.Read(b)
	}
	switch {
	case c.up == nil:
		return 0, io.EOF
	case !c.packets():
		return c.up.Read(b)
	}
	msg := make([]byte, 1<<16-1)
	n, err := c.up.Read(msg)
	if err != nil {
		return 0, err
	}
	c.put(msg[:n])
	return c.answer.Read(b)
}

func (c *lookupConn) put(msg []byte) {
	c.answer.Write(binary.BigEndian.AppendUint16(nil, uint16(len(msg)))) //nolint:gosec // messages have at most 64 KiB
	c.answer.Write(msg)
}

func (c *lookupConn) packets() bool { return strings.HasPrefix(c.network, "udp") }

func (c *lookupConn) limit() time.Time {
	if c.deadline.IsZero() {
		return time.Now().Add(5 * time.Second)
	}
	return c.deadline
}

func (c *lookupConn) Close() error {
	if c.up == nil {
		return nil
	}
	return c.up.Close()
}

func (c *lookupConn) SetDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

func (c *lookupConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *lookupConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }
func (c *lookupConn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *lookupConn) RemoteAddr() net.Addr               { return &net.TCPAddr{} }

// answerPeer answers a question about a peer's name; false for any other. A
// member that nobody has heard of yet is a failure for now, not a name that is
// not there.
func answerPeer(query []byte) ([]byte, bool) {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil, false
	}
	q, err := p.Question()
	if err != nil {
		return nil, false
	}
	member, ours := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")), peerDomain)
	if !ours {
		return nil, false
	}
	addr, known := Peer(member)
	head.Response, head.RecursionAvailable, head.Authoritative = true, true, true
	if !known {
		head.RCode = dnsmessage.RCodeServerFailure
	}
	msg := dnsmessage.Message{Header: head, Questions: []dnsmessage.Question{q}}
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: peerTTL}
	switch {
	case !known:
	case q.Type == dnsmessage.TypeA && addr.Is4():
		msg.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case q.Type == dnsmessage.TypeAAAA && addr.Is6():
		msg.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	}
	answer, err := msg.Pack()
	return answer, err == nil
}
