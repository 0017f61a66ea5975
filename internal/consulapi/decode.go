package consulapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// duration reads "10s" as well as a number of nanoseconds.
type duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(b []byte) error {
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
		*d = duration(p)
	case float64:
		if math.Abs(v) >= math.MaxInt64 {
			return fmt.Errorf("duration %v out of range", v)
		}
		*d = duration(v)
	default:
		return fmt.Errorf("invalid duration %s", b)
	}
	return nil
}

// serviceBody is what agent/service/register takes. The fields that Fairlead
// cannot act on are here to be refused by name and not as unknown.
type serviceBody struct {
	Kind              string
	ID                string
	Name              string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]addressShape
	Meta              map[string]string
	Port              int
	SocketPath        string
	Check             *checkBody
	Checks            []*checkBody
	Weights           *weightsShape
	Token             string
	EnableTagOverride bool
	Proxy             json.RawMessage
	Connect           *connectBody
	Locality          json.RawMessage
}

type connectBody struct {
	Native         bool
	SidecarService json.RawMessage
}

type checkBody struct {
	CheckID           string
	ID                string
	Name              string
	Status            string
	Notes             string
	ScriptArgs        []string
	Args              []string
	HTTP              string
	H2PING            string
	H2PingUseTLS      bool
	Header            map[string][]string
	Method            string
	Body              string
	DisableRedirects  bool
	TCP               string
	TCPUseTLS         bool
	UDP               string
	Interval          duration
	AliasNode         string
	AliasService      string
	DockerContainerID string
	Shell             string
	GRPC              string
	GRPCUseTLS        bool
	OSService         string
	TLSServerName     string
	TLSSkipVerify     bool
	Timeout           duration
	TTL               duration

	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int
	ProxyHTTP                      string
	ProxyGRPC                      string
	DeregisterCriticalServiceAfter duration
	OutputMaxSize                  int
	ServiceID                      string // said by the path of the registration; ignored
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *serviceBody) UnmarshalJSON(b []byte) error { return decodeFields(b, s) }

// UnmarshalJSON implements json.Unmarshaler.
func (c *checkBody) UnmarshalJSON(b []byte) error { return decodeFields(b, c) }

// UnmarshalJSON implements json.Unmarshaler.
func (c *connectBody) UnmarshalJSON(b []byte) error { return decodeFields(b, c) }

// decodeFields decodes an object into the struct that out points to. Names match
// without regard to case and underscores, which covers CamelCase, snake_case and
// what clients mix of them; unknown names are an error. Where an object says a
// field twice, the spelling without underscores wins.
func decodeFields(b []byte, out any) error {
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
			err := fmt.Errorf("json: unknown field %q", name)
			if strings.EqualFold(name, "namespace") {
				err = fmt.Errorf("%w - Namespaces are a Consul Enterprise feature", err)
			}
			return err
		}
		if bytes.Equal(raw[name], []byte("null")) {
			continue
		}
		f.SetZero()
		if err := json.Unmarshal(raw[name], f.Addr().Interface()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// decodeBody reads a JSON body of at most MaxBodySize.
func (h *handler) decodeBody(c *call, out any) error {
	limit := h.cfg.MaxBodySize
	if c.r.ContentLength > limit {
		return fail(http.StatusRequestEntityTooLarge, "%s", tooLarge(c.r.ContentLength, limit, ""))
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return err
	}
	if err == nil {
		// A decoder, because its errors for bodies that end too early (EOF,
		// unexpected EOF) are the ones that Consul answers with.
		dec := json.NewDecoder(bytes.NewReader(b))
		err = dec.Decode(out)
		if _, more := dec.Token(); err == nil && !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
		}
	}
	if err != nil {
		return badRequest("Request decode failed: %v", err)
	}
	return nil
}
