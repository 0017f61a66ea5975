package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The files of a Badge; etcd reads the first three.
const (
	BadgeCert    = "node.crt"
	BadgeKey     = "node.key"
	BadgeRoots   = "roots.crt"
	BadgeRevoked = "revoked.crl"
)

// Errors of Badges.
var (
	// ErrNoBadge says that this node has no certificate yet.
	ErrNoBadge = errors.New("this node has no certificate yet")
	// ErrRevoked says that a node's certificate was revoked.
	ErrRevoked = errors.New("the node's certificate was revoked")
	// ErrNoServer says that a node that is no server answered in the place of one.
	ErrNoServer = errors.New("it is no server of this site")
)

// Badge is what a node shows to others to say who it is, and what it knows them
// by: its certificate, its key and the roots, kept in a directory. It may be used
// by many goroutines, and connections take what it holds when they are made.
type Badge struct {
	dir string
	// mu is held while files are written.
	mu      sync.Mutex
	held    atomic.Pointer[held]
	revoked func(id string, since time.Time) bool
}

// held is one state of a badge.
type held struct {
	pair tls.Certificate
	// served is pair with the roots behind it, for those who know one by its hash.
	served tls.Certificate
	node   Node
	roots  *x509.CertPool
	text   string // of the roots
}

// OpenBadge reads what is in a directory; the error is ErrNoBadge if it has none
// yet. revoked says whether the certificates of a node that were made until then
// are not good any more; nil for none.
func OpenBadge(dir string, revoked func(id string, issued time.Time) bool) (*Badge, error) {
	b := &Badge{dir: dir, revoked: revoked}
	var files [3][]byte
	for i, name := range []string{BadgeCert, BadgeKey, BadgeRoots} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return b, ErrNoBadge
		}
		if err != nil {
			return b, fmt.Errorf("read this node's identity: %w", err)
		}
		files[i] = text
	}
	h, err := read(files[0], files[1], files[2])
	if err != nil {
		return b, fmt.Errorf("this node's identity in %s: %w", dir, err)
	}
	b.held.Store(h)
	return b, nil
}

func read(cert, key, roots []byte) (*held, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	h := &held{pair: pair, served: pair, roots: x509.NewCertPool(), text: string(roots)}
	list, err := rootsOf(h.text)
	if err != nil || len(list) == 0 {
		return nil, fmt.Errorf("its roots cannot be read: %w", errors.Join(err, ErrBadRoot))
	}
	h.served.Certificate = slices.Clone(pair.Certificate)
	for _, root := range list {
		h.roots.AddCert(root)
		h.served.Certificate = append(h.served.Certificate, root.Raw)
	}
	h.node, err = NodeOf(pair.Leaf)
	return h, err
}

// Set replaces certificate and key, and the roots (all in PEM form), on the disk
// first. With an empty certificate only the roots change. What does not fit
// together is refused.
func (b *Badge) Set(cert, key, roots string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.held.Load(); cert == "" && old != nil {
		text, err := os.ReadFile(filepath.Join(b.dir, BadgeKey))
		if err != nil {
			return fmt.Errorf("read this node's key: %w", err)
		}
		key = string(text)
		for _, der := range old.pair.Certificate {
			cert += encodePEM("CERTIFICATE", der)
		}
	}
	h, err := read([]byte(cert), []byte(key), []byte(roots))
	if err != nil {
		return fmt.Errorf("take a certificate: %w", err)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return fmt.Errorf("keep this node's identity: %w", err)
	}
	// etcd reads certificate and key for each connection, so they may not fit for
	// a moment; it is asked again then.
	for _, f := range []struct{ name, text string }{{BadgeRoots, roots}, {BadgeKey, key}, {BadgeCert, cert}} {
		if err := replaceFile(filepath.Join(b.dir, f.name), f.text); err != nil {
			return fmt.Errorf("keep this node's identity: %w", err)
		}
	}
	b.held.Store(h)
	return nil
}

