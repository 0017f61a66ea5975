package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// warningHeader carries what an agent did otherwise than it was asked.
const warningHeader = "X-Fairlead-Warning"

// watchGrace is how much longer than its wait a blocking query may take before
// it counts as lost. The agent adds up to a sixteenth of the wait by itself.
const watchGrace = 30 * time.Second

// KV is one entry of the key/value store, with the field names of Consul's API.
type KV struct {
	Key         string
	Value       []byte // base64 in JSON; null is an empty value
	Flags       uint64
	CreateIndex uint64
	ModifyIndex uint64
	LockIndex   uint64
	Session     string `json:",omitempty"`
}

// RegisterService registers a service of the agent's node, described by the body
// of Consul's PUT /v1/agent/service/register. What was accepted otherwise than
// asked comes back as warnings. Programs that register themselves use Register.
func (c *Client) RegisterService(ctx context.Context, body []byte) (warnings []string, err error) {
	_, h, err := c.DoHeader(ctx, http.MethodPut, "/v1/agent/service/register", body)
	return h.Values(warningHeader), err
}

// Deregister removes a service of the agent's node, by its id, with its checks.
func (c *Client) Deregister(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodPut, "/v1/agent/service/deregister/"+url.PathEscape(id), nil)
	return err
}

// BeginMaintenance takes a service of the agent's node, by its id, or with an
// empty id the whole node out of what is found; the reason is for people.
func (c *Client) BeginMaintenance(ctx context.Context, service, reason string) error {
	q := url.Values{"enable": {"true"}}
	if reason != "" {
		q.Set("reason", reason)
	}
	return c.maintain(ctx, service, q)
}

// EndMaintenance ends what BeginMaintenance began; without that it does nothing.
func (c *Client) EndMaintenance(ctx context.Context, service string) error {
	return c.maintain(ctx, service, url.Values{"enable": {"false"}})
}

func (c *Client) maintain(ctx context.Context, service string, q url.Values) error {
	path := "/v1/agent/maintenance"
	if service != "" {
		path = "/v1/agent/service/maintenance/" + url.PathEscape(service)
	}
	_, err := c.Do(ctx, http.MethodPut, path+"?"+q.Encode(), nil)
	return err
}

// Reload makes the agent read its definition files and certificates again.
func (c *Client) Reload(ctx context.Context) error {
	_, err := c.Do(ctx, http.MethodPut, "/v1/agent/reload", nil)
	return err
}

// AwaitPassing waits until an instance of a service passes its checks; without
// any it does. Its error says in which state a check was when ctx ended.
func (c *Client) AwaitPassing(ctx context.Context, service, instance string) error {
	seen := errors.New("no agent answered")
	for index := uint64(0); ; {
		q := url.Values{"index": {strconv.FormatUint(index, 10)}, "wait": {"30s"}}
		b, h, err := c.DoHeader(ctx, http.MethodGet, "/v1/health/checks/"+url.PathEscape(service)+"?"+q.Encode(), nil)
		if ctx.Err() != nil {
			return seen
		}
		if err != nil {
			return err
		}
		var checks []struct{ ServiceID, Status, Output string }
		if err := decode("health of "+service, b, &checks); err != nil {
			return err
		}
		failing := false
		for _, k := range checks {
			if k.ServiceID == instance && k.Status != "passing" {
				failing = true
				seen = fmt.Errorf("it is %s: %s", k.Status, strings.TrimSpace(k.Output))
			}
		}
		if !failing {
			return nil
		}
		if index, err = strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64); err != nil {
			return fmt.Errorf("health of %s: the answer has no index", service)
		}
	}
}

// KV returns one entry; IsNotFound tells that there is none.
func (c *Client) KV(ctx context.Context, key string) (KV, error) {
	b, h, err := c.DoHeader(ctx, http.MethodGet, kvPath(key, nil), nil)
	if err != nil {
		return KV{}, noKey(err, h, fmt.Sprintf("key %q: no such key", key))
	}
	var all []KV
	if err := decode("key "+strconv.Quote(key), b, &all); err != nil {
		return KV{}, err
	}
	if len(all) != 1 {
		return KV{}, fmt.Errorf("answer of key %q: %d entries, want 1", key, len(all))
	}
	return all[0], nil
}

// KVTree returns the entries whose keys begin with prefix, sorted by key; none
// is no error.
func (c *Client) KVTree(ctx context.Context, prefix string) ([]KV, error) {
	all, _, err := c.kvTree(ctx, prefix, url.Values{"recurse": {""}})
	return all, err
}

