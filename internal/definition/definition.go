// Package definition reads services and checks as users of Consul write them: in
// the bodies of its HTTP API and in definition files, in CamelCase, snake_case
// and what lies between.
//
// It is pure: bytes in, records of package model out. Every error is the
// writer's; it names the field and, where the text is not one that Consul's
// clients match on, what to write instead.
package definition

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// DecodeError says that something is not JSON of the right shape. It is a
// model.ErrInvalid.
type DecodeError struct{ err error }

func (e *DecodeError) Error() string { return e.err.Error() }

// Unwrap returns what encoding/json said, and model.ErrInvalid.
func (e *DecodeError) Unwrap() []error { return []error{e.err, model.ErrInvalid} }

// refusal says what is wrong with a definition that could be read. Its text is
// Consul's where Consul refuses the same.
type refusal string

func (r refusal) Error() string        { return string(r) }
func (r refusal) Is(target error) bool { return target == model.ErrInvalid }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// Duration reads "10s" as well as a number of nanoseconds.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
	case string:
		p, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		*d = Duration(p)
	case float64:
		if math.Abs(v) >= math.MaxInt64 {
			return fmt.Errorf("duration %v out of range", v)
		}
		*d = Duration(v)
	default:
		return fmt.Errorf("invalid duration %s", b)
	}
	return nil
}

// Decode reads an object into the struct that out points to. Names match without
// regard to case and underscores; unknown names are an error. Where an object
// says a field twice, the spelling without underscores wins. A list of one object
// is taken for the object where a field wants one: HCL's blocks come like that.
func Decode(b []byte, out any) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) {
			return fmt.Errorf("json: cannot unmarshal %s into an object", te.Value)
		}
		return err
	}
	v := reflect.ValueOf(out).Elem()
	fields := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		fields[strings.ToLower(v.Type().Field(i).Name)] = v.Field(i)
	}
	// In this order the one without underscores comes last.
	names := slices.SortedFunc(maps.Keys(raw), func(a, b string) int {
		if d := strings.Count(b, "_") - strings.Count(a, "_"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		f, ok := fields[strings.ToLower(strings.ReplaceAll(name, "_", ""))]
		if !ok {
			return unknown(name)
		}
		if bytes.Equal(raw[name], []byte("null")) {
			continue
		}
		f.SetZero()
		if err := json.Unmarshal(single(raw[name], f.Type()), f.Addr().Interface()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func unknown(name string) error {
	err := fmt.Errorf("json: unknown field %q", name)
	switch {
	case strings.EqualFold(name, "namespace"):
		return fmt.Errorf("%w - Namespaces are a Consul Enterprise feature", err)
	case strings.EqualFold(name, "partition"):
		return fmt.Errorf("%w - Partitions are a Consul Enterprise feature", err)
	}
	return err
}

// single takes the only element out of a list where an object is wanted.
func single(b json.RawMessage, want reflect.Type) json.RawMessage {
	if want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	if k := want.Kind(); (k != reflect.Struct && k != reflect.Map) || !bytes.HasPrefix(b, []byte("[")) {
		return b
	}
	var list []json.RawMessage
	if json.Unmarshal(b, &list) != nil || len(list) != 1 || !bytes.HasPrefix(list[0], []byte("{")) {
		return b
	}
	return list[0]
}

// decodeObject decodes one whole document. Its error is a DecodeError.
func decodeObject(data []byte, out any) error {
	// A decoder, because its errors for documents that end too early (EOF,
	// unexpected EOF) are the ones that Consul answers with.
	dec := json.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(out)
	if err == nil {
		if _, more := dec.Token(); more == nil || more.Error() != "EOF" {
			err = errors.New("more than one JSON value")
		}
	}
	if err != nil {
		return &DecodeError{err}
	}
	return nil
}
