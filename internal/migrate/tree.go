package migrate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tree is what a list of configuration files says, merged: of plain values the
// last one counts, lists are appended to each other, tables are united.
type tree struct {
	plain  map[string]plain
	lists  map[string][]plain
	tables map[string]map[string]plain
	// blocks are the places of what is dropped or read elsewhere.
	blocks map[string][]Pos

	serviceDefs, checkDefs []*value
}

// plain is a value as text, with where it was said.
type plain struct {
	text string
	pos  Pos
}

func newTree() *tree {
	return &tree{plain: map[string]plain{}, lists: map[string][]plain{}, tables: map[string]map[string]plain{}, blocks: map[string][]Pos{}}
}

// catalogue finds a key by its path.
var catalogue = func() map[string]key {
	m := make(map[string]key, len(keys))
	for _, k := range keys {
		m[k.path] = k
	}
	return m
}()

// siblings are the keys that could stand in a block.
func siblings(prefix string) []string {
	var all []string
	for _, k := range keys {
		if rest, ok := strings.CutPrefix(k.path, prefix); ok && !strings.Contains(rest, ".") {
			all = append(all, rest)
		}
	}
	return all
}

// add takes the fields of a block into the tree; prefix is the block's path and
// a dot, or empty.
func (t *tree) add(prefix string, v *value) []error {
	var errs []error
	for _, f := range v.fields {
		name := strings.ToLower(f.key)
		k, known := catalogue[prefix+name]
		if !known {
			errs = append(errs, fmt.Errorf("%s: unknown key %q%s", f.pos, prefix+f.key, Suggestion(name, siblings(prefix))))
			continue
		}
		if f.val.kind == scalar && f.val.text == nil {
			continue // null is as if it were not there
		}
		errs = append(errs, t.take(k, f)...)
	}
	return errs
}

func (t *tree) take(k key, f field) []error {
	switch k.path {
	case "service", "services":
		return t.definitions(&t.serviceDefs, k, f)
	case "check", "checks":
		return t.definitions(&t.checkDefs, k, f)
	}
	var err error
	switch k.shape {
	case anything:
		t.blocks[k.path] = append(t.blocks[k.path], f.pos)
	case block:
		return t.inner(k.path+".", f)
	case words:
		err = t.words(k, f.val)
	case table:
		err = t.table(k, f)
	default:
		var s string
		if s, err = scalarText(k.shape, f.val); err == nil {
			t.plain[k.path] = plain{s, f.pos}
		}
	}
	if err != nil {
		return []error{fmt.Errorf("%s: %s: %w", f.pos, k.path, err)}
	}
	return nil
}

// inner takes a block, or several of the same name.
func (t *tree) inner(prefix string, f field) []error {
	switch f.val.kind {
	case object:
		return t.add(prefix, f.val)
	case list:
		var errs []error
		for _, item := range f.val.items {
			errs = append(errs, t.inner(prefix, field{key: f.key, pos: item.pos, val: item})...)
		}
		return errs
	}
	return []error{fmt.Errorf("%s: %s: want a block, not %s", f.pos, strings.TrimSuffix(prefix, "."), f.val.what())}
}

func (t *tree) definitions(into *[]*value, k key, f field) []error {
	items := []*value{f.val}
	if f.val.kind == list {
		items = f.val.items
	}
	for _, item := range items {
		if item.kind != object {
			return []error{fmt.Errorf("%s: %s: want a block, not %s", item.pos, k.path, item.what())}
		}
		*into = append(*into, item)
	}
	return nil
}

func (t *tree) words(k key, v *value) error {
	items := []*value{v}
	if v.kind == list {
		items = v.items
	}
	for _, item := range items {
		s, err := scalarText(text, item)
		if err != nil {
			return err
		}
		t.lists[k.path] = append(t.lists[k.path], plain{s, item.pos})
	}
	return nil
}

func (t *tree) table(k key, f field) error {
	objects := []*value{f.val}
	if f.val.kind == list {
		objects = f.val.items
	}
	for _, o := range objects {
		if o.kind != object {
			return fmt.Errorf("want a block of texts, not %s", o.what())
		}
		for _, x := range o.fields {
			s, err := scalarText(text, x.val)
			if err != nil {
				return fmt.Errorf("%s: %w", x.key, err)
			}
			if t.tables[k.path] == nil {
				t.tables[k.path] = map[string]plain{}
			}
			t.tables[k.path][x.key] = plain{s, x.pos}
		}
	}
	return nil
}

// scalarText is a plain value as the text of its shape: a duration as Go prints
// it, true or false, a whole number.
func scalarText(s shape, v *value) (string, error) {
	if v.kind == list && len(v.items) == 1 {
		v = v.items[0]
	}
	if v.kind != scalar {
		return "", fmt.Errorf("want one plain value, not %s", v.what())
	}
	var raw string
	switch x := v.text.(type) {
	case string:
		raw = x
	case bool:
		raw = strconv.FormatBool(x)
	case json.Number:
		raw = x.String()
	}
	switch s {
	case boolean:
		b, err := strconv.ParseBool(raw)
		if err != nil {
			return "", fmt.Errorf("want true or false, not %s", v.what())
		}
		return strconv.FormatBool(b), nil
	case number:
		n, err := strconv.ParseFloat(raw, 64)
		if err != nil || n != float64(int64(n)) {
			return "", fmt.Errorf("want a whole number, not %s", v.what())
		}
		return strconv.FormatInt(int64(n), 10), nil
	case duration:
		d, err := time.ParseDuration(raw)
		if err != nil {
			return "", fmt.Errorf("want a duration such as 10s, not %s", v.what())
		}
		return d.String(), nil
	}
	return raw, nil
}

// said is the first of some keys that has a value.
func (t *tree) said(paths ...string) (p plain, path string, ok bool) {
	for _, path := range paths {
		if p, ok := t.plain[path]; ok && p.text != "" {
			return p, path, true
		}
	}
	return plain{}, "", false
}

func (t *tree) isTrue(paths ...string) bool {
	p, _, _ := t.said(paths...)
	return p.text == "true"
}

// dropped tells of everything that was said and cannot be honoured.
func (t *tree) dropped() []Note {
	var notes []Note
	add := func(path string, at Pos) {
		if k := catalogue[path]; k.why != "" {
			notes = append(notes, Note{Key: path, Pos: at, Why: k.why, Do: k.do})
		}
	}
	for path, p := range t.plain {
		if p.text != "" && p.text != catalogue[path].unless {
			add(path, p.pos)
		}
	}
	for path, all := range t.lists {
		add(path, all[0].pos)
	}
	for path, all := range t.tables {
		add(path, slices.MinFunc(slices.Collect(maps.Values(all)), func(a, b plain) int { return a.pos.compare(b.pos) }).pos)
	}
	for path, all := range t.blocks {
		add(path, all[0])
	}
	return notes
}

func (p Pos) compare(q Pos) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line))
}
