package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNames(t *testing.T) {
	const td = "11111111-2222-3333-4444-555555555555.consul"
	for _, c := range []struct {
		uri  string
		want identity.Name
		ok   bool
	}{
		{identity.ServiceURI(td, "dc1", "web").String(), identity.Name{TrustDomain: td, Datacenter: "dc1", Service: "web"}, true},
		{identity.ServiceURI(td, "dc1", "a/b c").String(), identity.Name{TrustDomain: td, Datacenter: "dc1", Service: "a/b c"}, true},
		{identity.AgentURI(td, "dc1", "n1").String(), identity.Name{TrustDomain: td, Datacenter: "dc1", Agent: "n1"}, true},
		{"spiffe://" + td + "/ap/default/ns/default/dc/dc1/svc/web", identity.Name{TrustDomain: td, Datacenter: "dc1", Service: "web"}, true},
		{"spiffe://" + td, identity.Name{TrustDomain: td}, true},
		{"https://" + td + "/ns/default/dc/dc1/svc/web", identity.Name{}, false},
		{"spiffe:///ns/default/dc/dc1/svc/web", identity.Name{}, false},
		{"spiffe://" + td + "/ns/default/dc/dc1/svc/", identity.Name{}, false},
		{"spiffe://" + td + "/ns/default/dc/dc1/svc/web/more", identity.Name{}, false},
		{"spiffe://" + td + "/something", identity.Name{}, false},
		{"spiffe://" + td + "/ns/default/dc/dc1/svc/web?x=1", identity.Name{}, false},
		{"%zz", identity.Name{}, false},
		{"", identity.Name{}, false},
	} {
		if got, ok := identity.ParseURI(c.uri); got != c.want || ok != c.ok {
			t.Errorf("ParseURI(%q) = %+v, %v, want %+v, %v", c.uri, got, ok, c.want, c.ok)
		}
	}
	if s := identity.ServiceURI(td, "dc1", "web").String(); s != "spiffe://"+td+"/ns/default/dc/dc1/svc/web" {
		t.Errorf("a service is called %q", s)
	}
	if s := identity.AgentURI(td, "dc1", "n1").String(); s != "spiffe://"+td+"/agent/client/dc/dc1/id/n1" {
		t.Errorf("an agent is called %q", s)
	}
}

// authority is a root that was made now, with what signs for it.
type authority struct {
	root   model.CARoot
	key    model.CAKey
	issuer *identity.Issuer
}

func newAuthority(t *testing.T, trustDomain string, before *identity.Issuer) authority {
	t.Helper()
	root, key, err := identity.NewRoot(trustDomain, time.Now(), before)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := identity.NewIssuer(root, key)
	if err != nil {
		t.Fatal(err)
	}
	return authority{root, key, issuer}
}

func TestARootSaysWhatItIs(t *testing.T) {
	a := newAuthority(t, "x.consul", nil)
	if len(a.root.ID) != 59 || strings.Count(a.root.ID, ":") != 19 {
		t.Errorf("id %q is no fingerprint", a.root.ID)
	}
	if a.root.Serial == 0 || !a.root.Active || a.root.TrustDomain != "x.consul" || a.key.Root != a.root.ID {
		t.Errorf("root = %+v", a.root)
	}
	if life := a.root.NotAfter.Sub(a.root.NotBefore); life < identity.RootTTL || life > identity.RootTTL+time.Hour {
		t.Errorf("it lives for %v", life)
	}
	if id := identity.SigningKeyID(&a.root); strings.Count(id, ":") != 19 {
		t.Errorf("signing key id %q", id)
	}
}