// replaceFile writes a file anew, all of it or nothing.
func replaceFile(name, text string) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	if err == nil {
		err = tmp.Sync()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// File is the path of one of the badge's files.
func (b *Badge) File(name string) string { return filepath.Join(b.dir, name) }

// Node is who this node is; false while it has no certificate.
func (b *Badge) Node() (Node, bool) {
	h := b.held.Load()
	if h == nil {
		return Node{}, false
	}
	return h.node, true
}

// Due is when the certificate is to be renewed; the zero Time while there is
// none.
func (b *Badge) Due() time.Time {
	h := b.held.Load()
	if h == nil {
		return time.Time{}
	}
	leaf := h.pair.Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// Ends is when the certificate ends; the zero Time while there is none.
func (b *Badge) Ends() time.Time {
	if h := b.held.Load(); h != nil {
		return h.pair.Leaf.NotAfter
	}
	return time.Time{}
}

// Roots are the roots that this node trusts, in PEM form.
func (b *Badge) Roots() string {
	if h := b.held.Load(); h != nil {
		return h.text
	}
	return ""
}

// Server is for a listener: TLS 1.3, and who has a certificate must be a node of
// this site that was not revoked. With optional, who has none is let in too and
// has to be told apart by who serves it.
func (b *Badge) Server(optional bool) *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h := b.held.Load()
		if h == nil {
			return nil, ErrNoBadge
		}
		c := &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: base.NextProtos, Certificates: []tls.Certificate{h.served},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: h.roots,
			// A ticket would outlive a revocation.
			SessionTicketsDisabled: true,
		}
		if optional {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil // ClientAuth has seen to that
			}
			_, err := b.peer(h, s.PeerCertificates[0])
			return err
		}
		return c, nil
	}
	return base
}

// Client is for connections to servers of this site: TLS 1.3, both sides known
// to each other.
func (b *Badge) Client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if h := b.held.Load(); h != nil {
				return &h.pair, nil
			}
			return nil, ErrNoBadge
		},
		// The roots may change while this is in use, so they are asked for anew: this
		// does all that the usual verification does.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			h := b.held.Load()
			if h == nil {
				return ErrNoBadge
			}
			if err := verifyServer(h.roots, s.PeerCertificates); err != nil {
				return err
			}
			_, err := b.peer(h, s.PeerCertificates[0])
			return err
		},
	}
}

// verifyServer checks that the first of the certificates is a server's.
func verifyServer(roots *x509.CertPool, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return ErrNoServer
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return fmt.Errorf("%w: %w", ErrNoServer, err)
	}
	return nil
}

// Peer is who is at the other end of a connection that Server or Client let in.
func (b *Badge) Peer(s *tls.ConnectionState) (Node, error) {
	h := b.held.Load()
	if h == nil || s == nil || len(s.PeerCertificates) == 0 {
		return Node{}, ErrNoBadge
	}
	return b.peer(h, s.PeerCertificates[0])
}

// peer is whose a verified certificate is, if it is of this site and still good.
func (b *Badge) peer(h *held, cert *x509.Certificate) (Node, error) {
	n, err := NodeOf(cert)
	switch {
	case err != nil:
		return Node{}, err
	case n.TrustDomain != h.node.TrustDomain || n.Site != h.node.Site:
		return Node{}, fmt.Errorf("node %s is of site %s", n.Name, n.Site)
	case time.Now().After(cert.NotAfter): // a connection may be older than that
		return Node{}, fmt.Errorf("the certificate of node %s ended at %s", n.Name, cert.NotAfter)
	case b.revoked != nil && b.revoked(n.ID, cert.NotBefore.Add(skew)):
		return Node{}, fmt.Errorf("node %s: %w", n.Name, ErrRevoked)
	}
	return n, nil
}

// rootsOf are the certificates in a text.
func rootsOf(text string) (list []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return list, nil
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, cert)
	}
}
