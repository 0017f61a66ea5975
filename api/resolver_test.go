package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// ids is a snapshot as text.
func ids(s *api.Snapshot) string {
	var all []string
	for _, i := range s.Instances {
		all = append(all, fmt.Sprintf("%s@%s*%d", i.ID, i.Addr(), i.Weight))
	}
	return strings.Join(all, " ")
}

func TestResolverFollowsTheHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.web = []instance{{"b", "", 80, "warning"}, {"a", "192.0.2.7", 81, "passing"}, {"c", "", 82, "critical"}}
		r := api.NewResolver(c)
		defer r.Close()
		web := r.Service("web")
		s, err := web.Wait(t.Context())
		if err != nil || !s.Known || ids(s) != "a@192.0.2.7:81*4 b@192.0.2.1:80*2" {
			t.Errorf("first answer: %s, %v", ids(s), err)
		}
		if r.Service("web") != web {
			t.Error("a service is watched twice")
		}
		a.set(func() { a.index, a.web = 11, a.web[:1] })
		<-s.Changed()
		if got := ids(web.Snapshot()); got != "b@192.0.2.1:80*2" {
			t.Errorf("after a change: %s", got)
		}

		// A change that does not concern the healthy instances wakes nobody.
		s = web.Snapshot()
		a.set(func() { a.index = 12 })
		time.Sleep(time.Second)
		if web.Snapshot() != s {
			t.Error("an answer that is the same makes a new snapshot")
		}
	})
}

func TestResolverKeepsWhatItKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.web = []instance{{"a", "", 80, "passing"}}
		r := api.NewResolver(c)
		defer r.Close()
		web := r.Service("web")
		if _, err := web.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.away = true })
		a.set(func() { a.index++ }) // ends the query
		a.seen()
		time.Sleep(time.Minute)
		if s := web.Snapshot(); ids(s) != "a@192.0.2.1:80*4" || s.Err == nil {
			t.Errorf("while the agent is away: %s, %v", ids(s), s.Err)
		}
		// Each pause is between half of 3 s and 3 s.
		if n := len(a.seen()); n < 20 || n > 50 {
			t.Errorf("%d queries in a minute without an agent", n)
		}
		// Another agent, whose indexes are smaller.
		a.set(func() { a.away, a.index, a.web = false, 3, []instance{{"z", "", 9, "passing"}} })
		time.Sleep(3 * time.Second)
		if s := web.Snapshot(); ids(s) != "z@192.0.2.1:9*4" || s.Err != nil {
			t.Errorf("when the agent is back: %s, %v", ids(s), s.Err)
		}
	})
}

// An index that goes back is forgotten, and one that is 0 is not asked with in a loop.
func TestResolverIndexRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		r := api.NewResolver(c)
		defer r.Close()
		r.Service("web")
		time.Sleep(time.Second)
		a.set(func() { a.index = 4 })
		time.Sleep(time.Second)
		a.set(func() { a.index = 0 })
		time.Sleep(10 * time.Second)
		var indexes []string
		for _, call := range a.seen() {
			_, query, _ := strings.Cut(call, "?")
			index, _, _ := strings.Cut(query, "&")
			if !strings.HasPrefix(index, "index=") {
				index = "none"
			}
			indexes = append(indexes, index)
		}
		got := strings.Join(indexes, " ")
		if !strings.HasPrefix(got, "none index=10 none index=4 none") || len(indexes) > 13 {
			t.Errorf("queries: %s", got)
		}
	})
}

func TestWaitSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.away = true
		r := api.NewResolver(c)
		defer r.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := r.Select(api.Selection{Service: "web", Tag: "v1"}).Wait(ctx)
		if s.Known || len(s.Instances) != 0 || s.Err == nil {
			t.Errorf("before the first answer: %+v", s)
		}
		if !errors.Is(err, api.ErrNoInstance) || !strings.Contains(err.Error(), "v1.web") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Wait = %v", err)
		}
	})
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]string{
		"web.service.consul": "web", "web.service.consul.": "web", "v1.web.Service.Internal": "v1.web",
		"web.service.dc1.consul": "web.dc1", "v1.web.service.dc1.consul": "v1.web.dc1", "web.service.dc1.dc.consul": "web.dc1",
		"_web._tcp.service.consul": "web", "_web._v1.service.consul": "v1.web", "Web.service.consul": "Web",
		"web": "", "web.consul": "", "service.consul": "", "web.node.consul": "", "example.com": "", "web.service.com": "",
		"a.b.c.service.consul": "", "": "", "..consul": "", ".service.consul": "", "consul": "",
	} {
		sel, ok := api.ParseName(name)
		if ok != (want != "") || ok && sel.String() != want {
			t.Errorf("ParseName(%q) = %q, %v; want %q", name, sel, ok, want)
		}
	}
}
