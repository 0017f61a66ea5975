// Package identity is the site's certificate authority: roots, and short-lived
// leaves with SPIFFE names.
//
// Roots and Issuers are pure: keys and clocks in, certificates out. Leaves keeps
// one leaf for each service and renews it ahead of time, on the goroutines of
// those who ask; it starts none. Everything may be used by many goroutines.
//
// Private keys are in no error and in no log.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	// RootTTL is how long a root is good for.
	RootTTL = 10 * 365 * 24 * time.Hour
	// DefaultLeafTTL is how long a leaf is good for, unless the site says
	// otherwise.
	DefaultLeafTTL = 72 * time.Hour
	// skew is how far a certificate begins in the past, for hosts whose clocks are
	// behind.
	skew = time.Minute
)

// ErrBadRoot marks a root or its key that cannot be used.
var ErrBadRoot = errors.New("unusable certificate authority")

// NewTrustDomain makes up the name of a site's trust domain: "<uuid>.consul".
func NewTrustDomain() string { return uuid.NewString() + ".consul" }

// ServiceURI is the SPIFFE name of a service.
func ServiceURI(trustDomain, dc, service string) *url.URL {
	return spiffe(trustDomain, "ns", "default", "dc", dc, "svc", service)
}

// AgentURI is the SPIFFE name of a node's agent.
func AgentURI(trustDomain, dc, node string) *url.URL {
	return spiffe(trustDomain, "agent", "client", "dc", dc, "id", node)
}

// spiffe escapes each segment, so that no name reaches into another's place.
func spiffe(trustDomain string, segments ...string) *url.URL {
	u := &url.URL{Scheme: "spiffe", Host: trustDomain}
	for _, s := range segments {
		u.Path += "/" + s
		u.RawPath += "/" + url.PathEscape(s)
	}
	return u
}

// Name is what a SPIFFE name says; of Service and Agent at most one is set.
type Name struct {
	TrustDomain, Datacenter string
	Service                 string
	Agent                   string
}

// ParseURI reads a SPIFFE name of this site or another. It reports false for
// what is none.
func ParseURI(s string) (Name, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "spiffe" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return Name{}, false
	}
	n := Name{TrustDomain: u.Host}
	if u.Path == "" { // the trust domain itself
		return n, true
	}
	parts := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, p := range parts {
		if parts[i], err = url.PathUnescape(p); err != nil || p == "" {
			return Name{}, false
		}
	}
	if len(parts) > 2 && parts[0] == "ap" { // partitions: there is only the default one
		parts = parts[2:]
	}
	is := func(form ...string) bool { // an empty word stands for any
		if len(parts) != len(form) {
			return false
		}
		for i, f := range form {
			if f != "" && parts[i] != f {
				return false
			}
		}
		return true
	}
	switch {
	case is("ns", "", "dc", "", "svc", ""):
		n.Datacenter, n.Service = parts[3], parts[5]
	case is("agent", "client", "dc", "", "id", ""):
		n.Datacenter, n.Agent = parts[3], parts[5]
	default:
		return Name{}, false
	}
	return n, true
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// newSerial is a random serial number of at most 63 bits, so that it is a
// positive number in every client's language.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(math.MaxInt64))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// sign makes a certificate and parses it, which checks it too.
func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return cert, nil
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it is not a PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// fingerprint is how clients name a certificate; it protects nothing.
func fingerprint(cert *x509.Certificate) string {
	sum := sha1.Sum(cert.Raw)
	return colons(sum[:])
}

// colons is hexadecimal with a colon between bytes.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}
