package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// sample is an archive with a few records, and more than one entry of them.
func sample(t testing.TB, extra int) (archived []byte, records map[string]string) {
	t.Helper()
	records = map[string]string{"kv/": "empty key", "kv/a\x00\xff/b": "", "node/n1": "{}", "setting/x": strings.Repeat("v", extra)}
	var b bytes.Buffer
	w, err := NewWriter(&b, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"kv/", "kv/a\x00\xff/b", "node/n1", "setting/x"} {
		if err := w.Add(k, []byte(records[k])); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(model.SnapshotMeta{Index: 7, Node: "n1", Site: "dc1"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), records
}

func collect(b []byte, most int64) (model.SnapshotMeta, map[string]string, error) {
	got := map[string]string{}
	m, err := Read(bytes.NewReader(b), most, func(k string, v []byte) error {
		got[k] = string(v)
		return nil
	})
	return m, got, err
}

func TestRoundTrip(t *testing.T) {
	for _, extra := range []int{0, 10, chunkBytes, 2 * chunkBytes} {
		b, want := sample(t, extra)
		m, got, err := collect(b, 0)
		if err != nil {
			t.Fatalf("%d bytes: %v", extra, err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%d bytes: records differ", extra)
		}
		if m.Version != Version || m.Index != 7 || m.Node != "n1" || m.Site != "dc1" || !m.Time.Equal(noon) ||
			m.Records != 4 || !maps.Equal(m.Tables, map[string]int{"kv": 2, "node": 1, "setting": 1}) {
			t.Errorf("%d bytes: %+v", extra, m)
		}
	}
}

func TestNothingInIt(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(model.SnapshotMeta{}); err != nil {
		t.Fatal(err)
	}
	if m, got, err := collect(b.Bytes(), 0); err != nil || len(got) != 0 || m.Records != 0 {
		t.Errorf("%+v, %v, %v", m, got, err)
	}
}

// Whatever is cut off is noticed.
func TestTruncated(t *testing.T) {
	b, _ := sample(t, 10)
	for n := range len(b) {
		if _, _, err := collect(b[:n], 0); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
}

// A flipped bit is noticed, or changes nothing (some bits of gzip's own format
// mean nothing).
func TestFlippedBits(t *testing.T) {
	b, want := sample(t, 10)
	harmless := 0
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		m, got, err := collect(bad, 0)
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrFormat):
		case err == nil && m.Index == 7 && maps.Equal(got, want):
			harmless++
		default:
			t.Fatalf("bit %d of byte %d: %v", i%8, i/8, err)
		}
	}
	if harmless > 12*8 { // gzip's header, and what fills up its last byte
		t.Errorf("%d bits mean nothing", harmless)
	}
}

// file is one entry of an archive made by hand.
type file struct{ name, body string }

func pack(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	w := tar.NewWriter(gz)
	for _, f := range files {
		h := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.body)), Mode: 0o600}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRefused(t *testing.T) {
	good, _ := sample(t, 10)
	head := file{markerName, "1\n"}
	for name, tt := range map[string]struct {
		in   []byte
		want error
		says string
	}{
		"nothing":               {nil, ErrFormat, "it is empty"},
		"text":                  {[]byte("hello, this is no archive"), ErrFormat, ""},
		"another tar":           {pack(t, file{"hello", "x"}), ErrFormat, `begins with "hello"`},
		"one of Consul's":       {pack(t, file{"meta.json", "{}"}, file{"state.bin", ""}), ErrFormat, "fairlead import consul"},
		"a later version":       {pack(t, file{markerName, "2\n"}), ErrFormat, `format is "2"`},
		"nothing behind":        {pack(t, head), ErrDamaged, "ends too early"},
		"a strange entry":       {pack(t, head, file{"x", ""}), ErrDamaged, `entry "x" stands where "meta.json" should`},
		"entries out of order":  {pack(t, head, file{"records/000002", "\x01a\x00"}), ErrDamaged, "stands where"},
		"an empty entry":        {pack(t, head, file{"records/000001", ""}), ErrDamaged, "is empty"},
		"half a record":         {pack(t, head, file{"records/000001", "\x01a\x05b"}), ErrDamaged, "middle of a record"},
		"keys out of order":     {pack(t, head, file{"records/000001", "\x01b\x00\x01a\x00"}), ErrDamaged, "does not follow"},
		"a key twice":           {pack(t, head, file{"records/000001", "\x01b\x00\x01b\x00"}), ErrDamaged, "does not follow"},
		"a huge entry":          {pack(t, head, file{"records/000001", strings.Repeat("x", maxChunk+1)}), ErrDamaged, "more than"},
		"wrong counts":          {pack(t, head, file{metaName, `{"version":1,"tables":{},"records":1}`}), ErrDamaged, "but says 1"},
		"no JSON":               {pack(t, head, file{metaName, `{`}), ErrDamaged, "meta.json"},
		"no sums":               {pack(t, head, file{metaName, `{"version":1,"tables":{}}`}), ErrDamaged, "ends too early"},
		"wrong sums":            {pack(t, head, file{metaName, `{"version":1,"tables":{}}`}, file{sumsName, "x"}), ErrDamaged, "checksums do not match"},
		"something behind":      {append(bytes.Clone(good), 'x'), ErrDamaged, "follows its end"},
		"a second archive":      {append(bytes.Clone(good), good...), ErrDamaged, "follows its end"},
		"a tar behind the tar":  {twice(t, good), ErrDamaged, "follows its last entry"},
		"an entry behind":       {behind(t, good), ErrDamaged, "follows its last entry"},
		"cut off in the middle": {good[:len(good)/2], ErrDamaged, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := collect(tt.in, 0)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
	if _, _, err := collect(good, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("over its bound: %v", err)
	}
}

func unpack(t *testing.T, archived []byte) []byte {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(archived))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(gz)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compress(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	_, err := gz.Write(b)
	if err := errors.Join(err, gz.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// twice is an archive with its tar in it twice.
func twice(t *testing.T, archived []byte) []byte {
	plain := unpack(t, archived)
	return compress(t, append(plain, plain...))
}

// behind is an archive with one more entry at its end.
func behind(t *testing.T, archived []byte) []byte {
	plain := unpack(t, archived)
	more := unpack(t, pack(t, file{"more", "x"}))
	return compress(t, append(plain[:len(plain)-1024:len(plain)-1024], more...))
}

// A source that fails is not the archive's fault, and a reader's refusal is its
// own.
func TestForeignErrors(t *testing.T) {
	b, _ := sample(t, 10)
	broken := errors.New("connection reset")
	_, err := Read(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(broken)), 0, nil)
	if !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
		t.Errorf("broken source: %v", err)
	}
	refusal := fmt.Errorf("not this one")
	if _, err := Read(bytes.NewReader(b), 0, func(string, []byte) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("refusing reader: %v", err)
	}
}

func TestWriterRefusesDisorder(t *testing.T) {
	w, err := NewWriter(io.Discard, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add("b", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("a", nil); err == nil {
		t.Error("a key that goes back was taken")
	}
}

// FuzzRead: no input breaks the reader, and what it accepts it reads alike
// twice.
func FuzzRead(f *testing.F) {
	good, _ := sample(f, 10)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 1 << 20
		m, got, err := collect(b, most)
		if err != nil {
			return
		}
		if m.Records != len(got) {
			t.Errorf("%d records, says %d", len(got), m.Records)
		}
		var again bytes.Buffer
		w, err := NewWriter(&again, noon)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(b), most, w.Add); err != nil {
			t.Fatalf("the second time: %v", err)
		}
		if _, err := w.Close(m); err != nil {
			t.Fatal(err)
		}
		if _, copied, err := collect(again.Bytes(), 0); err != nil || !maps.Equal(copied, got) {
			t.Errorf("written again: %v", err)
		}
	})
}

// FuzzRecords is FuzzRead behind gzip and tar, where chance does not get.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x01a\x00\x01b\x03xyz"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a"))
	f.Fuzz(func(t *testing.T, records []byte) {
		_, _, err := collect(pack(t, file{markerName, "1\n"}, file{"records/000001", string(records)}), 0)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("without meta.json: %v", err)
		}
	})
}
