package migrate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead-net/fairlead/internal/definition"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Definitions reads the service and check definitions of a directory: its files
// that end with .json, .hcl, .yaml or .yml, by name. A file has service,
// services, check and checks, in Consul's own spelling; HCL may repeat them.
//
// The warnings say what was changed on the way. An error names the file and the
// line; all of them are in the one that is returned, and then there are no
// definitions: half a set would take the other half's services away.
func Definitions(dir string) (services []model.Registration, checks []model.CheckSpec, warnings []string, err error) {
	names, err := files([]string{dir}, ".json", ".hcl", ".yaml", ".yml")
	if err != nil {
		return nil, nil, nil, err
	}
	d := definitions{seen: map[string]Pos{}}
	for _, name := range names {
		v, err := readFile(name)
		if err != nil {
			d.errs = append(d.errs, err)
			continue
		}
		d.file(v)
	}
	if err := joined(d.errs); err != nil {
		return nil, nil, nil, err
	}
	return d.services, d.checks, d.warnings, nil
}

// definitions collects what files define.
type definitions struct {
	services []model.Registration
	checks   []model.CheckSpec
	warnings []string
	errs     []error
	seen     map[string]Pos
}

// definitionKeys are the keys of a definition file.
var definitionKeys = []string{"service", "services", "check", "checks"}

func (d *definitions) file(v *value) {
	t := newTree()
	for _, f := range v.fields {
		name := strings.ToLower(f.key)
		switch {
		case slices.Contains(definitionKeys, name):
			d.errs = append(d.errs, t.take(catalogue[name], field{key: name, pos: f.pos, val: f.val})...)
		case catalogue[name].path != "":
			d.fail(f.pos, fmt.Errorf("%q is a setting of Consul's agent, no definition; 'fairlead config from-consul' translates it", f.key))
		default:
			d.fail(f.pos, fmt.Errorf("unknown key %q%s", f.key, Suggestion(name, definitionKeys)))
		}
	}
	for _, s := range t.serviceDefs {
		d.add("service", s)
	}
	for _, c := range t.checkDefs {
		d.add("check", c)
	}
}

// add takes one definition.
func (d *definitions) add(key string, v *value) {
	services, checks, warnings, err := definition.File(document(key, v))
	if err != nil {
		d.fail(v.pos, err)
		return
	}
	for _, w := range warnings {
		d.warnings = append(d.warnings, fmt.Sprintf("%s: %s", v.pos, w))
	}
	for _, s := range services {
		d.once(v.pos, "service", string(s.Instance.ID))
		for _, c := range s.Checks {
			d.once(v.pos, "check", string(c.ID))
		}
	}
	for _, c := range checks {
		d.once(v.pos, "check", string(c.ID))
	}
	d.services, d.checks = append(d.services, services...), append(d.checks, checks...)
}

// once refuses an id that another definition has.
func (d *definitions) once(at Pos, what, id string) {
	if before, twice := d.seen[what+id]; twice {
		d.fail(at, fmt.Errorf("the %s id %q is also in %s; give one of them another id", what, id, before))
		return
	}
	d.seen[what+id] = at
}

func (d *definitions) fail(at Pos, err error) {
	d.errs = append(d.errs, fmt.Errorf("%s: %w", at, err))
}

// document is a definition file with one definition in it.
func document(key string, v *value) []byte {
	file := &value{kind: object, fields: []field{{key: key, val: plainly(v)}}}
	var b bytes.Buffer
	file.write(&b, "")
	b.WriteByte('\n')
	return b.Bytes()
}

// plainly is a definition with what HCL repeats said once: checks become one
// list, blocks of one name one block; of plain values the last counts.
func plainly(v *value) *value {
	out := &value{pos: v.pos, kind: object}
	single := 0
	for _, f := range v.fields {
		if fold(f.key) == "check" {
			single++
		}
	}
	at := map[string]int{}
	for _, f := range v.fields {
		name := fold(f.key)
		if name == "check" && single > 1 {
			name, f.key = "checks", "checks"
		}
		if name == "checks" && f.val.kind == object {
			f.val = &value{pos: f.val.pos, kind: list, items: []*value{f.val}}
		}
		f.val = typed(name, f.val)
		if i, again := at[name]; again {
			out.fields[i].val = both(name, out.fields[i].val, f.val)
			continue
		}
		at[name] = len(out.fields)
		out.fields = append(out.fields, f)
	}
	return out
}

