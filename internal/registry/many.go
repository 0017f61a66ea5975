package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// Bounds of one transaction that many writes share, well below the store's, so
// that other writers find room in its batch.
const (
	manyOps   = store.MaxTxnOps / 2
	manyBytes = store.MaxTxnBytes / 2
)

// apart is how many writes that do not go with others are under way at a time.
const apart = 16

// single is one of many writes.
type single struct {
	what string
	plan func(*state.Snapshot, *plan)
	err  error
}

// RegisterMany is Register for several instances, of which checks[i] are those of
// instances[i]. As many as possible are written by one transaction. One that fails
// does not keep the others; the errors are in the same order, nil for those that
// went well.
func (r *Registry) RegisterMany(ctx context.Context, instances []model.Instance, checks [][]model.Check) []error {
	all := make([]*single, len(instances))
	for i, inst := range instances {
		all[i] = r.registering(inst, checks[i])
	}
	return r.writeMany(ctx, all)
}

// PutChecks is PutCheck for several checks, in the manner of RegisterMany.
func (r *Registry) PutChecks(ctx context.Context, checks []model.Check) []error {
	all := make([]*single, len(checks))
	for i, c := range checks {
		all[i] = r.puttingCheck(c)
	}
	return r.writeMany(ctx, all)
}

// writeMany does all of the writes, and as many of them by one transaction as do
// not meet there (see shared). Those that are refused, or that others got in the
// way of again and again, are then done each by itself.
func (r *Registry) writeMany(ctx context.Context, all []*single) []error {
	var rest, alone []*single
	for _, s := range all {
		if s.err == nil {
			rest = append(rest, s)
		}
	}
	conflicts := 0
	for snap := r.st.Snapshot(); len(rest) > 0; {
		if len(rest) == 1 || conflicts == maxRounds {
			alone = append(alone, rest...)
			break
		}
		t, later, refused := share(snap, rest)
		alone = append(alone, refused...)
		if len(t.of) == 0 {
			break // all are refused, or have failed
		}
		res, err := r.commit.Commit(ctx, t.txn)
		if errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrInvalidTxn) {
			alone, rest = append(alone, t.of...), later
			continue
		}
		if err == nil {
			snap, err = r.st.Wait(ctx, res.Index)
		}
		if err != nil {
			for _, s := range rest {
				s.fail(err)
			}
			break
		}
		if !res.OK {
			conflicts++
			rest = slices.Concat(t.of, later)
			continue
		}
		rest = later
	}
	r.apart(ctx, alone)
	errs := make([]error, len(all))
	for i, s := range all {
		errs[i] = s.err
	}
	return errs
}

// apart does writes each by itself.
func (r *Registry) apart(ctx context.Context, alone []*single) {
	g := errgroup.Group{}
	g.SetLimit(apart)
	for _, s := range alone {
		if s.err == nil {
			g.Go(func() error {
				_, s.err = r.write(ctx, s.what, s.plan)
				return nil
			})
		}
	}
	_ = g.Wait() // each keeps its own error
}

func (s *single) fail(err error) {
	if s.err == nil {
		s.err = fmt.Errorf("%s: %w", s.what, err)
	}
}

// shared is one transaction of several writes. As the state before decides on all
// of them, none may write what another reads or writes; what several read is
// compared once. So of two new services that would get the same virtual address,
// or two instances of one new service, the second comes in a later transaction.
type shared struct {
	of          []*single
	txn         store.Txn
	read, write map[string]bool
	bytes       int
}

// share plans writes until one transaction is full. It returns those that have to
// come later, and those that are refused and so have to be confirmed by
// themselves.
func share(snap *state.Snapshot, all []*single) (t *shared, later, refused []*single) {
	t = &shared{read: map[string]bool{}, write: map[string]bool{}}
	for i, s := range all {
		if len(t.txn.Compares) >= manyOps || len(t.txn.Puts)+len(t.txn.Deletes) >= manyOps || t.bytes >= manyBytes {
			return t, append(later, all[i:]...), refused
		}
		var p plan
		s.plan(snap, &p)
		switch {
		case p.err != nil:
			s.fail(p.err)
		case p.refusal != nil:
			refused = append(refused, s)
		case t.meets(&p.txn):
			later = append(later, s)
		default:
			t.add(s, &p.txn)
		}
	}
	return t, later, refused
}

func (t *shared) meets(txn *store.Txn) bool {
	for _, c := range txn.Compares {
		if t.write[c.Key] {
			return true
		}
	}
	for _, p := range txn.Puts {
		if t.write[p.Key] || t.read[p.Key] {
			return true
		}
	}
	for _, k := range txn.Deletes {
		if t.write[k] || t.read[k] {
			return true
		}
	}
	return false
}

func (t *shared) add(s *single, txn *store.Txn) {
	t.of = append(t.of, s)
	for _, c := range txn.Compares {
		if !t.read[c.Key] {
			t.read[c.Key] = true
			t.txn.Compares = append(t.txn.Compares, c)
			t.bytes += len(c.Key)
		}
	}
	for _, p := range txn.Puts {
		t.write[p.Key] = true
		t.bytes += len(p.Key) + len(p.Value)
	}
	for _, k := range txn.Deletes {
		t.write[k] = true
		t.bytes += len(k)
	}
	t.txn.Puts = append(t.txn.Puts, txn.Puts...)
	t.txn.Deletes = append(t.txn.Deletes, txn.Deletes...)
}
