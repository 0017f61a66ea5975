package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// The file of registrations.
const (
	fileName    = "registrations.json"
	fileVersion = 2
)

// contents is what the file holds. Fields are only ever added together with a
// new version: a program that does not know one must refuse the file rather
// than forget it at the next write.
type contents struct {
	Version       int                  `json:"version"`
	Registrations []model.Registration `json:"registrations"`
	// Checks (since version 2) are those of the whole node, and those that were
	// added to services which come from definition files.
	Checks []model.CheckSpec `json:"checks,omitempty"`
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
	renewed bool          // a client has registered: it is alive
	only    model.CheckID // what is renewed is this check; empty: all of them
	adopted bool          // the change came from the catalogue, which has it already
	file    bool          // the change came from the definition files
}

// renews reports whether a check begins anew.
func (t touch) renews(id model.CheckID) bool { return t.renewed && (t.only == "" || t.only == id) }

// queue is the changes that wait.
type queue struct {
	mu      sync.Mutex // guards the following
	waiting []*change
}

func (q *queue) add(changes []*change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, changes...)
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

// do brings changes about through apply, together with everything else that
// waits, and returns when they are durable or have failed.
func (j *journal) do(apply func([]*change), changes ...*change) error {
	j.queue.add(changes)
	j.mu.Lock()
	defer j.mu.Unlock()
	// Whoever had the lock before may have taken them along; then it is over.
	if batch := j.queue.take(); len(batch) > 0 {
		apply(batch)
	}
	var errs []error
	for _, c := range changes {
		if c.err != nil && !slices.Contains(errs, c.err) {
			errs = append(errs, c.err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// load reads the file; a missing one is empty. Everything is read or nothing:
// a registration that got lost here would be taken out of the catalogue.
func (j *journal) load(me model.NodeName) (contents, error) {
	if j.path == "" {
		return contents{}, nil
	}
	data, err := os.ReadFile(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return contents{}, nil
	}
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	c, err := decode(data, me)
	if err != nil {
		return contents{}, fmt.Errorf("%w %s: %w. Repair it, restore it from a backup, or move it away: "+
			"the agent then starts without this node's services, and they have to be registered again", ErrFile, j.path, err)
	}
	return c, nil
}

func decode(data []byte, me model.NodeName) (contents, error) {
	var version struct{ Version int }
	if err := json.Unmarshal(data, &version); err != nil {
		return contents{}, fmt.Errorf("damaged: %w", err)
	}
	if version.Version < 1 || version.Version > fileVersion {
		return contents{}, fmt.Errorf("format version %d, this program knows versions 1 to %d", version.Version, fileVersion)
	}
	var c contents
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return contents{}, fmt.Errorf("damaged: %w", err)
	}
	services, checks := map[model.ServiceID]bool{}, map[model.CheckID]bool{}
	claim := func(spec model.CheckSpec) error {
		if checks[spec.ID] {
			return fmt.Errorf("check %q is there twice", spec.ID)
		}
		checks[spec.ID] = true
		return nil
	}
	for i, r := range c.Registrations {
		r, err := normalize(r, me)
		if err != nil {
			return contents{}, fmt.Errorf("registration %d: %w", i+1, err)
		}
		if services[r.Instance.ID] {
			return contents{}, fmt.Errorf("service %q is there twice", r.Instance.ID)
		}
		services[r.Instance.ID] = true
		for _, spec := range r.Checks {
			if err := claim(spec); err != nil {
				return contents{}, err
			}
		}
		c.Registrations[i] = r
	}
	for i, spec := range c.Checks {
		spec, err := normalizeCheck(spec)
		if err == nil {
			err = claim(spec)
		}
		if err != nil {
			return contents{}, fmt.Errorf("check %d: %w", i+1, err)
		}
		c.Checks[i] = spec
	}
	return c, nil
}

// save makes the contents durable: after a crash at any moment the file holds the
// old ones or the new ones, whole.
func (j *journal) save(c contents) error {
	if j.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(c, "", "  ")
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

// lasting is what the file has to hold of the registrations: all but what the
// definition files say again at the next start.
func lasting(regs map[model.ServiceID]*model.Registration) contents {
	c := contents{Version: fileVersion, Registrations: []model.Registration{}}
	for _, id := range slices.Sorted(maps.Keys(regs)) {
		r := *regs[id]
		declared := func(c model.CheckSpec) bool { return c.Declared }
		r.Checks = slices.DeleteFunc(slices.Clone(r.Checks), declared)
		if id == nodeEntry || r.Declared {
			c.Checks = append(c.Checks, r.Checks...)
		} else {
			c.Registrations = append(c.Registrations, r)
		}
	}
	return c
}
