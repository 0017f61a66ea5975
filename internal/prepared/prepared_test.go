package prepared_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// site is a catalogue with three nodes that each run an instance of web, and a
// proxy for it.
func site(queries ...model.PreparedQuery) *state.Snapshot {
	var all []state.Change
	for i, tags := range [][]string{{"v1", "Primary"}, {"v1"}, {"v2"}} {
		node := model.NodeName(fmt.Sprint("n", i+1))
		all = append(all,
			state.Change{Node: &model.Node{Name: node, Address: fmt.Sprint("10.1.0.", i+1), Meta: map[string]string{"rack": string(node)}}},
			state.Change{Instance: &model.Instance{Node: node, ID: "web", Service: "web", Tags: tags, Port: 80, Meta: map[string]string{"nth": fmt.Sprint(i + 1)}}},
			state.Change{Check: &model.Check{Node: node, ID: "up", ServiceID: "web", Status: model.Passing}},
		)
	}
	all = append(all,
		state.Change{Instance: &model.Instance{Node: "n1", ID: "px", Service: "web-sidecar-proxy", Kind: model.KindConnectProxy, Proxy: model.Proxy{Service: "web"}}},
		state.Change{Instance: &model.Instance{Node: "n2", ID: "nat", Service: "native", Native: true}},
	)
	for i := range queries {
		if queries[i].ID == "" {
			queries[i].ID = fmt.Sprint("q", i)
		}
		all = append(all, state.Change{Query: &queries[i]})
	}
	st := state.New()
	st.Reset(7, all)
	return st.Snapshot()
}

func named(name string, edit ...func(*model.PreparedQuery)) model.PreparedQuery {
	q := model.PreparedQuery{Name: name, Service: model.QueryService{Service: "web"}}
	for _, e := range edit {
		e(&q)
	}
	return q
}

func template(name, service string, edit ...func(*model.PreparedQuery)) model.PreparedQuery {
	q := named(name, edit...)
	q.Tmpl.Type, q.Service.Service = prepared.NamePrefixMatch, service
	return q
}

func runner() *prepared.Runner {
	return prepared.New(prepared.Config{Node: "n2", Datacenter: "dc1", Shuffle: func(int, func(int, int)) {}})
}

// instances lists what was found as node/service.
func instances(r *prepared.Result) string {
	var out []string
	for _, m := range r.Members {
		out = append(out, string(m.Instance.Node)+"/"+string(m.Instance.Service))
	}
	return strings.Join(out, " ")
}

