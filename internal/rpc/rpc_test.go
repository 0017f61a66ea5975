package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

func (w *world) remote(name string) *Remote {
	return NewRemote(w.client(w.badge(name, false), w.addr), func(context.Context, model.Index) error { return nil })
}

func TestANodeWritesItsOwn(t *testing.T) {
	w := start(t)
	r := w.remote("web")
	ctx := t.Context()
	// Owner and ID are those of the certificate, whatever is sent.
	if _, err := r.RegisterNode(ctx, model.Node{Name: "web", ID: "forged", Stamp: model.Stamp{Owner: "operator"}}); err != nil {
		t.Fatal(err)
	}
	errs := r.RegisterMany(ctx, []model.Instance{{Node: "web", ID: "a"}, {Node: "web", ID: "taken"}}, [][]model.Check{nil, {{Node: "web", ID: "c"}}})
	if errs[0] != nil || !errors.Is(errs[1], errTaken) || errs[1].Error() != "register: taken" {
		t.Errorf("%v", errs)
	}
	if errs := r.PutChecks(ctx, []model.Check{{Node: "web", ID: "c"}}); errs[0] != nil {
		t.Error(errs)
	}
	if _, err := r.Deregister(ctx, "web", "a"); err != nil {
		t.Error(err)
	}
	if _, err := r.DeleteCheck(ctx, "web", "c"); err != nil {
		t.Error(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.5")}
	if e, at, err := r.CreateEndpoint(ctx, model.Endpoint{ID: "e", Node: "web"}, want); err != nil || !slices.Equal(e.Addrs, want) || at == 0 {
		t.Errorf("%+v at %d, %v", e, at, err)
	}
	if _, err := r.DeleteEndpoint(ctx, "e"); err != nil {
		t.Error(err)
	}
	wrote := []string{
		"node web id-web node/web", "instance web/a node/web", "instance web/taken node/web", "check web/c node/web",
		"deregister web/a", "delete check web/c", "endpoint e node/web", "delete endpoint e",
	}
	if !slices.Equal(w.wrote, wrote) {
		t.Errorf("wrote %q", w.wrote)
	}
}

func TestANodeWritesNobodyElses(t *testing.T) {
	w := start(t)
	r := w.remote("web")
	ctx := t.Context()
	_, node := r.RegisterNode(ctx, model.Node{Name: "other"})
	_, gone := r.Deregister(ctx, "other", "a")
	_, check := r.DeleteCheck(ctx, "other", "c")
	_, alive := r.DeleteCheck(ctx, "web", model.SerfHealth)
	_, _, made := r.CreateEndpoint(ctx, model.Endpoint{ID: "e", Node: "other"}, nil)
	_, taken := r.UpdateEndpoint(ctx, model.Endpoint{ID: "theirs", Node: "web"})
	_, removed := r.DeleteEndpoint(ctx, "theirs")
	for what, err := range map[string]error{
		"a node": node, "an instance's removal": gone, "a check's removal": check, "its own life": alive, "an endpoint": made,
		"another's endpoint": taken, "an endpoint's removal": removed,
		"an instance":         r.RegisterMany(ctx, []model.Instance{{Node: "other", ID: "a"}}, [][]model.Check{nil})[0],
		"an instance's check": r.RegisterMany(ctx, []model.Instance{{Node: "web", ID: "a"}}, [][]model.Check{{{Node: "other", ID: "c"}}})[0],
		"a check":             r.PutChecks(ctx, []model.Check{{Node: "other", ID: "c"}})[0],
		"its own health":      r.PutChecks(ctx, []model.Check{{Node: "web", ID: model.SerfHealth}})[0],
	} {
		if !errors.Is(err, ErrNotYours) {
			t.Errorf("%s is written: %v", what, err)
		}
	}
	if len(w.wrote) != 0 {
		t.Errorf("wrote %q", w.wrote)
	}
	// What only servers may ask.
	if _, err := w.client(w.badge("web", false), w.addr).AddServer(ctx, Peer{}); !errors.Is(err, ErrNotYours) || len(w.members) != 0 {
		t.Errorf("an agent becomes a server: %v, %v", err, w.members)
	}
}

func TestHostsJoinAndRenew(t *testing.T) {
	w := start(t)
	key, request, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	token, err := identity.NewJoinToken([]string{"127.0.0.1:1", w.addr.String()}, w.root.RootCert)
	if err != nil {
		t.Fatal(err)
	}
	req := JoinRequest{ID: "id-new", Name: "new", Request: request}
	if _, err := Join(t.Context(), token, req, codes); !errors.Is(err, errTaken) {
		t.Errorf("with a bad secret: %v", err)
	}
	token.Secret = "good"
	a, err := Join(t.Context(), token, req, codes)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := identity.OpenBadge(t.TempDir(), nil)
	if err := b.Set(a.Cert, key, a.Roots); err != nil {
		t.Fatal(err)
	}
	c := w.client(b, w.addr)
	_, request, err = identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Renew(t.Context(), request); err != nil {
		t.Error(err)
	}
	// Nobody may do anything else without a certificate, and a revoked one is none.
	stranger := newTransport(token.Client())
	defer stranger.CloseIdleConnections()
	for _, path := range []string{pathRenew, pathServer, pathAnnounce, pathSession, pathCatalog + "RegisterNode", "/v1/kv/a"} {
		resp, err := host{stranger, w.addr.String()}.RoundTrip(httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s without a certificate: %s", path, resp.Status)
		}
	}
	w.mu.Lock()
	w.revoked = "id-new"
	w.mu.Unlock()
	if _, err := c.Renew(t.Context(), request); err == nil {
		t.Error("a revoked node is served on the connection that it has")
	}
	c.Close()
	if _, err := c.Renew(t.Context(), request); err == nil {
		t.Error("a revoked node is served")
	}
}

func TestServersAnnounceThemselves(t *testing.T) {
	w := start(t)
	c := w.client(w.badge("two", true), w.addr)
	self := Peer{ID: "forged", Name: "forged", Addr: netip.MustParseAddrPort("127.0.0.2:8300")}
	if err := c.Announce(t.Context(), self, 5); err != nil {
		t.Fatal(err)
	}
	if want := (Peer{ID: "id-two", Name: "two", Addr: self.Addr}); len(w.known) != 1 || w.known[0] != want {
		t.Errorf("%+v", w.known)
	}
	if list, _ := c.cfg.Directory.Peers(); len(list) == 0 || list[0].ID != "id-srv" {
		t.Errorf("it learned of %+v", list)
	}
	if members, err := c.AddServer(t.Context(), self); err != nil || members["id-two"] == "" {
		t.Errorf("%v, %v", members, err)
	}
	agent := w.client(w.badge("web", false), w.addr)
	if err := agent.Announce(t.Context(), self, 5); err != nil || slices.ContainsFunc(w.known, func(p Peer) bool { return p.ID == "id-web" }) {
		t.Errorf("an agent is known as a server: %+v, %v", w.known, err)
	}
}

func TestRequestsArePassedOn(t *testing.T) {
	w := start(t)
	c := w.client(w.badge("web", false), netip.MustParseAddrPort("127.0.0.1:1"), w.addr)
	ask := func() *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPut, "http://agent/v1/kv/a//b?cas=3", bytes.NewReader([]byte("value")))
		r.Header.Set("X-Consul-Token", "secret")
		out := httptest.NewRecorder()
		c.Forward("web").ServeHTTP(out, r)
		return out
	}
	out := ask()
	for range 20 { // whichever server it happens to ask first
		if out.Code == http.StatusOK {
			break
		}
		out = ask()
	}
	if out.Code != http.StatusOK || out.Body.String() != "PUT /v1/kv/a//b?cas=3 secret web value" || out.Header().Get("X-Consul-Index") != "7" {
		t.Errorf("%d %q", out.Code, out.Body)
	}
	out = httptest.NewRecorder()
	w.client(w.badge("web", false), w.addr).Forward("other").ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/v1/kv/a", nil))
	if out.Code != http.StatusForbidden {
		t.Errorf("in another's name: %d %q", out.Code, out.Body)
	}
	out = httptest.NewRecorder()
	w.client(w.badge("web", false)).Forward("web").ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/v1/kv/a", nil))
	if out.Code != http.StatusInternalServerError || !strings.Contains(out.Body.String(), "No cluster leader") || out.Header().Get("X-Consul-Knownleader") != "false" {
		t.Errorf("without a server: %d %q", out.Code, out.Body)
	}
}

