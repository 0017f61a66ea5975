package prepared

import (
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// candidates are the instances of a service, or those that answer for it with
// mutual TLS.
func candidates(snap *state.Snapshot, name model.ServiceName, connect bool) []*state.Member {
	if connect {
		members, _ := snap.Connected(name)
		return members
	}
	svc, _ := snap.Service(name)
	return svc.Members
}

// wanted reports whether an instance is one that a query asks for.
func wanted(q *model.QueryService, m *state.Member) bool {
	return healthy(q, m) && hasAll(m.Node.Meta, q.NodeMeta) && hasAll(m.Instance.Meta, q.ServiceMeta) && tagged(m.Instance.Tags, q.Tags)
}

func healthy(q *model.QueryService, m *state.Member) bool {
	for _, c := range m.Checks {
		if slices.Contains(q.IgnoreCheckIDs, c.ID) {
			continue
		}
		if c.Status == model.Critical || !c.Status.Valid() || q.OnlyPassing && c.Status != model.Passing {
			return false
		}
	}
	return true
}

func hasAll(meta, want map[string]string) bool {
	for k, v := range want {
		if got, ok := meta[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// tagged reports whether an instance has all the tags of a query and none of
// those that stand behind a "!". Case does not count.
func tagged(has, want []string) bool {
	for _, w := range want {
		w, not := strings.CutPrefix(w, "!")
		if not == slices.ContainsFunc(has, func(t string) bool { return strings.EqualFold(t, w) }) {
			return false
		}
	}
	return true
}

// index finds queries by name: exactly, or as a template by the longest prefix.
// It is a memo of one version of the table.
type index struct {
	at        model.Index
	names     map[string]*entry // all with a name, by its lower-case form
	templates map[string]*entry // by the lower-case form of their prefix
	longest   int               // prefix, in bytes
}

type entry struct {
	query *model.PreparedQuery
	tmpl  *template // nil: not a template
	err   error     // what is wrong with the template
}

func (r *Runner) index(snap *state.Snapshot) *index {
	all, mark := snap.Queries()
	if x := r.memo.Load(); x != nil && x.at == mark.Index {
		return x
	}
	x := &index{at: mark.Index, names: map[string]*entry{}, templates: map[string]*entry{}}
	for _, q := range all {
		e, name := &entry{query: q}, strings.ToLower(q.Name)
		if q.Tmpl.Type != "" {
			e.tmpl, e.err = compile(q)
			x.templates[name] = e
			x.longest = max(x.longest, len(name))
		}
		if name != "" {
			x.names[name] = e
		}
	}
	r.memo.Store(x)
	return x
}

func (x *index) find(name string) *entry {
	name = strings.ToLower(name)
	if e := x.names[name]; e != nil {
		return e
	}
	if len(x.templates) == 0 {
		return nil
	}
	for n := min(len(name), x.longest); n >= 0; n-- {
		if e := x.templates[name[:n]]; e != nil {
			return e
		}
	}
	return nil
}
