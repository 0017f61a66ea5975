package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// site is an authority that makes badges.
type site struct {
	t      *testing.T
	issuer *Issuer
	root   model.CARoot
}

func newSite(t *testing.T) *site {
	t.Helper()
	root, key, err := NewRoot(NewTrustDomain(), time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(root, key)
	if err != nil {
		t.Fatal(err)
	}
	return &site{t: t, issuer: issuer, root: root}
}

func (s *site) node(name string, server bool) Node {
	return Node{ID: "id-" + strings.ReplaceAll(name, " ", "-"), Name: model.NodeName(name), Site: "dc1", TrustDomain: s.root.TrustDomain, Server: server}
}

// badge gives a node a certificate that was made at a time.
func (s *site) badge(n Node, at time.Time, roots string, revoked func(string, time.Time) bool) *Badge {
	s.t.Helper()
	key, request, err := NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := s.issuer.CertifyNode(request, n, at, NodeTTL)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := OpenBadge(s.t.TempDir(), revoked)
	if !errors.Is(err, ErrNoBadge) {
		s.t.Fatalf("an empty directory: %v", err)
	}
	if err := b.Set(cert, key, roots); err != nil {
		s.t.Fatal(err)
	}
	return b
}

// shake makes one connection and returns who the server and the client say that
// the other is.
func shake(t *testing.T, server, client *tls.Config) (atServer *tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type end struct {
		state *tls.ConnectionState
		err   error
	}
	served := make(chan end, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- end{nil, err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		tc := tls.Server(c, server)
		err = tc.Handshake()
		st := tc.ConnectionState()
		if err == nil {
			_, err = tc.Write([]byte("x"))
		}
		served <- end{&st, err}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(c, client)
	clientErr = tc.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(tc, make([]byte, 1)) // a refusal comes with the first read
	}
	c.Close()
	e := <-served
	return e.state, e.err, clientErr
}

func TestNodesKnowEachOther(t *testing.T) {
	s := newSite(t)
	server := s.badge(s.node("srv", true), time.Now(), s.root.RootCert, nil)
	agent := s.badge(s.node("web 1", false), time.Now(), s.root.RootCert, nil)
	state, serr, cerr := shake(t, server.Server(false), agent.Client())
	if serr != nil || cerr != nil {
		t.Fatal(serr, cerr)
	}
	if state.Version != tls.VersionTLS13 {
		t.Errorf("version %x", state.Version)
	}
	got, err := server.Peer(state)
	if err != nil || got != s.node("web 1", false) {
		t.Errorf("%+v, %v", got, err)
	}
	if n, ok := server.Node(); !ok || n != s.node("srv", true) {
		t.Errorf("%+v %v", n, ok)
	}
	if due, end := server.Due(), server.Ends(); time.Until(due) > NodeTTL/2 || time.Until(due) < NodeTTL/2-time.Hour || time.Until(end) > NodeTTL {
		t.Errorf("due %v, ends %v", due, end)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	s, other := newSite(t), newSite(t)
	server := s.badge(s.node("srv", true), time.Now(), s.root.RootCert, func(id string, _ time.Time) bool { return id == "id-bad" })
	agent := s.badge(s.node("web", false), time.Now(), s.root.RootCert, nil)
	for name, client := range map[string]*Badge{
		"of another authority": other.badge(other.node("web", false), time.Now(), s.root.RootCert+other.root.RootCert, nil),
		"that has ended":       s.badge(s.node("web", false), time.Now().Add(-2*NodeTTL), s.root.RootCert, nil),
		"that was revoked":     s.badge(s.node("bad", false), time.Now(), s.root.RootCert, nil),
	} {
		if _, serr, cerr := shake(t, server.Server(false), client.Client()); serr == nil || cerr == nil {
			t.Errorf("a certificate %s is taken: %v, %v", name, serr, cerr)
		}
	}
	none := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if _, serr, cerr := shake(t, server.Server(false), none); serr == nil || cerr == nil {
		t.Errorf("no certificate is taken: %v, %v", serr, cerr)
	}
	if _, serr, cerr := shake(t, server.Server(true), none); serr != nil || cerr != nil {
		t.Errorf("who has to join cannot: %v, %v", serr, cerr)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	if _, serr, _ := shake(t, server.Server(true), old); serr == nil {
		t.Error("TLS 1.2 is spoken")
	}
	// A node that is no server stands in for one.
	if _, _, cerr := shake(t, agent.Server(false), server.Client()); !errors.Is(cerr, ErrNoServer) {
		t.Errorf("an agent is taken for a server: %v", cerr)
	}
}

func TestAServicesCertificateIsNoNodes(t *testing.T) {
	s := newSite(t)
	leaf, err := s.issuer.Issue(ServiceURI(s.root.TrustDomain, "dc1", "web"), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key))
	if err != nil {
		t.Fatal(err)
	}
	server := s.badge(s.node("srv", true), time.Now(), s.root.RootCert, nil)
	client := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	if _, serr, _ := shake(t, server.Server(true), client); serr == nil {
		t.Error("a service speaks as a node")
	}
}

func TestRequestsDecideNothing(t *testing.T) {
	s := newSite(t)
	_, request, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]Node{
		"the servers' name": {ID: "server", Name: "a"}, "no ID": {Name: "a"}, "a path": {ID: "a/b", Name: "a"}, "a domain": {ID: "a.b", Name: "a"},
		"no name": {ID: "a"}, "a name that leads up": {ID: "a", Name: ".."},
	} {
		if _, err := s.issuer.CertifyNode(request, n, time.Now(), time.Hour); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"nothing": "", "no PEM": "x", "a certificate": s.root.RootCert, "damaged": strings.Replace(request, "A", "B", 3)} {
		if _, err := s.issuer.CertifyNode(text, s.node("a", false), time.Now(), time.Hour); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABadgeOutlivesItsProcess(t *testing.T) {
	s := newSite(t)
	b := s.badge(s.node("web", false), time.Now(), s.root.RootCert, nil)
	again, err := OpenBadge(b.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := again.Node(); n != s.node("web", false) || again.Roots() != s.root.RootCert {
		t.Errorf("%+v, %q", n, again.Roots())
	}
	info, err := os.Stat(again.File(BadgeKey))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	if err := again.Set("", "", "nonsense"); err == nil {
		t.Error("roots that are none are taken")
	}
	if err := os.WriteFile(filepath.Join(b.dir, BadgeCert), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBadge(b.dir, nil); err == nil || errors.Is(err, ErrNoBadge) {
		t.Errorf("a damaged certificate: %v", err)
	}
}

func TestARotationBreaksNoConnection(t *testing.T) {
	s := newSite(t)
	server := s.badge(s.node("srv", true), time.Now(), s.root.RootCert, nil)
	agent := s.badge(s.node("web", false), time.Now(), s.root.RootCert, nil)
	root, key, err := NewRoot(s.root.TrustDomain, time.Now(), s.issuer)
	if err != nil {
		t.Fatal(err)
	}
	token, err := NewJoinToken([]string{"127.0.0.1:1"}, s.root.RootCert)
	if err != nil {
		t.Fatal(err)
	}
	next := &site{t: t, root: root}
	if next.issuer, err = NewIssuer(root, key); err != nil {
		t.Fatal(err)
	}
	check := func(stage string, server, agent *Badge) {
		t.Helper()
		if _, serr, cerr := shake(t, server.Server(false), agent.Client()); serr != nil || cerr != nil {
			t.Errorf("%s: %v, %v", stage, serr, cerr)
		}
		if _, serr, cerr := shake(t, server.Server(true), token.Client()); serr != nil || cerr != nil {
			t.Errorf("%s, with a token from before: %v, %v", stage, serr, cerr)
		}
	}
	both := s.root.RootCert + root.RootCert
	check("before", server, agent)
	// One of them has the new certificate, the other has not even heard of the root.
	check("server first", next.badge(s.node("srv", true), time.Now(), both, nil), agent)
	check("agent first", server, next.badge(s.node("web", false), time.Now(), both, nil))
	if err := server.Set("", "", both); err != nil {
		t.Fatal(err)
	}
	check("after", server, next.badge(s.node("web", false), time.Now(), both, nil))
}

func TestJoinTokens(t *testing.T) {
	s, other := newSite(t), newSite(t)
	token, err := NewJoinToken([]string{"10.0.0.1:8300", "[fd00::1]:8300"}, s.root.RootCert)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseJoinToken(" " + token.String() + "\n")
	if err != nil || again.Secret != token.Secret || len(again.Servers) != 2 || !SecretMatches(again.Secret, SecretHash(token.Secret)) || SecretMatches("x", SecretHash(token.Secret)) {
		t.Errorf("%+v, %v", again, err)
	}
	text := token.String()
	for _, bad := range []string{"", "x", tokenPrefix, text[:len(text)-5], text[5:], JoinToken{Servers: []string{"a"}, Root: "r", ID: "i", Secret: "k"}.String()} {
		if _, err := ParseJoinToken(bad); !errors.Is(err, ErrBadToken) || strings.Contains(err.Error(), token.Secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	impostor := other.badge(other.node("srv", true), time.Now(), other.root.RootCert, nil)
	if _, _, cerr := shake(t, impostor.Server(true), token.Client()); cerr == nil {
		t.Error("another site's server is shown the token")
	}
	agent := s.badge(s.node("web", false), time.Now(), s.root.RootCert, nil)
	if _, _, cerr := shake(t, agent.Server(true), token.Client()); !errors.Is(cerr, ErrNoServer) {
		t.Errorf("an agent is shown the token: %v", cerr)
	}
}

func TestRevocationLists(t *testing.T) {
	s := newSite(t)
	b := s.badge(s.node("web", false), time.Now(), s.root.RootCert, nil)
	serial := b.held.Load().pair.Leaf.SerialNumber
	text, err := s.issuer.Revocation([]x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: time.Now()}}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(pemOf(t, text))
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.CheckSignatureFrom(s.issuer.cert) != nil {
		t.Errorf("%+v, %v", list, err)
	}
}

func pemOf(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	return block.Bytes
}
