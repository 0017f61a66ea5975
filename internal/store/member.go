package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/fairlead-net/fairlead/internal/task"
)

// PeerName is a name that every server's certificate has beside its own,
// <member>.peer.internal: only who has it may speak to etcd as a peer.
const PeerName = "server" + peerDomain

// maxLearners is how many servers may be joining at a time; they are promoted
// one after the other.
const maxLearners = 4

// Servers that vote with others hear of their leader ten times before they
// doubt it, and agree on another one within a second.
const tickMs, electionMs = 50, 500

// memberLimit bounds one change of the membership.
const memberLimit = 10 * time.Second

var (
	// ErrLastServer says that the only voting server cannot go.
	ErrLastServer = errors.New("it is the only server that votes")
	// ErrUnknownServer says that no server of that name is a member.
	ErrUnknownServer = errors.New("unknown server")
	// ErrRemoved says that this server was taken out of the cluster; its data is of
	// no use any more.
	ErrRemoved = errors.New("this server was removed from the cluster")
	// ErrLearner says that a server has not caught up yet.
	ErrLearner = errors.New("the server has not caught up yet")
	// ErrQuorum says that a change would leave too few healthy servers.
	ErrQuorum = errors.New("too few servers are healthy for this change")
	// ErrNotLeader says that only the leader can do something.
	ErrNotLeader = errors.New("this server does not lead")
)

// Cluster is what a server needs that has others beside it.
type Cluster struct {
	// ID is the member's name, unique for ever: a DNS label. Where it is now,
	// SetPeer says.
	ID string
	// Listen is where peers are served.
	Listen netip.AddrPort
	// CertFile, KeyFile and CAFile are PEM files. The certificate has the names
	// <ID>.peer.internal and PeerName, is good for clients and servers, and is
	// read again for each connection.
	CertFile, KeyFile, CAFile string
	// RevokedFile is a revocation list in PEM form, read for each connection;
	// empty for none.
	RevokedFile string
	// Join makes this server a member of a cluster that is there, and returns the
	// members as AddServer did there. It is asked if the directory has no data; nil
	// for the first server.
	Join func(ctx context.Context) (map[string]string, error)
}

// peerURL is the one under which a member's peers find it.
func peerURL(member string) url.URL {
	return url.URL{Scheme: "https", Host: net.JoinHostPort(member+peerDomain, peerPort)}
}

// configure sets what a member with peers has and a lone one has not.
func (c *Cluster) configure(ctx context.Context, cfg *embed.Config) error {
	peer := peerURL(c.ID)
	cfg.Name = c.ID
	cfg.ListenPeerUrls = []url.URL{{Scheme: "https", Host: c.Listen.String()}}
	cfg.AdvertisePeerUrls = []url.URL{peer}
	cfg.InitialCluster = c.ID + "=" + peer.String()
	if c.Join != nil && !hasLog(cfg.Dir) {
		members, err := c.Join(ctx)
		if err != nil {
			return fmt.Errorf("join the servers: %w", err)
		}
		cfg.ClusterState = embed.ClusterStateFlagExisting
		var all []string
		for _, name := range slices.Sorted(maps.Keys(members)) {
			all = append(all, name+"="+members[name])
		}
		cfg.InitialCluster = strings.Join(all, ",")
	}
	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	cfg.SnapshotCatchUpEntries = catchUpEntries
	cfg.MaxLearners = maxLearners
	cfg.TlsMinVersion = "TLS1.3"
	cfg.PeerTLSInfo = transport.TLSInfo{
		CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.CAFile, CRLFile: c.RevokedFile,
		// A member's address may change, and it is its name that counts.
		ClientCertAuth: true, SkipClientSANVerify: true, AllowedHostnames: []string{PeerName},
	}
	return nil
}

