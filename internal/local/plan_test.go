package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func timeoutNow(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, time.Unix(1, 0))
}

const owner = model.Owner("node/n1")

// describe writes works as text, one service a line.
func describe(works []work) string {
	var rows []string
	for _, k := range works {
		row := fmt.Sprintf("%s:", k.id)
		if k.deregister {
			row += " deregister"
		}
		for _, id := range k.remove {
			row += " remove=" + string(id)
		}
		verb := " put="
		if k.register != nil {
			row += fmt.Sprintf(" register=%d", k.register.Port)
			verb = " with="
		}
		for _, c := range k.checks {
			row += verb + string(c.ID)
		}
		rows = append(rows, row)
	}
	slices.Sort(rows)
	return strings.Join(rows, "; ")
}

func TestPlan(t *testing.T) {
	now := time.Unix(1000, 0)
	inst := func(port int, o model.Owner) *model.Instance {
		return &model.Instance{Node: "n1", ID: "web", Service: "web", Port: port, Stamp: model.Stamp{Owner: o}}
	}
	chk := func(id model.CheckID, output string, o model.Owner) *model.Check {
		return &model.Check{Node: "n1", ID: id, ServiceID: "web", Status: model.Passing, Output: output, Stamp: model.Stamp{Owner: o}}
	}
	wantWeb := func(checks ...wantCheck) want { return want{version: 1, inst: *inst(80, owner), checks: checks} }
	soon := wantCheck{Check: *chk("a", "new", owner), due: now.Add(time.Minute)}
	due := wantCheck{Check: *chk("a", "new", owner), due: now}
	plain := wantCheck{Check: *chk("a", "", owner)}

	tests := []struct {
		name  string
		wants []want
		have  have
		works string
		next  time.Duration // after now
	}{
		{"nothing", nil, have{}, "", 0},
		{"missing", []want{wantWeb(plain)}, have{}, "web: register=80 with=a", 0},
		{"there", []want{wantWeb(plain)}, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "", owner)}}, "", 0},
		{"differs", []want{wantWeb(plain)}, have{[]*model.Instance{inst(81, owner)}, []*model.Check{chk("a", "", owner)}}, "web: register=80 with=a", 0},
		{"check missing", []want{wantWeb(plain)}, have{[]*model.Instance{inst(80, owner)}, nil}, "web: register=80 with=a", 0},
		{"output waits", []want{wantWeb(soon)}, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "old", owner)}}, "", time.Minute},
		{"output due", []want{wantWeb(due)}, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "old", owner)}}, "web: put=a", 0},
		{"output travels with the instance", []want{wantWeb(soon)}, have{[]*model.Instance{inst(81, owner)}, []*model.Check{chk("a", "old", owner)}}, "web: register=80 with=a", time.Minute},
		{"dropped check", []want{wantWeb()}, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "", owner)}}, ": remove=a", 0},
		{"dropped with a change", []want{wantWeb()}, have{[]*model.Instance{inst(81, owner)}, []*model.Check{chk("a", "", owner)}}, "web: register=80", 0},
		{"external in our place", []want{wantWeb(plain)}, have{[]*model.Instance{inst(80, model.OwnerExternal)}, []*model.Check{chk("a", "", model.OwnerExternal)}}, "web: register=80 with=a", 0},
		{"external check in our place", []want{wantWeb(plain)}, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "", model.OwnerExternal)}}, "web: put=a", 0},
		{"external check beside ours", []want{wantWeb()}, have{[]*model.Instance{inst(81, owner)}, []*model.Check{chk("x", "", model.OwnerExternal)}}, "web: register=80", 0},
		{"ghost", nil, have{[]*model.Instance{inst(80, owner)}, []*model.Check{chk("a", "", owner)}}, "web: deregister", 0},
		{"external ghost", nil, have{[]*model.Instance{inst(80, model.OwnerExternal)}, []*model.Check{chk("a", "", model.OwnerExternal)}}, "web: deregister", 0},
		{"others'", nil, have{[]*model.Instance{inst(80, model.OwnerServers), inst(80, "node/n2")}, []*model.Check{chk("a", "", model.OwnerOperator), chk(model.SerfHealth, "", owner)}}, "", 0},
		{"held", []want{{inst: *inst(80, owner), holdTo: now.Add(time.Second)}}, have{[]*model.Instance{inst(81, owner)}, nil}, "", time.Second},
		{"no longer held", []want{{inst: *inst(80, owner), holdTo: now}}, have{}, "web: register=80", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := plan(owner, tt.wants, tt.have, now)
			if got := describe(g.works); got != tt.works {
				t.Errorf("works %q, want %q", got, tt.works)
			}
			next := g.later["web"]
			if want := now.Add(tt.next); next.IsZero() != (tt.next == 0) || (tt.next != 0 && !next.Equal(want)) {
				t.Errorf("next %v, want %v after %v", next, tt.next, now)
			}
		})
	}
}

