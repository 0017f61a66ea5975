package acl

import (
	"cmp"
	"slices"
	"strings"
)

// policies are the merged rules of one token.
type policies struct {
	accessor     string
	allowUnnamed bool // what no rule speaks of is allowed
	plain        map[Resource]level
	named        map[Resource]*table
}

// table holds the rules of one resource.
type table struct {
	exact    map[string]level
	prefixes map[string]level
	lengths  []int // of the prefixes, longest first, each once
}

// New returns an authorizer of all the rules together. Where two of them speak of
// the same name or prefix, deny beats write, write beats list, list beats read;
// otherwise an exact name beats prefixes, and a longer prefix a shorter one. What
// no rule speaks of is allowed if allow is true, but for acl, which always takes
// a rule. The accessor is for messages.
func New(accessor string, allow bool, rules ...Rules) Authorizer {
	p := &policies{accessor: accessor, allowUnnamed: allow, plain: map[Resource]level{}, named: map[Resource]*table{}}
	for _, r := range merge(rules) {
		if !named(r.resource) {
			p.plain[r.resource] = r.level
			continue
		}
		p.table(r.resource).add(&r, r.level)
		if r.resource == Service {
			p.table(Intention).add(&r, r.onIntentions())
		}
	}
	for _, t := range p.named {
		for prefix := range t.prefixes {
			t.lengths = append(t.lengths, len(prefix))
		}
		slices.SortFunc(t.lengths, func(a, b int) int { return cmp.Compare(b, a) })
		t.lengths = slices.Compact(t.lengths)
	}
	return p
}

// merge makes one rule of those that speak of the same name or prefix.
func merge(all []Rules) []rule {
	type name struct {
		resource Resource
		name     string
		prefix   bool
	}
	at := map[name]int{}
	var out []rule
	for _, rs := range all {
		for _, r := range rs.list {
			k := name{r.resource, r.name, r.prefix}
			i, ok := at[k]
			if !ok {
				at[k] = len(out)
				out = append(out, r)
				continue
			}
			out[i].level = stronger(out[i].level, r.level)
			out[i].intentions = stronger(out[i].intentions, r.intentions)
		}
	}
	return out
}

// onIntentions is what a rule for a service grants on intentions to it: unless it
// says so itself, reading them comes with any right to the service.
func (r *rule) onIntentions() level {
	switch {
	case r.intentions != none:
		return r.intentions
	case r.level == deny:
		return deny
	}
	return read
}

func (p *policies) table(r Resource) *table {
	t := p.named[r]
	if t == nil {
		t = &table{exact: map[string]level{}, prefixes: map[string]level{}}
		p.named[r] = t
	}
	return t
}

func (t *table) add(r *rule, l level) {
	if r.prefix {
		t.prefixes[r.name] = l
	} else {
		t.exact[r.name] = l
	}
}

// longest is the level of the longest prefix of a name, none if there is no such
// prefix.
func (t *table) longest(name string) level {
	for _, n := range t.lengths {
		if n <= len(name) {
			if l, ok := t.prefixes[name[:n]]; ok {
				return l
			}
		}
	}
	return none
}

// Allow implements Authorizer.
func (p *policies) Allow(r Resource, name string, a Access) bool {
	t := p.named[r]
	if t == nil {
		return p.decide(r, p.level(r), a)
	}
	l, ok := t.exact[name]
	if !ok {
		l = t.longest(name)
	}
	return p.decide(r, l, a)
}

// level is that of a resource without names. Mesh and peering are operators'
// business where nothing is said of them.
func (p *policies) level(r Resource) level {
	l := p.plain[r]
	if l == none && (r == Mesh || r == Peering) {
		return p.plain[Operator]
	}
	return l
}

func (p *policies) decide(r Resource, l level, a Access) bool {
	if l == none {
		return p.allowUnnamed && r != ACL
	}
	return l.grants(a)
}

// AllowPrefix implements Authorizer: the rule that the prefix itself falls under
// must grant the access, and no rule for anything below may refuse it.
func (p *policies) AllowPrefix(r Resource, prefix string, a Access) bool {
	t := p.named[r]
	if t == nil {
		return p.decide(r, p.level(r), a)
	}
	for _, rules := range []map[string]level{t.exact, t.prefixes} {
		for name, l := range rules {
			if strings.HasPrefix(name, prefix) && !l.grants(a) {
				return false
			}
		}
	}
	return p.decide(r, t.longest(prefix), a)
}

// Accessor implements Authorizer.
func (p *policies) Accessor() string { return p.accessor }
