package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Server is one of the servers that keep a site's registry.
type Server struct {
	// Name is the node's, ID the server's for ever.
	Name string `json:"name"`
	ID   string `json:"id"`
	// Addr is where it listens for nodes, IP:port; empty if nobody knows.
	Addr string `json:"addr,omitempty"`
	// Leader, and Voter: one that does not vote has not caught up yet, or waits for
	// another to make the number odd.
	Leader bool `json:"leader"`
	Voter  bool `json:"voter"`
}

// JoinToken lets hosts become nodes of a site.
type JoinToken struct {
	ID string `json:"id"`
	// Token is what 'fairlead up --join' takes; only the answer that made it has
	// it.
	Token string `json:"token,omitempty"`
	// Server says that it admits servers, too.
	Server  bool      `json:"server"`
	Expires time.Time `json:"expires"`
	// Uses is how many hosts it still admits; 0 is any number.
	Uses int `json:"uses"`
}

// JoinTokenSpec is a token to be made.
type JoinTokenSpec struct {
	Server bool `json:"server,omitempty"`
	// TTL is for how long it is good, in nanoseconds; 0 is an hour.
	TTL time.Duration `json:"ttl,omitempty"`
	// Uses is how many hosts it admits; 0 is any number.
	Uses int `json:"uses,omitempty"`
}

// Servers lists the servers of the agent's site, sorted by name.
func (c *Client) Servers(ctx context.Context) ([]Server, error) {
	return get[[]Server](ctx, c, Prefix+"/servers")
}

// RemoveServer takes a server out of the cluster; with replace only if another
// one is there to take its place.
func (c *Client) RemoveServer(ctx context.Context, name string, replace bool) error {
	path := Prefix + "/servers/" + url.PathEscape(name)
	if replace {
		path += "?replace=true"
	}
	_, err := c.Do(ctx, http.MethodDelete, path, nil)
	return err
}

// JoinTokens lists the tokens that are still good, without their secrets.
func (c *Client) JoinTokens(ctx context.Context) ([]JoinToken, error) {
	return get[[]JoinToken](ctx, c, Prefix+"/join-tokens")
}

// CreateJoinToken makes a token.
func (c *Client) CreateJoinToken(ctx context.Context, spec JoinTokenSpec) (JoinToken, error) {
	return send[JoinToken](ctx, c, http.MethodPost, Prefix+"/join-tokens", spec)
}

// DeleteJoinToken withdraws a token; nodes that joined with it stay.
func (c *Client) DeleteJoinToken(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodDelete, Prefix+"/join-tokens/"+url.PathEscape(id), nil)
	return err
}

// RevokeNode takes a node's certificates back, for good: no server speaks with it
// any more.
func (c *Client) RevokeNode(ctx context.Context, name string) error {
	_, err := c.Do(ctx, http.MethodPost, Prefix+"/nodes/"+url.PathEscape(name)+"/revoke", nil)
	return err
}
