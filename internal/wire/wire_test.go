package wire

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func stamp(n model.Index) model.Stamp {
	return model.Stamp{Owner: model.NodeOwner("web"), CreateIndex: n, ModifyIndex: n + 1}
}

// some is a change of every table that agents hold.
func some() []state.Change {
	return []state.Change{
		{Node: &model.Node{Name: "web", Address: "10.0.0.1", Meta: map[string]string{"a": "b"}, Stamp: stamp(1)}},
		{Instance: &model.Instance{Node: "web", ID: "api-1", Service: "api", Tags: []string{"v1"}, Port: 80, Stamp: stamp(2)}},
		{Check: &model.Check{Node: "web", ID: "c", Status: model.Warning, Output: "\xff is no text? it is", Stamp: stamp(3)}},
		{VIP: &model.VIP{Service: "api", V4: netip.MustParseAddr("198.18.0.1"), V6: netip.MustParseAddr("fd00::1"), Stamp: stamp(4)}},
		{Network: &model.Network{Name: "net", Driver: model.DriverBridge, Stamp: stamp(5)}},
		{Endpoint: &model.Endpoint{ID: "e1", Network: "net", Node: "web", Stamp: stamp(6)}},
		{Lease: &model.AddressLease{Network: "net", Addr: netip.MustParseAddr("10.1.0.2"), Endpoint: "e1", Stamp: stamp(7)}},
		{CARoot: &model.CARoot{ID: "aa", Active: true, Stamp: stamp(8)}},
		{Delete: true, Node: &model.Node{Name: "gone"}},
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	var w Writer
	for _, c := range some() {
		if c.Check != nil {
			c.Check.Output = "text"
		}
		if err := w.Add(&c); err != nil {
			t.Fatal(err)
		}
	}
	stream := append(AppendBegin(nil, 7, "r1", true), w.Commit(9)...)
	r := NewReader(bytes.NewReader(stream))
	want := some()
	want[2].Check.Output = "text"
	for _, f := range []Frame{{Kind: Begin, Index: 7, Run: "r1", Full: true}, {Kind: Records, Changes: want}, {Kind: Commit, Index: 9}} {
		got, err := r.Next()
		if err != nil || !reflect.DeepEqual(got, f) {
			t.Fatalf("%+v, %v; want %+v", got, err, f)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for n := range len(stream) - 1 {
		r := NewReader(bytes.NewReader(stream[:n+1]))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, ErrFormat) {
			t.Errorf("cut off after %d bytes: %v", n+1, err)
		}
	}
}

// TestNothingElseLeavesAServer looks at every kind of record there is: one that is
// added to the state is either in the format or a servers' own.
func TestNothingElseLeavesAServer(t *testing.T) {
	own := map[string]bool{
		"KV": true, "Session": true, "Alive": true, "LockDelay": true, "Query": true, "Token": true, "Policy": true, "Role": true,
		"CAKey": true, "Setting": true,
	}
	fields := reflect.TypeFor[state.Change]()
	for i := range fields.NumField() {
		field := fields.Field(i)
		if field.Type.Kind() != reflect.Pointer {
			continue
		}
		var c state.Change
		reflect.ValueOf(&c).Elem().Field(i).Set(reflect.New(field.Type.Elem()))
		var w Writer
		if err := w.Add(&c); (err != nil) != own[field.Name] || Carries(&c) == own[field.Name] {
			t.Errorf("%s: %v, in the catalogue: %v", field.Name, err, Carries(&c))
		}
	}
}

func TestASnapshotIsAStreamOfAllThatAgentsHold(t *testing.T) {
	st := state.New()
	all := some()
	st.Reset(12, slices.Concat(all[:len(all)-1], []state.Change{{KV: &model.KV{Key: "secret"}}}))
	stream, err := Everything(st.Snapshot(), "r1")
	if err != nil {
		t.Fatal(err)
	}
	tables, at := map[table]bool{}, model.Index(0)
	for r := NewReader(bytes.NewReader(stream)); ; {
		f, err := r.Next()
		if err != nil {
			break
		}
		at = f.Index
		for _, c := range f.Changes {
			tables[tableOf(&c)] = true
		}
	}
	if len(tables) != len(all)-1 || at != 12 {
		t.Errorf("%d tables at %d", len(tables), at)
	}
}

func TestManyRecordsAreManyFrames(t *testing.T) {
	var w Writer
	const n = 3000
	for range n {
		if err := w.Add(&state.Change{Node: &model.Node{Name: "web", Address: "10.0.0.1"}}); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(bytes.NewReader(append(AppendBegin(nil, 0, "", false), w.Commit(1)...)))
	frames, records := 0, 0
	for {
		f, err := r.Next()
		if err != nil {
			break
		}
		if f.Kind == Records {
			frames++
			records += len(f.Changes)
		}
	}
	if frames < 2 || records != n {
		t.Errorf("%d records in %d frames", records, frames)
	}
}

func TestWhatIsNoFeedIsRefused(t *testing.T) {
	begin := AppendBegin(nil, 0, "r", true)
	for name, stream := range map[string][]byte{
		"no beginning":       AppendCommit(nil, 1),
		"another version":    appendFrame(nil, Begin, []byte{Version + 1, 0, 0}),
		"an unknown kind":    appendFrame(bytes.Clone(begin), 9, nil),
		"an unknown table":   appendFrame(bytes.Clone(begin), Records, []byte{99 << 1, 1, 1, 2, '{', '}'}),
		"a long record":      appendFrame(bytes.Clone(begin), Records, []byte{byte(tableNode) << 1, 1, 1, 200, 1, '{', '}'}),
		"a record, no JSON":  appendFrame(bytes.Clone(begin), Records, []byte{byte(tableNode) << 1, 1, 1, 2, '{', '{'}),
		"a huge frame":       {byte(Begin), 0xff, 0xff, 0xff, 0xff, 0x0f},
		"a commit too long":  appendFrame(bytes.Clone(begin), Commit, []byte{1, 1}),
		"a number without e": appendFrame(bytes.Clone(begin), Commit, []byte{0x80}),
	} {
		r := NewReader(bytes.NewReader(stream))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	var w Writer
	for _, c := range some() {
		if err := w.Add(&c); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(append(AppendBegin(nil, 7, "r1", true), w.Commit(9)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		for {
			frame, err := r.Next()
			if err != nil {
				return
			}
			for _, c := range frame.Changes {
				if !Carries(&c) {
					t.Fatalf("%+v", c)
				}
			}
		}
	})
}
