package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Gate lets hosts in and servers know of each other.
type Gate interface {
	// Admit makes a node of a host that shows a token.
	Admit(ctx context.Context, req JoinRequest, from netip.Addr) (Admission, error)
	// Renew gives a node another certificate.
	Renew(ctx context.Context, n identity.Node, request string) (Admission, error)
	// AddServer makes a member of a server and returns what to start it with.
	AddServer(ctx context.Context, id string) (map[string]string, error)
	// Announced takes note of where a server is and of the newest index that it
	// shows, and lists those that are known.
	Announced(p Peer, applied model.Index) []Peer
}

// Feed is the change feed.
type Feed interface {
	// Serve writes what follows an index to one reader until ctx ends or write
	// fails.
	Serve(ctx context.Context, from model.Index, run string, write func([]byte) error) error
}

// Presence hears which nodes are there.
type Presence interface {
	// Attach takes a node that opens a session from an address. beat is to be
	// called whenever it gives a sign of life; gone when the session ends.
	Attach(ctx context.Context, n identity.Node, from netip.Addr) (beat func(), gone func(goodbye string), err error)
}

// Config is what a Server needs. Audit hears of what was refused.
type Config struct {
	Badge    *identity.Badge
	Listen   netip.AddrPort
	Gate     Gate
	Catalog  Catalog
	Feed     Feed
	Presence Presence
	// API answers requests that nodes pass on.
	API   http.Handler
	Codes Codes
	Log   *slog.Logger
}

// Server answers nodes.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// NewServer returns a server that does not listen yet.
func NewServer(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	s.mux.HandleFunc("POST "+pathJoin, s.join)
	s.node("POST "+pathRenew, s.renew)
	s.node("POST "+pathServer, s.addServer)
	s.node("POST "+pathAnnounce, s.announce)
	if cfg.Feed != nil {
		s.node("GET "+pathFeed, s.feed)
	}
	if cfg.Presence != nil {
		s.node("POST "+pathSession, s.session)
	}
	s.node("POST "+pathCatalog+"{method}", s.catalog)
	return s
}

// ServeHTTP takes the API's paths as they are: a key may hold "//".
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, pathAPI) || strings.HasPrefix(r.URL.Path, pathOwnAPI) {
		s.known(s.api)(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// Run listens until ctx ends. It is the Run of a task.Unit.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := net.Listen("tcp", s.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("cluster-addr %s: %w", s.cfg.Listen, err)
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler: s, TLSConfig: s.cfg.Badge.Server(true), BaseContext: func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 10000, SendPingTimeout: pingAfter, PingTimeout: pingLimit, WriteByteTimeout: 10 * time.Second},
		Protocols: new(http.Protocols),
		ErrorLog:  slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP2(true)
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	ready()
	select {
	case err := <-served:
		return fmt.Errorf("serve nodes: %w", err)
	case <-ctx.Done():
	}
	cancel()
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer stop()
	err = srv.Shutdown(end)
	if err != nil {
		err = srv.Close()
	}
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// node handles what only a node may ask.
func (s *Server) node(pattern string, h func(w http.ResponseWriter, r *http.Request, n identity.Node)) {
	s.mux.HandleFunc(pattern, s.known(h))
}

// known tells a handler which node asks.
func (s *Server) known(h func(w http.ResponseWriter, r *http.Request, n identity.Node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := s.cfg.Badge.Peer(r.TLS)
		if err != nil {
			s.refuse(w, r, http.StatusForbidden, identity.Node{}, err)
			return
		}
		h(w, r, n)
	}
}

// refuse answers with an error and leaves a line in the log of what was asked by
// whom.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, n identity.Node, err error) {
	s.cfg.Log.Warn("refused", "audit", true, "from", r.RemoteAddr, "node", string(n.Name), "id", n.ID, "path", r.URL.Path, "error", err)
	s.cfg.Codes.answer(w, status, s.cfg.Codes.failureOf(err))
}

