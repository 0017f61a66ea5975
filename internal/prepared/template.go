package prepared

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// NamePrefixMatch is the one type of template that there is.
const NamePrefixMatch = "name_prefix_match"

// template is a query with text to be filled in from the name that was asked for.
type template struct {
	query *model.PreparedQuery
	re    *regexp.Regexp
	texts map[string]text // parsed, by what they were
}

// compile reads a query's template. The errors are Consul's.
func compile(q *model.PreparedQuery) (*template, error) {
	if q.Tmpl.Type != NamePrefixMatch {
		return nil, fmt.Errorf("Bad Template.Type '%s'", q.Tmpl.Type) //nolint:staticcheck // Consul's text
	}
	t := &template{query: q, texts: map[string]text{}}
	var bad error
	check := *q
	check.Service = cloneService(q.Service)
	eachText(&check.Service, func(path, s string) string {
		parsed, err := parseText(s)
		if err != nil && bad == nil {
			bad = fmt.Errorf("Bad format '%s' in Service%s: %w", s, path, err) //nolint:staticcheck // Consul's text
		}
		t.texts[s] = parsed
		return s
	})
	if bad != nil {
		return nil, bad
	}
	if q.Tmpl.Regexp != "" {
		re, err := regexp.Compile(q.Tmpl.Regexp)
		if err != nil {
			return nil, fmt.Errorf("Bad Regexp: %w", err) //nolint:staticcheck // Consul's text
		}
		t.re = re
	}
	return t, nil
}

// render fills the template in for a name.
func (t *template) render(name string) *model.PreparedQuery {
	in := input{full: name, prefix: t.query.Name, suffix: name}
	// DNS asks in lower case for what may have capital letters.
	if n := len(in.prefix); len(name) >= n && strings.EqualFold(name[:n], in.prefix) {
		in.suffix = name[n:]
	}
	if t.re != nil {
		in.matches = t.re.FindStringSubmatch(name)
	}
	q := *t.query
	q.Service = cloneService(q.Service)
	eachText(&q.Service, func(_, s string) string { return t.texts[s].fill(&in) })
	if q.Tmpl.RemoveEmptyTags {
		q.Service.Tags = slices.DeleteFunc(q.Service.Tags, func(tag string) bool { return tag == "" })
	}
	return &q
}

func cloneService(s model.QueryService) model.QueryService {
	s.Failover.Datacenters = slices.Clone(s.Failover.Datacenters)
	s.Failover.Targets = slices.Clone(s.Failover.Targets)
	s.IgnoreCheckIDs = slices.Clone(s.IgnoreCheckIDs)
	s.Tags = slices.Clone(s.Tags)
	s.NodeMeta = maps.Clone(s.NodeMeta)
	s.ServiceMeta = maps.Clone(s.ServiceMeta)
	return s
}

// eachText replaces every text of a query that a template may have. The path says
// where it is.
func eachText(s *model.QueryService, edit func(path, text string) string) {
	s.Service = edit(".Service", s.Service)
	s.Near = edit(".Near", s.Near)
	for i := range s.Failover.Datacenters {
		s.Failover.Datacenters[i] = edit(fmt.Sprintf(".Failover.Datacenters[%d]", i), s.Failover.Datacenters[i])
	}
	for i := range s.Failover.Targets {
		t := &s.Failover.Targets[i]
		t.Datacenter = edit(fmt.Sprintf(".Failover.Targets[%d].Datacenter", i), t.Datacenter)
		t.Peer = edit(fmt.Sprintf(".Failover.Targets[%d].Peer", i), t.Peer)
	}
	for i := range s.IgnoreCheckIDs {
		s.IgnoreCheckIDs[i] = model.CheckID(edit(fmt.Sprintf(".IgnoreCheckIDs[%d]", i), string(s.IgnoreCheckIDs[i])))
	}
	for i := range s.Tags {
		s.Tags[i] = edit(fmt.Sprintf(".Tags[%d]", i), s.Tags[i])
	}
	for k, v := range s.NodeMeta {
		s.NodeMeta[k] = edit(fmt.Sprintf(".NodeMeta[%q]", k), v)
	}
	for k, v := range s.ServiceMeta {
		s.ServiceMeta[k] = edit(fmt.Sprintf(".ServiceMeta[%q]", k), v)
	}
}

// input is what a text is filled in from.
type input struct {
	full, prefix, suffix string
	matches              []string
}

// text is a string with places to fill in.
type text []part

type part struct {
	literal string
	value   func(*input) string // nil: literal
}

func (t text) fill(in *input) string {
	var b strings.Builder
	for _, p := range t {
		if p.value != nil {
			b.WriteString(p.value(in))
		} else {
			b.WriteString(p.literal)
		}
	}
	return b.String()
}

// parseText reads the places ${...} out of s; "$${" is the text "${".
func parseText(s string) (text, error) {
	var t text
	literal := ""
	for s != "" {
		i := strings.Index(s, "${")
		if i < 0 {
			literal += s
			break
		}
		if i > 0 && s[i-1] == '$' {
			literal += s[:i-1] + "${"
			s = s[i+2:]
			continue
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			return nil, fmt.Errorf("%q has no closing brace", s[i:])
		}
		value, err := parsePlace(strings.TrimSpace(s[i+2 : i+end]))
		if err != nil {
			return nil, err
		}
		t = append(t, part{literal: literal + s[:i]}, part{value: value})
		literal, s = "", s[i+end+1:]
	}
	return append(t, part{literal: literal}), nil
}

func parsePlace(s string) (func(*input) string, error) {
	switch s {
	case "name.full":
		return func(in *input) string { return in.full }, nil
	case "name.prefix":
		return func(in *input) string { return in.prefix }, nil
	case "name.suffix":
		return func(in *input) string { return in.suffix }, nil
	case "agent.segment": // there are no segments: every agent is in the unnamed one
		return func(*input) string { return "" }, nil
	}
	if arg, ok := strings.CutPrefix(s, "match("); ok {
		if arg, ok = strings.CutSuffix(arg, ")"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(arg))
			if err != nil {
				return nil, fmt.Errorf("match(%s) does not name a group by its number", arg)
			}
			return func(in *input) string {
				if n < 0 || n >= len(in.matches) {
					return ""
				}
				return in.matches[n]
			}, nil
		}
	}
	return nil, fmt.Errorf("unknown variable accessed: %s; there are name.full, name.prefix, name.suffix, match(N) and agent.segment", s)
}
