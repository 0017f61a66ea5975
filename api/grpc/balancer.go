package fairleadgrpc

import (
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/fairlead-net/fairlead/api/internal/load"
)

// policy is the name by which a service config chooses the balancer.
const policy = "fairlead_load"

// loadBuilder makes a balancer with figures of its own for each connection of a client.
type loadBuilder struct{}

// Name implements balancer.Builder.
func (loadBuilder) Name() string { return policy }

// Build implements balancer.Builder.
func (loadBuilder) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	p := &pickers{set: load.New[string](0), weights: resolver.NewAddressMapV2[int]()}
	return &loadBalancer{Balancer: base.NewBalancerBuilder(policy, p, base.Config{HealthCheck: true}).Build(cc, o), pickers: p}
}

// loadBalancer is gRPC's base balancer, which keeps a connection to each instance, with
// weights.
type loadBalancer struct {
	balancer.Balancer
	pickers *pickers
}

// UpdateClientConnState implements balancer.Balancer.
func (b *loadBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	weights := resolver.NewAddressMapV2[int]()
	for _, a := range s.ResolverState.Addresses {
		weight, _ := a.BalancerAttributes.Value(weightKey{}).(int) //nolint:staticcheck // an address outside of an endpoint, as the base balancer takes them
		weights.Set(a, weight)
	}
	b.pickers.weights = weights
	return b.Balancer.UpdateClientConnState(s)
}

// pickers makes a picker whenever an instance becomes ready or ceases to be; the set
// keeps what is known of the others. gRPC makes calls to a balancer one after the other.
type pickers struct {
	set     *load.Set[string]
	weights *resolver.AddressMapV2[int]
}

// Build implements base.PickerBuilder.
func (p *pickers) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	ready := make(map[string]balancer.SubConn, len(info.ReadySCs))
	members := make([]load.Member[string], 0, len(info.ReadySCs))
	for conn, i := range info.ReadySCs {
		weight, _ := p.weights.Get(i.Address)
		ready[i.Address.Addr] = conn
		members = append(members, load.Member[string]{Key: i.Address.Addr, Weight: weight, Value: i.Address.Addr})
	}
	p.set.Update(members)
	return &picker{set: p.set, ready: ready}
}

type picker struct {
	set   *load.Set[string]
	ready map[string]balancer.SubConn
}

// Pick implements balancer.Picker.
func (p *picker) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	// A newer picker may have put others into the set by now.
	pick := p.set.Pick(func(key string) bool { return p.ready[key] == nil })
	if pick == nil {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	return balancer.PickResult{
		SubConn: p.ready[pick.Key],
		Done:    func(d balancer.DoneInfo) { pick.Done(outcome(d.Err)) },
	}, nil
}

// outcome tells an instance that fails from a call that is answered with an error.
func outcome(err error) load.Outcome {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.DataLoss, codes.Unknown:
		return load.Failed
	case codes.Canceled:
		return load.Abandoned
	}
	return load.OK
}
