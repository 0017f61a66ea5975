package rpc

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Remote writes this node's own records through a Client. Each method returns
// when this node shows what was written.
type Remote struct {
	c *Client
	// shown waits until this node's state has an index.
	shown func(ctx context.Context, at model.Index) error
}

// NewRemote returns a Remote.
func NewRemote(c *Client, shown func(ctx context.Context, at model.Index) error) *Remote {
	return &Remote{c, shown}
}

// ask is one call, and the wait for it to show.
func (r *Remote) ask(ctx context.Context, method string, in message) (message, error) {
	var out message
	if err := r.c.call(ctx, pathCatalog+method, in, &out); err != nil {
		return out, err
	}
	if err := r.shown(ctx, out.Index); err != nil {
		return out, fmt.Errorf("written at index %d, which this node does not show yet: %w", out.Index, err)
	}
	return out, nil
}

func (r *Remote) index(ctx context.Context, method string, in message) (model.Index, error) {
	out, err := r.ask(ctx, method, in)
	return out.Index, err
}

// errors is the fate of each of n records.
func (r *Remote) errors(ctx context.Context, method string, in message, n int) []error {
	errs := make([]error, n)
	out, err := r.ask(ctx, method, in)
	for i := range errs {
		switch {
		case err != nil:
			errs[i] = err
		case i < len(out.Errors) && out.Errors[i] != nil:
			errs[i] = r.c.cfg.Codes.errorOf(*out.Errors[i])
		}
	}
	return errs
}

// RegisterNode puts this node into the catalogue.
func (r *Remote) RegisterNode(ctx context.Context, n model.Node) (model.Index, error) {
	return r.index(ctx, "RegisterNode", message{Record: &n})
}

// RegisterMany puts instances of this node with their checks, see local.Catalog.
func (r *Remote) RegisterMany(ctx context.Context, instances []model.Instance, checks [][]model.Check) []error {
	return r.errors(ctx, "RegisterMany", message{Instances: instances, Checks: checks}, len(instances))
}

// PutChecks puts checks of this node, see local.Catalog.
func (r *Remote) PutChecks(ctx context.Context, checks []model.Check) []error {
	return r.errors(ctx, "PutChecks", message{Checks: [][]model.Check{checks}}, len(checks))
}

// Deregister removes an instance of this node.
func (r *Remote) Deregister(ctx context.Context, n model.NodeName, id model.ServiceID) (model.Index, error) {
	return r.index(ctx, "Deregister", message{Node: n, Name: string(id)})
}

// DeleteCheck removes a check of this node.
func (r *Remote) DeleteCheck(ctx context.Context, n model.NodeName, id model.CheckID) (model.Index, error) {
	return r.index(ctx, "DeleteCheck", message{Node: n, Name: string(id)})
}

// CreateEndpoint records an endpoint of this node, see endpoint.Registry.
func (r *Remote) CreateEndpoint(ctx context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error) {
	out, err := r.ask(ctx, "CreateEndpoint", message{Endpoint: &e, Want: want})
	if err == nil && out.Endpoint == nil {
		err = errEmpty
	}
	if err != nil {
		return model.Endpoint{}, 0, err
	}
	return *out.Endpoint, out.Index, nil
}

// UpdateEndpoint changes an endpoint of this node.
func (r *Remote) UpdateEndpoint(ctx context.Context, e model.Endpoint) (model.Index, error) {
	return r.index(ctx, "UpdateEndpoint", message{Endpoint: &e})
}

// DeleteEndpoint removes an endpoint of this node.
func (r *Remote) DeleteEndpoint(ctx context.Context, id model.EndpointID) (model.Index, error) {
	return r.index(ctx, "DeleteEndpoint", message{Name: string(id)})
}

// CreateNetwork records a network.
func (r *Remote) CreateNetwork(ctx context.Context, n model.Network) (model.Index, error) {
	return r.index(ctx, "CreateNetwork", message{Network: &n})
}

// DeleteNetwork removes a network.
func (r *Remote) DeleteNetwork(ctx context.Context, name model.NetworkName) (model.Index, error) {
	return r.index(ctx, "DeleteNetwork", message{Name: string(name)})
}
