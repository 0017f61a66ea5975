package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/token"
)

// Limits of a policy's text. The parser recurses: depth bounds its stack.
const (
	maxRules = 256 << 10 // bytes
	maxDepth = 32        // brackets open at once
)

// Parse reads rules in HCL or, if they begin with a brace, in JSON. Errors name
// the line and the field. What Consul ignores, a resource or field that does not
// exist, is an error: it would be a rule that somebody believes in.
func Parse(text string) (rs Rules, err error) {
	if len(text) > maxRules {
		return rs, Errorf("Failed to parse ACL rules: they have %d bytes; they may have at most %d", len(text), maxRules)
	}
	if strings.TrimSpace(text) == "" {
		return rs, nil
	}
	if deep(text) {
		return rs, Errorf("Failed to parse ACL rules: more than %d brackets are open at once", maxDepth)
	}
	if err := checkJSON(text); err != nil {
		return rs, err
	}
	// The parser panics on some malformed strings.
	defer func() {
		if p := recover(); p != nil {
			rs, err = Rules{}, Errorf("Failed to parse ACL rules: %v", p)
		}
	}()
	file, err := hcl.Parse(text)
	if err != nil {
		return rs, Errorf("Failed to parse ACL rules: %v", err)
	}
	root, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return rs, Errorf("Failed to parse ACL rules: they are not an object")
	}
	var p parser
	if err := p.object(nil, root); err != nil {
		return rs, err
	}
	return p.finish()
}

// checkJSON refuses broken JSON, of which the parser would take the beginning.
func checkJSON(text string) error {
	if !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return nil
	}
	var whole json.RawMessage
	err := json.Unmarshal([]byte(text), &whole)
	var at *json.SyntaxError
	if errors.As(err, &at) {
		return wrong(token.Pos{Line: 1 + strings.Count(text[:at.Offset], "\n")}, "%v", err)
	}
	return err
}

// deep reports whether brackets nest beyond maxDepth, those in strings counted
// like the others.
func deep(text string) bool {
	depth := 0
	for _, c := range text {
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		if depth > maxDepth {
			return true
		}
	}
	return false
}

// parser flattens the text into paths: a resource and its level, or a resource,
// a name and the fields of the rule, however the text nests them.
type parser struct {
	found []found
	of    map[*ast.ObjectList]int // the rule in found that a block became
}

// found is a rule and where it stands.
type found struct {
	rule
	pos token.Pos
}

func (p *parser) object(path []string, o *ast.ObjectList) error {
	for _, item := range o.Items {
		at := append([]string(nil), path...)
		for _, k := range item.Keys {
			name, ok := k.Token.Value().(string)
			if !ok {
				return wrong(k.Pos(), "%s is not a name", k.Token.Text)
			}
			at = append(at, name)
		}
		if len(at) == 0 {
			return wrong(item.Pos(), "a block has no name")
		}
		if err := p.value(at, item.Val, o, item.Pos()); err != nil {
			return err
		}
	}
	return nil
}

// value takes what stands at a path; in is the block that it stands in.
func (p *parser) value(path []string, v ast.Node, in *ast.ObjectList, pos token.Pos) error {
	_, isNamed, _, ok := kindOf(path[0])
	if !ok {
		return wrong(pos, "there is no resource %q; the resources are %s", path[0], words())
	}
	switch v := v.(type) {
	case *ast.ObjectType:
		switch {
		case !isNamed:
			return wrong(pos, "%s takes no block; write %s = \"read\"", path[0], path[0])
		case len(path) > 2:
			return wrong(pos, "%s %q: a rule has no field %q with a block", path[0], path[1], path[2])
		case len(path) == 2:
			p.begin(path, v.List, pos)
		}
		return p.object(path, v.List)
	case *ast.ListType:
		for _, e := range v.List {
			if err := p.value(path, e, in, pos); err != nil {
				return err
			}
		}
		return nil
	case *ast.LiteralType:
		return p.field(path, v, in, pos)
	}
	return wrong(pos, "%s: neither a string nor a block", path[0])
}

// begin starts the rule that a block describes.
func (p *parser) begin(path []string, block *ast.ObjectList, pos token.Pos) *found {
	r, _, prefix, _ := kindOf(path[0])
	if p.of == nil {
		p.of = map[*ast.ObjectList]int{}
	}
	p.of[block] = len(p.found)
	p.found = append(p.found, found{rule{resource: r, name: path[1], prefix: prefix}, pos})
	return &p.found[len(p.found)-1]
}

func (p *parser) field(path []string, lit *ast.LiteralType, in *ast.ObjectList, pos token.Pos) error {
	r, isNamed, _, _ := kindOf(path[0])
	value, ok := lit.Token.Value().(string)
	if !ok {
		return wrong(pos, "%s: %s is not a string", strings.Join(path, " "), lit.Token.Text)
	}
	if !isNamed {
		if len(path) != 1 {
			return wrong(pos, "%s takes no names; write %s = \"read\"", path[0], path[0])
		}
		l, err := levelOf(r, path[0], "policy", value, pos)
		p.found = append(p.found, found{rule{resource: r, level: l}, pos})
		return err
	}
	if len(path) != 3 {
		return wrong(pos, "%s takes a name and a block: %s \"name\" { policy = \"read\" }", path[0], path[0])
	}
	i, ok := p.of[in]
	if !ok || p.found[i].name != path[1] || p.found[i].word() != strings.ToLower(path[0]) {
		p.begin(path, in, pos)
		i = p.of[in]
	}
	f := &p.found[i]
	what := fmt.Sprintf("%s %q", path[0], path[1])
	var err error
	switch field := strings.ToLower(path[2]); {
	case field == "policy":
		f.level, err = levelOf(r, what, field, value, pos)
	case field == "intentions" && takesIntentions(r):
		f.intentions, err = levelOf(Intention, what, field, value, pos)
	default:
		err = wrong(pos, "%s has no field %q; its fields are %s", what, path[2], fields(r))
	}
	return err
}

// finish refuses rules that say nothing.
func (p *parser) finish() (Rules, error) {
	var rs Rules
	for _, f := range p.found {
		if f.level == none {
			return Rules{}, Errorf("Invalid %s policy: %s%q has no policy; add policy = \"read\"", f.word(), line(f.pos), f.name)
		}
		rs.list = append(rs.list, f.rule)
	}
	return rs, nil
}

func levelOf(r Resource, what, field, value string, pos token.Pos) (level, error) {
	l, ok := levels[value]
	if !ok || (l == list && r != Key) {
		names := "deny, read or write"
		if r == Key {
			names = "deny, read, list or write"
		}
		kind, _, _ := strings.Cut(what, " ")
		return none, Errorf("Invalid %s policy: %s%s: %s is %q; it must be %s", kind, line(pos), what, field, value, names)
	}
	return l, nil
}

func fields(r Resource) string {
	if takesIntentions(r) {
		return "policy and intentions"
	}
	return "policy"
}

// words lists what may begin a rule.
func words() string {
	var all []string
	for _, k := range kinds {
		all = append(all, string(k.resource))
		if k.named {
			all = append(all, string(k.resource)+prefixSuffix)
		}
	}
	return strings.Join(all, ", ")
}

func wrong(pos token.Pos, format string, args ...any) error {
	return Errorf("Failed to parse ACL rules: %s%s", line(pos), fmt.Sprintf(format, args...))
}

func line(pos token.Pos) string {
	if pos.Line == 0 {
		return ""
	}
	return fmt.Sprintf("line %d: ", pos.Line)
}