// launch starts etcd with what the cluster needs. A server that joins asks again
// when others joined meanwhile: etcd takes only a full list of members.
func (c *Cluster) launch(ctx context.Context, cfg *embed.Config) (*embed.Etcd, error) {
	if c == nil {
		return launch(cfg)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	retry := task.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for {
		if err := c.configure(ctx, cfg); err != nil {
			return nil, err
		}
		e, err := launch(cfg)
		if err == nil || c.Join == nil || hasLog(cfg.Dir) || task.Sleep(ctx, retry.Next()) != nil {
			return e, err
		}
	}
}

// hasLog reports whether an etcd directory holds anything.
func hasLog(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member", "wal"))
	return !errors.Is(err, fs.ErrNotExist)
}

// Member is one server of the cluster.
type Member struct {
	// ID is its name in the membership, see Cluster.ID.
	ID string
	// Leader, and Learner: it does not vote yet. Self is this server.
	Leader, Learner, Self bool
}

// Members lists the servers as this one knows them, sorted by ID.
func (s *Store) Members() []Member {
	r := s.running.Load()
	if r == nil {
		return nil
	}
	srv := r.server.Server
	leader := srv.Leader()
	var all []Member
	for _, m := range srv.Cluster().Members() {
		all = append(all, Member{ID: memberOf(m.Name, m.PeerURLs), Leader: m.ID == leader, Learner: m.IsLearner, Self: m.ID == srv.MemberID()})
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// memberOf is a member's name; one that has not started yet has only its URL.
func memberOf(name string, urls []string) string {
	if name != "" || len(urls) == 0 {
		return name
	}
	u, err := url.Parse(urls[0])
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(u.Hostname(), peerDomain)
}

// AddServer makes a member of a server that has not started yet, as a learner,
// and returns what it has to be started with (Cluster.Join). One that is a member
// already is only told so.
func (s *Store) AddServer(ctx context.Context, id string) (map[string]string, error) {
	r, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, memberLimit)
	defer cancel()
	peer := peerURL(id)
	resp, err := r.cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("add server %s: %w", id, memberError(ctx, err))
	}
	members := resp.Members
	if !slices.ContainsFunc(members, func(m *pb.Member) bool { return memberOf(m.Name, m.PeerURLs) == id }) {
		added, err := r.cli.MemberAddAsLearner(ctx, []string{peer.String()})
		if err != nil {
			return nil, fmt.Errorf("add server %s: %w", id, memberError(ctx, err))
		}
		members = added.Members
	}
	all := map[string]string{}
	for _, m := range members {
		if len(m.PeerURLs) > 0 {
			all[memberOf(m.Name, m.PeerURLs)] = m.PeerURLs[0]
		}
	}
	return all, nil
}

// Promote lets a learner vote. The error is ErrLearner while it has not caught
// up.
func (s *Store) Promote(ctx context.Context, id string) error {
	return s.changeMember(ctx, "promote", id, func(ctx context.Context, r *running, m *pb.Member) error {
		if !m.IsLearner {
			return nil
		}
		_, err := r.cli.MemberPromote(ctx, m.ID)
		return err
	})
}

// RemoveServer takes a server out of the cluster; if it runs, its store fails
// with ErrRemoved. What is no member is ErrUnknownServer.
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	return s.changeMember(ctx, "remove", id, func(ctx context.Context, r *running, m *pb.Member) error {
		if voters := s.voters(); !m.IsLearner && voters == 1 {
			return ErrLastServer
		}
		_, err := r.cli.MemberRemove(ctx, m.ID)
		return err
	})
}

// TransferLeader makes a voting server the leader.
func (s *Store) TransferLeader(ctx context.Context, id string) error {
	return s.changeMember(ctx, "let lead", id, func(ctx context.Context, r *running, m *pb.Member) error {
		if m.IsLearner {
			return ErrLearner
		}
		srv := r.server.Server
		if uint64(srv.Leader()) == m.ID {
			return nil
		}
		if srv.Leader() != srv.MemberID() {
			return ErrNotLeader
		}
		return srv.MoveLeader(ctx, uint64(srv.MemberID()), m.ID)
	})
}

func (s *Store) voters() int {
	n := 0
	for _, m := range s.Members() {
		if !m.Learner {
			n++
		}
	}
	return n
}

// changeMember finds a member by its name and changes something about it.
func (s *Store) changeMember(ctx context.Context, what, id string, change func(context.Context, *running, *pb.Member) error) error {
	r, err := s.run(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, memberLimit)
	defer cancel()
	resp, err := r.cli.MemberList(ctx)
	if err == nil {
		at := slices.IndexFunc(resp.Members, func(m *pb.Member) bool { return memberOf(m.Name, m.PeerURLs) == id })
		if at < 0 {
			return fmt.Errorf("%s %q: %w", what, id, ErrUnknownServer)
		}
		err = change(ctx, r, resp.Members[at])
	}
	if err != nil {
		return fmt.Errorf("%s server %s: %w", what, id, memberError(ctx, err))
	}
	return nil
}

// memberError says in our words what etcd has against a change.
func memberError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady) || strings.Contains(err.Error(), rpctypes.ErrMemberLearnerNotReady.Error()):
		return ErrLearner
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		return fmt.Errorf("%w: %w", ErrQuorum, err)
	}
	return readError(ctx, err)
}

// rename gives this server's member the URL that it should have: a lone server's
// name is made from its node's.
func (c *Cluster) rename(ctx context.Context, srv *server) error {
	self := srv.Server.Cluster().Member(srv.Server.MemberID())
	peer := peerURL(c.ID)
	if self == nil || slices.Equal(self.PeerURLs, []string{peer.String()}) || len(srv.Server.Cluster().Members()) > 1 {
		return nil
	}
	changed := *self
	changed.PeerURLs = []string{peer.String()}
	if _, err := srv.Server.UpdateMember(ctx, changed); err != nil {
		return fmt.Errorf("give this server its name among peers: %w", err)
	}
	return nil
}