func TestTheFeedIsAStream(t *testing.T) {
	w := start(t)
	c := w.client(w.badge("web", false), w.addr)
	in, err := c.Feed(t.Context(), 12, "r1")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	want := "from 12 of r1;more;"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(in, got); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSessions(t *testing.T) {
	w := start(t)
	c := w.client(w.badge("web", false), w.addr)
	ctx, cancel := context.WithCancel(t.Context())
	attached := make(chan bool, 10)
	done := make(chan struct{})
	go func() {
		c.Session(ctx, func() string { return GoodbyeRestart }, func(yes bool) { attached <- yes })
		close(done)
	}()
	if !<-attached {
		t.Error("not attached")
	}
	w.until("two beats", func() bool { return w.beats >= 2 && w.sessions["web"] == "open" })
	cancel()
	<-done
	w.until("a goodbye", func() bool { return w.sessions["web"] == "ended:restart" })
}

// TestANodeThatDiesTakesNothingWithIt: its connection may break at any moment of the handler's.
func TestANodeThatDiesTakesNothingWithIt(t *testing.T) {
	w := start(t)
	badge := w.badge("web", false)
	for range 200 {
		c := w.client(badge, w.addr)
		conns := make(chan net.Conn, 1)
		dial := c.http.DialContext
		c.http.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err == nil {
				conns <- conn
			}
			return conn, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		attached, done := make(chan bool, 10), make(chan struct{})
		go func() {
			c.Session(ctx, func() string { return "" }, func(yes bool) { attached <- yes })
			close(done)
		}()
		<-attached
		w.until("a session", func() bool { return w.sessions["web"] == "open" })
		(<-conns).Close()
		cancel()
		<-done
		w.until("its end", func() bool { return w.sessions["web"] == "ended:" })
	}
}

func TestASessionMovesToAnotherServer(t *testing.T) {
	w := start(t)
	second := freeAddr(t)
	stop := w.serve(second)
	c := w.client(w.badge("web", false), second, w.addr)
	c.prefer(second)
	ctx, cancel := context.WithCancel(t.Context())
	attached := make(chan bool, 100)
	done := make(chan struct{})
	go func() {
		c.Session(ctx, func() string { return "" }, func(yes bool) { attached <- yes })
		close(done)
	}()
	<-attached
	stop()
	if <-attached {
		t.Error("it does not notice")
	}
	for !<-attached {
	}
	if at, _ := c.Server(); at != w.addr {
		t.Errorf("it is with %v", at)
	}
	cancel()
	<-done
	w.until("the end", func() bool { return w.sessions["web"] == "ended:" })
}

func TestASessionPassesOverAServerThatIsGone(t *testing.T) {
	w := start(t)
	gone := freeAddr(t)
	c := w.client(w.badge("web", false), gone, w.addr)
	c.prefer(gone)
	ctx, cancel := context.WithCancel(t.Context())
	attached, done := make(chan bool, 10), make(chan struct{})
	go func() {
		c.Session(ctx, func() string { return GoodbyeLeave }, func(yes bool) { attached <- yes })
		close(done)
	}()
	if !<-attached {
		t.Error("the first attempt failed")
	}
	cancel()
	<-done
	w.until("a goodbye", func() bool { return w.sessions["web"] == "ended:leave" })
}

func TestTheListOfServersIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "d", "servers.json")
	hint := netip.MustParseAddrPort("127.0.0.9:8300")
	d, err := OpenDirectory(file, []netip.AddrPort{hint}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := Peer{ID: "a", Name: "a", Addr: netip.MustParseAddrPort("127.0.0.1:8300")}
	_, changed := d.Peers()
	if err := d.Learn(a, Peer{ID: "no address"}, Peer{Addr: hint}); err != nil {
		t.Fatal(err)
	}
	<-changed
	moved := a
	moved.Addr = netip.MustParseAddrPort("127.0.0.2:8300")
	var told []Peer
	if d, err = OpenDirectory(file, []netip.AddrPort{hint}, func(p Peer) { told = append(told, p) }); err != nil {
		t.Fatal(err)
	}
	if err := d.Learn(a, moved); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []Peer{a, moved}) || !slices.Equal(d.Addrs(), []netip.AddrPort{moved.Addr, hint}) {
		t.Errorf("told %v, knows %v", told, d.Addrs())
	}
	if err := d.Forget("a"); err != nil {
		t.Fatal(err)
	}
	if list, _ := d.Peers(); len(list) != 0 {
		t.Errorf("%v", list)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(file, nil, nil); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestAddressesOfServers(t *testing.T) {
	got, err := ParsePeers(" 10.0.0.1, 10.0.0.2:99,fd00::1,[fd00::2]:7,")
	want := []netip.AddrPort{
		netip.MustParseAddrPort("10.0.0.1:8300"), netip.MustParseAddrPort("10.0.0.2:99"),
		netip.MustParseAddrPort("[fd00::1]:8300"), netip.MustParseAddrPort("[fd00::2]:7"),
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParsePeers("a host"); err == nil {
		t.Error("a name is taken")
	}
}
