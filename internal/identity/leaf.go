package identity

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Leaf is a certificate with its private key.
type Leaf struct {
	Serial string // hexadecimal, colons between
	// Cert is the certificate, followed by those that lead to an older root.
	Cert, Key   string // PEM
	URI         string
	ValidAfter  time.Time
	ValidBefore time.Time
	// Root is the id of the root that signed.
	Root string
	// Index goes up with each renewal of a service's leaf.
	Index model.Index
	// renewAt is when the next one is due.
	renewAt time.Time
}

// Issue makes a leaf with a key of its own that is good for ttl from now, but not
// for longer than its root.
func (i *Issuer) Issue(uri *url.URL, now time.Time, ttl time.Duration) (*Leaf, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(ttl)
	if end.After(i.cert.NotAfter) {
		end = i.cert.NotAfter
	}
	if !end.After(now) {
		return nil, fmt.Errorf("%w %s: it ended at %s", ErrBadRoot, i.root.ID, i.root.NotAfter)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-skew).UTC(),
		NotAfter:              end.UTC(),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:                  []*url.URL{uri},
	}
	cert, err := sign(tmpl, i.cert, key.Public(), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", uri, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: encode its key: %w", uri, err)
	}
	return &Leaf{
		Serial: colons(cert.SerialNumber.Bytes()), Cert: encodePEM("CERTIFICATE", cert.Raw) + i.intermediates,
		Key: encodePEM("EC PRIVATE KEY", der), URI: uri.String(), ValidAfter: cert.NotBefore, ValidBefore: cert.NotAfter,
		Root: i.root.ID, renewAt: renewal(now, end),
	}, nil
}

// renewal is somewhere in the third fifth of a leaf's life: early enough for
// three more tries, and not when all others are due.
func renewal(from, to time.Time) time.Time {
	fifth := max(to.Sub(from)/5, 1)
	return from.Add(3*fifth + rand.N(fifth))
}
