package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// fileName is the name of the file of registrations in the data directory.
const fileName = "registrations.json"

// minGarbage is how many bytes of overtaken records the file may hold at least
// before it is written anew without them.
const minGarbage = 256 << 10

// file is the file of registrations: a header and, appended to it, one line per
// batch of changes (lines.go). It belongs to one goroutine at a time.
//
// A line is acknowledged once it is synced, so after a crash only the last one
// can be torn, and nobody was told of that. When a line could not be written or
// synced, the file cannot be trusted any more: what the page cache shows may be
// lost later without a word. It is then replaced as a whole, as it is to drop what
// has been overtaken, and by the first change after a start that found an older
// format or a torn line.
type file struct {
	path string // empty: memory only
	open opener

	f       handle                     // nil if the file is to be replaced before anything is appended
	size    int64                      // of the file
	live    map[model.ServiceID][]byte // the newest record of each id
	used    int64                      // bytes of live
	rewrite bool                       // nothing may be appended: see above
	room    int64                      // bytes of garbage at which the file is written anew
}

// handle is an open file.
type handle interface {
	io.Writer
	// Sync makes what was written durable, and the size with it.
	Sync() error
	Truncate(size int64) error
	Close() error
}

// opener opens a file to append to it or, exclusively, creates it. Tests put a
// faulty one in its place.
type opener func(path string, create bool) (handle, error)

// osFile is a handle of the operating system.
type osFile struct{ *os.File }

// Sync leaves out what reading does not need, such as times.
func (f osFile) Sync() error { return unix.Fdatasync(int(f.Fd())) }

func openFile(path string, create bool) (handle, error) {
	flags := os.O_WRONLY | os.O_APPEND
	if create {
		flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func newFile(dir string) *file {
	f := &file{open: openFile, live: map[model.ServiceID][]byte{}, rewrite: true}
	if dir != "" {
		f.path = filepath.Join(dir, fileName)
	}
	return f
}

// load reads the file; a missing one is empty. Everything is read or nothing:
// a registration that got lost here would be taken out of the catalogue.
func (f *file) load(me model.NodeName) (contents, error) {
	if f.path == "" {
		return contents{}, nil
	}
	data, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return contents{}, nil
	}
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	c, whole, err := decode(data, me)
	if err == nil {
		err = f.took(c)
	}
	if err != nil {
		return contents{}, fmt.Errorf("%w %s: %w. Repair it, restore it from a backup, or move it away: "+
			"the agent then starts without this node's services, and they have to be registered again", ErrFile, f.path, err)
	}
	f.size, f.room, f.rewrite = int64(len(data)), max(minGarbage, 2*f.used), !whole
	return c, nil
}

// took notes what the file holds.
func (f *file) took(c contents) error {
	alone := map[model.ServiceID][]model.CheckSpec{}
	for _, spec := range c.Checks {
		alone[spec.ServiceID] = append(alone[spec.ServiceID], spec)
	}
	for _, r := range c.Registrations {
		// A file of version 2 may name checks of such a service by themselves.
		id := r.Instance.ID
		r.Checks = slices.Concat(r.Checks, alone[id])
		delete(alone, id)
		if err := f.note(id, record{Put: &r}); err != nil {
			return err
		}
	}
	for id, checks := range alone {
		if err := f.note(id, record{ID: id, Checks: checks}); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) note(id model.ServiceID, rec record) error {
	b, err := rec.encode()
	if err == nil {
		f.set(id, b)
	}
	return err
}

// set notes what an id's newest record is; nil if there is none.
func (f *file) set(id model.ServiceID, b []byte) {
	f.used += int64(len(b) - len(f.live[id]))
	if b == nil {
		delete(f.live, id)
		return
	}
	f.live[id] = b
}

// save makes the newest records of some ids durable, nil being that there is
// none. After a crash at any moment the file holds all of them or none. It returns
// after an error as if it had not been called, but for the case that the machine
// crashes before the next save: then the file may hold them.
func (f *file) save(next map[model.ServiceID][]byte) error {
	records := make([][]byte, 0, len(next))
	before := make(map[model.ServiceID][]byte, len(next))
	for id, b := range next {
		old, had := f.live[id]
		switch {
		case b == nil && had:
			gone, err := record{ID: id}.encode()
			if err != nil {
				return fmt.Errorf("%w: %w", ErrFile, err)
			}
			records = append(records, gone)
		case b != nil && !bytes.Equal(b, old):
			records = append(records, b)
		}
		before[id] = old
	}
	if len(records) == 0 || f.path == "" {
		return nil
	}
	f.take(next)
	if err := f.write(records); err != nil {
		f.take(before)
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	return nil
}

// write makes live durable, which has changed by records.
func (f *file) write(records [][]byte) error {
	if !f.rewrite && f.size-f.used < f.room {
		if f.append(line(records)) == nil {
			return nil
		}
		return f.replace()
	}
	err := f.replace()
	if err != nil && !f.rewrite && f.append(line(records)) == nil {
		f.room += minGarbage // there is no room for a second file: later
		return nil
	}
	return err
}

func (f *file) take(next map[model.ServiceID][]byte) {
	for id, b := range next {
		f.set(id, b)
	}
}

// append adds a line. After a failure nothing may be appended any more, and what
// was written of the line is taken back as well as that can be.
func (f *file) append(b []byte) error {
	if f.f == nil {
		h, err := f.open(f.path, false)
		if err != nil {
			f.rewrite = true
			return err
		}
		f.f = h
	}
	err := writeAll(f.f, b)
	if err != nil {
		f.rewrite = true
		err = errors.Join(err, f.f.Truncate(f.size))
		f.close()
		return err
	}
	f.size += int64(len(b))
	return nil
}

// writeAll writes and syncs.
func writeAll(h handle, b []byte) error {
	n, err := h.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	return h.Sync()
}

func (f *file) close() {
	if f.f != nil {
		_ = f.f.Close() // everything acknowledged is synced
		f.f = nil
	}
}

// replace writes the live records into a fresh file, which takes the place of
// the present one once it is durable. It is readable by the owner only. If it
// fails with rewrite false, the present file is still as good as it was.
func (f *file) replace() error {
	tmp := f.path + ".tmp"
	// One left by a crash could have other permissions.
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return err
	}
	records := make([][]byte, 0, len(f.live))
	for _, id := range slices.Sorted(maps.Keys(f.live)) {
		records = append(records, f.live[id])
	}
	data := fresh(records)
	h, err := f.open(tmp, true)
	if err != nil {
		return err
	}
	if err = writeAll(h, data); err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		return errors.Join(err, h.Close(), ignoreMissing(os.Remove(tmp)))
	}
	f.rewrite = true
	f.close()
	f.f, f.size, f.room = h, int64(len(data)), max(minGarbage, 2*f.used)
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return err
	}
	f.rewrite = false
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
