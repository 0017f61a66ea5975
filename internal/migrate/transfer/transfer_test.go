package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// run imports and returns the summary as lines.
func run(t *testing.T, from, to *fake, change ...func(*Config)) (string, error) {
	t.Helper()
	cfg := Config{From: Peer{Addr: from.URL, Token: "of-consul"}, To: Peer{Addr: to.URL, Token: "of-ours"}, KV: true, Services: true}
	for _, c := range change {
		c(&cfg)
	}
	sum, err := Import(t.Context(), cfg)
	var b strings.Builder
	for _, c := range sum.Counts {
		fmt.Fprintf(&b, "%s: %d created, %d replaced, %d unchanged, %d conflicts\n", c.Kind, c.Created, c.Replaced, c.Unchanged, c.Conflicts)
	}
	for _, list := range []struct {
		name  string
		lines []string
	}{{"conflict", sum.Conflicts}, {"remark", sum.Remarks}, {"uncertain", sum.Uncertain}} {
		for _, l := range list.lines {
			fmt.Fprintf(&b, "%s: %s\n", list.name, l)
		}
	}
	return b.String(), err
}

func expect(t *testing.T, got string, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func onlyKeys(c *Config)  { c.Services = false }
func dryRun(c *Config)    { c.DryRun = true }
func overwrite(c *Config) { c.Overwrite = true }

func TestKeysOfAllSorts(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("a", "1", "a/", "", "a/b", "2", "a//c", "3", "//x", "4", "/", "5", "ü ?#%2F/../y", "6", "deep/er/and/deeper", "7", "bytes", "\x00\xff")
	e := from.kv["a/b"]
	e.Flags = 1<<63 + 7
	from.kv["a/b"] = e
	got, err := run(t, from, to, onlyKeys)
	expect(t, got, err, "keys: 9 created, 0 replaced, 0 unchanged, 0 conflicts\n")
	for key, want := range from.kv {
		if have, ok := to.kv[key]; !ok || !have.same(want) {
			t.Errorf("key %q: %+v, want %+v", key, have, want)
		}
	}
	if len(to.kv) != len(from.kv) {
		t.Errorf("%d keys, want %d", len(to.kv), len(from.kv))
	}
	to.wrote()
	got, err = run(t, from, to, onlyKeys)
	expect(t, got, err, "keys: 0 created, 0 replaced, 9 unchanged, 0 conflicts\n")
	if w := to.wrote(); w != nil {
		t.Errorf("the second run wrote %v", w)
	}
	if w := from.wrote(); w != nil {
		t.Errorf("Consul was written to: %v", w)
	}
	if !from.tokens["of-consul"] || from.tokens["of-ours"] || !to.tokens["of-ours"] || to.tokens["of-consul"] {
		t.Errorf("tokens: %v at Consul, %v at ours", from.tokens, to.tokens)
	}
}

func TestAPrefixOnly(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("app/a", "1", "app/b/c", "2", "apple", "3", "other", "4")
	got, err := run(t, from, to, onlyKeys, func(c *Config) { c.Prefix = "app" })
	expect(t, got, err, "keys: 3 created, 0 replaced, 0 unchanged, 0 conflicts\n")
	if _, there := to.kv["other"]; there {
		t.Error("a key beside the prefix was copied")
	}
	got, err = run(t, from, to, onlyKeys, func(c *Config) { c.Prefix = "none/" })
	expect(t, got, err, "keys: 0 created, 0 replaced, 0 unchanged, 0 conflicts\n")
}

// TestALargeTreeIsReadInPages: no answer may grow with the whole tree.
func TestALargeTreeIsReadInPages(t *testing.T) {
	from, to := newFake(t), newFake(t)
	for i := range 2000 {
		from.put(fmt.Sprintf("tree/%d/%d/key", i/100, i%100), "x")
	}
	got, err := run(t, from, to, onlyKeys)
	expect(t, got, err, "keys: 2000 created, 0 replaced, 0 unchanged, 0 conflicts\n")
	if from.most > 100 {
		t.Errorf("an answer had %d entries", from.most)
	}
}

func TestConflictsAreLeftOrReplaced(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("same", "1", "other", "2", "new", "3")
	to.put("same", "1", "other", "mine", "own", "4")
	want := `
keys: 1 created, 0 replaced, 1 unchanged, 1 conflicts
conflict: key "other"
`
	got, err := run(t, from, to, onlyKeys, dryRun)
	expect(t, got, err, want)
	if w := to.wrote(); w != nil {
		t.Fatalf("a dry run wrote %v", w)
	}
	got, err = run(t, from, to, onlyKeys)
	expect(t, got, err, want)
	if string(to.kv["other"].Value) != "mine" {
		t.Error("a value that differs was replaced unasked")
	}
	got, err = run(t, from, to, onlyKeys, overwrite)
	expect(t, got, err, "keys: 0 created, 1 replaced, 2 unchanged, 0 conflicts\n")
	if string(to.kv["other"].Value) != "2" || string(to.kv["own"].Value) != "4" {
		t.Errorf("at the end: %v", to.kv)
	}
}

func TestWhatCannotBeCopiedIsSaid(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("gone", "1", "locked", "2")
	e := from.kv["locked"]
	e.Session = "a-session"
	from.kv["locked"] = e
	from.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
		if r.URL.Path == "/v1/kv/gone" {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	}
	got, err := run(t, from, to, onlyKeys)
	expect(t, got, err, `
keys: 1 created, 0 replaced, 0 unchanged, 0 conflicts
remark: key "gone" was deleted in Consul meanwhile
remark: key "locked" is locked in Consul: its value was copied, the lock was not
remark: the token may not see everything in Consul: what it may not see was not copied
`)
}

// TestFailuresThatPass: refusals for the moment, and answers that are lost after
// the write was done.
func TestFailuresThatPass(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("a", "1", "b", "2", "c", "3")
	var reads, lost atomic.Int32
	from.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch reads.Add(1) {
		case 1:
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
		case 2:
			http.Error(w, "slow down", http.StatusTooManyRequests)
		default:
			return false
		}
		return true
	}
	to.after = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || lost.Add(1) > 2 {
			return false
		}
		panic(http.ErrAbortHandler) // it was done, and nobody hears of it
	}
	got, err := run(t, from, to, onlyKeys)
	expect(t, got, err, "keys: 3 created, 0 replaced, 0 unchanged, 0 conflicts\n")
	if w := to.wrote(); len(w) != 3 {
		t.Errorf("writes: %v", w)
	}
}