// result answers with what a call came to.
func (s *Server) result(w http.ResponseWriter, r *http.Request, n identity.Node, v any, err error) {
	switch {
	case errors.Is(err, ErrNotYours):
		s.refuse(w, r, http.StatusForbidden, n, err)
	case err != nil:
		s.cfg.Codes.answer(w, http.StatusConflict, s.cfg.Codes.failureOf(err))
	default:
		s.cfg.Codes.answer(w, http.StatusOK, v)
	}
}

// question reads a body; what cannot be read is answered.
func (s *Server) question(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := decode(r.Body, into); err != nil {
		s.cfg.Codes.answer(w, http.StatusBadRequest, s.cfg.Codes.failureOf(fmt.Errorf("%w: %w", model.ErrInvalid, err)))
		return false
	}
	return true
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	var req JoinRequest
	if !s.question(w, r, &req) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	a, err := s.cfg.Gate.Admit(ctx, req, remote(r))
	if err != nil {
		s.refuse(w, r, http.StatusForbidden, identity.Node{ID: req.ID, Name: req.Name, Server: req.Server}, err)
		return
	}
	s.cfg.Log.Info("a node joined", "audit", true, "from", r.RemoteAddr, "node", string(req.Name), "id", req.ID, "server", req.Server)
	s.cfg.Codes.answer(w, http.StatusOK, a)
}

// renew takes who asks from the certificate that it shows, and nothing from what
// it says.
func (s *Server) renew(w http.ResponseWriter, r *http.Request, n identity.Node) {
	var req JoinRequest
	if !s.question(w, r, &req) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	a, err := s.cfg.Gate.Renew(ctx, n, req.Request)
	s.result(w, r, n, a, err)
}

// errNotServer is for agents that ask what only servers may.
var errNotServer = fmt.Errorf("%w: it is not a server", ErrNotYours)

func (s *Server) addServer(w http.ResponseWriter, r *http.Request, n identity.Node) {
	var p Peer
	if !n.Server {
		s.refuse(w, r, http.StatusForbidden, n, errNotServer)
		return
	}
	if !s.question(w, r, &p) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	s.cfg.Gate.Announced(Peer{ID: n.ID, Name: n.Name, Addr: p.Addr}, 0)
	members, err := s.cfg.Gate.AddServer(ctx, n.ID)
	s.result(w, r, n, members, err)
}

// announce takes a server's word for where it is; an agent may ask where the
// servers are.
func (s *Server) announce(w http.ResponseWriter, r *http.Request, n identity.Node) {
	var p announcement
	if !s.question(w, r, &p) {
		return
	}
	if n.Server {
		p.ID, p.Name = n.ID, n.Name
	} else {
		p = announcement{}
	}
	s.cfg.Codes.answer(w, http.StatusOK, s.cfg.Gate.Announced(p.Peer, p.Applied))
}

func (s *Server) feed(w http.ResponseWriter, r *http.Request, n identity.Node) {
	from, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("from"), "0"), 10, 64)
	if err != nil {
		s.result(w, r, n, nil, fmt.Errorf("%w: from: %w", model.ErrInvalid, err))
		return
	}
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	err = s.cfg.Feed.Serve(r.Context(), model.Index(from), r.URL.Query().Get("run"), func(b []byte) error {
		if err := out.SetWriteDeadline(time.Now().Add(feedWriteLimit)); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		return out.Flush()
	})
	s.cfg.Log.Debug("a feed ended", "node", string(n.Name), "error", err)
}

// feedWriteLimit is how long a reader may leave what it was sent unread.
const feedWriteLimit = 10 * time.Second

func (s *Server) api(w http.ResponseWriter, r *http.Request, n identity.Node) {
	if r.Header.Get(headerVia) != string(n.Name) {
		s.refuse(w, r, http.StatusForbidden, n, fmt.Errorf("%w: it says that it is %q", ErrNotYours, r.Header.Get(headerVia)))
		return
	}
	s.cfg.API.ServeHTTP(w, r)
}

// remote is the address that a request came from.
func remote(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
