package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// The file of registrations.
const (
	fileName    = "registrations.json"
	fileVersion = 1
)

// contents is what the file holds. Fields are only ever added together with a
// new version: a program that does not know one must refuse the file rather
// than forget it at the next write.
type contents struct {
	Version       int                  `json:"version"`
	Registrations []model.Registration `json:"registrations"`
}

// journal makes changes of the set of registrations one after the other and
// those that wait together at once.
type journal struct {
	path string // empty: memory only

	queue queue
	mu    sync.Mutex // held while a batch is written and installed
}

// change is one edit of one registration. edit gets the present one, nil if
// there is none, which it must not modify, and returns the one to have, nil to
// have none; the same pointer changes nothing. err is set when the change is
// over.
type change struct {
	id   model.ServiceID
	edit func(old *model.Registration) (*model.Registration, error)
	touch
	err error
}

// touch says what a change means beside what it changes.
type touch struct {
	renewed bool // a client has registered: it is alive
	adopted bool // the change came from the catalogue, which has it already
}

// queue is the changes that wait.
type queue struct {
	mu      sync.Mutex // guards the following
	waiting []*change
}

func (q *queue) add(c *change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, c)
}

func (q *queue) take() []*change {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	q.waiting = nil
	return all
}

func newJournal(dir string) *journal {
	if dir == "" {
		return &journal{}
	}
	return &journal{path: filepath.Join(dir, fileName)}
}

// do brings c about through apply, together with everything else that waits, and
// returns when it is durable or has failed.
func (j *journal) do(c *change, apply func([]*change)) error {
	j.queue.add(c)
	j.mu.Lock()
	defer j.mu.Unlock()
	// Whoever had the lock before may have taken c along; then it is over.
	if batch := j.queue.take(); len(batch) > 0 {
		apply(batch)
	}
	return c.err
}

// load reads the file; a missing one is empty. Everything is read or nothing:
// a registration that got lost here would be taken out of the catalogue.
func (j *journal) load(me model.NodeName) ([]model.Registration, error) {
	if j.path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	regs, err := decode(data, me)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w. Repair it, restore it from a backup, or move it away: "+
			"the agent then starts without this node's services, and they have to be registered again", ErrFile, j.path, err)
	}
	return regs, nil
}

func decode(data []byte, me model.NodeName) ([]model.Registration, error) {
	var version struct{ Version int }
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if version.Version != fileVersion {
		return nil, fmt.Errorf("format version %d, this program knows version %d", version.Version, fileVersion)
	}
	var c contents
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	services, checks := map[model.ServiceID]bool{}, map[model.CheckID]bool{}
	for i, r := range c.Registrations {
		r, err := normalize(r, me)
		if err != nil {
			return nil, fmt.Errorf("registration %d: %w", i+1, err)
		}
		if services[r.Instance.ID] {
			return nil, fmt.Errorf("service %q is there twice", r.Instance.ID)
		}
		services[r.Instance.ID] = true
		for _, spec := range r.Checks {
			if checks[spec.ID] {
				return nil, fmt.Errorf("check %q is there twice", spec.ID)
			}
			checks[spec.ID] = true
		}
		c.Registrations[i] = r
	}
	return c.Registrations, nil
}

// save makes the registrations durable: after a crash at any moment the file
// holds the old ones or the new ones, whole.
func (j *journal) save(regs []model.Registration) error {
	if j.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(contents{fileVersion, regs}, "", "  ")
	if err == nil {
		err = replace(j.path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	return nil
}

// replace writes data to path durably and atomically, readable by the owner only.
func replace(path string, data []byte) error {
	tmp := path + ".tmp"
	// One left by a crash could have other permissions.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := write(tmp, data); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, bytes.NewReader(data)); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// sorted returns the registrations in the file's order.
func sorted(regs map[model.ServiceID]*model.Registration) []model.Registration {
	ids := make([]model.ServiceID, 0, len(regs))
	for id := range regs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	all := make([]model.Registration, 0, len(ids))
	for _, id := range ids {
		all = append(all, *regs[id])
	}
	return all
}