// TestAnErrorTellsWhatWasWritten: the summary is exact however an import ends.
func TestAnErrorTellsWhatWasWritten(t *testing.T) {
	from, to := newFake(t), newFake(t)
	for i := range 500 {
		from.put(fmt.Sprintf("k/%03d", i), "x")
	}
	var writes atomic.Int32
	to.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && writes.Add(1) > 100 {
			http.Error(w, "Permission denied: token lacks permission 'key:write' on \"k/100\"", http.StatusForbidden)
			return true
		}
		return false
	}
	got, err := run(t, from, to, onlyKeys)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") || !strings.Contains(err.Error(), `write key "k/`) {
		t.Errorf("error %v", err)
	}
	if want := fmt.Sprintf("keys: %d created, 0 replaced, 0 unchanged, 0 conflicts\n", len(to.kv)); got != want || len(to.kv) != 100 {
		t.Errorf("%d keys written, and the summary says:\n%s", len(to.kv), got)
	}
	to.before = nil
	got, err = run(t, from, to, onlyKeys)
	expect(t, got, err, "keys: 400 created, 0 replaced, 100 unchanged, 0 conflicts\n")
}

func TestItEndsWithItsContext(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.put("a", "1")
	ctx, cancel := context.WithCancel(t.Context())
	to.before = func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	_, err := Import(ctx, Config{From: Peer{Addr: from.URL}, To: Peer{Addr: to.URL}, KV: true})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestARedirectGetsNoToken(t *testing.T) {
	from, to, other := newFake(t), newFake(t), newFake(t)
	from.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	_, err := run(t, from, to, onlyKeys)
	if err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("got %v", err)
	}
	if len(other.tokens) != 0 {
		t.Error("the token went elsewhere")
	}
}

func TestAddressesThatAreNone(t *testing.T) {
	for _, addr := range []string{"", "ftp://x", "http://", "http://user:secret@x", "http://x?token=secret", "://"} {
		if _, err := Import(t.Context(), Config{From: Peer{Addr: addr}, To: Peer{Addr: "x"}}); err == nil || !strings.Contains(err.Error(), "Consul's address") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if _, err := Import(t.Context(), Config{From: Peer{Addr: "https://x", CAFile: "transfer_test.go"}, To: Peer{Addr: "x"}}); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Errorf("a CA file without certificates: %v", err)
	}
}

// external is a node that somebody registered by hand.
func external(name, addr string, services ...service) *place {
	p := &place{
		node:     node{Node: name, Address: addr, Meta: map[string]string{"external-node": "true"}},
		services: map[string]service{}, checks: map[string]check{},
	}
	p.checks["ping"] = check{CheckID: "ping", Name: "ping", Status: "passing", Definition: json.RawMessage(`{"TCP":"x:1"}`)}
	for _, s := range services {
		if s.Weights == (weights{}) {
			s.Weights = weights{1, 1}
		}
		p.services[s.ID] = s
		p.checks["c-"+s.ID] = check{CheckID: "c-" + s.ID, Name: "alive", Status: "critical", Output: "refused", ServiceID: s.ID}
	}
	return p
}

func withAgent(p *place) *place {
	p.checks[serfHealth] = check{CheckID: serfHealth, Name: "Serf Health Status", Status: "passing"}
	return p
}

func TestExternalNodesAreCopied(t *testing.T) {
	from, to := newFake(t), newFake(t)
	mail := service{ID: "mail-1", Service: "mail", Port: 25, Tags: []string{"mx"}, Meta: map[string]string{"a": "b"}, Weights: weights{3, 0}}
	from.nodes["legacy"] = external("legacy", "192.0.2.7", mail, service{ID: "pop", Service: "pop", Port: 110})
	from.nodes["gw"] = external("gw", "192.0.2.9", service{ID: "tgw", Service: "tgw", Kind: "terminating-gateway"})
	from.nodes["host-1"] = withAgent(external("host-1", "10.0.0.1", service{ID: "web", Service: "web"}))
	from.nodes["twin"] = external("twin", "192.0.2.11")
	to.nodes["twin"] = withAgent(external("twin", "127.0.0.1"))
	want := `
