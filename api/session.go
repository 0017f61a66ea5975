package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Session holds locks for a client, with the field names of Consul's API.
type Session struct {
	ID          string
	Name        string
	Node        string
	TTL         string // a duration as its creator spelled it; empty: none
	Behavior    string // what becomes of its entries: "release" or "delete"
	LockDelay   time.Duration
	NodeChecks  []string
	CreateIndex uint64
}

// SessionSpec is what a new session is to be; what is zero is left to the agent.
type SessionSpec struct {
	Name      string
	TTL       time.Duration
	Behavior  string
	LockDelay *time.Duration
}

// CreateSession begins a session at the agent's node and returns its id.
func (c *Client) CreateSession(ctx context.Context, s SessionSpec) (id string, err error) {
	body := map[string]string{}
	for k, v := range map[string]string{"Name": s.Name, "Behavior": s.Behavior} {
		if v != "" {
			body[k] = v
		}
	}
	if s.TTL != 0 {
		body["TTL"] = s.TTL.String()
	}
	if s.LockDelay != nil {
		body["LockDelay"] = s.LockDelay.String()
	}
	b, err := json.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("session: %w", err)
	}
	if b, err = c.Do(ctx, http.MethodPut, "/v1/session/create", b); err != nil {
		return "", err
	}
	var created struct{ ID string }
	err = decode("new session", b, &created)
	return created.ID, err
}

// RenewSession starts a session's time anew; IsNotFound tells that it has ended.
func (c *Client) RenewSession(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodPut, "/v1/session/renew/"+url.PathEscape(id), nil)
	return err
}

// DestroySession ends a session, which need not be there.
func (c *Client) DestroySession(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodPut, "/v1/session/destroy/"+url.PathEscape(id), nil)
	return err
}

// Sessions returns the sessions of a node, or of all for the empty name, sorted
// by id.
func (c *Client) Sessions(ctx context.Context, node string) ([]Session, error) {
	path := "/v1/session/list"
	if node != "" {
		path = "/v1/session/node/" + url.PathEscape(node)
	}
	return get[[]Session](ctx, c, path)
}

// AcquireKV takes the lock of an entry for kv.Session and writes its value; false
// means that another session holds it, or that it may not be taken yet.
func (c *Client) AcquireKV(ctx context.Context, kv KV) (bool, error) {
	return c.lockKV(ctx, "acquire", kv)
}

// ReleaseKV releases the lock of an entry, which kv.Session holds, and writes its
// value; false means that it does not hold it.
func (c *Client) ReleaseKV(ctx context.Context, kv KV) (bool, error) {
	return c.lockKV(ctx, "release", kv)
}

func (c *Client) lockKV(ctx context.Context, verb string, kv KV) (bool, error) {
	q := url.Values{verb: {kv.Session}}
	if kv.Flags != 0 {
		q.Set("flags", strconv.FormatUint(kv.Flags, 10))
	}
	return c.kvChange(ctx, http.MethodPut, kv.Key, q, kv.Value, nil)
}

// Event is what somebody fired for others to hear. The filters are regular
// expressions; an empty one lets everybody hear it.
type Event struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	LTime         uint64
}

// FireEvent sends an event and returns its id.
func (c *Client) FireEvent(ctx context.Context, e Event) (id string, err error) {
	q := url.Values{}
	for k, v := range map[string]string{"node": e.NodeFilter, "service": e.ServiceFilter, "tag": e.TagFilter} {
		if v != "" {
			q.Set(k, v)
		}
	}
	b, err := c.Do(ctx, http.MethodPut, "/v1/event/fire/"+url.PathEscape(e.Name)+query(q.Encode()), e.Payload)
	if err != nil {
		return "", err
	}
	var fired Event
	err = decode("event", b, &fired)
	return fired.ID, err
}

// Events returns the newest events that have reached the agent, oldest first;
// those of one name unless it is empty.
func (c *Client) Events(ctx context.Context, name string) ([]Event, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	return get[[]Event](ctx, c, "/v1/event/list"+query(q.Encode()))
}
