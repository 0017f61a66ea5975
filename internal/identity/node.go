package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// NodeTTL is how long a node's certificate is good for. It is renewed at half
	// of that.
	NodeTTL = 24 * time.Hour
	// NodeDomain ends the names that nodes' certificates have beside their SPIFFE
	// names: <id>.peer.internal is one node's, wherever it is.
	NodeDomain = ".peer.internal"
	// ServerName is the name that every server's certificate has and no other.
	ServerName = "server" + NodeDomain
)

// ErrBadRequest marks a request for a certificate that nobody will get.
var ErrBadRequest = fmt.Errorf("%w certificate request", model.ErrInvalid)

// Node is who a node's certificate says it is.
type Node struct {
	// ID is the node's for ever, Name what it is called.
	ID   string
	Name model.NodeName
	// Site is the name of its site; TrustDomain that of the site's authority.
	Site, TrustDomain string
	// Server says that it is one of the servers.
	Server bool
}

// nodeID is what can be a node's ID and a DNS label.
var nodeID = regexp.MustCompile(`^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$`)

func (n Node) check() error {
	switch {
	case !nodeID.MatchString(n.ID) || n.ID+NodeDomain == ServerName:
		return fmt.Errorf("%w: %q is no node's ID", ErrBadRequest, n.ID)
	case n.Name == "" || n.Name == "." || n.Name == "..":
		return fmt.Errorf("%w: no certificate can be for a node %q", ErrBadRequest, n.Name)
	}
	return nil
}

// NewRequest makes a node's private key and asks for a certificate for it, both
// in PEM form. The key never leaves the node.
func NewRequest() (key, request string, err error) {
	k, err := newKey()
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", fmt.Errorf("encode a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "fairlead-node"}}, k)
	if err != nil {
		return "", "", fmt.Errorf("request a certificate: %w", err)
	}
	return encodePEM("PRIVATE KEY", der), encodePEM("CERTIFICATE REQUEST", csr), nil
}

// CertifyNode answers a request: the certificate says that whoever has its key is
// n, for ttl from now, but not for longer than its root. What else the request
// says counts for nothing. It is followed by those that lead to an older root.
func (i *Issuer) CertifyNode(request string, n Node, now time.Time, ttl time.Duration) (string, error) {
	if err := n.check(); err != nil {
		return "", err
	}
	block, _ := pem.Decode([]byte(request))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return "", fmt.Errorf("%w: it is not PEM", ErrBadRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return "", fmt.Errorf("%w: its key is not on the curve P-256", ErrBadRequest)
	}
	serial, err := newSerial()
	if err != nil {
		return "", err
	}
	end := now.Add(ttl)
	if end.After(i.cert.NotAfter) {
		end = i.cert.NotAfter
	}
	if !end.After(now) {
		return "", fmt.Errorf("%w %s: it ended at %s", ErrBadRoot, i.root.ID, i.root.NotAfter)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: n.ID},
		NotBefore:    now.Add(-skew).UTC(), NotAfter: end.UTC(),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:                  []*url.URL{AgentURI(i.root.TrustDomain, n.Site, string(n.Name))},
		DNSNames:              []string{n.ID + NodeDomain},
	}
	if n.Server {
		tmpl.DNSNames = append(tmpl.DNSNames, ServerName)
	}
	cert, err := sign(tmpl, i.cert, pub, i.key)
	if err != nil {
		return "", fmt.Errorf("certify node %s: %w", n.Name, err)
	}
	return encodePEM("CERTIFICATE", cert.Raw) + i.intermediates, nil
}

// NodeOf reads who a node's certificate is for. A service's certificate is no
// node's.
func NodeOf(cert *x509.Certificate) (Node, error) {
	if len(cert.URIs) != 1 {
		return Node{}, errors.New("it is no node's certificate: want one SPIFFE name")
	}
	name, ok := ParseURI(cert.URIs[0].String())
	if !ok || name.Agent == "" {
		return Node{}, fmt.Errorf("it is no node's certificate: %q is no node's name", cert.URIs[0])
	}
	n := Node{Name: model.NodeName(name.Agent), Site: name.Datacenter, TrustDomain: name.TrustDomain, Server: slices.Contains(cert.DNSNames, ServerName)}
	for _, d := range cert.DNSNames {
		if id, ours := strings.CutSuffix(d, NodeDomain); ours && d != ServerName {
			n.ID = id
		}
	}
	if err := n.check(); err != nil {
		return Node{}, err
	}
	return n, nil
}

// Revocation lists certificates' serial numbers in PEM form, signed: what etcd
// takes as a revocation list.
func (i *Issuer) Revocation(revoked []x509.RevocationListEntry, number int64, now time.Time) (string, error) {
	serial, err := newSerial()
	if err != nil {
		return "", err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: serial.SetInt64(max(number, 1)), ThisUpdate: now.Add(-skew).UTC(), NextUpdate: now.Add(RootTTL).UTC(),
		RevokedCertificateEntries: revoked,
	}, i.cert, i.key)
	if err != nil {
		return "", fmt.Errorf("sign a revocation list: %w", err)
	}
	return encodePEM("X509 CRL", der), nil
}
