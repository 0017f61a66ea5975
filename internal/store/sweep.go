package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// sweepEvery is how often generations that nobody needs are looked for.
	sweepEvery = time.Minute
	sweepPage  = 1000 // keys removed at once
	// sweepPause leaves the writers room between two pages.
	sweepPause = 5 * time.Millisecond
)

// errMoved says that the generations have changed while they were looked at.
var errMoved = errors.New("the generations have changed")

// tidy asks for generations that nobody needs to be removed.
func (s *Store) tidy() {
	select {
	case s.litter <- struct{}{}:
	default:
	}
}

// sweep removes, until ctx ends, what no restore needs any more: the generation
// that was replaced, and half of one whose restore has failed or died.
func (s *Store) sweep(ctx context.Context, r *running) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := sweepOnce(ctx, r.cli); errors.Is(err, errMoved) {
			s.tidy()
		} else if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("remove old generations", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.litter:
		}
	}
}

// abandon ends the restore that an earlier run of this server was killed in.
func (s *Store) abandon(ctx context.Context, cli *clientv3.Client) error {
	resp, err := cli.Get(ctx, restoreKey)
	if err != nil {
		return fmt.Errorf("read %s: %w", restoreKey, err)
	}
	if len(resp.Kvs) == 0 {
		return nil
	}
	var c claimed
	if err := json.Unmarshal(resp.Kvs[0].Value, &c); err != nil {
		return fmt.Errorf("read %s: %w", restoreKey, err)
	}
	if c.Server != s.cfg.Name {
		return nil // it runs out by itself if its server is gone
	}
	if _, err := cli.Delete(ctx, restoreKey); err != nil {
		return fmt.Errorf("give up the claim of an earlier run's restore: %w", err)
	}
	return nil
}

// sweepOnce removes every generation but the one in force and the one that a
// restore is writing. Each step compares that these are still the same.
func sweepOnce(ctx context.Context, cli *clientv3.Client) error {
	resp, err := cli.Txn(ctx).Then(clientv3.OpGet(pointerKey), clientv3.OpGet(restoreKey)).Commit()
	if err != nil {
		return err
	}
	pointer, claim := resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs
	if len(pointer) == 0 {
		return nil
	}
	keep := map[string]bool{generationPrefix(string(pointer[0].Value)): true}
	var claimMod int64
	if len(claim) > 0 {
		var c claimed
		if err := json.Unmarshal(claim[0].Value, &c); err != nil {
			return fmt.Errorf("read %s: %w", restoreKey, err)
		}
		keep[generationPrefix(c.Generation)] = true
		claimMod = claim[0].ModRevision
	}
	guard := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(pointerKey), "=", pointer[0].ModRevision),
		clientv3.Compare(clientv3.ModRevision(restoreKey), "=", claimMod),
	}
	end := clientv3.GetPrefixRangeEnd(genPrefix)
	for from := genPrefix; from != ""; {
		if from, err = sweepPageFrom(ctx, cli, from, end, keep, guard); err != nil {
			return err
		}
	}
	return nil
}

// sweepPageFrom removes or passes over the next keys, and returns where to go on;
// nothing at the end.
func sweepPageFrom(ctx context.Context, cli *clientv3.Client, from, end string, keep map[string]bool, guard []clientv3.Cmp) (next string, err error) {
	resp, err := cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(sweepPage), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	first := string(resp.Kvs[0].Key)
	prefix := first
	if i := strings.Index(first[len(genPrefix):], "/"); i >= 0 {
		prefix = first[:len(genPrefix)+i+1]
	}
	if keep[prefix] {
		return clientv3.GetPrefixRangeEnd(prefix), nil
	}
	last := first
	for _, kv := range resp.Kvs {
		if k := string(kv.Key); strings.HasPrefix(k, prefix) {
			last = k
		}
	}
	done, err := cli.Txn(ctx).If(guard...).Then(clientv3.OpDelete(first, clientv3.WithRange(last+"\x00"))).Commit()
	if err != nil {
		return "", err
	}
	if !done.Succeeded {
		return "", errMoved
	}
	pause(ctx, sweepPause)
	return last + "\x00", ctx.Err()
}
