package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs the certificates of a test's servers.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes <name>.crt and <name>.key.
func (a *authority) issue(t testing.TB, name string, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(mrand.Int64()), pkix.Name{CommonName: name}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) server(t testing.TB, id string, names ...string) {
	t.Helper()
	a.issue(t, id, &x509.Certificate{
		DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// fleet is the servers of a test, each with an address of its own.
type fleet struct {
	t    *testing.T
	ca   *authority
	dirs map[string]string
	run  int // makes names and addresses unlike those of other tests
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return &fleet{t: t, ca: newAuthority(t), dirs: map[string]string{}, run: mrand.IntN(1 << 14)}
}

func (f *fleet) id(i int) string { return fmt.Sprintf("s%d-%d", i, f.run) }

// addr is where server i is after it has moved so many times.
func (f *fleet) addr(i, moves int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(64 + f.run>>8), byte(f.run), byte(1 + i + 10*moves)}) //nolint:gosec // run has 14 bits
}

// start runs server i at its address after so many moves.
func (f *fleet) start(i, moves int, join map[string]string) *node {
	f.t.Helper()
	id, addr := f.id(i), f.addr(i, moves)
	if f.dirs[id] == "" {
		f.dirs[id] = f.t.TempDir()
		f.ca.server(f.t, id, id+peerDomain, PeerName)
	}
	SetPeer(id, addr)
	return startStore(f.t, f.dirs[id], func(s *Store) {
		s.cfg.Name = id
		s.cfg.Cluster = &Cluster{
			ID: id, Listen: netip.AddrPortFrom(addr, 2380),
			CertFile: f.ca.file(id + ".crt"), KeyFile: f.ca.file(id + ".key"), CAFile: f.ca.file("ca.crt"),
		}
		if join != nil {
			s.cfg.Cluster.Join = func(context.Context) (map[string]string, error) { return join, nil }
		}
	})
}

// three is a cluster of three that vote.
func (f *fleet) three() []*node {
	f.t.Helper()
	nodes := []*node{f.start(0, 0, nil)}
	for i := 1; i < 3; i++ {
		join, err := nodes[0].AddServer(f.t.Context(), f.id(i))
		if err != nil {
			f.t.Fatal(err)
		}
		nodes = append(nodes, f.start(i, 0, join))
	}
	for i := 1; i < 3; i++ {
		f.promote(nodes[0], f.id(i))
	}
	return nodes
}

func (f *fleet) promote(n *node, id string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := n.Promote(ctx, id)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrLearner) && !errors.Is(err, ErrQuorum) {
			f.t.Fatal(err)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// write commits a key, again while the servers choose a leader.
func (f *fleet) write(n *node, key string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	for {
		res, err := n.Commit(ctx, put(key, "x"))
		if err == nil && res.OK {
			n.st.at(f.t, res.Index)
			return
		}
		if ctx.Err() != nil {
			f.t.Fatalf("write %s: %v", key, err)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func TestServersJoinAndOutliveTheirLeader(t *testing.T) {
	f := newFleet(t)
	nodes := f.three()
	for i, n := range nodes {
		key := fmt.Sprint("from", i)
		at := n.must(t, put(key, "x"), true)
		for j, o := range nodes {
			if _, ok := o.st.at(t, at)[key]; !ok {
				t.Errorf("server %d does not show what server %d wrote", j, i)
			}
		}
	}
	for i, n := range nodes {
		if st := n.Status(); len(st.Peers) != 3 {
			t.Errorf("server %d: voters %v", i, st.Peers)
		}
	}
	for i, n := range nodes {
		if !n.running.Load().leads() {
			continue
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		f.write(nodes[(i+1)%3], "after")
		f.write(nodes[(i+2)%3], "after")
		return
	}
	t.Fatal("nobody leads")
}

func TestAllServersMoveAtOnce(t *testing.T) {
	f := newFleet(t)
	nodes := f.three()
	f.write(nodes[0], "before")
	for _, n := range nodes {
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nodes {
		SetPeer(f.id(i), f.addr(i, 1))
	}
	// One alone has no quorum and is not ready, so they start together.
	started := make(chan *node, 3)
	for i := range nodes {
		go func() {
			var n *node
			defer func() { started <- n }()
			n = f.start(i, 1, nil)
		}()
	}
	for range nodes {
		n := <-started
		if n == nil {
			t.FailNow()
		}
		f.write(n, "moved")
		if _, ok := n.st.at(t, 0)["before"]; !ok {
			t.Error("what was written before the move is gone")
		}
	}
}

func TestServersAreRemoved(t *testing.T) {
	f := newFleet(t)
	first := f.start(0, 0, nil)
	if err := first.RemoveServer(t.Context(), f.id(0)); !errors.Is(err, ErrLastServer) {
		t.Errorf("the last server is removed: %v", err)
	}
	if err := first.RemoveServer(t.Context(), "nobody"); !errors.Is(err, ErrUnknownServer) {
		t.Errorf("nobody is removed: %v", err)
	}
	join, err := first.AddServer(t.Context(), f.id(1))
	if err != nil {
		t.Fatal(err)
	}
	// It may ask again, if it has not heard the answer.
	if again, err := first.AddServer(t.Context(), f.id(1)); err != nil || len(again) != len(join) {
		t.Errorf("added again: %v, %v", again, err)
	}
	if err := first.RemoveServer(t.Context(), f.id(1)); err != nil {
		t.Fatal(err)
	}
	if all := first.Members(); len(all) != 1 || !all[0].Leader || !all[0].Self {
		t.Errorf("%+v", all)
	}
}

func TestPeersNeedAServersCertificate(t *testing.T) {
	f := newFleet(t)
	n := f.start(0, 0, nil)
	n.must(t, put("a", ""), true)
	f.ca.server(t, "agent", "agent"+peerDomain)
	other := newAuthority(t)
	other.server(t, "agent", PeerName)
	roots := x509.NewCertPool()
	roots.AddCert(f.ca.cert)
	for name, cert := range map[string]struct{ crt, key string }{
		"none":              {},
		"of an agent":       {f.ca.file("agent.crt"), f.ca.file("agent.key")},
		"of somebody else":  {other.file("agent.crt"), other.file("agent.key")},
		"of one of our own": {f.ca.file(f.id(0) + ".crt"), f.ca.file(f.id(0) + ".key")},
	} {
		cfg := &tls.Config{RootCAs: roots, ServerName: PeerName, MinVersion: tls.VersionTLS13}
		if cert.crt != "" {
			pair, err := tls.LoadX509KeyPair(cert.crt, cert.key)
			if err != nil {
				t.Fatal(err)
			}
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", netip.AddrPortFrom(f.addr(0, 0), 2380).String())
		if err == nil {
			// With TLS 1.3 a client hears of its refusal when it reads.
			_, _ = conn.Write([]byte("GET /version HTTP/1.0\r\n\r\n"))
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		cancel()
		if ours := name == "of one of our own"; (err == nil) != ours {
			t.Errorf("certificate %s: %v", name, err)
		}
	}
}

func TestPeerNamesAreResolvedInProcess(t *testing.T) {
	f := newFleet(t)
	SetPeer(f.id(7), netip.MustParseAddr("127.0.0.7"))
	SetPeer(f.id(8), netip.MustParseAddr("fd00::8"))
	for id, want := range map[string]string{f.id(7): "127.0.0.7", f.id(8): "fd00::8"} {
		got, err := lookup(t, id+peerDomain)
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	if got, err := lookup(t, f.id(9)+peerDomain); err == nil {
		t.Errorf("a peer that nobody knows is at %v", got)
	}
}

func lookup(t *testing.T, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return net.DefaultResolver.LookupHost(ctx, name)
}
