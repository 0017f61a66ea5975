package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	savePage = 1000 // keys read at once
	// saveLimit bounds one save: while it runs, nothing behind its revision is
	// compacted.
	saveLimit = time.Hour
)

// Save writes everything as of one revision to w, as an archive, and returns what
// the archive says of itself. Writers go on meanwhile. With stale it takes what
// this server has, without asking the others whether there is more, which also
// works without a leader. begun, if not nil, learns the revision before the first
// byte is written. An archive that Save did not end without an error is refused
// by Restore.
func (s *Store) Save(ctx context.Context, w io.Writer, stale bool, begun func(model.Index)) (model.SnapshotMeta, error) {
	r, err := s.run(ctx)
	if err != nil {
		return model.SnapshotMeta{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, saveLimit)
	defer cancel()
	rev := r.follow.applied.Load()
	defer s.pins.hold(rev)()
	if !stale {
		index, err := s.ReadIndex(ctx)
		if err != nil {
			return model.SnapshotMeta{}, err
		}
		rev = int64(index)
	}
	gen, err := generationAt(ctx, r.cli, rev)
	if err != nil {
		return model.SnapshotMeta{}, err
	}
	if begun != nil {
		begun(model.Index(rev))
	}
	out, err := archive.NewWriter(w, time.Now())
	if err != nil {
		return model.SnapshotMeta{}, err
	}
	err = pages(ctx, r.cli, gen.prefix(), "", rev, func(key string, kv *mvccpb.KeyValue) error {
		if fleeting(key) {
			return nil
		}
		return out.Add(key, kv.Value)
	})
	if err != nil {
		return model.SnapshotMeta{}, err
	}
	return out.Close(model.SnapshotMeta{
		Index: model.Index(rev), Node: model.NodeName(s.cfg.Name), Site: s.cfg.Site, Software: s.cfg.Version,
	})
}

// fleeting reports whether a key means nothing beyond the moment: what hangs on
// a lease, and delays that servers count on their own clocks.
func fleeting(key string) bool {
	return strings.HasPrefix(key, tableAlive+"/") || strings.HasPrefix(key, tableDelay+"/")
}

// generationAt is the generation in force at a revision.
func generationAt(ctx context.Context, cli *clientv3.Client, rev int64) (*generation, error) {
	resp, err := cli.Get(ctx, pointerKey, clientv3.WithRev(rev), clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("read the generation pointer at revision %d: %w", rev, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errors.New("the generation pointer is gone")
	}
	return &generation{name: string(resp.Kvs[0].Value), mod: resp.Kvs[0].ModRevision}, nil
}

// pages hands every key of a generation that begins with under to each, without
// the generation's prefix, as of rev and in order, a page at a time.
func pages(ctx context.Context, cli *clientv3.Client, prefix, under string, rev int64, each func(string, *mvccpb.KeyValue) error) error {
	end := clientv3.GetPrefixRangeEnd(prefix + under)
	for from := prefix + under; ; {
		resp, err := cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(rev),
			clientv3.WithLimit(savePage), clientv3.WithSerializable())
		if err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				err = fmt.Errorf("it took too long: %w", err)
			}
			return fmt.Errorf("read everything at revision %d: %w", rev, err)
		}
		for _, kv := range resp.Kvs {
			if err := each(string(kv.Key[len(prefix):]), kv); err != nil {
				return err
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// pins are the revisions that somebody still reads, which must not be compacted.
type pins struct {
	mu   sync.Mutex    // guards following
	held map[int64]int // how many hold a revision
}

// hold keeps everything from rev on until release is called.
func (p *pins) hold(rev int64) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = map[int64]int{}
	}
	p.held[rev]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.held[rev]--; p.held[rev] == 0 {
			delete(p.held, rev)
		}
	}
}

// oldest is the oldest revision of rev and those held.
func (p *pins) oldest(rev int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for held := range p.held {
		rev = min(rev, held)
	}
	return rev
}