// typed forgives what Consul forgives: a port in quotes, and numbers and switches
// as values of meta.
func typed(name string, v *value) *value {
	switch s, isText := v.text.(string); {
	case name == "port" && isText:
		if _, err := strconv.ParseUint(s, 10, 16); err == nil {
			return &value{pos: v.pos, text: json.Number(s)}
		}
	case name == "meta" && v.kind == object:
		out := &value{pos: v.pos, kind: object, fields: slices.Clone(v.fields)}
		for i, f := range out.fields {
			if s, err := scalarText(text, f.val); err == nil {
				out.fields[i].val = &value{pos: f.val.pos, text: s}
			}
		}
		return out
	}
	return v
}

// both unites two values of one key.
func both(name string, a, b *value) *value {
	switch {
	case name == "checks":
		return &value{pos: a.pos, kind: list, items: slices.Concat(a.items, b.items)}
	case a.kind == object && b.kind == object:
		rest := slices.DeleteFunc(slices.Clone(a.fields), func(f field) bool {
			return slices.ContainsFunc(b.fields, func(g field) bool { return g.key == f.key })
		})
		return &value{pos: a.pos, kind: object, fields: slices.Concat(rest, b.fields)}
	}
	return b
}

// write writes a value as indented JSON, its keys in the order of the source.
func (v *value) write(b *bytes.Buffer, indent string) {
	inner := indent + "  "
	next := func(i int) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n" + inner)
	}
	switch {
	case v.kind == object && len(v.fields) > 0:
		b.WriteByte('{')
		for i, f := range v.fields {
			next(i)
			writeText(b, f.key)
			b.WriteString(": ")
			f.val.write(b, inner)
		}
		b.WriteString("\n" + indent + "}")
	case v.kind == object:
		b.WriteString("{}")
	case v.kind == list && len(v.items) > 0:
		b.WriteByte('[')
		for i, item := range v.items {
			next(i)
			item.write(b, inner)
		}
		b.WriteString("\n" + indent + "]")
	case v.kind == list:
		b.WriteString("[]")
	default:
		writeText(b, v.text)
	}
}

// writeText writes a plain value.
func writeText(b *bytes.Buffer, x any) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(x) // texts, numbers, booleans and null cannot fail
	b.Truncate(b.Len() - 1)
}

// definitions writes each service and check into a file of its own.
func (t *translation) definitions() {
	names := map[string]int{}
	token := t.plain["acl.tokens.config_file_service_registration"].text
	write := func(key, prefix string, v *value) {
		v = plainly(v)
		if token != "" && !has(v, "token") {
			v.fields = append(v.fields, field{key: "token", pos: v.pos, val: &value{pos: v.pos, text: token}})
		}
		t.withoutSidecar(key, v)
		name := prefix + fileName(v)
		content := document(key, v)
		if _, _, _, err := definition.File(content); err != nil {
			t.note(fmt.Sprintf("%s %q", key, fileName(v)), v.pos, cmp.Or(errors.Unwrap(err), err).Error(), "it was left out; correct it")
			return
		}
		if names[name]++; names[name] > 1 {
			name = fmt.Sprintf("%s-%d", name, names[name])
		}
		t.files = append(t.files, File{Name: name + ".json", Content: content})
	}
	for _, v := range t.serviceDefs {
		write("service", "", v)
	}
	for _, v := range t.checkDefs {
		write("check", "check-", v)
	}
}

// withoutSidecar takes out what would register a proxy of Consul's mesh beside
// the service.
func (t *translation) withoutSidecar(key string, v *value) {
	for i, f := range v.fields {
		if fold(f.key) != "connect" || f.val.kind != object {
			continue
		}
		kept := &value{pos: f.val.pos, kind: object}
		for _, c := range f.val.fields {
			if fold(c.key) == "sidecarservice" {
				t.note(key+".connect."+c.key, c.pos, noMesh, "the service was kept without it; run its proxy as a service of its own")
				continue
			}
			kept.fields = append(kept.fields, c)
		}
		v.fields[i].val = kept
	}
}

func has(v *value, key string) bool {
	return slices.ContainsFunc(v.fields, func(f field) bool { return fold(f.key) == key })
}

// fileName is the id or the name of a definition, as far as it can be a file's.
func fileName(v *value) string {
	for _, key := range []string{"id", "checkid", "name"} {
		for _, f := range v.fields {
			if s, ok := f.val.text.(string); ok && fold(f.key) == key && s != "" {
				return strings.Map(func(r rune) rune {
					if strings.ContainsRune("/\\ :", r) || r < ' ' {
						return '_'
					}
					return r
				}, strings.TrimLeft(s[:min(len(s), 100)], "."))
			}
		}
	}
	return "unnamed"
}
