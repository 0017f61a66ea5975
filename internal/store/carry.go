package store

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
)

// aliveFactor: a session's mark lives for so many TTLs without a renewal, as
// Consul's do.
const aliveFactor = 2

// maxFlipCompares bounds how many endpoints are compared one by one.
const maxFlipCompares = 2 * MaxTxnOps

// deadOutput is what a check says of a node whose agent is not here; the text is
// Consul's.
const deadOutput = "Agent not live or unreachable"

// checkRecord refuses what a registry of this version could not have written.
func checkRecord(key string, value []byte) error {
	if len(key)+len(value) > MaxTxnBytes {
		return fmt.Errorf("%w: record %q has %d bytes", archive.ErrDamaged, key, len(value))
	}
	table, _, err := split(key)
	if err != nil {
		return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	}
	switch table {
	case tableVIPAddr, tableName, tableUnique, tableHold:
		if len(value) == 0 || value[0] != formatText {
			err = errFormat
		}
	case tableKVLock:
		err = decodeJSON(value, &Lock{})
	default:
		var known bool
		if _, known, err = Decode(key, value, 0, 0); err == nil && !known {
			return fmt.Errorf("%w that this version can read: it holds a table %q", archive.ErrFormat, table)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: record %q: %w", archive.ErrDamaged, key, err)
	}
	return nil
}

// survey is what the generation in force says, at one revision, of hosts as they
// are now. No archive can know it better.
type survey struct {
	rev int64
	// agents are the nodes that an agent has registered.
	agents map[model.NodeName]bool
	// records are those to carry over.
	records map[string]string
	// endpoints are the revisions of the endpoints' keys.
	endpoints map[string]int64
	networks  []*model.Network // with endpoints
	vips      map[model.ServiceName]bool
	addrs     map[netip.Addr]bool // of VIPs
}

// look surveys the hosts.
func (j *restore) look(ctx context.Context) error {
	rev, err := j.store.ReadIndex(ctx)
	if err != nil {
		return err
	}
	s := &survey{
		rev: int64(rev), agents: map[model.NodeName]bool{}, records: map[string]string{}, endpoints: map[string]int64{},
		vips: map[model.ServiceName]bool{}, addrs: map[netip.Addr]bool{},
	}
	used := map[model.NetworkName]bool{}
	// Nodes come before what is on them, and endpoints before their networks.
	for _, table := range []string{
		tableNode, tableInstance, tableCheck, tableEndpoint, tableNetwork, tableBlock, tableName, tableLease, tableVIP, tableVIPAddr,
	} {
		err := pages(ctx, j.cli, j.old.prefix(), table+"/", s.rev, func(key string, kv *mvccpb.KeyValue) error {
			// What cannot be read was reported when it was loaded.
			c, seen, err := Decode(key, kv.Value, 0, 0)
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			keep := !seen // names and the addresses of VIPs
			switch {
			case c.Node != nil:
				keep = c.Node.Owner == model.NodeOwner(c.Node.Name)
				s.agents[c.Node.Name] = keep
			case c.Instance != nil:
				keep = s.current(c.Instance.Node, c.Instance.Owner)
			case c.Check != nil:
				keep = s.current(c.Check.Node, c.Check.Owner)
			case c.Endpoint != nil:
				keep, used[c.Endpoint.Network] = true, true
				s.endpoints[key] = kv.ModRevision
			case c.Network != nil:
				if keep = used[c.Network.Name]; keep {
					s.networks = append(s.networks, c.Network)
				}
			case c.Block != nil:
				keep = used[c.Block.Network]
			case c.Lease != nil:
				keep = true
			case c.VIP != nil:
				keep, s.vips[c.VIP.Service] = true, true
				s.addrs[c.VIP.V4], s.addrs[c.VIP.V6] = true, true
			}
			if keep {
				s.records[key] = string(kv.Value)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	j.present = s
	return nil
}

// current reports whether something on a node is kept up by the node's agent or
// by the servers on its behalf.
func (s *survey) current(n model.NodeName, owner model.Owner) bool {
	return s.agents[n] && (owner == model.NodeOwner(n) || owner == model.OwnerServers)
}

// unchanged compares what must not have changed since the survey. Names and
// leases go with endpoints; instances and checks are put right by their agents.
// A prefix does not show deletions, so endpoints are compared one by one too, as
// far as etcd takes so many.
func (s *survey) unchanged(prefix string) []clientv3.Cmp {
	var all []clientv3.Cmp
	for _, under := range []string{EndpointPrefix(), NetworkPrefix(), VIPPrefix()} {
		all = append(all, clientv3.Compare(clientv3.ModRevision(prefix+under), "<", s.rev+1).WithPrefix())
	}
	if len(s.endpoints) <= maxFlipCompares {
		for key, mod := range s.endpoints {
			all = append(all, clientv3.Compare(clientv3.ModRevision(prefix+key), "=", mod))
		}
	}
	return all
}

// take decides on one record of the archive.
func (j *restore) take(ctx context.Context, key string, value []byte) error {
	c, seen, err := Decode(key, value, 0, 0)
	if err != nil {
		return err
	}
	s := j.present
	switch {
	case fleeting(key):
		return nil
	case !seen:
		if table, _, _ := strings.Cut(key, "/"); table == tableName || table == tableVIPAddr {
			return nil // they go with their endpoints and VIPs
		}
	case c.Endpoint != nil, c.Lease != nil, c.Block != nil:
		return nil
	case c.Network != nil, c.VIP != nil:
		j.offered = append(j.offered, entry{key, string(value)})
		return nil
	case c.Node != nil:
		if s.agents[c.Node.Name] {
			return nil
		}
	case c.Instance != nil:
		if s.current(c.Instance.Node, c.Instance.Owner) || c.Instance.Owner == model.OwnerServers {
			return nil // the servers' own services are those of the servers there are
		}
	case c.Check != nil:
		if s.current(c.Check.Node, c.Check.Owner) {
			return nil
		}
		if c.Check.Owner == model.OwnerServers {
			if c.Check.ID != model.SerfHealth {
				return nil
			}
			c.Check.Status, c.Check.Output = model.Critical, deadOutput
			if value, err = Encode(c.Check); err != nil {
				return err
			}
		}
	case c.Session != nil:
		if c.Session.TTL > 0 && !c.Session.Dying {
			j.sessions = append(j.sessions, *c.Session)
		}
	}
	return j.put(ctx, key, string(value))
}

// carry writes what hosts do right now, and of the archive's networks and VIPs
// what goes with it. Called again it writes the differences.
func (j *restore) carry(ctx context.Context) error {
	want := j.present.merge(j.offered, j.store.cfg.VIPPools)
	for key, value := range want {
		if j.carried[key] == value && value != "" {
			continue
		}
		if err := j.put(ctx, key, value); err != nil {
			return err
		}
	}
	for key := range j.carried {
		if _, wanted := want[key]; wanted {
			continue
		}
		if err := j.add(ctx, clientv3.OpDelete(j.prefix()+key)); err != nil {
			return err
		}
	}
	j.carried = want
	return j.flush(ctx)
}

// merge adds to what is carried over the archive's networks that overlap none in
// use, and its VIPs of services that have none, as far as their addresses lie in
// the pools and are free.
func (s *survey) merge(offered []entry, pools []netip.Prefix) map[string]string {
	want := make(map[string]string, len(s.records)+2*len(offered))
	for k, v := range s.records {
		want[k] = v
	}
	for _, o := range offered {
		c, _, err := Decode(o.key, []byte(o.value), 0, 0)
		switch {
		case err != nil: // cannot be: it was checked
		case c.Network != nil && !s.overlaps(c.Network):
			want[o.key] = o.value
		case c.VIP != nil && s.free(c.VIP, pools):
			want[o.key] = o.value
			for _, a := range []netip.Addr{c.VIP.V4, c.VIP.V6} {
				if a.IsValid() {
					want[VIPAddrKey(a)] = string(append([]byte{formatText}, c.VIP.Service...))
				}
			}
		}
	}
	return want
}

// overlaps reports whether a network has the name or addresses of one in use.
func (s *survey) overlaps(n *model.Network) bool {
	for _, used := range s.networks {
		if used.Name == n.Name {
			return true
		}
		for _, p := range used.Pools {
			for _, q := range n.Pools {
				if p.Prefix.Overlaps(q.Prefix) {
					return true
				}
			}
		}
	}
	return false
}

// free reports whether a service may have the VIP.
func (s *survey) free(v *model.VIP, pools []netip.Prefix) bool {
	inside := func(a netip.Addr) bool {
		for _, p := range pools {
			if p.Contains(a) {
				return true
			}
		}
		return !a.IsValid() || len(pools) == 0
	}
	return !s.vips[v.Service] && inside(v.V4) && inside(v.V6) &&
		!(v.V4.IsValid() && s.addrs[v.V4]) && !(v.V6.IsValid() && s.addrs[v.V6])
}
