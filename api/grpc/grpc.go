// Package fairleadgrpc lets gRPC clients find and balance services of the registry.
//
// Importing it registers the scheme "fairlead" and the policy "fairlead_load", the
// same as that of api.Transport: the instance with the least EWMA latency x (own calls
// in flight + 1), by weight.
//
//	conn, err := grpc.NewClient("fairlead:///web", grpc.WithTransportCredentials(...))
//
// finds the service web at the agent that FAIRLEAD_ADDR names. fairlead:///web?tag=v1
// is those with a tag. For another agent, a token, or calls that may be repeated, give
// grpc.WithResolvers a builder of NewBuilder.
package fairleadgrpc

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/fairlead-net/fairlead/api"
)

// Scheme is that of targets: fairlead:///SERVICE.
const Scheme = api.Scheme

// gRPC's registries may only be written to in init.
func init() {
	balancer.Register(loadBuilder{})
	resolver.Register(&builder{})
}

// Options of a builder; the zero value is usable.
type Options struct {
	// Idempotent names what may be called again, on another instance, if the first
	// fails with UNAVAILABLE: "package.Service/Method", or "package.Service/" for all of
	// a service's. Calls that no instance has seen are made again in any case.
	Idempotent []string
}

// NewBuilder returns a builder for targets of the scheme, which asks the client's
// agent. It sets the service config, and so takes the place of a default one.
func NewBuilder(c *api.Client, o Options) resolver.Builder {
	return &builder{client: c, idempotent: o.Idempotent}
}

type builder struct {
	client     *api.Client // nil: the one of the environment
	idempotent []string
}

// Scheme implements resolver.Builder.
func (*builder) Scheme() string { return Scheme }

// Build implements resolver.Builder. It starts a watch that Close of the returned
// resolver ends.
func (b *builder) Build(target resolver.Target, cc resolver.ClientConn, o resolver.BuildOptions) (resolver.Resolver, error) {
	client := b.client
	if client == nil {
		c, err := api.FromEnv()
		if err != nil {
			return nil, err
		}
		client = c
	}
	sel, err := selection(target.URL)
	if err != nil {
		return nil, err
	}
	r := &follower{cc: cc, resolver: api.NewResolver(client)}
	if !o.DisableServiceConfig {
		config, err := serviceConfig(b.idempotent)
		if err != nil {
			return nil, err
		}
		r.config = cc.ParseServiceConfig(config)
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	t := r.resolver.Select(sel)
	r.wg.Go(func() { r.run(ctx, t) })
	return r, nil
}

// selection is what a target names.
func selection(u url.URL) (api.Selection, error) {
	name := strings.TrimPrefix(cmp.Or(u.Path, u.Opaque), "/")
	sel, ok := api.ParseName(name)
	if !ok {
		sel = api.Selection{Service: name}
	}
	sel.Tag = cmp.Or(u.Query().Get("tag"), sel.Tag)
	if u.Host != "" || sel.Service == "" || strings.Contains(sel.Service, "/") {
		return sel, fmt.Errorf("target %s: want %s:///SERVICE", u.Redacted(), Scheme)
	}
	return sel, nil
}

// serviceConfig chooses the policy, and says what may be repeated.
func serviceConfig(idempotent []string) (string, error) {
	type name struct {
		Service string `json:"service"`
		Method  string `json:"method,omitempty"`
	}
	type retries struct {
		MaxAttempts          int      `json:"maxAttempts"`
		InitialBackoff       string   `json:"initialBackoff"`
		MaxBackoff           string   `json:"maxBackoff"`
		BackoffMultiplier    float64  `json:"backoffMultiplier"`
		RetryableStatusCodes []string `json:"retryableStatusCodes"`
	}
	type method struct {
		Name        []name  `json:"name"`
		RetryPolicy retries `json:"retryPolicy"`
	}
	config := map[string]any{"loadBalancingConfig": []any{map[string]any{policy: struct{}{}}}}
	var names []name
	for _, full := range idempotent {
		service, m, ok := strings.Cut(full, "/")
		if !ok || service == "" {
			return "", fmt.Errorf("idempotent call %q: want package.Service/Method or package.Service/", full)
		}
		names = append(names, name{service, m})
	}
	if len(names) > 0 {
		config["methodConfig"] = []method{{names, retries{4, "0.02s", "0.2s", 2, []string{"UNAVAILABLE"}}}}
		config["retryThrottling"] = map[string]any{"maxTokens": 100, "tokenRatio": 0.2}
	}
	b, err := json.Marshal(config)
	return string(b), err
}

// follower hands what a target is resolved to, to gRPC.
type follower struct {
	cc       resolver.ClientConn
	config   *serviceconfig.ParseResult
	resolver *api.Resolver
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// ResolveNow implements resolver.Resolver. There is always a watch under way.
func (*follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (r *follower) Close() {
	r.cancel()
	r.wg.Wait()
	r.resolver.Close()
}

func (r *follower) run(ctx context.Context, t *api.Target) {
	var shown []api.Instance
	for {
		s := t.Snapshot()
		switch {
		case !s.Known && s.Err != nil:
			r.cc.ReportError(s.Err)
		case s.Known && (shown == nil || !slices.EqualFunc(shown, s.Instances, same)):
			shown = append([]api.Instance{}, s.Instances...)
			// An error says that there are no addresses, which the resolver knows.
			_ = r.cc.UpdateState(resolver.State{Addresses: addresses(s.Instances), ServiceConfig: r.config})
		}
		select {
		case <-ctx.Done():
			return
		case <-s.Changed():
		}
	}
}

func same(a, b api.Instance) bool { return a.Addr() == b.Addr() && a.Weight == b.Weight }

// weightKey is where an address has its instance's weight.
type weightKey struct{}

func addresses(instances []api.Instance) []resolver.Address {
	all := make([]resolver.Address, 0, len(instances))
	for _, i := range instances {
		weight := attributes.New(weightKey{}, i.Weight)
		//nolint:staticcheck // an address outside of an endpoint, as the base balancer takes them
		all = append(all, resolver.Address{Addr: i.Addr(), BalancerAttributes: weight})
	}
	return all
}