func TestAKeyThatDoesNotFitIsRefusedWithoutBeingShown(t *testing.T) {
	a, b := newAuthority(t, "x.consul", nil), newAuthority(t, "x.consul", nil)
	secret := "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
	for name, try := range map[string]struct {
		root model.CARoot
		key  model.CAKey
	}{
		"another root's key": {a.root, b.key},
		"no key":             {a.root, model.CAKey{}},
		"a key in ruins":     {a.root, model.CAKey{Key: "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n"}},
		"no certificate":     {model.CARoot{ID: "x"}, a.key},
	} {
		_, err := identity.NewIssuer(try.root, try.key)
		if !errors.Is(err, identity.ErrBadRoot) || strings.Contains(fmt.Sprint(err), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALeafDoesNotOutliveItsRoot(t *testing.T) {
	a := newAuthority(t, "x.consul", nil)
	uri := identity.ServiceURI("x.consul", "dc1", "web")
	leaf, err := a.issuer.Issue(uri, a.root.NotAfter.Add(-time.Hour), 72*time.Hour)
	if err != nil || leaf.ValidBefore.After(a.root.NotAfter) {
		t.Errorf("a late leaf ends at %v, %v", leaf.ValidBefore, err)
	}
	if _, err := a.issuer.Issue(uri, a.root.NotAfter, time.Hour); !errors.Is(err, identity.ErrBadRoot) {
		t.Errorf("a leaf of a root that has ended: %v", err)
	}
}

// Two ends that trust roots, each with a leaf, shake hands.
func TestLeavesVerify(t *testing.T) {
	const td = "11111111-2222-3333-4444-555555555555.consul"
	one := newAuthority(t, td, nil)
	two := newAuthority(t, td, one.issuer)
	three := newAuthority(t, td, two.issuer)
	stranger := newAuthority(t, "other.consul", nil)
	forged := newAuthority(t, "other.consul", nil)
	for name, c := range map[string]struct {
		signs   authority
		domain  string
		trusted authority
		ok      bool
	}{
		"same root":                             {one, td, one, true},
		"rotated, the other knows only the old": {two, td, one, true},
		"rotated, the other knows both":         {two, td, two, true},
		"rotated out, the other has the new":    {one, td, two, false},
		"rotated twice":                         {three, td, one, false},
		"another site":                          {stranger, "other.consul", one, false},
		"a name of another site":                {forged, td, forged, false},
	} {
		uri := identity.ServiceURI(c.domain, "dc1", "web")
		leaf, err := c.signs.issuer.Issue(uri, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got, err := handshake(t, leaf, c.trusted.root)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, want success %v", name, err, c.ok)
		}
		if c.ok && got != uri.String() {
			t.Errorf("%s: the other end sees %q", name, got)
		}
	}
}

// handshake returns the name of both ends as the client has verified it.
func handshake(t *testing.T, leaf *identity.Leaf, trusted model.CARoot) (string, error) {
	t.Helper()
	cert, err := tls.X509KeyPair([]byte(leaf.Cert), []byte(leaf.Key))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(trusted.RootCert))
	verify := func(usage x509.ExtKeyUsage, name *string) func(tls.ConnectionState) error {
		return func(cs tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				between.AddCert(c)
			}
			peer := cs.PeerCertificates[0]
			_, err := peer.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
			if err == nil {
				*name = peer.URIs[0].String()
			}
			return err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var client, server string
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		srv := tls.Server(conn, &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
			VerifyConnection: verify(x509.ExtKeyUsageClientAuth, &server),
		})
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		served <- srv.Handshake()
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	err = tls.Client(conn, &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, // names are URIs: verified below
		VerifyConnection: verify(x509.ExtKeyUsageServerAuth, &client),
	}).Handshake()
	conn.Close()
	if serr := <-served; err == nil {
		err = serr // the server's verdict comes after the client's part
	}
	if err == nil && client != server {
		t.Errorf("client saw %q, server %q", client, server)
	}
	return client, err
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		text, err string
		leaf, rot time.Duration
	}{
		{"", "", identity.DefaultLeafTTL, 0},
		{`{}`, "", identity.DefaultLeafTTL, 0},
		{`{"LeafCertTTL": "24h", "RotationPeriod": "2160h", "IntermediateCertTTL": "8760h", "CSRMaxPerSecond": 50}`, "", 24 * time.Hour, 2160 * time.Hour},
		{`{"leaf_cert_ttl": 7200000000000, "private_key_type": "ec", "private_key_bits": 256, "PrivateKey": ""}`, "", 2 * time.Hour, 0},
		{`{"LeafCertTTL": "10m"}`, "leaf cert TTL must be greater or equal than 1h0m0s", 0, 0},
		{`{"LeafCertTTL": "9000h"}`, "leaf cert TTL must be less than 8760h0m0s", 0, 0},
		{`{"LeafCertTTL": true}`, `LeafCertTTL is true; write a duration such as "72h"`, 0, 0},
		{`{"LeafCertTTL": "soon"}`, `LeafCertTTL is "soon"; write a duration such as 72h`, 0, 0},
		{`{"RotationPeriod": "1h"}`, "RotationPeriod is 1h0m0s; it must be 0 or at least the leaf cert TTL, 72h0m0s", 0, 0},
		{`{"PrivateKey": "-----BEGIN"}`, "PrivateKey is not supported: the site makes its own root; leave it out", 0, 0},
		{`{"PrivateKeyType": "rsa"}`, "PrivateKeyType is rsa; only ec is supported", 0, 0},
		{`[]`, "configuration is not a JSON object: json: cannot unmarshal array into Go value of type map[string]interface {}", 0, 0},
	} {
		got, err := identity.ParseConfig(c.text)
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v, want %s", c.text, err, c.err)
			}
			continue
		}
		if err != nil || got.LeafTTL != c.leaf || got.Rotation != c.rot {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
	}
}
