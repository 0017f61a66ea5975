// Package wire is what a change feed consists of: frames of records, from a
// server to an agent.
//
// A stream begins with one frame that says whether everything follows or what
// came after an index, of which run; it comes again when the reader has to start
// anew. Then come frames of records, and after each
// group a frame with the index at which they are complete; one without records
// before it is a sign of life. Only what agents hold can be written or read:
// never keys, sessions, tokens or secrets.
//
// A frame is its kind (1 byte), the length of its content (uvarint) and that. A
// record is its table and whether it is deleted (1 byte), its create and modify
// index (uvarints), and its length and JSON. An older reader skips fields that it
// does not know and refuses tables that it does not know.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Version is that of the format. A reader refuses any other.
const Version = 1

// MaxFrame bounds a frame's content, in bytes.
const MaxFrame = 4 << 20

// frameSize is where a writer begins another frame of records, in bytes.
const frameSize = 64 << 10

// Kind is what a frame is.
type Kind byte

// The kinds of frames.
const (
	// Begin opens a stream, or has the reader start anew.
	Begin Kind = 1 + iota
	// Records are some changes.
	Records
	// Commit says at which index the records since the one before are complete.
	Commit
)

// Frame is one frame as it is read.
type Frame struct {
	Kind  Kind
	Index model.Index // of Begin (what the reader has already, 0 with Full) and Commit
	Run   string      // of Begin: whose indexes these are
	Full  bool        // of Begin: what the reader has is to be replaced
	// Changes are those of Records.
	Changes []state.Change
}

// ErrFormat is for what is no stream of this version.
var ErrFormat = errors.New("not a change feed of this version")

// AppendBegin appends a Begin frame.
func AppendBegin(b []byte, index model.Index, run string, full bool) []byte {
	body := []byte{Version, 0}
	if full {
		body[1] = 1
	}
	body = binary.AppendUvarint(body, uint64(index))
	return appendFrame(b, Begin, append(body, run...))
}

// AppendCommit appends a Commit frame.
func AppendCommit(b []byte, index model.Index) []byte {
	return appendFrame(b, Commit, binary.AppendUvarint(nil, uint64(index)))
}

func appendFrame(b []byte, k Kind, body []byte) []byte {
	b = binary.AppendUvarint(append(b, byte(k)), uint64(len(body)))
	return append(b, body...)
}

// Writer gathers records into frames.
type Writer struct {
	b       []byte
	records []byte // of the frame that is not full yet
}

// Add writes one change. It is an error if agents do not hold such records.
func (w *Writer) Add(c *state.Change) error {
	t := tableOf(c)
	if t == 0 {
		return fmt.Errorf("%w: agents do not hold such a record", model.ErrInvalid)
	}
	record, stamp := t.record(c)
	text, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode %T: %w", record, err)
	}
	if len(text) > MaxFrame/2 {
		return fmt.Errorf("%w: a %T of %d bytes", model.ErrInvalid, record, len(text))
	}
	head := byte(t) << 1
	if c.Delete {
		head |= 1
	}
	w.records = append(w.records, head)
	w.records = binary.AppendUvarint(w.records, uint64(stamp.CreateIndex))
	w.records = binary.AppendUvarint(w.records, uint64(stamp.ModifyIndex))
	w.records = binary.AppendUvarint(w.records, uint64(len(text)))
	w.records = append(w.records, text...)
	if len(w.records) >= frameSize {
		w.flush()
	}
	return nil
}

func (w *Writer) flush() {
	if len(w.records) > 0 {
		w.b = appendFrame(w.b, Records, w.records)
		w.records = w.records[:0]
	}
}

// Commit ends the group and returns all its frames. The Writer may not be used
// any more.
func (w *Writer) Commit(index model.Index) []byte {
	w.flush()
	return AppendCommit(w.b, index)
}

// Everything is a whole stream with what agents hold of a snapshot.
func Everything(snap *state.Snapshot, run string) (stream []byte, err error) {
	w := Writer{b: AppendBegin(nil, 0, run, true)}
	snap.Catalogue(func(c state.Change) bool {
		err = w.Add(&c)
		return err == nil
	})
	return w.Commit(snap.Index()), err
}

// Reader reads frames.
type Reader struct {
	r     *bufio.Reader
	begun bool
}

// NewReader returns a Reader of a stream.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, frameSize)} }

// Next reads one frame. The error is io.EOF at the end of the stream between two
// frames, ErrFormat for what this version does not know.
func (r *Reader) Next() (Frame, error) {
	kind, err := r.r.ReadByte()
	if err != nil {
		return Frame{}, err
	}
	size, err := binary.ReadUvarint(r.r)
	if err != nil {
		return Frame{}, cut(err)
	}
	if size > MaxFrame {
		return Frame{}, fmt.Errorf("%w: a frame of %d bytes", ErrFormat, size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r.r, body); err != nil {
		return Frame{}, cut(err)
	}
	if !r.begun && Kind(kind) != Begin {
		return Frame{}, fmt.Errorf("%w: a frame of kind %d here", ErrFormat, kind)
	}
	r.begun = true
	return parse(Kind(kind), body)
}

// cut is the error of a stream that ends within a frame.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parse(k Kind, body []byte) (f Frame, err error) {
	f.Kind = k
	switch k {
	case Begin:
		if len(body) < 2 || body[0] != Version || body[1] > 1 {
			return f, fmt.Errorf("%w: its beginning", ErrFormat)
		}
		f.Full = body[1] == 1
		index, rest, err := uvarint(body[2:])
		f.Index, f.Run = model.Index(index), string(rest)
		return f, err
	case Commit:
		index, rest, err := uvarint(body)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("%w: a long index", ErrFormat)
		}
		f.Index = model.Index(index)
		return f, err
	case Records:
		for len(body) > 0 {
			var c state.Change
			if c, body, err = parseRecord(body); err != nil {
				return f, err
			}
			f.Changes = append(f.Changes, c)
		}
		return f, nil
	}
	return f, fmt.Errorf("%w: a frame of kind %d", ErrFormat, k)
}

func parseRecord(body []byte) (c state.Change, rest []byte, err error) {
	var numbers [3]uint64
	rest = body[1:]
	for i := range numbers {
		if numbers[i], rest, err = uvarint(rest); err != nil {
			return c, nil, err
		}
	}
	if numbers[2] > uint64(len(rest)) {
		return c, nil, fmt.Errorf("%w: a record is cut off", ErrFormat)
	}
	t := table(body[0] >> 1)
	into, stamp := t.blank(&c)
	if into == nil {
		return c, nil, fmt.Errorf("%w: table %d", ErrFormat, t)
	}
	if err := json.Unmarshal(rest[:numbers[2]], into); err != nil {
		return c, nil, fmt.Errorf("%w: a record of table %d: %w", ErrFormat, t, err)
	}
	c.Delete = body[0]&1 == 1
	stamp.CreateIndex, stamp.ModifyIndex = model.Index(numbers[0]), model.Index(numbers[1])
	return c, rest[numbers[2]:], nil
}

func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("%w: a number is cut off", ErrFormat)
	}
	return v, b[n:], nil
}
