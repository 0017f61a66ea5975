package registry_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func query(id, name string, edit ...func(*model.PreparedQuery)) model.PreparedQuery {
	q := model.PreparedQuery{ID: id, Name: name, Service: model.QueryService{Service: "web"}}
	for _, e := range edit {
		e(&q)
	}
	return q
}

func asTemplate(q *model.PreparedQuery) { q.Tmpl.Type = "name_prefix_match" }

func TestPutQuery(t *testing.T) {
	const idA, idB, idC = "aaaaaaaa-0000-0000-0000-000000000001", "bbbbbbbb-0000-0000-0000-000000000002", "cccccccc-0000-0000-0000-000000000003"
	e := setup(t)
	created := e.must(e.PutQuery(t.Context(), query(idA, "Web")))
	e.unwritten(func() { e.must(e.PutQuery(t.Context(), query(idA, "Web"))) })
	e.must(e.PutQuery(t.Context(), query(idB, "", asTemplate)))

	for _, tt := range []struct {
		name string
		q    model.PreparedQuery
		want string
	}{
		{"no id", query("", "x"), "Missing Query ID"},
		{"taken name", query(idC, "web"), "name 'web' aliases an existing query name"},
		{"taken by renaming", query(idB, "WEB", asTemplate), "name 'WEB' aliases an existing query name"},
		{"somebody's id", query(idC, strings.ToUpper(idA)), "name '" + strings.ToUpper(idA) + "' aliases an existing query ID"},
		{"second template for everything", query(idC, "", asTemplate), "a query template with an empty name already exists"},
		{"no service", query(idC, "x", func(q *model.PreparedQuery) { q.Service.Service = "" }), "Invalid prepared query: Must provide a Service name to query"},
		{"bad regexp", query(idC, "x", asTemplate, func(q *model.PreparedQuery) { q.Tmpl.Regexp = "(" }), "failed compiling template: Bad Regexp: error parsing regexp: missing closing ): `(`"},
		{"unknown session", query(idC, "x", func(q *model.PreparedQuery) { q.Session = "nope" }), `invalid session "nope"`},
		{"change of none", query(idC, "x", func(q *model.PreparedQuery) { q.CreateIndex = 5 }), "Cannot modify non-existent prepared query: '" + idC + "'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.unwritten(func() {
				if _, err := e.PutQuery(t.Context(), tt.q); err == nil || err.Error() != tt.want || !errors.Is(err, registry.ErrInvalid) {
					t.Errorf("%v, want %q", err, tt.want)
				}
			})
		})
	}

	e.must(e.PutQuery(t.Context(), query(idA, "api", func(q *model.PreparedQuery) { q.CreateIndex = created })))
	e.must(e.PutQuery(t.Context(), query(idC, "web"))) // the name is free again
	if q, _ := e.snap().Query(idA); q.Name != "api" || q.CreateIndex != created {
		t.Errorf("after the change: %+v", q)
	}
	e.must(e.DeleteQuery(t.Context(), idB))
	e.must(e.DeleteQuery(t.Context(), idA))
	if all, _ := e.snap().Queries(); len(all) != 1 || all[0].ID != idC {
		t.Errorf("left: %+v", all)
	}
	e.unwritten(func() {
		if _, err := e.DeleteQuery(t.Context(), idA); err == nil || err.Error() != "Cannot modify non-existent prepared query: '"+idA+"'" {
			t.Error(err)
		}
	})
	e.must(e.PutQuery(t.Context(), query(idA, "api")))
	e.must(e.PutQuery(t.Context(), query(idB, "", asTemplate)))
}

// The name of a query is one query's alone however many ask for it at once.
func TestQueryNamesAreUniqueOnAStore(t *testing.T) {
	s, st := startStore(t)
	registries := []*registry.Registry{newRegistry(s, st), newRegistry(s, st)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i, id := range []string{"q1", "q2", "q3", "q4"} {
		wg.Go(func() {
			_, err := registries[i%2].PutQuery(t.Context(), query(id, "web"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !strings.Contains(err.Error(), "aliases an existing query name") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all, _ := st.Snapshot().Queries(); won != 1 || len(all) != 1 {
		t.Errorf("%d won, %d are there", won, len(all))
	}
}

func TestQueriesEndWithTheirSession(t *testing.T) {
	e := setup(t)
	id, _, err := e.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}})
	if err != nil {
		t.Fatal(err)
	}
	bound := func(q *model.PreparedQuery) { q.Session = id }
	e.must(e.PutQuery(t.Context(), query("q1", "", bound)))
	e.must(e.PutQuery(t.Context(), query("q2", "web", bound)))
	e.must(e.PutQuery(t.Context(), query("q3", "api")))
	e.must(e.DestroySession(t.Context(), id))
	if all, _ := e.snap().Queries(); len(all) != 1 || all[0].ID != "q3" {
		t.Errorf("left after the session: %+v", all)
	}
	e.must(e.PutQuery(t.Context(), query("q2", "web")))
	if _, err := e.PutQuery(t.Context(), query("q1", "", bound)); err == nil {
		t.Error("a query was bound to a session that is gone")
	}
}
