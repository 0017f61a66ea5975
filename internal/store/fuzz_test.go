package store

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/archive"
)

// FuzzKVKeys: any bytes make a KV key that stays itself, in its table and under
// its prefixes.
func FuzzKVKeys(f *testing.F) {
	for _, k := range []string{"", "a", "/", "a/b", "//", "%2F", "\x00\xff", "lock/a", "../node/n1"} {
		f.Add(k, "a")
	}
	f.Fuzz(func(t *testing.T, k, other string) {
		for table, key := range map[string]string{tableKV: KVKey(k), tableKVLock: KVLockKey(k), tableDelay: LockDelayKey(k)} {
			if got, name, err := split(key); err != nil || got != table || len(name) != 1 || name[0] != k {
				t.Errorf("split(%q) = %s, %q, %v", key, got, name, err)
			}
		}
		if strings.HasPrefix(KVKey(k), KVPrefix(other)) != strings.HasPrefix(k, other) {
			t.Errorf("%q and the prefix %q", k, other)
		}
		if strings.HasPrefix(KVLockKey(k), KVPrefix("")) {
			t.Errorf("the lock of %q is among the values", k)
		}
	})
}

// FuzzSegments: any names make a key of their own.
func FuzzSegments(f *testing.F) {
	f.Add("a", "b", "a/b", "")
	f.Add("a%2F", "b", "a", "/b")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		k := key(tableUnique, a, b)
		if _, rest, err := split(k); err != nil || len(rest) != 2 || rest[0] != a || rest[1] != b {
			t.Errorf("split(%q) = %q, %v", k, rest, err)
		}
		if same := a == c && b == d; (k == key(tableUnique, c, d)) != same {
			t.Errorf("%q %q and %q %q", a, b, c, d)
		}
	})
}

// FuzzRecords: no key and value break the decoder, and what it takes it takes
// again after it was written.
func FuzzRecords(f *testing.F) {
	f.Add("kv/a", []byte("\x03\x00\x00value"))
	f.Add("node/n1", []byte("\x01{\"name\":\"n1\"}"))
	f.Add("session/s", []byte("\x01{\"ttl\":1}"))
	f.Add("lease/net/10.0.0.1", []byte("\x01{}"))
	f.Add("unique/a/b", []byte("\x02x"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if err := checkRecord(key, value); err != nil && !errors.Is(err, archive.ErrDamaged) && !errors.Is(err, archive.ErrFormat) {
			t.Errorf("check %q: %v", key, err)
		}
		_, _, _ = DecodeDelete(key) // must only not panic
		c, ok, err := Decode(key, value, 1, 2)
		if err != nil || !ok {
			return
		}
		var record any
		field := reflect.ValueOf(c)
		for i := range field.NumField() {
			if f := field.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
				record = f.Interface()
			}
		}
		again, err := Encode(record)
		if err != nil {
			t.Fatalf("encode %q again: %v", key, err)
		}
		if _, ok, err := Decode(key, again, 1, 2); !ok || err != nil {
			t.Errorf("decode %q again: %v, %v", key, ok, err)
		}
	})
}