func TestNormalize(t *testing.T) {
	one := func(c model.CheckSpec) model.Registration {
		return model.Registration{Instance: model.Instance{Service: "web"}, Checks: []model.CheckSpec{c}}
	}
	inst := func(i model.Instance) model.Registration { return model.Registration{Instance: i} }
	ttl := time.Minute
	tests := []struct {
		reg  model.Registration
		want string // part of the error; empty: valid
	}{
		{inst(model.Instance{Service: "web"}), ""},
		{inst(model.Instance{}), "needs a name"},
		{inst(model.Instance{ID: "x"}), "needs a name"},
		{inst(model.Instance{Service: "consul"}), "belongs to the servers"},
		{inst(model.Instance{Service: "web", ID: "consul"}), "belongs to the servers"},
		{inst(model.Instance{Service: "web", Port: 65536}), "port 65536"},
		{inst(model.Instance{Service: "web", Port: -1}), "port -1"},
		{inst(model.Instance{Service: "web", Weights: model.Weights{Passing: -1, Warning: 1}}), "weights"},
		{one(model.CheckSpec{TTL: ttl}), ""},
		{one(model.CheckSpec{HTTP: "http://127.0.0.1/", Interval: 1}), ""},
		{one(model.CheckSpec{TCP: "[::1]:80", Interval: 1}), ""},
		{one(model.CheckSpec{TTL: ttl, FailuresBeforeWarning: 1}), ""},
		{one(model.CheckSpec{}), "exactly one of"},
		{one(model.CheckSpec{TTL: ttl, TCP: "a:1"}), "exactly one of"},
		{one(model.CheckSpec{HTTP: "http://a", TCP: "a:1", Interval: 1}), "exactly one of"},
		{one(model.CheckSpec{TCP: "a:1"}), "Interval must be > 0"},
		{one(model.CheckSpec{TTL: -1}), "TTL must be > 0"},
		{one(model.CheckSpec{TTL: ttl, Interval: 1}), "cannot both"},
		{one(model.CheckSpec{TTL: ttl, Timeout: -1}), "negative duration"},
		{one(model.CheckSpec{TTL: ttl, DeregisterAfter: -1}), "negative duration"},
		{one(model.CheckSpec{TTL: ttl, Status: "fine"}), `status "fine"`},
		{one(model.CheckSpec{TTL: ttl, OutputMaxSize: -1}), "OutputMaxSize"},
		{one(model.CheckSpec{TTL: ttl, SuccessBeforePassing: -1}), "negative threshold"},
		{one(model.CheckSpec{TTL: ttl, FailuresBeforeWarning: 3, FailuresBeforeCritical: 2}), "can't be higher"},
		{one(model.CheckSpec{TTL: ttl, ID: model.SerfHealth}), "belongs to the servers"},
		{one(model.CheckSpec{TCP: "host", Interval: 1}), "host:port"},
		{one(model.CheckSpec{HTTP: "ftp://a/", Interval: 1}), "must be a URL such as"},
		{one(model.CheckSpec{HTTP: "127.0.0.1:80", Interval: 1}), "must be a URL"},
		{one(model.CheckSpec{HTTP: "http:///x", Interval: 1}), "must be a URL such as"},
		{model.Registration{Instance: model.Instance{Service: "web"}, Checks: []model.CheckSpec{{ID: "a", TTL: 1}, {ID: "a", TTL: 1}}}, `two checks with the id "a"`},
	}
	for _, tt := range tests {
		_, err := normalize(tt.reg, "n1")
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", tt.reg, err)
		case tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: %v, want %q", tt.reg, err, tt.want)
		}
	}
}

func TestNormalizeCompletes(t *testing.T) {
	r, err := normalize(model.Registration{
		Instance: model.Instance{Service: "web", Node: "other", Stamp: model.Stamp{Owner: "x", ModifyIndex: 7}},
		Checks:   []model.CheckSpec{{TTL: 1}, {TTL: 1, ID: "mine", Name: "Mine"}},
	}, "n1")
	if err != nil {
		t.Fatal(err)
	}
	i, c := r.Instance, r.Checks
	if i.ID != "web" || i.Node != "n1" || i.Stamp != (model.Stamp{Owner: owner}) || i.Weights != model.DefaultWeights {
		t.Errorf("instance %+v", i)
	}
	if c[0].ID != "service:web:1" || c[0].Name != "Service 'web' check" || c[0].ServiceID != "web" || c[1].ID != "mine" || c[1].Name != "Mine" {
		t.Errorf("checks %+v", c)
	}
}
