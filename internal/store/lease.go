package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
)

// ErrNoLease says that the lease has run out or was revoked; what hung on it is gone.
var ErrNoLease = errors.New("the lease has run out")

// GrantLease makes a lease that runs out ttl after its last renewal; ttl is
// rounded up to whole seconds, and to the shortest that the servers keep (1 s
// for a lone server, 2 s else). A lease whose answer is lost runs out by itself.
func (s *Store) GrantLease(ctx context.Context, ttl time.Duration) (lease int64, err error) {
	r, err := s.run(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	seconds := int64((ttl + time.Second - 1) / time.Second)
	resp, err := r.cli.Grant(ctx, max(seconds, 1))
	if err != nil {
		return 0, fmt.Errorf("grant a lease of %v: %w", ttl, leaseError(ctx, err))
	}
	return int64(resp.ID), nil
}

// PutAlive puts a session's mark, which goes with the lease: by itself when the
// lease runs out, at once when it is revoked. It is the only record that hangs
// on a lease, and it never goes through Commit: a batch that carries a lease
// fails whole when that has run out. The error is ErrNoLease if it has.
func (s *Store) PutAlive(ctx context.Context, session string, lease int64) (model.Index, error) {
	r, err := s.run(ctx)
	if err != nil {
		return 0, err
	}
	value, err := Encode(model.Alive{Session: session, Lease: lease, Stamp: model.Stamp{Owner: model.OwnerServers}})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	for {
		gen := s.gen.Load()
		resp, err := r.cli.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(pointerKey), "=", gen.mod)).
			Then(clientv3.OpPut(gen.prefix()+AliveKey(session), string(value), clientv3.WithLease(clientv3.LeaseID(lease)))).
			Else(clientv3.OpGet(pointerKey)).
			Commit()
		if err != nil {
			return 0, fmt.Errorf("mark session %s as alive: %w", session, leaseError(ctx, err))
		}
		if resp.Succeeded {
			return model.Index(resp.Header.Revision), nil
		}
		if !s.learn(gen, resp) {
			return 0, fmt.Errorf("mark session %s as alive: the generation pointer is gone", session)
		}
	}
}

// RenewLease starts a lease's time anew; ErrNoLease if it has run out.
func (s *Store) RenewLease(ctx context.Context, lease int64) error {
	r, err := s.run(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	if _, err := r.cli.KeepAliveOnce(ctx, clientv3.LeaseID(lease)); err != nil {
		return fmt.Errorf("renew a lease: %w", leaseError(ctx, err))
	}
	return nil
}

// RevokeLease ends a lease and removes what hangs on it. Ending one that has run
// out changes nothing.
func (s *Store) RevokeLease(ctx context.Context, lease int64) error {
	r, err := s.run(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	_, err = r.cli.Revoke(ctx, clientv3.LeaseID(lease))
	if err = leaseError(ctx, err); err != nil && !errors.Is(err, ErrNoLease) {
		return fmt.Errorf("revoke a lease: %w", err)
	}
	return nil
}

// learn takes over the generation that an answer with the pointer shows, in
// place of the one known; false if there is none.
func (s *Store) learn(known *generation, resp *clientv3.TxnResponse) bool {
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return false
	}
	s.gen.CompareAndSwap(known, &generation{name: string(kvs[0].Value), mod: kvs[0].ModRevision})
	return true
}

func leaseError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrNoLease
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return readError(ctx, err)
}
