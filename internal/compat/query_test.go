package compat

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	miekg "github.com/miekg/dns"
)

// registerTagged registers instances of a service, each given as id:tag.
func registerTagged(t *testing.T, c *api.Client, service string, ids ...string) {
	t.Helper()
	for i, id := range ids {
		id, tag, _ := strings.Cut(id, ":")
		must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID: id, Name: service, Tags: []string{tag}, Address: fmt.Sprint("127.0.1.", i+1), Port: 8000 + i,
			Check: &api.AgentServiceCheck{TTL: "10m", Status: api.HealthPassing},
		}))
	}
}

func TestPreparedQueryMethods(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	registerTagged(t, c, "redis", "r1:primary", "r2:replica", "r3:replica")
	q := c.PreparedQuery()

	list, _, err := q.List(nil)
	if err != nil || list == nil || len(list) != 0 {
		t.Fatalf("before any: %v, %v", list, err)
	}
	def := &api.PreparedQueryDefinition{
		Name: "db", DNS: api.QueryDNSOptions{TTL: "11s"},
		Service: api.ServiceQuery{Service: "redis", Tags: []string{"replica", "!primary"}, Near: "_agent"},
	}
	id, _, err := q.Create(def, nil)
	must(t, err)
	def.ID = id
	got, meta, err := q.Get(id, nil)
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], def) {
		t.Errorf("%+v, %v, want %+v", got, err, def)
	}
	if list, _, err = q.List(nil); err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], def) {
		t.Errorf("%+v, %v", list, err)
	}

	found := func(name string, opts *api.QueryOptions) string {
		t.Helper()
		res, _, err := q.Execute(name, opts)
		must(t, err)
		var ids []string
		for _, n := range res.Nodes {
			ids = append(ids, n.Service.ID)
		}
		slices.Sort(ids)
		return strings.Join(ids, " ")
	}
	for _, name := range []string{"db", id, "DB"} {
		if got := found(name, nil); got != "r2 r3" {
			t.Errorf("%s found %s", name, got)
		}
	}
	res, _, err := q.Execute("db", nil)
	if err != nil || res.Service != "redis" || res.DNS.TTL != "11s" || res.Datacenter != "dc1" || res.Failovers != 0 {
		t.Errorf("%+v, %v", res, err)
	}

	// A change wakes who waits for it.
	woken := make(chan []*api.PreparedQueryDefinition, 1)
	go func() {
		got, _, err := q.Get(id, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		if err != nil {
			t.Error(err)
		}
		woken <- got
	}()
	def.Service.Tags, def.Service.OnlyPassing = []string{"primary"}, true
	_, err = q.Update(def, nil)
	must(t, err)
	if got := <-woken; len(got) != 1 || !got[0].Service.OnlyPassing {
		t.Errorf("the waiter got %+v", got)
	}
	if got := found("db", nil); got != "r1" {
		t.Errorf("after the change: %s", got)
	}
	must(t, c.Agent().WarnTTL("service:r1", "hm"))
	eventually(t, func() error {
		if got := found("db", nil); got != "" {
			return fmt.Errorf("a warning instance passes: %s", got)
		}
		return nil
	})

	_, err = q.Delete(id, nil)
	must(t, err)
	if _, _, err := q.Get(id, nil); err == nil || !strings.Contains(err.Error(), "404 (Query not found)") {
		t.Errorf("after the end: %v", err)
	}
	if _, _, err := q.Execute("db", nil); err == nil || !strings.Contains(err.Error(), "Query not found") {
		t.Errorf("after the end: %v", err)
	}
}

