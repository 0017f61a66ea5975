package migrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"
	"go.yaml.in/yaml/v3"
)

// maxDepth bounds how deep values may be nested; both we and the parsers recurse.
const maxDepth = 64

// maxValues bounds how many values a file may have. It matters for YAML, whose
// aliases make much of little.
const maxValues = 200_000

type kind int

const (
	scalar kind = iota
	list
	object
)

// value is a part of a file, with where it stands. JSON, HCL and YAML become the
// same; an object keeps its keys as they were written, repeated ones too.
type value struct {
	pos    Pos
	kind   kind
	text   any // of a scalar: string, bool, json.Number or nil
	items  []*value
	fields []field
}

type field struct {
	key string
	pos Pos
	val *value
}

// what names a value's kind for errors.
func (v *value) what() string {
	switch v.kind {
	case list:
		return "a list"
	case object:
		return "a block"
	}
	switch t := v.text.(type) {
	case string:
		return strconv.Quote(t)
	case nil:
		return "nothing"
	default:
		return fmt.Sprint(t)
	}
}

// parse reads one file: YAML by its ending, JSON if it begins with a brace, HCL
// otherwise. An empty file is an object without fields.
func parse(name string, b []byte) (*value, error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	begin := bytes.TrimSpace(b)
	if len(begin) == 0 {
		return &value{pos: Pos{name, 1}, kind: object}, nil
	}
	if depth(b) > maxDepth {
		return nil, fmt.Errorf("%s: nested too deep", name)
	}
	var v *value
	var err error
	switch ext := filepath.Ext(name); {
	case ext == ".yaml" || ext == ".yml":
		v, err = parseYAML(name, b)
	case begin[0] == '{' || ext == ".json":
		v, err = parseJSON(name, b)
	default:
		v, err = parseHCL(name, b)
	}
	if err == nil && v.kind != object {
		err = fmt.Errorf("%s: want an object with keys, not %s", v.pos, v.what())
	}
	return v, err
}

// depth is an upper bound of how deep brackets nest, which a parser need not
// survive: HCL's recurses without a limit.
func depth(b []byte) int {
	open, most := 0, 0
	for _, c := range b {
		switch c {
		case '{', '[':
			open++
			most = max(most, open)
		case '}', ']':
			open = max(open-1, 0)
		}
	}
	return most
}

// lines finds the line of an offset.
type lines struct {
	file string
	ends []int // offsets of the newlines
}

func newLines(file string, b []byte) lines {
	l := lines{file: file}
	for i, c := range b {
		if c == '\n' {
			l.ends = append(l.ends, i)
		}
	}
	return l
}

func (l lines) at(offset int64) Pos {
	n, _ := slices.BinarySearch(l.ends, int(offset))
	return Pos{l.file, n + 1}
}

func parseJSON(name string, b []byte) (*value, error) {
	l := newLines(name, b)
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := jsonValue(d, l)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		at := d.InputOffset()
		var syntax *json.SyntaxError
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			at, err = int64(len(b)), errors.New("it ends too early")
		case errors.As(err, &syntax):
			at = syntax.Offset - 1
		}
		return nil, fmt.Errorf("%s: %w", l.at(max(min(at, int64(len(b)-1)), 0)), err)
	}
	return v, nil
}

func jsonValue(d *json.Decoder, l lines) (*value, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	v := &value{pos: l.at(d.InputOffset() - 1)}
	switch t {
	case json.Delim('{'):
		v.kind = object
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			f := field{pos: l.at(d.InputOffset() - 1)}
			f.key, _ = k.(string) // the decoder takes nothing else
			if f.val, err = jsonValue(d, l); err != nil {
				return nil, err
			}
			v.fields = append(v.fields, f)
		}
	case json.Delim('['):
		v.kind = list
		for d.More() {
			item, err := jsonValue(d, l)
			if err != nil {
				return nil, err
			}
			v.items = append(v.items, item)
		}
	default:
		v.text = t
		return v, nil
	}
	_, err = d.Token() // what closes it
	return v, err
}

