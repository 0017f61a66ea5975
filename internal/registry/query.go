package registry

import (
	"context"
	"fmt"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// queryNames is the kind of unique value that the names of prepared queries are.
// They are unique without regard to case, and so is the empty name of a template.
const queryNames = "query"

// PutQuery writes a prepared query, whose ID the caller has chosen. With a
// CreateIndex it changes a query, which must exist. What is wrong with it is said
// in Consul's words (ErrInvalid).
func (r *Registry) PutQuery(ctx context.Context, q model.PreparedQuery) (model.Index, error) {
	if q.ID == "" {
		return 0, say(ErrInvalid, "Missing Query ID")
	}
	if err := prepared.Validate(&q); err != nil {
		return 0, say(ErrInvalid, "%v", err)
	}
	if q.Owner == "" {
		q.Owner = model.OwnerOperator
	}
	change := q.CreateIndex > 0
	index, err := r.write(ctx, fmt.Sprintf("put prepared query %q", q.ID), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Query(q.ID)
		if !p.replace(store.QueryKey(q.ID), cur, &q) {
			return
		}
		if cur == nil && change {
			p.refuse(say(ErrInvalid, "Cannot modify non-existent prepared query: '%s'", q.ID))
			return
		}
		planQueryName(snap, p, cur, &q)
		if q.Session != "" {
			s, _ := snap.Session(q.Session)
			p.read(store.SessionKey(q.Session), s)
			p.put(store.HoldKey(q.Session), "")
			if s == nil || s.Dying {
				p.refuse(say(ErrInvalid, "invalid session %#v", q.Session))
			}
		}
	})
	return index, bare(err)
}

// planQueryName moves a query's claim on its name, and refuses one that somebody
// else has, be it as a name or as an id.
func planQueryName(snap *state.Snapshot, p *plan, cur, q *model.PreparedQuery) {
	if id := strings.ToLower(q.Name); id != "" {
		other, _ := snap.Query(id)
		p.read(store.QueryKey(id), other)
		if other != nil && other.ID != q.ID {
			p.refuse(say(ErrInvalid, "name '%s' aliases an existing query ID", q.Name))
			return
		}
	}
	var old string
	if cur != nil {
		old = queryClaim(cur)
	}
	claim := queryClaim(q)
	if claim == old {
		return
	}
	if old != "" {
		p.txn.Deletes = append(p.txn.Deletes, store.UniqueKey(queryNames, old))
	}
	if claim == "" {
		return
	}
	if other := claimant(snap, claim); other != nil {
		p.read(store.QueryKey(other.ID), other)
		if q.Name == "" {
			p.refuse(say(ErrInvalid, "a query template with an empty name already exists"))
		} else {
			p.refuse(say(ErrInvalid, "name '%s' aliases an existing query name", q.Name))
		}
		return
	}
	p.absent(store.UniqueKey(queryNames, claim))
	p.put(store.UniqueKey(queryNames, claim), q.ID)
}

// queryClaim is what a query keeps others from being called, "" for nothing: a
// query that is no template may go without a name.
func queryClaim(q *model.PreparedQuery) string {
	if q.Name == "" && q.Tmpl.Type == "" {
		return ""
	}
	return "=" + strings.ToLower(q.Name)
}

// claimant is the query that has a claim, nil if none has.
func claimant(snap *state.Snapshot, claim string) *model.PreparedQuery {
	all, _ := snap.Queries()
	for _, q := range all {
		if queryClaim(q) == claim {
			return q
		}
	}
	return nil
}

// DeleteQuery removes a prepared query. One that is not there is ErrInvalid.
func (r *Registry) DeleteQuery(ctx context.Context, id string) (model.Index, error) {
	index, err := r.write(ctx, fmt.Sprintf("delete prepared query %q", id), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Query(id)
		if cur == nil {
			p.read(store.QueryKey(id), cur)
			p.refuse(say(ErrInvalid, "Cannot modify non-existent prepared query: '%s'", id))
			return
		}
		planQueryEnd(p, cur)
	})
	return index, bare(err)
}

// planQueryEnd removes a query and its claim on its name.
func planQueryEnd(p *plan, q *model.PreparedQuery) {
	p.remove(store.QueryKey(q.ID), q)
	if claim := queryClaim(q); claim != "" {
		p.txn.Deletes = append(p.txn.Deletes, store.UniqueKey(queryNames, claim))
	}
}

// planQueriesEnd removes the queries that end with a session. Binding one writes
// the session's hold key, like taking a lock.
func planQueriesEnd(snap *state.Snapshot, p *plan, session string) {
	all, _ := snap.Queries()
	for _, q := range all {
		if q.Session == session {
			planQueryEnd(p, q)
		}
	}
}