external nodes: 2 created, 0 replaced, 0 unchanged, 1 conflicts
external services: 2 created, 0 replaced, 0 unchanged, 0 conflicts
conflict: node "twin": an agent has this name here
remark: service "tgw" of node "gw": its kind is terminating-gateway, which has no counterpart
remark: the services of 1 nodes with agents were not copied: they move with the agent's configuration ('fairlead config from-consul') or register themselves
`
	noKeys := func(c *Config) { c.KV = false }
	got, err := run(t, from, to, noKeys, dryRun)
	expect(t, got, err, want)
	if w := to.wrote(); w != nil {
		t.Errorf("a dry run wrote %v", w)
	}
	got, err = run(t, from, to, noKeys)
	expect(t, got, err, want)
	p := to.nodes["legacy"]
	if p == nil || !sameNode(from.nodes["legacy"].node, p.node) || !sameService(mail, p.services["mail-1"]) || p.checks["c-pop"].Status != "critical" || string(p.checks["ping"].Definition) != `{"TCP":"x:1"}` {
		t.Errorf("copied: %+v", p)
	}
	if to.nodes["host-1"] != nil {
		t.Error("an agent's node was copied")
	}

	to.wrote()
	want = strings.NewReplacer("nodes: 2 created, 0 replaced, 0", "nodes: 0 created, 0 replaced, 2", "services: 2 created, 0 replaced, 0", "services: 0 created, 0 replaced, 2").Replace(want)
	got, err = run(t, from, to, noKeys)
	expect(t, got, err, want)
	if w := to.wrote(); w != nil {
		t.Errorf("the second run wrote %v", w)
	}

	// What differs stays until somebody says otherwise; a check's newer state is no difference.
	mail.Port = 26
	from.nodes["legacy"].services["mail-1"] = mail
	ping := to.nodes["legacy"].checks["ping"]
	ping.Status = "critical"
	to.nodes["legacy"].checks["ping"] = ping
	got, err = run(t, from, to, noKeys)
	if err != nil || !strings.Contains(got, "conflict: service \"mail-1\" of node \"legacy\"\n") || to.nodes["legacy"].services["mail-1"].Port != 25 {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = run(t, from, to, noKeys, overwrite)
	if err != nil || !strings.Contains(got, "external services: 0 created, 1 replaced, 1 unchanged, 0 conflicts\n") || to.nodes["legacy"].services["mail-1"].Port != 26 {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestRightsAndQueriesAreCopied(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.named["/v1/acl/policies"] = map[string]record{
		"p0": {"ID": "p0", "Name": "global-management", "Rules": "all"},
		"p1": {"ID": "p1", "Name": "web", "Rules": `service "web" { policy = "write" }`, "CreateIndex": 5.0, "Hash": "x"},
		"p2": {"ID": "p2", "Name": "db", "Rules": "old", "Datacenters": []any{"dc1"}},
	}
	to.named["/v1/acl/policies"] = map[string]record{
		"q7": {"ID": "q7", "Name": "db", "Rules": "new", "Datacenters": []any{"dc1"}},
	}
	from.named["/v1/acl/roles"] = map[string]record{
		"r1": {"ID": "r1", "Name": "ops", "Policies": []any{map[string]any{"ID": "p2", "Name": "db"}, map[string]any{"ID": "p1", "Name": "web"}}},
	}
	from.named["/v1/acl/tokens"] = map[string]record{
		"t1": {"AccessorID": "t1", "SecretID": "s1", "Description": "web", "Policies": []any{map[string]any{"ID": "p1", "Name": "web"}}},
		"t2": {"AccessorID": "t2", "SecretID": "<hidden>"},
		"t3": {"AccessorID": "t3", "SecretID": "s3", "AuthMethod": "kubernetes"},
		"t4": {"AccessorID": "t4", "SecretID": "s4", "Description": "initial"},
	}
	to.named["/v1/acl/tokens"] = map[string]record{"other": {"AccessorID": "other", "SecretID": "s4"}}
	from.named["/v1/query"] = map[string]record{
		"i1": {"ID": "i1", "Name": "near-web", "Service": map[string]any{"Service": "web", "Failover": map[string]any{"NearestN": 0.0, "Datacenters": nil}}, "DNS": map[string]any{"TTL": ""}},
		"i2": {"ID": "i2", "Name": "", "Service": map[string]any{"Service": "web"}},
	}
	rights := func(c *Config) { c.KV, c.Services, c.ACL, c.Queries = false, false, true, true }
	got, err := run(t, from, to, rights)
	expect(t, got, err, `
