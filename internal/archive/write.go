package archive

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Version is the format's.
const Version = 1

// Names of the entries.
const (
	markerName = "fairlead-snapshot"
	metaName   = "meta.json"
	sumsName   = "SHA256SUMS"
)

// chunkBytes is the size from which on records go into another entry.
const chunkBytes = 1 << 20

func marker() []byte { return fmt.Appendf(nil, "%d\n", Version) }

func chunkName(n int) string { return fmt.Sprintf("records/%06d", n) }

// tableOf is the name of the table that a key belongs to: what stands before its
// first slash.
func tableOf(key string) string {
	table, _, _ := strings.Cut(key, "/")
	return table
}

// tally counts what goes into an archive, or comes out of one.
type tally struct {
	tables  map[string]int
	records int
	bytes   int64
	last    string // the newest key
}

// add counts one record; its key has to be greater than the one before.
func (t *tally) add(key string, value []byte) error {
	if t.records > 0 && key <= t.last {
		return fmt.Errorf("key %q does not follow %q", key, t.last)
	}
	if t.tables == nil {
		t.tables = map[string]int{}
	}
	t.tables[tableOf(key)]++
	t.records++
	t.bytes += int64(len(key)) + int64(len(value))
	t.last = key
	return nil
}

// Writer writes one archive.
type Writer struct {
	gz    *gzip.Writer
	tar   *tar.Writer
	now   time.Time
	sums  strings.Builder
	chunk []byte
	count int // entries with records
	tally tally
}

// NewWriter begins an archive on w.
func NewWriter(w io.Writer, now time.Time) (*Writer, error) {
	gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	out := &Writer{gz: gz, tar: tar.NewWriter(gz), now: now.UTC().Truncate(time.Second)}
	if err := out.entry(markerName, marker()); err != nil {
		return nil, err
	}
	return out, nil
}

// Add writes one record. Keys have to rise.
func (w *Writer) Add(key string, value []byte) error {
	if err := w.tally.add(key, value); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	w.chunk = binary.AppendUvarint(w.chunk, uint64(len(key)))
	w.chunk = append(w.chunk, key...)
	w.chunk = binary.AppendUvarint(w.chunk, uint64(len(value)))
	w.chunk = append(w.chunk, value...)
	if len(w.chunk) < chunkBytes {
		return nil
	}
	return w.flush()
}

// Close ends the archive and returns m completed with version, time and counts.
// It does not close what the archive is written to.
func (w *Writer) Close(m model.SnapshotMeta) (model.SnapshotMeta, error) {
	if err := w.flush(); err != nil {
		return m, err
	}
	m.Version, m.Time = Version, w.now
	m.Tables, m.Records, m.Bytes = w.tally.tables, w.tally.records, w.tally.bytes
	if m.Tables == nil {
		m.Tables = map[string]int{}
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, fmt.Errorf("write archive: %w", err)
	}
	if err := w.entry(metaName, append(b, '\n')); err != nil {
		return m, err
	}
	if err := w.entry(sumsName, []byte(w.sums.String())); err != nil {
		return m, err
	}
	if err := errors.Join(w.tar.Close(), w.gz.Close()); err != nil {
		return m, fmt.Errorf("write archive: %w", err)
	}
	return m, nil
}

func (w *Writer) flush() error {
	if len(w.chunk) == 0 {
		return nil
	}
	w.count++
	err := w.entry(chunkName(w.count), w.chunk)
	w.chunk = w.chunk[:0]
	return err
}

func (w *Writer) entry(name string, body []byte) error {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o600, ModTime: w.now, Format: tar.FormatUSTAR}
	if err := w.tar.WriteHeader(&h); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if _, err := w.tar.Write(body); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	fmt.Fprintf(&w.sums, "%x  %s\n", sha256.Sum256(body), name)
	return nil
}
