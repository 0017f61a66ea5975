package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Issuer is a root with its key: what signs.
type Issuer struct {
	root          model.CARoot
	cert          *x509.Certificate
	key           *ecdsa.PrivateKey
	intermediates string // PEM, one after the other
}

// NewRoot makes a root for a trust domain, and its key. With a predecessor, those
// who trust only that trust the new root's leaves too: the predecessor signs the
// new root, and that certificate goes with its leaves.
func NewRoot(trustDomain string, now time.Time, predecessor *Issuer) (model.CARoot, model.CAKey, error) {
	key, err := newKey()
	if err != nil {
		return model.CARoot{}, model.CAKey{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return model.CARoot{}, model.CAKey{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "fairlead-ca." + trustDomain},
		NotBefore:             now.Add(-skew).UTC(),
		NotAfter:              now.Add(RootTTL).UTC(),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		PermittedURIDomains:   []string{trustDomain},
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return model.CARoot{}, model.CAKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return model.CARoot{}, model.CAKey{}, fmt.Errorf("encode a key: %w", err)
	}
	root := model.CARoot{
		ID: fingerprint(cert), Name: "Fairlead CA Root Cert", Serial: cert.SerialNumber.Uint64(), TrustDomain: trustDomain,
		RootCert: encodePEM("CERTIFICATE", cert.Raw), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Active: true,
	}
	if predecessor != nil {
		cross, err := predecessor.crossSign(cert)
		if err != nil {
			return model.CARoot{}, model.CAKey{}, err
		}
		root.Intermediates = []string{cross}
	}
	return root, model.CAKey{Root: root.ID, Key: encodePEM("PRIVATE KEY", der)}, nil
}

// crossSign certifies another root's key, for as long as both are good.
func (i *Issuer) crossSign(root *x509.Certificate) (string, error) {
	serial, err := newSerial()
	if err != nil {
		return "", err
	}
	tmpl := *root
	tmpl.SerialNumber = serial
	tmpl.AuthorityKeyId = nil // the parent's
	tmpl.SignatureAlgorithm = x509.UnknownSignatureAlgorithm
	if tmpl.NotAfter.After(i.cert.NotAfter) {
		tmpl.NotAfter = i.cert.NotAfter
	}
	cert, err := sign(&tmpl, i.cert, root.PublicKey, i.key)
	if err != nil {
		return "", fmt.Errorf("cross-sign: %w", err)
	}
	return encodePEM("CERTIFICATE", cert.Raw), nil
}

// NewIssuer reads a root and its key back. Its error is ErrBadRoot.
func NewIssuer(root model.CARoot, key model.CAKey) (*Issuer, error) {
	bad := func(err error) (*Issuer, error) { return nil, fmt.Errorf("%w %s: %w", ErrBadRoot, root.ID, err) }
	cert, err := parseCertificate(root.RootCert)
	if err != nil {
		return bad(err)
	}
	block, _ := pem.Decode([]byte(key.Key))
	if block == nil {
		return bad(errors.New("its key is not PEM"))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return bad(errors.New("its key cannot be read")) // what the parser says may quote it
	}
	own, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return bad(fmt.Errorf("its key is a %T", parsed))
	}
	if !own.PublicKey.Equal(cert.PublicKey) {
		return bad(errors.New("its key is another root's"))
	}
	i := &Issuer{root: root, cert: cert, key: own}
	for _, c := range root.Intermediates {
		i.intermediates += c
	}
	return i, nil
}

// Root is the id of the issuer's root.
func (i *Issuer) Root() string { return i.root.ID }

// TrustDomain is the one that the issuer signs for.
func (i *Issuer) TrustDomain() string { return i.root.TrustDomain }

// SigningKeyID says which key signed, in the form of a leaf's authority key id.
func SigningKeyID(root *model.CARoot) string {
	cert, err := parseCertificate(root.RootCert)
	if err != nil {
		return ""
	}
	return colons(cert.SubjectKeyId)
}
