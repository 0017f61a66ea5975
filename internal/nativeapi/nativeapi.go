// Package nativeapi serves the agent's own HTTP API: networks, workloads,
// services with their VIPs, and status, in the shapes of package api.
//
// The handler reads snapshots and hands changes to the boxes behind it; it holds
// no state. Reading is open to whoever reaches the listener. Changing networks
// and workloads changes the kernel, so it takes a caller that runs as root (or
// as the agent's user) on this host; see guard.go.
package nativeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// maxBody bounds a request's body, in bytes.
const maxBody = 1 << 20

// The bounds of the grace period before a workload is killed.
const (
	defaultGrace = 10 * time.Second
	maxGrace     = 10 * time.Minute
)

// Networks makes and removes networks.
type Networks interface {
	CreateNetwork(ctx context.Context, n model.Network) (model.Network, error)
	RemoveNetwork(ctx context.Context, name model.NetworkName) error
}

// Workloads attaches, lists and stops workloads.
type Workloads interface {
	Attach(ctx context.Context, w api.WorkloadSpec) (api.Attachment, error)
	List() ([]api.Workload, error)
	Stop(ctx context.Context, name string, grace time.Duration) error
}

// Config is what the handler is made of. Without Networks there are no
// Workloads, Host and Datapath either, and only services and status are answered.
type Config struct {
	Networks  Networks
	Workloads Workloads
	State     *state.State
	// Host says where workloads go.
	Host api.Host
	// Site is nil for an agent that is alone.
	Site Site
	// Status tells how the agent is doing.
	Status func(ctx context.Context) api.Status
	// Datapath dumps the balancer's maps as text.
	Datapath func() (string, error)
	// Classify gives the HTTP status of an error of the boxes behind; 0 means
	// 500.
	Classify func(error) int
	Log      *slog.Logger
}

type handler struct {
	Config
	guard guard
}

// New returns the handler of everything below api.Prefix.
func New(cfg Config) http.Handler {
	h := &handler{Config: cfg, guard: newGuard()}
	mux := http.NewServeMux()
	read := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.Handle("GET "+api.Prefix+pattern, h.answer(f))
	}
	change := func(method, pattern string, f func(r *http.Request) (any, error)) {
		mux.Handle(method+" "+api.Prefix+pattern, h.answer(func(r *http.Request) (any, error) {
			if err := h.guard.allow(r); err != nil {
				return nil, err
			}
			return f(r)
		}))
	}
	read("/status", func(r *http.Request) (any, error) { return h.Status(r.Context()), nil })
	h.siteRoutes(read, change)
	read("/services", h.services)
	read("/services/{name}", h.service)
	if cfg.Networks == nil {
		h.registryOnly(mux)
		return mux
	}
	read("/host", func(*http.Request) (any, error) { return h.Host, nil })
	read("/networks", h.networks)
	read("/networks/{name}", h.network)
	read("/workloads", func(*http.Request) (any, error) { return h.Workloads.List() })
	mux.HandleFunc("GET "+api.Prefix+"/datapath", h.datapath)
	change("POST", "/networks", h.createNetwork)
	change("DELETE", "/networks/{name}", h.removeNetwork)
	change("POST", "/workloads", h.attach)
	change("DELETE", "/workloads/{name}", h.stop)
	return mux
}

// registryOnly says of everything else that this agent does not do it.
func (h *handler) registryOnly(mux *http.ServeMux) {
	mux.Handle(api.Prefix+"/", h.answer(func(*http.Request) (any, error) {
		return nil, refuse(http.StatusNotImplemented, "this agent runs with registry-only: it has no networks and no workloads")
	}))
}

// refusal is an error that knows its HTTP status.
type refusal struct {
	status int
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(status int, format string, a ...any) error {
	return &refusal{status, fmt.Errorf(format, a...)}
}

// answer turns what f returns into JSON, nothing into 204, and an error into its
// status and a line of text.
func (h *handler) answer(f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v, err := f(r)
		switch {
		case err != nil:
			h.fail(w, r, err)
		case v == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			b, err := json.MarshalIndent(v, "", "  ")
			if err != nil {
				h.fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(append(b, '\n')) // a caller that went away is not our error
		}
	}
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := h.Classify(err)
	var ref *refusal
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &ref):
		status = ref.status
	case errors.As(err, &big):
		status = http.StatusRequestEntityTooLarge
	case status == 0:
		status = http.StatusInternalServerError
	}
	if status == http.StatusInternalServerError {
		h.Log.Error("native API", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	http.Error(w, err.Error(), status)
}

func (h *handler) datapath(w http.ResponseWriter, r *http.Request) {
	text, err := h.Datapath()
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text))
}

// body decodes a request strictly: an unknown field is an error, since it is
// most often a known one misspelt.
func body[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&v)
	if errors.Is(err, io.EOF) {
		return v, refuse(http.StatusBadRequest, "the body is empty")
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return v, nil
		}
		if err == nil {
			err = errors.New("something follows the value")
		}
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return v, refuse(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", big.Limit)
	}
	return v, refuse(http.StatusBadRequest, "malformed body: %w", err)
}

func (h *handler) attach(r *http.Request) (any, error) {
	w, err := body[api.WorkloadSpec](r)
	if err != nil {
		return nil, err
	}
	return h.Workloads.Attach(r.Context(), w)
}

func (h *handler) stop(r *http.Request) (any, error) {
	grace := defaultGrace
	if s := r.URL.Query().Get("grace"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 || d > maxGrace {
			return nil, refuse(http.StatusBadRequest, "grace %q: want a duration from 0s to %s, such as 10s", s, maxGrace)
		}
		grace = d
	}
	return nil, h.Workloads.Stop(r.Context(), r.PathValue("name"), grace)
}
