package compat

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

var update = flag.Bool("update", false, "write docs/consul-compatibility.md anew")

// route is one row of testdata/routes.txt.
type route struct {
	group, tier, methods, path, users string
	probes                            []probe
	differs, missing                  string
}

// probe is one request and what its answer must be.
type probe struct {
	acl, stream, last  bool
	method, path, body string
	status             int
	words              []string
	line               string
}

func readRoutes(t *testing.T) []*route {
	t.Helper()
	data, err := os.ReadFile("testdata/routes.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []*route
	group := ""
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := lines.Text()
		note, indented := strings.CutPrefix(line, "    ")
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "== "):
			group = line[3:]
		case !indented:
			f := strings.SplitN(line, " ", 4)
			all = append(all, &route{group: group, tier: f[0], methods: f[1], path: f[2], users: strings.Join(f[3:], "")})
		default:
			r := all[len(all)-1]
			if how, ok := strings.CutPrefix(note, "differs: "); ok {
				r.differs = how
			} else if why, ok := strings.CutPrefix(note, "not offered: "); ok {
				r.missing = why
			} else {
				r.probes = append(r.probes, parseProbe(t, note))
			}
		}
	}
	return all
}

func parseProbe(t *testing.T, line string) probe {
	t.Helper()
	p := probe{line: line}
	request, want, ok := strings.Cut(line, " -> ")
	for _, mark := range []struct {
		word string
		flag *bool
	}{{"ACL ", &p.acl}, {"STREAM ", &p.stream}, {"LAST ", &p.last}} {
		request, *mark.flag = strings.CutPrefix(request, mark.word)
	}
	f := strings.SplitN(request, " ", 3)
	w := strings.Fields(want)
	if !ok || len(f) < 2 && !p.stream || len(w) == 0 {
		t.Fatalf("probe %q: want METHOD PATH [BODY] -> STATUS [WORDS]", line)
	}
	if p.stream {
		f = append([]string{http.MethodGet}, f...)
	}
	p.method, p.path, p.body = f[0], f[1], strings.Join(f[2:], "")
	var err error
	if p.status, err = strconv.Atoi(w[0]); err != nil {
		t.Fatalf("probe %q: %v", line, err)
	}
	p.words = w[1:]
	return p
}

// TestEveryRouteOfConsul probes every route of Consul and writes down what it found.
func TestEveryRouteOfConsul(t *testing.T) {
	routes := readRoutes(t)
	open, guarded := openFixture(t), guardedFixture(t)
	run := func(last bool) {
		for _, r := range routes {
			if last && !slices.ContainsFunc(r.probes, func(p probe) bool { return p.last }) {
				continue
			}
			t.Run(strings.TrimPrefix(r.path, "/v1/"), func(t *testing.T) {
				if r.missing != "" {
					if r.tier <= "B" {
						t.Errorf("a route of tier %s is not offered", r.tier)
					}
					f := open
					if r.group == "acl" {
						f = guarded
					}
					expectMissing(t, f, r)
					return
				}
				if r.differs != "" && !strings.Contains(r.differs, "; noticed by: ") {
					t.Errorf("differs %q: say who would notice", r.differs)
				}
				for m := range strings.SplitSeq(r.methods, ",") {
					if !slices.ContainsFunc(r.probes, func(p probe) bool { return p.method == m }) {
						t.Errorf("no probe of the method %s", m)
					}
				}
				for _, p := range r.probes {
					if p.last != last {
						continue
					}
					f := open
					if p.acl {
						f = guarded
					}
					f.send(t, p)
				}
			})
		}
	}
	run(false)
	run(true)
	if t.Failed() {
		return
	}
	document(t, routes)
}

// fixture is an agent with something of everything in it.
type fixture struct {
	*agent
	token string
	ids   *strings.Replacer
}

func openFixture(t *testing.T) fixture {
	a := startAgent(t)
	c := a.client()
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Name: "web", Port: 80, Tags: []string{"a"}, Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	}))
	session, _, err := c.Session().Create(&api.SessionEntry{Name: "probe", TTL: "1h"}, nil)
	must(t, err)
	query, _, err := c.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "web-query", Service: api.ServiceQuery{Service: "web"}}, nil)
	must(t, err)
	return fixture{agent: a, ids: strings.NewReplacer("{session}", session, "{query}", query)}
}

