package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/cluster"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/mirror"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
)

// agent is one node.
type agent struct {
	self     identity.Node
	client   *rpc.Client
	remote   *rpc.Remote
	mirror   *mirror.Mirror
	state    *state.State
	attached atomic.Bool
}

// fleet is all agents.
type fleet struct {
	agents []*agent
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startAgents joins so many and waits until each shows all.
func startAgents(ctx context.Context, n int, s *site, dir string, log *slog.Logger) (*fleet, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &fleet{cancel: cancel, agents: make([]*agent, n)}
	token, err := identity.ParseJoinToken(s.token)
	if err != nil {
		cancel()
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() (err error) {
			f.agents[i], err = f.join(gctx, ctx, i, token, s, filepath.Join(dir, fmt.Sprintf("a%04d", i)), log)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		f.stop()
		return nil, err
	}
	for _, a := range f.agents {
		for {
			snap := a.state.Snapshot()
			if nodes, _ := snap.Nodes(); len(nodes) == n+len(s.servers) && a.attached.Load() {
				break
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				f.stop()
				return nil, err
			}
		}
	}
	return f, nil
}

// join makes one agent, which runs until run ends.
func (f *fleet) join(ctx, run context.Context, i int, token identity.JoinToken, s *site, dir string, log *slog.Logger) (*agent, error) {
	a := &agent{state: state.New(), self: identity.Node{ID: uuid.NewString(), Name: model.NodeName(fmt.Sprintf("a%04d", i))}}
	badge, err := identity.OpenBadge(dir, nil)
	if !errors.Is(err, identity.ErrNoBadge) {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	servers, err := rpc.OpenDirectory("", nil, nil)
	if err != nil {
		return nil, err
	}
	token.Servers = nil
	for k := range s.servers { // each begins with another one
		token.Servers = append(token.Servers, s.servers[(i+k)%len(s.servers)].addr.String())
	}
	if _, err := cluster.Join(ctx, token, badge, servers, a.self, nil); err != nil {
		return nil, err
	}
	a.client = rpc.NewClient(rpc.ClientConfig{Badge: badge, Directory: servers, Log: log})
	a.remote = rpc.NewRemote(a.client, func(ctx context.Context, at model.Index) error {
		_, err := a.state.Wait(ctx, at)
		return err
	})
	a.mirror = mirror.New(mirror.Config{Feed: a.client.Feed, State: a.state, Log: log})
	f.wg.Go(func() { _ = a.mirror.Run(run, func() {}) }) // it ends with run
	if _, err := a.remote.RegisterNode(ctx, model.Node{Name: a.self.Name, Address: "127.0.0.1", Datacenter: "dc1"}); err != nil {
		return nil, fmt.Errorf("register %s: %w", a.self.Name, err)
	}
	f.wg.Go(func() { a.client.Session(run, func() string { return rpc.GoodbyeLeave }, a.attached.Store) })
	return a, nil
}

func (f *fleet) stop() {
	f.cancel()
	f.wg.Wait()
	for _, a := range f.agents {
		if a != nil {
			a.client.Close()
		}
	}
}

// register puts a service on one agent and returns after which time each shows
// it.
func (f *fleet) register(ctx context.Context, round int) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	service := model.ServiceName(fmt.Sprintf("bench-%d", round))
	took := make([]time.Duration, len(f.agents))
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i, a := range f.agents {
		g.Go(func() error {
			for {
				s, mark := a.state.Snapshot().Service(service)
				if s != nil && len(s.Members) > 0 {
					took[i] = time.Since(begin)
					return nil
				}
				select {
				case <-mark.Changed:
				case <-ctx.Done():
					return fmt.Errorf("%s does not see %s: %w", a.self.Name, service, ctx.Err())
				}
			}
		})
	}
	a := f.agents[round*37%len(f.agents)]
	instance := model.Instance{Node: a.self.Name, ID: model.ServiceID(service), Service: service, Port: 80, Weights: model.DefaultWeights}
	begin = time.Now()
	if err := a.remote.RegisterMany(ctx, []model.Instance{instance}, [][]model.Check{nil})[0]; err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	return took, g.Wait()
}

// watchHealth notes which nodes are ever critical from now on, as an agent sees
// it; the function returned says how many, but for one.
func (f *fleet) watchHealth(ctx context.Context) func(but string) int {
	seen := map[model.NodeName]bool{}
	var mu sync.Mutex
	a := f.agents[len(f.agents)-1]
	f.wg.Go(func() {
		for ctx.Err() == nil {
			checks, mark := a.state.Snapshot().Checks(model.Critical)
			mu.Lock()
			for _, c := range checks {
				seen[c.Node] = true
			}
			mu.Unlock()
			select {
			case <-mark.Changed:
			case <-ctx.Done():
			}
		}
	})
	return func(but string) int {
		mu.Lock()
		defer mu.Unlock()
		lost := maps.Clone(seen)
		delete(lost, model.NodeName(but))
		return len(lost)
	}
}