func TestRunFindsWhatTheQueryAsksFor(t *testing.T) {
	const all = "n1/web n2/web n3/web"
	for _, tt := range []struct {
		name  string
		query model.QueryService
		ask   prepared.Ask
		want  string
		tries int
	}{
		{name: "all of a service", want: all},
		{name: "required tag", query: model.QueryService{Tags: []string{"v1"}}, want: "n1/web n2/web"},
		{name: "tags without regard to case", query: model.QueryService{Tags: []string{"PRIMARY", "V1"}}, want: "n1/web"},
		{name: "excluded tag", query: model.QueryService{Tags: []string{"v1", "!primary"}}, want: "n2/web"},
		{name: "node metadata", query: model.QueryService{NodeMeta: map[string]string{"rack": "n3"}}, want: "n3/web"},
		{name: "node metadata that is not there", query: model.QueryService{NodeMeta: map[string]string{"row": ""}}, want: ""},
		{name: "service metadata", query: model.QueryService{ServiceMeta: map[string]string{"nth": "2"}}, want: "n2/web"},
		{name: "limit", ask: prepared.Ask{Limit: 2}, want: "n1/web n2/web"},
		{name: "limit above what there is", ask: prepared.Ask{Limit: 9}, want: all},
		{name: "near a node", query: model.QueryService{Near: "n3"}, want: "n3/web n1/web n2/web"},
		{name: "near the agent", query: model.QueryService{Near: "_agent"}, want: "n2/web n1/web n3/web"},
		{name: "the asker's wish goes before the query's", query: model.QueryService{Near: "n3"}, ask: prepared.Ask{Near: "n2"}, want: "n2/web n1/web n3/web"},
		{name: "near the asker", query: model.QueryService{Near: "_ip"}, ask: prepared.Ask{IP: netip.MustParseAddr("::ffff:10.1.0.3")}, want: "n3/web n1/web n2/web"},
		{name: "near an asker that is no node", query: model.QueryService{Near: "_ip"}, ask: prepared.Ask{IP: netip.MustParseAddr("10.9.9.9")}, want: all},
		{name: "near nobody knows whom", query: model.QueryService{Near: "_ip"}, want: all},
		{name: "near a node that is not there", query: model.QueryService{Near: "n9"}, want: all},
		{name: "proxies by the query", query: model.QueryService{Connect: true}, want: "n1/web-sidecar-proxy"},
		{name: "proxies by the asker", ask: prepared.Ask{Connect: true}, want: "n1/web-sidecar-proxy"},
		{name: "the service's own TLS", query: model.QueryService{Service: "native", Connect: true}, want: "n2/native"},
		{name: "unknown datacenters are passed over", query: model.QueryService{Service: "none", Failover: model.QueryFailover{Datacenters: []string{"dc2", "dc3"}}}, want: ""},
		{name: "peers are tried", query: model.QueryService{Service: "none", Failover: model.QueryFailover{Targets: []model.QueryTarget{{Peer: "a"}, {Datacenter: "dc2"}, {Peer: "b"}}}}, want: "", tries: 2},
		{name: "nothing is tried while there is something here", query: model.QueryService{Failover: model.QueryFailover{Targets: []model.QueryTarget{{Peer: "a"}}}}, want: all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.query.Service == "" {
				tt.query.Service = "web"
			}
			tt.ask.Name = "q"
			r, err := runner().Run(site(model.PreparedQuery{Name: "q", Service: tt.query}), tt.ask)
			if err != nil {
				t.Fatal(err)
			}
			if got := instances(r); got != tt.want || r.Failovers != tt.tries || r.Filtered || r.Datacenter != "dc1" {
				t.Errorf("found %q after %d tries (%+v), want %q after %d", got, r.Failovers, r, tt.want, tt.tries)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	checks := func(all ...model.Check) *state.Snapshot {
		changes := []state.Change{
			{Node: &model.Node{Name: "n1", Address: "10.1.0.1"}},
			{Instance: &model.Instance{Node: "n1", ID: "web", Service: "web"}},
		}
		for i := range all {
			all[i].Node = "n1"
			changes = append(changes, state.Change{Check: &all[i]})
		}
		changes = append(changes,
			state.Change{Query: new(named("q"))},
			state.Change{Query: new(named("only", func(q *model.PreparedQuery) { q.ID, q.Service.OnlyPassing = "2", true }))},
			state.Change{Query: new(named("ignore", func(q *model.PreparedQuery) { q.ID, q.Service.IgnoreCheckIDs = "3", []model.CheckID{"a"} }))},
		)
		st := state.New()
		st.Reset(7, changes)
		return st.Snapshot()
	}
	warning, critical := model.Check{ID: "a", ServiceID: "web", Status: model.Warning}, model.Check{ID: "a", ServiceID: "web", Status: model.Critical}
	dead := model.Check{ID: model.SerfHealth, Status: model.Critical}
	for _, tt := range []struct {
		name   string
		checks []model.Check
		want   string // the queries that find it
	}{
		{"no check", nil, "q only ignore"},
		{"a warning", []model.Check{warning}, "q ignore"},
		{"a critical check", []model.Check{critical}, "ignore"},
		{"a dead node", []model.Check{dead}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap, got := checks(tt.checks...), []string{}
			for _, name := range []string{"q", "only", "ignore"} {
				r, err := runner().Run(snap, prepared.Ask{Name: name})
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Members) == 1 {
					got = append(got, name)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("found by %q, want %q", got, tt.want)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	snap := site(
		named("Exact"),
		template("geo-db", "${name.prefix}|${name.suffix}|${name.full}"),
		template("geo-", "${match(1)}.${match(2)}.${match(9)}${agent.segment}", func(q *model.PreparedQuery) { q.Tmpl.Regexp = "^geo-(.*)-([^-]+)$" }),
		template("", "any-${name.full} $${name.full} ${ name.suffix }", func(q *model.PreparedQuery) {
			q.ID = "11111111-2222-3333-4444-555555555555"
			q.Service.Tags = []string{"${match(1)}", "a", "${name.prefix}"}
			q.Service.NodeMeta = map[string]string{"rack": "${name.full}"}
			q.Service.Failover.Datacenters = []string{"dc-${name.full}"}
			q.Tmpl.RemoveEmptyTags = true
		}),
		named("by id", func(q *model.PreparedQuery) { q.ID = "aaaaaaaa-2222-3333-4444-555555555555" }),
	)
	r := runner()
	for _, tt := range []struct{ ask, service string }{
		{"Exact", "web"},
		{"exact", "web"},
		{"AAAAAAAA-2222-3333-4444-555555555555", "web"},
		{"geo-db", "geo-db||geo-db"},
		{"GEO-DB-x", "geo-db|-x|GEO-DB-x"},
		{"geo-a-b-c", "a-b.c."},
		{"geo-nothing", ".."},
		{"ge", "any-ge ${name.full} ge"},
	} {
		q, err := r.Resolve(snap, tt.ask)
		if err != nil || q.Service.Service != tt.service {
			t.Errorf("%s: %+v, %v, want %s", tt.ask, q, err, tt.service)
		}
	}
	q, err := r.Resolve(snap, "zz")
	if err != nil || !slices.Equal(q.Service.Tags, []string{"a"}) || q.Service.NodeMeta["rack"] != "zz" || q.Service.Failover.Datacenters[0] != "dc-zz" {
		t.Errorf("%+v, %v", q, err)
	}
	if stored, _ := snap.Query("11111111-2222-3333-4444-555555555555"); stored.Service.NodeMeta["rack"] != "${name.full}" || len(stored.Service.Tags) != 3 {
		t.Errorf("filling in changed the stored template: %+v", stored)
	}
	for ask, want := range map[string]error{"": prepared.ErrMissing, "11111111-2222-3333-4444-555555555555": prepared.ErrTemplateByID} {
		if _, err := r.Resolve(snap, ask); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", ask, err, want)
		}
	}
}

func TestQueriesThatComeAndGo(t *testing.T) {
	st, r := state.New(), runner()
	st.Reset(7, nil)
	for i, tt := range []struct {
		change state.Change
		x, y   error
	}{
		{state.Change{Query: new(named("x"))}, nil, prepared.ErrNotFound},
		{state.Change{Query: new(named("y"))}, prepared.ErrNotFound, nil}, // renamed
		{state.Change{Query: new(named("y")), Delete: true}, prepared.ErrNotFound, prepared.ErrNotFound},
	} {
		st.Apply(model.Index(8+i), []state.Change{tt.change})
		for name, want := range map[string]error{"x": tt.x, "y": tt.y} {
			if _, err := r.Resolve(st.Snapshot(), name); !errors.Is(err, want) {
				t.Errorf("%d: %s: %v, want %v", i, name, err, want)
			}
		}
	}
}

// rules allow reading what is listed.
type rules map[string]bool

func (r rules) Allow(res acl.Resource, name string, a acl.Access) bool {
	return r[fmt.Sprint(res, ":", name, ":", a)]
}
func (r rules) AllowPrefix(acl.Resource, string, acl.Access) bool { return false }
func (r rules) Accessor() string                                  { return "" }

func TestRunShowsOnlyWhatTheTokenMaySee(t *testing.T) {
	snap := site(named("q"), named("own", func(q *model.PreparedQuery) { q.Token = "secret" }), named("lost", func(q *model.PreparedQuery) { q.Token = "gone" }))
	r := prepared.New(prepared.Config{Resolve: func(secret string) (acl.Authorizer, error) {
		if secret != "secret" {
			return nil, errors.New("ACL not found")
		}
		return rules{"service:web:read": true, "node:n1:read": true, "node:n2:read": true}, nil
	}})
	for name, want := range map[string]int{"q": 1, "own": 2} {
		got, err := r.Run(snap, prepared.Ask{Name: name, Authorizer: rules{"service:web:read": true, "node:n3:read": true}})
		if err != nil || len(got.Members) != want || !got.Filtered {
			t.Errorf("%s: %+v, %v, want %d", name, got, err, want)
		}
	}
	if _, err := r.Run(snap, prepared.Ask{Name: "lost"}); !errors.Is(err, prepared.ErrToken) || !strings.Contains(err.Error(), "ACL not found") {
		t.Errorf("a query whose token is gone: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*model.PreparedQuery)
		want string // "": valid
	}{
		{"plain", func(*model.PreparedQuery) {}, ""},
		{"no name", func(q *model.PreparedQuery) { q.Name = "" }, "Invalid prepared query: Must be bound to a session"},
		{"no name, a session", func(q *model.PreparedQuery) { q.Name, q.Session = "", "s" }, ""},
		{"hidden token", func(q *model.PreparedQuery) { q.Token = "<hidden>" }, "Invalid prepared query: Bad Token '<hidden>', it looks like a query definition with a redacted token was submitted"},
		{"no service", func(q *model.PreparedQuery) { q.Service.Service = "" }, "Invalid prepared query: Must provide a Service name to query"},
		{"negative NearestN", func(q *model.PreparedQuery) { q.Service.Failover.NearestN = -1 }, "Bad NearestN '-1', must be >= 0"},
		{"targets and datacenters", func(q *model.PreparedQuery) {
			q.Service.Failover = model.QueryFailover{Datacenters: []string{"a"}, Targets: []model.QueryTarget{{Peer: "b"}}}
		}, "Targets cannot be populated with NearestN or Datacenters"},
		{"TTL", func(q *model.PreparedQuery) { q.DNS.TTL = "10s" }, ""},
		{"TTL that is none", func(q *model.PreparedQuery) { q.DNS.TTL = "ten" }, "Bad DNS TTL 'ten': time: invalid duration"},
		{"negative TTL", func(q *model.PreparedQuery) { q.DNS.TTL = "-1s" }, "DNS TTL '-1000000000', must be >=0"},
		{"metadata without a key", func(q *model.PreparedQuery) { q.Service.NodeMeta = map[string]string{"": "x"} }, "Key cannot be blank"},
		{"type", func(q *model.PreparedQuery) { q.Tmpl.Type = "nope" }, "failed compiling template: Bad Template.Type 'nope'"},
		{"regexp", func(q *model.PreparedQuery) { q.Tmpl = model.QueryTemplate{Type: "name_prefix_match", Regexp: "("} }, "failed compiling template: Bad Regexp: error parsing regexp: missing closing )"},
		{"brace", func(q *model.PreparedQuery) { q.Tmpl.Type, q.Service.Service = "name_prefix_match", "${name" }, "Bad format '${name' in Service.Service: "},
		{"variable", func(q *model.PreparedQuery) {
			q.Tmpl.Type, q.Service.Tags = "name_prefix_match", []string{"a", "${nosuch}"}
		}, "in Service.Tags[1]: unknown variable accessed: nosuch"},
		{"group", func(q *model.PreparedQuery) { q.Tmpl.Type, q.Service.Near = "name_prefix_match", "${match(x)}" }, "match(x) does not name a group"},
		{"no template, no variables", func(q *model.PreparedQuery) { q.Service.Service = "${nosuch}" }, ""},
	} {
		q := named("q", tt.edit)
		err := prepared.Validate(&q)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// FuzzTemplate: any text either is refused, or fills in without the markers of
// what it refers to being left over.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"${name.full}", "a$${b", "${match(1)}-${match(-1)}", "$", "$$", "${", "}${name.suffix}{", "${ match( 2 ) }"} {
		f.Add(s, "geo-x", "^geo-(.)")
	}
	f.Fuzz(func(t *testing.T, service, name, re string) {
		q := model.PreparedQuery{ID: "1", Service: model.QueryService{Service: service}, Tmpl: model.QueryTemplate{Type: prepared.NamePrefixMatch, Regexp: re}}
		if len(re) > 100 || prepared.Validate(&q) != nil {
			return
		}
		got, err := runner().Resolve(site(q), name)
		if name != "" && (err != nil || got.Tmpl != q.Tmpl) && !errors.Is(err, prepared.ErrTemplateByID) {
			t.Errorf("%q for %q: %+v, %v", service, name, got, err)
		}
	})
}
