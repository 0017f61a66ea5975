package registry_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

func TestPutKV(t *testing.T) {
	e := setup(t)
	put := func(value string, cas *model.Index) bool {
		t.Helper()
		ok, index, err := e.PutKV(t.Context(), model.KV{Key: "a/b", Value: []byte(value), Flags: 7}, cas)
		e.must(index, err)
		return ok
	}
	mod := func() *model.Index { kv, _ := e.snap().KV("a/b"); return new(kv.ModifyIndex) }

	if !put("1", new(model.Index(0))) {
		t.Error("cas=0 of a new key: false")
	}
	kv, _ := e.snap().KV("a/b")
	if string(kv.Value) != "1" || kv.Flags != 7 || kv.Owner != model.OwnerOperator || kv.CreateIndex != kv.ModifyIndex {
		t.Errorf("entry = %+v", kv)
	}
	e.unwritten(func() {
		if put("2", new(model.Index(0))) {
			t.Error("cas=0 of an existing key: true")
		}
		if put("2", new(*mod()+1)) {
			t.Error("cas with another index: true")
		}
		if !put("1", nil) {
			t.Error("unchanged put: false")
		}
		if !put("1", mod()) {
			t.Error("unchanged cas put: false")
		}
	})
	if !put("2", mod()) {
		t.Error("cas with the right index: false")
	}
	if !put("3", nil) {
		t.Error("plain put: false")
	}
	if kv, _ := e.snap().KV("a/b"); string(kv.Value) != "3" {
		t.Errorf("value = %q", kv.Value)
	}
}

// A plain put of a changed value compares nothing, so nothing can be in its way.
func TestPlainPutIsBlind(t *testing.T) {
	e := setup(t)
	_, index, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: []byte("1")}, nil)
	e.must(index, err)
	last := e.txns[len(e.txns)-1]
	if len(last.Compares) != 0 || len(last.Puts) != 1 || last.Puts[0].Key != store.KVKey("a") {
		t.Errorf("transaction = %+v", last)
	}
}

func TestCASAgainstAConcurrentWrite(t *testing.T) {
	e := setup(t)
	_, index, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: []byte("1")}, nil)
	e.must(index, err)
	kv, _ := e.snap().KV("a")
	e.before = func() {
		_, _, err := e.PutKV(context.Background(), model.KV{Key: "a", Value: []byte("other")}, nil)
		if err != nil {
			t.Error(err)
		}
	}
	ok, index, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: []byte("2")}, &kv.ModifyIndex)
	if ok || err != nil || index != e.revision() {
		t.Errorf("ok %v at %d, error %v; want false at %d", ok, index, err, e.revision())
	}
	if kv, _ := e.snap().KV("a"); string(kv.Value) != "other" {
		t.Errorf("value = %q, the other's write is lost", kv.Value)
	}
}

func TestDeleteKV(t *testing.T) {
	e := setup(t)
	for _, k := range []string{"a", "a/1", "a/2", "ab", "b"} {
		_, index, err := e.PutKV(t.Context(), model.KV{Key: k}, nil)
		e.must(index, err)
	}
	kv, _ := e.snap().KV("b")
	tests := []struct {
		name    string
		key     string
		cas     *model.Index
		ok      bool
		written bool
	}{
		{"cas with another index", "b", new(kv.ModifyIndex + 1), false, false},
		{"cas=0 of an existing key", "b", new(model.Index(0)), false, false},
		{"cas with the right index", "b", new(kv.ModifyIndex), true, true},
		{"what is not there", "b", nil, true, false},
		{"what is not there, with cas", "b", new(kv.ModifyIndex), true, false},
		{"plain", "ab", nil, true, true},
	}
	for _, tt := range tests {
		before := e.revision()
		ok, index, err := e.DeleteKV(t.Context(), tt.key, tt.cas)
		e.must(index, err)
		if ok != tt.ok || (e.revision() != before) != tt.written {
			t.Errorf("%s: %v, written %v; want %v, %v", tt.name, ok, e.revision() != before, tt.ok, tt.written)
		}
	}
	index, err := e.DeleteKVTree(t.Context(), "a/")
	e.must(index, err)
	list, mark := e.snap().KVTree("")
	if len(list) != 1 || list[0].Key != "a" || mark.Index != index {
		t.Errorf("left: %v at %d, want only a at %d", list, mark.Index, index)
	}
	e.unwritten(func() { e.must(e.DeleteKVTree(t.Context(), "a/")) })
}

func TestKVRefusals(t *testing.T) {
	e := setup(t)
	if _, _, err := e.PutKV(t.Context(), model.KV{}, nil); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("empty key: %v", err)
	}
	if _, _, err := e.DeleteKV(t.Context(), "", nil); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("delete of the empty key: %v", err)
	}
	value := bytes.Repeat([]byte{1}, registry.MaxValue)
	if ok, _, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: value}, nil); !ok || err != nil {
		t.Errorf("value at the limit: %v", err)
	}
	if _, _, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: append(value, 1)}, nil); !errors.Is(err, registry.ErrValueTooLarge) {
		t.Errorf("value over the limit: %v", err)
	}
}