// KVKeys returns the keys that begin with prefix, sorted; with a separator, each
// only as far as the first one behind the prefix.
func (c *Client) KVKeys(ctx context.Context, prefix, separator string) ([]string, error) {
	q := url.Values{"keys": {""}}
	if separator != "" {
		q.Set("separator", separator)
	}
	b, h, err := c.DoHeader(ctx, http.MethodGet, kvPath(prefix, q), nil)
	if missingKey(err, h) {
		return []string{}, nil
	}
	if err != nil {
		return nil, err
	}
	keys := []string{}
	err = decode("keys", b, &keys)
	return keys, err
}

// PutKV writes an entry's value and flags. With cas it does so only if the
// entry's ModifyIndex is *cas, or for 0 if there is no such key, and reports
// whether it did.
func (c *Client) PutKV(ctx context.Context, kv KV, cas *uint64) (bool, error) {
	q := url.Values{}
	if kv.Flags != 0 {
		q.Set("flags", strconv.FormatUint(kv.Flags, 10))
	}
	return c.kvChange(ctx, http.MethodPut, kv.Key, q, kv.Value, cas)
}

// DeleteKV removes a key, which need not be there. With cas it does so only if
// the entry's ModifyIndex is *cas, and reports whether it did.
func (c *Client) DeleteKV(ctx context.Context, key string, cas *uint64) (bool, error) {
	return c.kvChange(ctx, http.MethodDelete, key, url.Values{}, nil, cas)
}

// DeleteKVTree removes every key that begins with prefix.
func (c *Client) DeleteKVTree(ctx context.Context, prefix string) error {
	_, err := c.kvChange(ctx, http.MethodDelete, prefix, url.Values{"recurse": {""}}, nil, nil)
	return err
}

// WatchKV waits, at most for wait, until something changed after index about the
// entry of that name, or of those that begin with it if it ends with "/" or is
// empty. It returns what is there then, sorted by key, and the index to go on
// with; index 0 does not wait.
func (c *Client) WatchKV(ctx context.Context, name string, index uint64, wait time.Duration) ([]KV, uint64, error) {
	all, next, err := c.awaitKV(ctx, name, index, wait)
	if next < index {
		next = 0 // the agent's history began anew
	}
	return all, next, err
}

// awaitKV is WatchKV with the index as the agent gave it.
func (c *Client) awaitKV(ctx context.Context, name string, index uint64, wait time.Duration) ([]KV, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+wait/8+watchGrace)
	defer cancel()
	q := url.Values{"wait": {wait.String()}}
	if index != 0 {
		q.Set("index", strconv.FormatUint(index, 10))
	}
	if name == "" || strings.HasSuffix(name, "/") {
		q.Set("recurse", "")
	}
	return c.kvTree(ctx, name, q)
}

func (c *Client) kvTree(ctx context.Context, name string, q url.Values) ([]KV, uint64, error) {
	b, h, err := c.DoHeader(ctx, http.MethodGet, kvPath(name, q), nil)
	all := []KV{}
	switch {
	case missingKey(err, h):
	case err != nil:
		return nil, 0, err
	default:
		if err := decode("keys below "+strconv.Quote(name), b, &all); err != nil {
			return nil, 0, err
		}
	}
	index, err := strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("answer of keys below %q: X-Consul-Index: %w", name, err)
	}
	return all, index, nil
}

func (c *Client) kvChange(ctx context.Context, method, key string, q url.Values, body []byte, cas *uint64) (bool, error) {
	if cas != nil {
		q.Set("cas", strconv.FormatUint(*cas, 10))
	}
	b, err := c.Do(ctx, method, kvPath(key, q), body)
	if err != nil {
		return false, err
	}
	var ok bool
	if err := json.Unmarshal(b, &ok); err != nil {
		return false, fmt.Errorf("answer of key %q: %w", key, err)
	}
	return ok, nil
}

// kvPath keeps what a key consists of, "//" and "%" included.
func kvPath(key string, q url.Values) string {
	u := url.URL{Path: "/v1/kv/" + key, RawQuery: q.Encode()}
	return u.EscapedPath() + query(u.RawQuery)
}

func query(raw string) string {
	if raw == "" {
		return ""
	}
	return "?" + raw
}

// missingKey tells a key that is not there from a path that is not there: the
// former comes with the index of the store.
func missingKey(err error, h http.Header) bool {
	return IsNotFound(err) && h.Get("X-Consul-Index") != ""
}

// noKey says what is missing where the agent answers with a bare status.
func noKey(err error, h http.Header, message string) error {
	var e *Error
	if missingKey(err, h) && errors.As(err, &e) {
		return &Error{Status: e.Status, Message: message}
	}
	return err
}