func guardedFixture(t *testing.T) fixture {
	const secret = "7c0c2ba6-8a3b-4ac5-b3c5-6b2f9c2a2f10"
	a := startAgent(t, "acl=true", "acl-default-policy=deny", "acl-initial-management-token="+secret)
	c := a.client(secret).ACL()
	policy, _, err := c.PolicyCreate(&api.ACLPolicy{Name: "probe", Rules: `key_prefix "" { policy = "read" }`}, nil)
	must(t, err)
	role, _, err := c.RoleCreate(&api.ACLRole{Name: "probe-role", Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
	must(t, err)
	token, _, err := c.TokenCreate(&api.ACLToken{Description: "probe"}, nil)
	must(t, err)
	return fixture{agent: a, token: secret, ids: strings.NewReplacer("{policy}", policy.ID, "{role}", role.ID, "{token}", token.AccessorID)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f fixture) send(t *testing.T, p probe) {
	t.Helper()
	status, body := f.do(t, p.method, f.ids.Replace(p.path), f.ids.Replace(p.body), p.stream)
	if status != p.status {
		t.Errorf("%s: %d %s", p.line, status, body)
	}
	for _, word := range p.words {
		if !strings.Contains(body, f.ids.Replace(word)) {
			t.Errorf("%s: no %s in %s", p.line, word, body)
		}
	}
}

// do sends a request; of a stream it reads only the status.
func (f fixture) do(t *testing.T, method, path, body string, stream bool) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.http+path, strings.NewReader(body))
	must(t, err)
	req.Header.Set("X-Consul-Token", f.token)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	if stream {
		return resp.StatusCode, ""
	}
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

// expectMissing makes sure that a route which is said to be missing is.
func expectMissing(t *testing.T, f fixture, r *route) {
	t.Helper()
	for m := range strings.SplitSeq(r.methods, ",") {
		path := r.path
		if strings.HasSuffix(path, "/") {
			path += "x"
		}
		if status, body := f.do(t, m, path, "", false); status != http.StatusNotFound && status != http.StatusNotImplemented {
			t.Errorf("%s %s is said not to be offered, but answers %d %s", m, path, status, body)
		}
	}
}

// document compares docs/consul-compatibility.md with what was found, or writes it.
func document(t *testing.T, routes []*route) {
	t.Helper()
	head, err := os.ReadFile("testdata/compatibility.md")
	must(t, err)
	var b strings.Builder
	b.Write(head)
	counts := map[string]int{}
	var table strings.Builder
	group := ""
	for _, r := range routes {
		if r.group != group {
			group = r.group
			fmt.Fprintf(&table, "\n### %s\n\n| tier | route | methods | verdict | used by |\n|---|---|---|---|---|\n", group)
		}
		kind, verdict := "works", "works"
		switch {
		case r.missing != "":
			kind, verdict = "not offered", "not offered: "+r.missing
		case r.differs != "":
			kind, verdict = "differs", "differs: "+r.differs
		}
		counts[r.tier+" "+kind]++
		fmt.Fprintf(&table, "| %s | `%s` | %s | %s | %s |\n", r.tier, r.path, strings.ReplaceAll(r.methods, ",", ", "), verdict, r.users)
	}
	b.WriteString("\n| tier | works | differs | not offered |\n|---|---|---|---|\n")
	for _, tier := range []string{"A", "B", "C", "D"} {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", tier, counts[tier+" works"], counts[tier+" differs"], counts[tier+" not offered"])
	}
	b.WriteString(table.String())
	const path = "../../docs/consul-compatibility.md"
	if *update {
		must(t, os.WriteFile(path, []byte(b.String()), 0o644))
		return
	}
	have, err := os.ReadFile(path)
	must(t, err)
	if string(have) != b.String() {
		t.Errorf("%s is not what 'go test ./internal/compat -run EveryRoute -update' writes", path)
	}
}
