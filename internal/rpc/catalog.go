package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Catalog is the registry as nodes write to it: what they own.
type Catalog interface {
	RegisterNode(ctx context.Context, n model.Node) (model.Index, error)
	RegisterMany(ctx context.Context, instances []model.Instance, checks [][]model.Check) []error
	PutChecks(ctx context.Context, checks []model.Check) []error
	Deregister(ctx context.Context, n model.NodeName, id model.ServiceID) (model.Index, error)
	DeleteCheck(ctx context.Context, n model.NodeName, id model.CheckID) (model.Index, error)
	CreateEndpoint(ctx context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error)
	UpdateEndpoint(ctx context.Context, e model.Endpoint) (model.Index, error)
	DeleteEndpoint(ctx context.Context, id model.EndpointID) (model.Index, error)
	CreateNetwork(ctx context.Context, n model.Network) (model.Index, error)
	DeleteNetwork(ctx context.Context, name model.NetworkName) (model.Index, error)
	// EndpointNode is whose an endpoint is; empty if there is none.
	EndpointNode(id model.EndpointID) model.NodeName
	// Index is one that everything written before the call has.
	Index() model.Index
}

// What is asked and answered. One message fits all methods.
type message struct {
	Node      model.NodeName   `json:"node,omitempty"`
	Name      string           `json:"name,omitempty"` // an id or a network's name
	Record    *model.Node      `json:"record,omitempty"`
	Instances []model.Instance `json:"instances,omitempty"`
	Checks    [][]model.Check  `json:"checks,omitempty"`
	Endpoint  *model.Endpoint  `json:"endpoint,omitempty"`
	Want      []netip.Addr     `json:"want,omitempty"`
	Network   *model.Network   `json:"network,omitempty"`
	Index     model.Index      `json:"index,omitempty"`
	Errors    []*failure       `json:"errors,omitempty"`
}

// methods are what a node may do to its own records.
var methods = map[string]func(ctx context.Context, s *Server, n identity.Node, m *message) (message, error){
	"RegisterNode": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if m.Record == nil {
			return out, errEmpty
		}
		if err := mine(n, m.Record.Name); err != nil {
			return out, err
		}
		m.Record.ID, m.Record.Owner = n.ID, model.NodeOwner(n.Name)
		out.Index, err = s.cfg.Catalog.RegisterNode(ctx, *m.Record)
		return out, err
	},
	"RegisterMany": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if len(m.Checks) != len(m.Instances) {
			return out, errEmpty
		}
		for i := range m.Instances {
			if err := mine(n, m.Instances[i].Node); err != nil {
				return out, err
			}
			m.Instances[i].Owner = model.NodeOwner(n.Name)
			if err := ownChecks(n, m.Checks[i]); err != nil {
				return out, err
			}
		}
		errs := s.cfg.Catalog.RegisterMany(ctx, m.Instances, m.Checks)
		return message{Errors: s.cfg.Codes.failures(errs), Index: s.cfg.Catalog.Index()}, nil
	},
	"PutChecks": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if len(m.Checks) != 1 {
			return out, errEmpty
		}
		if err := ownChecks(n, m.Checks[0]); err != nil {
			return out, err
		}
		errs := s.cfg.Catalog.PutChecks(ctx, m.Checks[0])
		return message{Errors: s.cfg.Codes.failures(errs), Index: s.cfg.Catalog.Index()}, nil
	},
	"Deregister": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if err := mine(n, m.Node); err != nil {
			return out, err
		}
		out.Index, err = s.cfg.Catalog.Deregister(ctx, m.Node, model.ServiceID(m.Name))
		return out, err
	},
	"DeleteCheck": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if err := mine(n, m.Node); err != nil {
			return out, err
		}
		if model.CheckID(m.Name) == model.SerfHealth {
			return out, fmt.Errorf("%w: the servers say whether a node is alive", ErrNotYours)
		}
		out.Index, err = s.cfg.Catalog.DeleteCheck(ctx, m.Node, model.CheckID(m.Name))
		return out, err
	},
	"CreateEndpoint": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if err := ownEndpoint(n, m.Endpoint); err != nil {
			return out, err
		}
		var e model.Endpoint
		if e, out.Index, err = s.cfg.Catalog.CreateEndpoint(ctx, *m.Endpoint, m.Want); err == nil {
			out.Endpoint = &e
		}
		return out, err
	},
	"UpdateEndpoint": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if err := ownEndpoint(n, m.Endpoint); err != nil {
			return out, err
		}
		if err := s.ownsEndpoint(n, m.Endpoint.ID); err != nil {
			return out, err
		}
		out.Index, err = s.cfg.Catalog.UpdateEndpoint(ctx, *m.Endpoint)
		return out, err
	},
	"DeleteEndpoint": func(ctx context.Context, s *Server, n identity.Node, m *message) (out message, err error) {
		if err := s.ownsEndpoint(n, model.EndpointID(m.Name)); err != nil {
			return out, err
		}
		out.Index, err = s.cfg.Catalog.DeleteEndpoint(ctx, model.EndpointID(m.Name))
		return out, err
	},
	"CreateNetwork": func(ctx context.Context, s *Server, _ identity.Node, m *message) (out message, err error) {
		if m.Network == nil {
			return out, errEmpty
		}
		out.Index, err = s.cfg.Catalog.CreateNetwork(ctx, *m.Network)
		return out, err
	},
	"DeleteNetwork": func(ctx context.Context, s *Server, _ identity.Node, m *message) (out message, err error) {
		out.Index, err = s.cfg.Catalog.DeleteNetwork(ctx, model.NetworkName(m.Name))
		return out, err
	},
}

var errEmpty = fmt.Errorf("%w: the question is not whole", model.ErrInvalid)

// ownChecks makes checks the calling node's, unless they are another's.
func ownChecks(n identity.Node, checks []model.Check) error {
	for i := range checks {
		if err := mine(n, checks[i].Node); err != nil {
			return err
		}
		if checks[i].ID == model.SerfHealth {
			return fmt.Errorf("%w: the servers say whether a node is alive", ErrNotYours)
		}
		checks[i].Owner = model.NodeOwner(n.Name)
	}
	return nil
}

func ownEndpoint(n identity.Node, e *model.Endpoint) error {
	if e == nil {
		return errEmpty
	}
	if err := mine(n, e.Node); err != nil {
		return err
	}
	e.Owner = model.NodeOwner(n.Name)
	return nil
}

// ownsEndpoint is nil if an endpoint is the node's, or nobody's.
func (s *Server) ownsEndpoint(n identity.Node, id model.EndpointID) error {
	if whose := s.cfg.Catalog.EndpointNode(id); whose != "" {
		return mine(n, whose)
	}
	return nil
}

func (s *Server) catalog(w http.ResponseWriter, r *http.Request, n identity.Node) {
	do := methods[r.PathValue("method")]
	if do == nil {
		s.cfg.Codes.answer(w, http.StatusNotFound, failure{Text: "a server of this version has no method " + r.PathValue("method")})
		return
	}
	var m message
	if !s.question(w, r, &m) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	out, err := do(ctx, s, n, &m)
	s.result(w, r, n, out, err)
}

// failures packs errors, nil for what went well; nothing if all did.
func (c Codes) failures(errs []error) []*failure {
	list := make([]*failure, len(errs))
	for i, err := range errs {
		if err != nil {
			f := c.failureOf(err)
			list[i] = &f
		}
	}
	if errors.Join(errs...) == nil {
		return nil
	}
	return list
}
