package definition

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/fairlead-net/fairlead/internal/model"
)

// fileBody is a definition file: each key holds one definition or a list of them.
type fileBody struct {
	Service  oneOrMore
	Services oneOrMore
	Check    oneOrMore
	Checks   oneOrMore
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *fileBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// oneOrMore is a definition, or a list of them.
type oneOrMore []json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMore) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		return json.Unmarshal(data, (*[]json.RawMessage)(o))
	}
	*o = oneOrMore{append(json.RawMessage(nil), data...)}
	return nil
}

// File reads a definition file that has been turned into JSON: an object with
// service, services, check and checks, each one definition or a list. What comes
// out is marked as declared. Errors say which definition they are about.
//
// Files differ from the API in one thing: of weights that are said in part, the
// rest is 1.
func File(data []byte) (services []model.Registration, checks []model.CheckSpec, warnings []string, err error) {
	var b fileBody
	if err := decodeObject(data, &b); err != nil {
		return nil, nil, nil, err
	}
	for i, raw := range append(b.Service, b.Services...) {
		r, warns, err := serviceFromFile(raw)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("service %s: %w", label(raw, i), err)
		}
		services, warnings = append(services, r), append(warnings, warns...)
	}
	for i, raw := range append(b.Check, b.Checks...) {
		c, warns, err := Check(raw)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("check %s: %w", label(raw, i), err)
		}
		c.Declared = true
		checks, warnings = append(checks, c), append(warnings, warns...)
	}
	return services, checks, warnings, nil
}

func serviceFromFile(data []byte) (model.Registration, []string, error) {
	var b serviceBody
	if err := decodeObject(data, &b); err != nil {
		return model.Registration{}, nil, err
	}
	if w := b.Weights; w != nil {
		one := 1
		if w.Passing == nil {
			w.Passing = &one
		}
		if w.Warning == nil {
			w.Warning = &one
		}
	}
	r, warnings, err := b.registration()
	r.Declared = true
	for i := range r.Checks {
		r.Checks[i].Declared = true
	}
	return r, warnings, err
}

// label says which definition of a file is meant: its name, or its number.
func label(data []byte, i int) string {
	var named map[string]any
	if json.Unmarshal(data, &named) == nil {
		for _, key := range []string{"id", "ID", "name", "Name"} {
			if s, ok := named[key].(string); ok && s != "" {
				return fmt.Sprintf("%q", s)
			}
		}
	}
	return fmt.Sprintf("number %d", i+1)
}