prepared queries: 1 created, 0 replaced, 0 unchanged, 0 conflicts
ACL policies: 1 created, 0 replaced, 0 unchanged, 1 conflicts
ACL roles: 1 created, 0 replaced, 0 unchanged, 0 conflicts
ACL tokens: 1 created, 0 replaced, 0 unchanged, 0 conflicts
conflict: policy "db"
remark: query "i2" was not copied: it has no name
remark: token "t2" was not copied: its secret is hidden; the token for Consul needs acl:write
remark: token "t3" was not copied: it came from a login with kubernetes; log in again
remark: token "t4" was not copied: its secret is that of other here
`)
	if tok := to.named["/v1/acl/tokens"]["t1"]; tok.text("SecretID") != "s1" || fmt.Sprint(tok["Policies"]) != "[map[Name:web]]" {
		t.Errorf("token: %v", tok)
	}
	to.wrote()
	got, err = run(t, from, to, rights, overwrite)
	if err != nil || !strings.Contains(got, "ACL policies: 0 created, 1 replaced, 1 unchanged, 0 conflicts\nACL roles: 0 created, 0 replaced, 1 unchanged, 0 conflicts\nACL tokens: 0 created, 0 replaced, 1 unchanged, 0 conflicts\n") {
		t.Errorf("%v\n%s", err, got)
	}
	if w := to.wrote(); !slices.Equal(w, []string{"PUT /v1/acl/policy/q7"}) {
		t.Errorf("the second run wrote %v", w)
	}
}

func TestWhatOneEndRefusesDoesNotStopTheRest(t *testing.T) {
	from, to := newFake(t), newFake(t)
	from.named["/v1/acl/policies"] = map[string]record{"p1": {"ID": "p1", "Name": "a", "Rules": "bad"}, "p2": {"ID": "p2", "Name": "b", "Rules": "good"}}
	var calls atomic.Int32
	to.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && calls.Add(1) == 1 {
			http.Error(w, "Failed to parse ACL rules", http.StatusBadRequest)
			return true
		}
		return false
	}
	got, err := run(t, from, to, func(c *Config) { c.KV, c.Services, c.ACL = false, false, true })
	if err != nil || !strings.Contains(got, "ACL policies: 1 created, 0 replaced, 0 unchanged, 1 conflicts") || !strings.Contains(got, "Failed to parse ACL rules") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestWhatIsNoConsulIsNotAnEmptyOne(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"a web server": http.NotFound,
		"a page":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
	} {
		from, to := newFake(t), newFake(t)
		from.before = func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true }
		if got, err := run(t, from, to); err == nil || !strings.Contains(err.Error(), "is no Consul") {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}
