package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Errors of Read. They come wrapped; compare with errors.Is.
var (
	// ErrFormat: what was given is no archive, or one of a version that is not
	// known here.
	ErrFormat = errors.New("not a snapshot of Fairlead")
	// ErrDamaged: the archive is not as it was written.
	ErrDamaged = errors.New("the snapshot is damaged")
	// ErrTooLarge: the archive unpacks to more than allowed.
	ErrTooLarge = errors.New("the snapshot is too large")
)

// Limits of one entry, in bytes: a hostile archive must not fill the memory. A
// record is at most 1 MiB, so an entry with records is at most two and a bit.
const (
	maxChunk = 4 << 20
	maxMeta  = 1 << 20
	maxSums  = 8 << 20
)

// Read reads an archive to its end, hands each record to each (which may be nil),
// and returns what the archive says of itself. What each was handed counts only
// if Read succeeds: damage may show at the end. The value is good until each
// returns. most bounds the bytes unpacked; 0 means no bound. An error of each
// ends it and is returned as it is; one of r's comes wrapped.
func Read(r io.Reader, most int64, each func(key string, value []byte) error) (model.SnapshotMeta, error) {
	in := &reader{each: each, left: most, bounded: most > 0}
	in.source = &source{r: r}
	in.raw = bufio.NewReaderSize(in.source, 64<<10)
	m, err := in.read()
	if in.source.err != nil {
		// Not the archive's fault.
		return m, fmt.Errorf("read the snapshot: %w", in.source.err)
	}
	return m, err
}

// source remembers why reading failed, as opposed to what was read.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

type reader struct {
	source  *source
	raw     *bufio.Reader
	tar     *tar.Reader
	each    func(string, []byte) error
	left    int64
	bounded bool
	buf     []byte
	sums    strings.Builder
	tally   tally
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

func (r *reader) read() (m model.SnapshotMeta, err error) {
	gz, err := gzip.NewReader(r.raw)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return m, fmt.Errorf("%w: it is empty", ErrFormat)
		}
		return m, fmt.Errorf("%w: it is no gzip file (%w)", ErrFormat, err)
	}
	gz.Multistream(false)
	r.tar = tar.NewReader(gz)
	if err := r.marker(); err != nil {
		return m, err
	}
	name, size, err := r.next()
	for n := 1; err == nil && name == chunkName(n); n++ {
		if err = r.chunk(name, size); err == nil {
			name, size, err = r.next()
		}
	}
	if err != nil {
		return m, err
	}
	if m, err = r.meta(name, size); err != nil {
		return m, err
	}
	if err := r.checkSums(); err != nil {
		return m, err
	}
	return m, r.end(gz)
}

// next goes to the next entry.
func (r *reader) next() (name string, size int64, err error) {
	h, err := r.tar.Next()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "", 0, damaged("it ends too early")
	}
	if err != nil {
		return "", 0, damaged("%w", err)
	}
	if h.Typeflag != tar.TypeReg {
		return "", 0, damaged("entry %q is no file", h.Name)
	}
	return h.Name, h.Size, nil
}

// entry reads the present entry whole, and notes its sum.
func (r *reader) entry(name string, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, damaged("entry %q has %d bytes, more than %d", name, size, limit)
	}
	if r.left -= size; r.bounded && r.left < 0 {
		return nil, ErrTooLarge
	}
	if r.sums.Len() > maxSums {
		return nil, damaged("it has more entries than its checksums may name")
	}
	if int64(cap(r.buf)) < size {
		r.buf = make([]byte, size)
	}
	b := r.buf[:size]
	if _, err := io.ReadFull(r.tar, b); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, damaged("it ends in the middle of entry %q", name)
		}
		return nil, damaged("entry %q: %w", name, err)
	}
	fmt.Fprintf(&r.sums, "%x  %s\n", sha256.Sum256(b), name)
	return b, nil
}

func (r *reader) marker() error {
	h, err := r.tar.Next()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrFormat, err)
	case h.Name == metaName:
		return fmt.Errorf("%w: it may be one of Consul's; 'fairlead import consul' moves a Consul's data here", ErrFormat)
	case h.Name != markerName || h.Typeflag != tar.TypeReg:
		return fmt.Errorf("%w: it begins with %q", ErrFormat, h.Name)
	}
	b, err := r.entry(h.Name, h.Size, 64)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, marker()) {
		return fmt.Errorf("%w that this version can read: its format is %q, this is version %d", ErrFormat, strings.TrimSpace(string(b)), Version)
	}
	return nil
}

// chunk takes one entry with records apart.
func (r *reader) chunk(name string, size int64) error {
	b, err := r.entry(name, size, maxChunk)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return damaged("entry %q is empty", name)
	}
	for len(b) > 0 {
		var key, value []byte
		var ok bool
		if key, b, ok = field(b); ok {
			value, b, ok = field(b)
		}
		if !ok {
			return damaged("entry %q ends in the middle of a record", name)
		}
		k := string(key)
		if err := r.tally.add(k, value); err != nil {
			return damaged("%w", err)
		}
		if r.each == nil {
			continue
		}
		if err := r.each(k, value); err != nil {
			return err
		}
	}
	return nil
}

// field cuts one field with its length before it off b.
func field(b []byte) (f, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}

func (r *reader) meta(name string, size int64) (m model.SnapshotMeta, err error) {
	if name != metaName {
		return m, damaged("entry %q stands where %q should", name, metaName)
	}
	b, err := r.entry(name, size, maxMeta)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, damaged("%s: %w", metaName, err)
	}
	if m.Version != Version {
		return m, damaged("%s says version %d", metaName, m.Version)
	}
	if m.Records != r.tally.records || m.Bytes != r.tally.bytes || !maps.Equal(m.Tables, r.tally.tables) {
		return m, damaged("it holds %d records and %d bytes, but says %d and %d", r.tally.records, r.tally.bytes, m.Records, m.Bytes)
	}
	return m, nil
}

func (r *reader) checkSums() error {
	want := r.sums.String()
	name, size, err := r.next()
	if err != nil {
		return err
	}
	if name != sumsName {
		return damaged("entry %q stands where %q should", name, sumsName)
	}
	got, err := r.entry(name, size, maxSums)
	if err != nil {
		return err
	}
	if string(got) != want {
		return damaged("its checksums do not match")
	}
	return nil
}

// end makes sure that nothing follows, and that gzip's own sum is right.
func (r *reader) end(gz *gzip.Reader) error {
	if _, err := r.tar.Next(); !errors.Is(err, io.EOF) {
		return damaged("something follows its last entry")
	}
	switch n, err := io.CopyN(io.Discard, gz, 1); {
	case n > 0:
		return damaged("something follows its last entry")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("it ends too early")
	case !errors.Is(err, io.EOF):
		return damaged("%w", err)
	}
	if _, err := r.raw.ReadByte(); !errors.Is(err, io.EOF) {
		return damaged("something follows its end")
	}
	return nil
}
