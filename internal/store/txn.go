package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Errors of Run and Commit. They come wrapped; compare with errors.Is.
var (
	// ErrUnknownOutcome: the transaction was proposed, and may or may not have
	// been applied, now or later. It must never be reported as a refusal.
	ErrUnknownOutcome = errors.New("outcome of the write is unknown")
	// ErrNoLeader: the servers have no leader; nothing was written.
	ErrNoLeader = errors.New("no cluster leader")
	// ErrTooLarge: the transaction exceeds MaxTxnBytes or MaxTxnOps; nothing was
	// written.
	ErrTooLarge = errors.New("transaction is too large")
	// ErrInvalidTxn: the transaction contradicts itself, for instance by putting
	// a key that it also deletes; nothing was written.
	ErrInvalidTxn = errors.New("invalid transaction")
	// ErrNoSpace: the database has reached its quota, or the disk is full; nothing
	// was written, and what only deletes is still taken.
	ErrNoSpace = errors.New("no room for the write")
	// ErrClosed: the store has ended; nothing was written.
	ErrClosed = errors.New("store is closed")
	// ErrLocked: another process uses the data directory.
	ErrLocked = errors.New("data directory is in use")
	// ErrDir: the data directory cannot be used.
	ErrDir = errors.New("data directory is not usable")
)

// Limits of one transaction. A KV value is at most 512 KiB, so a value and its
// bookkeeping always fit.
const (
	// MaxTxnBytes bounds the keys and values of one transaction, and of one
	// batch of transactions, in bytes.
	MaxTxnBytes = 1 << 20
	// MaxTxnOps bounds the compares, and also the writes, of one transaction.
	MaxTxnOps = 4096
)

// Txn is one conditional write: if every compare holds, everything in it is
// written at one revision, else nothing is.
//
// Its read set is what Compares, Reads and ReadPrefixes name, its write set what
// Puts, Deletes and DeletePrefixes name. Both must be complete: transactions
// that are committed together are all compared with the state before any of
// them is written, which is only right because the store keeps transactions
// apart whose sets meet. Keys have no generation prefix; the functions in this
// package make them.
type Txn struct {
	Compares       []Compare
	Puts           []Put
	Deletes        []string
	DeletePrefixes []string
	// Reads and ReadPrefixes name what the decision to write rests on beyond the
	// compared keys.
	Reads        []string
	ReadPrefixes []string
}

// Compare holds if the key was last modified at ModIndex; with ModIndex 0, if
// the key does not exist. With Prefix it holds if no key that begins with Key
// was modified after ModIndex (0: if there is no such key); deletions under the
// prefix do not show.
type Compare struct {
	Key      string
	ModIndex model.Index
	Prefix   bool
}

// Put writes one key.
type Put struct {
	Key   string
	Value []byte
}

// Result is the outcome of a transaction.
type Result struct {
	// OK is false if a compare failed and nothing was written.
	OK bool
	// Index is the revision of the write, or the one at which a compare failed.
	// State reaches it.
	Index model.Index
}

// writes reports whether t would write anything.
func (t *Txn) writes() bool {
	return len(t.Puts)+len(t.Deletes)+len(t.DeletePrefixes) > 0
}

// blind reports whether nothing can refuse t.
func (t *Txn) blind() bool { return len(t.Compares) == 0 }

// size is the number of bytes that t takes up in a batch, about.
func (t *Txn) size() int {
	const perItem = 16 // framing of one compare or write
	n := perItem
	for _, c := range t.Compares {
		n += len(c.Key) + perItem
	}
	for _, p := range t.Puts {
		n += len(p.Key) + len(p.Value) + perItem
	}
	for _, k := range t.Deletes {
		n += len(k) + perItem
	}
	for _, k := range t.DeletePrefixes {
		n += 2*len(k) + perItem
	}
	return n
}

// ops is the number of operations as etcd counts them.
func (t *Txn) ops() int {
	return max(len(t.Compares), len(t.Puts)+len(t.Deletes)+len(t.DeletePrefixes))
}

// check finds what etcd would refuse, so that one bad transaction cannot take
// the others of its batch with it.
func (t *Txn) check() error {
	if n := t.size(); n > MaxTxnBytes {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, n, MaxTxnBytes)
	}
	if n := t.ops(); n > MaxTxnOps {
		return fmt.Errorf("%w: %d operations, the limit is %d", ErrTooLarge, n, MaxTxnOps)
	}
	for _, c := range t.Compares {
		if c.Key == "" {
			return fmt.Errorf("%w: compare without a key", ErrInvalidTxn)
		}
	}
	put := make(map[string]struct{}, len(t.Puts))
	for _, p := range t.Puts {
		if p.Key == "" {
			return fmt.Errorf("%w: put without a key", ErrInvalidTxn)
		}
		if strings.HasPrefix(p.Key, tableAlive+"/") {
			return fmt.Errorf("%w: key %q put without its lease", ErrInvalidTxn, p.Key)
		}
		if _, twice := put[p.Key]; twice {
			return fmt.Errorf("%w: key %q put twice", ErrInvalidTxn, p.Key)
		}
		put[p.Key] = struct{}{}
		for _, d := range t.DeletePrefixes {
			if strings.HasPrefix(p.Key, d) {
				return fmt.Errorf("%w: key %q put and its prefix %q deleted", ErrInvalidTxn, p.Key, d)
			}
		}
	}
	for _, d := range t.Deletes {
		if d == "" {
			return fmt.Errorf("%w: delete without a key", ErrInvalidTxn)
		}
		if _, both := put[d]; both {
			return fmt.Errorf("%w: key %q put and deleted", ErrInvalidTxn, d)
		}
	}
	for _, d := range t.DeletePrefixes {
		if d == "" {
			return fmt.Errorf("%w: delete without a prefix", ErrInvalidTxn)
		}
	}
	return nil
}
