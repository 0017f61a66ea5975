package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// tokenPrefix says what a text is, and its form's version.
const tokenPrefix = "flj1-"

// ErrBadToken marks a text that is no join token.
var ErrBadToken = fmt.Errorf("%w join token", model.ErrInvalid)

// JoinToken is all that a host needs to become a node of a site.
type JoinToken struct {
	// Servers are where servers listen for nodes, host:port.
	Servers []string `json:"s"`
	// Root is the SHA-256 of the authority's certificate, in hexadecimal: by it
	// the host knows that it speaks with the site and nobody else.
	Root string `json:"r"`
	// ID names the token, Secret is what makes it good, once or for some time.
	ID     string `json:"i"`
	Secret string `json:"k"`
}

// NewJoinToken makes up a token that a root's servers take, once it is recorded.
func NewJoinToken(servers []string, rootPEM string) (JoinToken, error) {
	root, err := parseCertificate(rootPEM)
	if err != nil {
		return JoinToken{}, fmt.Errorf("%w: %w", ErrBadRoot, err)
	}
	t := JoinToken{Servers: servers, Root: rootHash(root), ID: randomText(6), Secret: randomText(24)}
	return t, nil
}

func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func rootHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// String is the token as people pass it on: a secret.
func (t JoinToken) String() string {
	b, _ := json.Marshal(t) // of strings alone
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseJoinToken reads a token back; the error is ErrBadToken and does not quote
// it.
func ParseJoinToken(s string) (t JoinToken, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return t, fmt.Errorf("%w: it does not begin with %q", ErrBadToken, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil || len(t.Servers) == 0 || t.Root == "" || t.ID == "" || t.Secret == "" {
		return JoinToken{}, fmt.Errorf("%w: it is not whole; copy all of it", ErrBadToken)
	}
	for _, s := range t.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return JoinToken{}, fmt.Errorf("%w: its server %q has no port", ErrBadToken, s)
		}
	}
	return t, nil
}

// SecretHash is what is recorded of a token's secret.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// SecretMatches compares a secret with what was recorded of one.
func SecretMatches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(SecretHash(secret)), []byte(hash)) == 1
}

// Client is for the one connection on which a host that has no certificate yet
// shows its token: it takes servers of the token's root alone. A root that was
// rotated out since is known by the chain that leads back to it.
func (t JoinToken) Client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: ServerName,
		InsecureSkipVerify: true, // what follows does it, from the root's hash on
		VerifyConnection: func(s tls.ConnectionState) error {
			roots := x509.NewCertPool()
			found := false
			for _, c := range s.PeerCertificates {
				if c.IsCA && rootHash(c) == t.Root {
					roots.AddCert(c)
					found = true
				}
			}
			if !found {
				return errors.New("who answers has another authority than the join token names: it is another site, or somebody in between")
			}
			return verifyServer(roots, s.PeerCertificates)
		},
	}
}