func TestPreparedQueryRefusals(t *testing.T) {
	a := startAgent(t)
	q := a.client().PreparedQuery()
	redis := api.ServiceQuery{Service: "redis"}
	id, _, err := q.Create(&api.PreparedQueryDefinition{Name: "taken", Service: redis}, nil)
	must(t, err)
	for want, def := range map[string]*api.PreparedQueryDefinition{
		"Must be bound to a session":                             {Service: redis},
		"Must provide a Service name":                            {Name: "x"},
		"name 'TAKEN' aliases an existing query name":            {Name: "TAKEN", Service: redis},
		"name '" + id + "' aliases an existing query ID":         {Name: id, Service: redis},
		`invalid session "6f2b7a2b-5d0c-4d3e-8d57-2f8c9ce2d0aa"`: {Session: "6f2b7a2b-5d0c-4d3e-8d57-2f8c9ce2d0aa", Service: redis},
		"Bad Regexp":                          {Name: "x", Service: redis, Template: api.QueryTemplate{Type: "name_prefix_match", Regexp: "("}},
		"Bad Template.Type 'x'":               {Name: "x", Service: redis, Template: api.QueryTemplate{Type: "x"}},
		"Bad DNS TTL":                         {Name: "x", Service: redis, DNS: api.QueryDNSOptions{TTL: "x"}},
		"Cannot modify non-existent":          {ID: "6f2b7a2b-5d0c-4d3e-8d57-2f8c9ce2d0aa", Name: "x", Service: redis},
		"ID must be empty":                    {ID: id, Name: "x", Service: redis},
		"Targets cannot be populated with":    {Name: "x", Service: api.ServiceQuery{Service: "redis", Failover: api.QueryFailoverOptions{NearestN: 1, Targets: []api.QueryFailoverTarget{{Peer: "p"}}}}},
		"Namespaces and Partitions are a Con": {Name: "x", Service: api.ServiceQuery{Service: "redis", Namespace: "team"}},
	} {
		var err error
		if strings.HasPrefix(want, "Cannot") {
			_, err = q.Update(def, nil)
		} else {
			_, _, err = q.Create(def, nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if list, _, err := q.List(nil); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestPreparedQueryEndsWithItsSession(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	session, _, err := c.Session().Create(&api.SessionEntry{TTL: "10s"}, nil)
	must(t, err)
	id, _, err := c.PreparedQuery().Create(&api.PreparedQueryDefinition{Session: session, Service: api.ServiceQuery{Service: "redis"}}, nil)
	must(t, err)
	if _, _, err := c.PreparedQuery().Execute(id, nil); err != nil {
		t.Fatal(err)
	}
	_, err = c.Session().Destroy(session, nil)
	must(t, err)
	if _, _, err := c.PreparedQuery().Get(id, nil); err == nil || !strings.Contains(err.Error(), "Query not found") {
		t.Errorf("after its session: %v", err)
	}
}

// Templates and failover, asked over HTTP and DNS.
func TestPreparedQueryTemplates(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	registerTagged(t, c, "redis", "r1:primary", "r2:replica")
	for _, def := range []*api.PreparedQueryDefinition{
		{Name: "geo-", Template: api.QueryTemplate{Type: "name_prefix_match", Regexp: "^geo-([^-]+)-?(.*)$", RemoveEmptyTags: true}, Service: api.ServiceQuery{Service: "${match(1)}", Tags: []string{"${match(2)}"}}},
		{Name: "", Template: api.QueryTemplate{Type: "name_prefix_match"}, Service: api.ServiceQuery{Service: "${name.full}", Failover: api.QueryFailoverOptions{Targets: []api.QueryFailoverTarget{{Peer: "east"}, {Datacenter: "dc9"}}}}},
	} {
		_, _, err := c.PreparedQuery().Create(def, nil)
		must(t, err)
	}
	for name, want := range map[string]int{"geo-redis": 2, "geo-redis-primary": 1, "redis": 2, "nosuch": 0} {
		res, _, err := c.PreparedQuery().Execute(name, nil)
		if err != nil || len(res.Nodes) != want || res.Nodes == nil {
			t.Errorf("%s: %+v, %v, want %d", name, res, err, want)
		}
		if name == "nosuch" && (res.Failovers != 1 || res.Service != "nosuch") {
			t.Errorf("where else was it looked for: %+v", res)
		}
		req := new(miekg.Msg)
		req.SetQuestion(name+".query.consul.", miekg.TypeSRV)
		m, _, err := (&miekg.Client{Timeout: settleLimit}).Exchange(req, a.dns)
		if err != nil || len(m.Answer) != want || (m.Rcode == miekg.RcodeNameError) != (want == 0) {
			t.Errorf("%s over DNS: %v, %v", name, m, err)
		}
	}
}