func parseHCL(name string, b []byte) (v *value, err error) {
	// The parser and its tokens panic on some of what is no HCL, such as a
	// number out of range.
	defer func() {
		if r := recover(); r != nil {
			v, err = nil, fmt.Errorf("%s: not HCL: %v", name, r)
		}
	}()
	f, err := parser.Parse(b)
	if err != nil {
		var at *parser.PosError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("%s: %w", Pos{name, at.Pos.Line}, at.Err)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l, ok := f.Node.(*ast.ObjectList)
	if !ok {
		return nil, fmt.Errorf("%s: not HCL", name)
	}
	return hclObject(name, Pos{name, 1}, l)
}

func hclObject(name string, at Pos, l *ast.ObjectList) (*value, error) {
	v := &value{pos: at, kind: object}
	for _, item := range l.Items {
		if len(item.Keys) == 0 {
			return nil, fmt.Errorf("%s: a block without a name", Pos{name, item.Pos().Line})
		}
		inner, err := hclValue(name, item.Val)
		if err != nil {
			return nil, err
		}
		// The labels of a block are keys too: a "b" {} is a { b {} }.
		for i, k := range slices.Backward(item.Keys) {
			key, ok := k.Token.Value().(string)
			if !ok {
				return nil, fmt.Errorf("%s: %s is no key", Pos{name, k.Pos().Line}, k.Token.Text)
			}
			f := field{key: key, pos: Pos{name, k.Pos().Line}, val: inner}
			if i == 0 {
				v.fields = append(v.fields, f)
			}
			inner = &value{pos: f.pos, kind: object, fields: []field{f}}
		}
	}
	return v, nil
}

func hclValue(name string, n ast.Node) (*value, error) {
	at := Pos{name, n.Pos().Line}
	switch n := n.(type) {
	case *ast.ObjectType:
		return hclObject(name, at, n.List)
	case *ast.ListType:
		v := &value{pos: at, kind: list}
		for _, item := range n.List {
			x, err := hclValue(name, item)
			if err != nil {
				return nil, err
			}
			v.items = append(v.items, x)
		}
		return v, nil
	case *ast.LiteralType:
		return &value{pos: at, text: hclScalar(n.Token)}, nil
	}
	return nil, fmt.Errorf("%s: neither a value nor a block", at)
}

func hclScalar(t token.Token) any {
	switch x := t.Value().(type) {
	case int64:
		return json.Number(strconv.FormatInt(x, 10))
	case float64:
		return json.Number(strconv.FormatFloat(x, 'g', -1, 64))
	default:
		return x
	}
}

func parseYAML(name string, b []byte) (*value, error) {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) { // nothing but comments
			return &value{pos: Pos{name, 1}, kind: object}, nil
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: a second document; put each into a file of its own", name)
	}
	if len(doc.Content) != 1 {
		return &value{pos: Pos{name, 1}, kind: object}, nil
	}
	y := yamlReader{file: name}
	return y.value(doc.Content[0], 0)
}

type yamlReader struct {
	file  string
	count int
}

func (y *yamlReader) value(n *yaml.Node, deep int) (*value, error) {
	v := &value{pos: Pos{y.file, n.Line}}
	if y.count++; y.count > maxValues || deep > maxDepth {
		return nil, fmt.Errorf("%s: too many values, or nested too deep", v.pos)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return y.value(n.Alias, deep+1)
	case yaml.MappingNode:
		v.kind = object
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("%s: a key must be a word", Pos{y.file, k.Line})
			}
			x, err := y.value(n.Content[i+1], deep+1)
			if err != nil {
				return nil, err
			}
			v.fields = append(v.fields, field{key: k.Value, pos: Pos{y.file, k.Line}, val: x})
		}
	case yaml.SequenceNode:
		v.kind = list
		for _, item := range n.Content {
			x, err := y.value(item, deep+1)
			if err != nil {
				return nil, err
			}
			v.items = append(v.items, x)
		}
	default:
		var err error
		if v.text, err = yamlScalar(n); err != nil {
			return nil, fmt.Errorf("%s: %w", v.pos, err)
		}
	}
	return v, nil
}

func yamlScalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		err := n.Decode(&b)
		return b, err
	case "!!int":
		var i int64
		err := n.Decode(&i)
		return json.Number(strconv.FormatInt(i, 10)), err
	case "!!float":
		var f float64
		if err := n.Decode(&f); err != nil {
			return nil, err
		}
		b, err := json.Marshal(f) // refuses what is no number, such as .inf
		return json.Number(b), err
	}
	return n.Value, nil
}
