// Package rpc is what nodes say to each other: HTTP/2 over mutual TLS 1.3, one
// listener on each server, one Client on every node.
//
// A host without a certificate may ask for one with a join token and do nothing
// else. What a node writes about itself it writes as itself: the server takes who
// is calling from the certificate, never from what is sent. A request of an API's
// caller is passed on whole, and is allowed what the caller's own token allows.
//
// Server and Client may be used by many goroutines. Every call has a deadline;
// streams end with their context.
package rpc

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// callLimit bounds a call with one answer, whatever its caller allows.
	callLimit = 15 * time.Second
	// bodyLimit bounds what is sent and answered at once, in bytes.
	bodyLimit = 16 << 20
	// DefaultPort is where servers listen for nodes.
	DefaultPort = 8300
)

// The paths of what is asked.
const (
	pathJoin     = "/join"
	pathRenew    = "/renew"
	pathServer   = "/server"
	pathAnnounce = "/announce"
	pathFeed     = "/feed"
	pathSession  = "/session"
	pathCatalog  = "/catalog/"
	pathAPI      = "/v1/"
	pathOwnAPI   = "/fairlead/"
	// headerVia names the node that passed a request on.
	headerVia = model.HeaderVia
)

var (
	// ErrNoServer says that no server could be reached; nothing was done.
	ErrNoServer = errors.New("no server can be reached")
	// ErrNotYours says that a node wrote what is not its own.
	ErrNotYours = errors.New("a node may only write what is its own")
)

// Peer is one server as others know it.
type Peer struct {
	ID   string         `json:"id"`
	Name model.NodeName `json:"name"`
	// Addr is where it listens for nodes.
	Addr netip.AddrPort `json:"addr"`
}

// announcement is where a server is, and how far it has come.
type announcement struct {
	Peer
	Applied model.Index `json:"applied"`
}

// JoinRequest is how a host becomes a node.
type JoinRequest struct {
	Token   string         `json:"token"`  // identity.JoinToken.ID
	Secret  string         `json:"secret"` // identity.JoinToken.Secret
	ID      string         `json:"id"`
	Name    model.NodeName `json:"name"`
	Server  bool           `json:"server,omitempty"`
	Request string         `json:"request"` // PEM
}

// Admission is what a host needs to be a node of the site from then on.
type Admission struct {
	Cert  string `json:"cert"`  // PEM
	Roots string `json:"roots"` // PEM
	Site  string `json:"site"`
	// Servers are all that are known.
	Servers []Peer `json:"servers"`
	// VIPPool4 and VIPPool6 are the site's.
	VIPPool4 string `json:"vip_pool4,omitempty"`
	VIPPool6 string `json:"vip_pool6,omitempty"`
}

// failure is an error on its way.
type failure struct {
	Text    string `json:"error"`
	Code    string `json:"code,omitempty"` // a Codes name
	Refused bool   `json:"refused,omitempty"`
}

// Codes are the errors that keep what they are on their way, by names that do not
// change.
type Codes map[string]error

// remoteError is what another node has against a call.
type remoteError struct {
	text    string
	is      error
	refused bool
}

func (e *remoteError) Error() string { return e.text }

// Unwrap makes it the error that it was over there.
func (e *remoteError) Unwrap() error { return e.is }

// Refused is true for what trying again does not mend.
func (e *remoteError) Refused() bool { return e.refused }

// failureOf packs an error.
func (c Codes) failureOf(err error) failure {
	f := failure{Text: err.Error()}
	names := make([]string, 0, 1)
	for name, is := range c {
		if errors.Is(err, is) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		f.Code = slices.Min(names)
	}
	var r interface{ Refused() bool }
	f.Refused = errors.As(err, &r) && r.Refused()
	return f
}

// errorOf unpacks an error.
func (c Codes) errorOf(f failure) error {
	return &remoteError{text: f.Text, is: c[f.Code], refused: f.Refused}
}

// decode reads a JSON body, and nothing may come behind it.
func decode(r io.Reader, into any) error {
	d := json.NewDecoder(io.LimitReader(r, bodyLimit))
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the body")
	}
	return nil
}

// answer writes a result or an error.
func (c Codes) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who does not read it has gone
}

// sortPeers puts servers in the order of their ids.
func sortPeers(list []Peer) []Peer {
	slices.SortFunc(list, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// ParsePeers reads addresses of servers, separated by commas; without a port it
// is DefaultPort.
func ParsePeers(text string) (list []netip.AddrPort, err error) {
	for f := range strings.SplitSeq(text, ",") {
		if f = strings.TrimSpace(f); f == "" {
			continue
		}
		at, err := netip.ParseAddrPort(f)
		if err != nil {
			a, aerr := netip.ParseAddr(strings.Trim(f, "[]"))
			if aerr != nil {
				return nil, fmt.Errorf("%q is no address: want IP or IP:port", f)
			}
			at = netip.AddrPortFrom(a, DefaultPort)
		}
		list = append(list, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	return list, nil
}

// mine is nil if a node's record may be written by the node that calls.
func mine(caller identity.Node, n model.NodeName) error {
	if n != caller.Name {
		return fmt.Errorf("%w: node %q about node %q", ErrNotYours, caller.Name, n)
	}
	return nil
}
