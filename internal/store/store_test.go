package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
)

func absent(key string) Compare { return Compare{Key: KVKey(key)} }

func TestPutCompareDelete(t *testing.T) {
	n := startStore(t, "")
	first := n.must(t, put("a", "1"), true)
	if kv := n.st.at(t, first)["a"]; string(kv.Value) != "1" || kv.CreateIndex != first || kv.ModifyIndex != first {
		t.Fatalf("after the put: %+v, index %d", kv, first)
	}
	txn := put("a", "2")
	txn.Compares = []Compare{absent("a")}
	refused := n.must(t, txn, false)
	if kv := n.st.at(t, refused)["a"]; string(kv.Value) != "1" {
		t.Fatalf("a refused write wrote: %+v", kv)
	}
	txn.Compares = []Compare{{Key: KVKey("a"), ModIndex: first}}
	second := n.must(t, txn, true)
	if kv := n.st.at(t, second)["a"]; string(kv.Value) != "2" || kv.CreateIndex != first || kv.ModifyIndex != second {
		t.Fatalf("after compare and put: %+v, index %d", kv, second)
	}
	n.must(t, put("a/b", "x"), true)
	tree := n.must(t, put("ab", "x"), true)
	prefix := Txn{Compares: []Compare{{Key: KVPrefix("a"), ModIndex: tree - 1, Prefix: true}}, Deletes: []string{KVKey("ab")}}
	n.must(t, prefix, false)
	prefix.Compares[0].ModIndex = tree
	n.must(t, prefix, true)
	gone := n.must(t, Txn{DeletePrefixes: []string{KVPrefix("a/")}}, true)
	if kv := n.st.at(t, gone); len(kv) != 1 || kv["a"].Key != "a" {
		t.Fatalf("left after deleting: %v", kv)
	}
	n.must(t, Txn{Compares: []Compare{{Key: KVPrefix("a/"), Prefix: true}}}, true)
	if idx := n.must(t, Txn{Compares: []Compare{{Key: KVKey("a"), ModIndex: second}}}, true); idx != gone {
		t.Errorf("comparing alone moved the index from %d to %d", gone, idx)
	}
	n.must(t, Txn{Compares: []Compare{absent("a")}}, false)
	if idx, err := n.ReadIndex(t.Context()); err != nil || idx != gone {
		t.Errorf("ReadIndex = %d, %v, want %d", idx, err, gone)
	}
}

func TestBadTransactions(t *testing.T) {
	n := startStore(t, "")
	many := make([]string, MaxTxnOps+1)
	for i := range many {
		many[i] = KVKey(fmt.Sprint(i))
	}
	before := n.must(t, put("a", ""), true)
	for name, tt := range map[string]struct {
		txn  Txn
		want error
	}{
		"too many bytes":       {Txn{Puts: []Put{{KVKey("a"), make([]byte, MaxTxnBytes)}}}, ErrTooLarge},
		"too many writes":      {Txn{Deletes: many}, ErrTooLarge},
		"put twice":            {Txn{Puts: []Put{putKV("a", "1"), putKV("a", "2")}}, ErrInvalidTxn},
		"put and deleted":      {Txn{Puts: []Put{putKV("a", "1")}, Deletes: []string{KVKey("a")}}, ErrInvalidTxn},
		"put in deleted range": {Txn{Puts: []Put{putKV("a", "1")}, DeletePrefixes: []string{KVPrefix("")}}, ErrInvalidTxn},
		"mark without a lease": {Txn{Puts: []Put{{AliveKey("s"), nil}}}, ErrInvalidTxn},
		"no key":               {Txn{Puts: []Put{{}}}, ErrInvalidTxn},
		"everything deleted":   {Txn{DeletePrefixes: []string{""}}, ErrInvalidTxn},
		"compare of nothing":   {Txn{Compares: []Compare{{}}}, ErrInvalidTxn},
		"delete of nothing":    {Txn{Deletes: []string{""}}, ErrInvalidTxn},
	} {
		if _, err := n.Commit(t.Context(), tt.txn); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	largest := Txn{Deletes: many[:MaxTxnOps]}
	for range 3 { // beside others in one batch, too
		go n.Commit(t.Context(), put("b", ""))
	}
	if after := n.must(t, largest, true); after <= before {
		t.Errorf("index %d after %d", after, before)
	}
}

// Two operations that each forbid the other must never both succeed: etcd
// compares everything in a transaction with the state before it.
func TestOperationsThatExcludeEachOther(t *testing.T) {
	n := startStore(t, "")
	const rounds = 1000
	both := func(round int, a, b Txn, allowed func(a, b bool) bool) {
		t.Helper()
		var wg sync.WaitGroup
		var res [2]Result
		for i, txn := range []Txn{a, b} {
			wg.Go(func() {
				r, err := n.Commit(t.Context(), txn)
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				res[i] = r
			})
		}
		wg.Wait()
		if !allowed(res[0].OK, res[1].OK) {
			t.Fatalf("round %d: outcomes %v and %v", round, res[0].OK, res[1].OK)
		}
	}
	one := func(a, b bool) bool { return a != b }
	for i := range rounds {
		x, y := fmt.Sprintf("x%d", i), fmt.Sprintf("y%d", i)
		a, b := put(y, ""), put(x, "")
		a.Compares, b.Compares = []Compare{absent(x)}, []Compare{absent(y)}
		both(i, a, b, one)
	}
	for i := range rounds {
		// A session ends while a lock is taken with it.
		session, lock := fmt.Sprintf("s%d", i), fmt.Sprintf("l%d", i)
		mod := n.must(t, put(session, ""), true)
		end := Txn{Deletes: []string{KVKey(session)}, Compares: []Compare{{Key: KVPrefix(lock), Prefix: true}}}
		acquire := put(lock, "")
		acquire.Compares = []Compare{{Key: KVKey(session), ModIndex: mod}}
		both(i, end, acquire, one)
	}
	st := n.Status().Stats
	t.Logf("%+v", st)
	if st.Conflicts == 0 {
		t.Error("no two operations ever met; the test shows nothing")
	}
}

func TestManyWritersShareBatches(t *testing.T) {
	n := startStore(t, "")
	var wg sync.WaitGroup
	var last model.Index
	var mu sync.Mutex
	for i := range 500 {
		wg.Go(func() {
			res, err := n.Commit(t.Context(), put(fmt.Sprint(i), "v"))
			if err != nil || !res.OK {
				t.Errorf("Commit: %+v, %v", res, err)
			}
			mu.Lock()
			last = max(last, res.Index)
			mu.Unlock()
		})
	}
	wg.Wait()
	if kv := n.st.at(t, last); len(kv) != 500 {
		t.Errorf("%d entries", len(kv))
	}
	if st := n.Status().Stats; st.Ops != 500 || st.Batches > 250 {
		t.Errorf("%+v", st)
	}
}

func TestRestartKeepsDataAndIndexesRise(t *testing.T) {
	dir := t.TempDir()
	var last model.Index
	for i := range 3 {
		n := startStore(t, dir)
		key := fmt.Sprint(i)
		idx := n.must(t, put(key, key), true)
		if idx <= last {
			t.Fatalf("index %d after %d", idx, last)
		}
		if kv := n.st.at(t, idx); len(kv) != i+1 {
			t.Fatalf("start %d shows %v", i, kv)
		}
		last = idx
		begin := time.Now()
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("shutdown took %v", d)
		}
	}
}

func TestTemporaryDirectoryGoes(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	n := startStore(t, "")
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 1 {
		t.Fatalf("while running: %v, %v", left, err)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Fatalf("afterwards: %v, %v", left, err)
	}
}

func TestUnusableDirectories(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	db := filepath.Join(damaged, "etcd", "member", "snap", "db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, []byte(strings.Repeat("nonsense", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ dir, text string }{
		"a file":        {file, "not a directory"},
		"below a file":  {filepath.Join(file, "dir"), "not a directory"},
		"not writable":  {"/proc/self", "cannot be written"},
		"not creatable": {"/proc/fairlead", "create /proc/fairlead"},
		"damaged":       {damaged, "open database " + db},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{Dir: tt.dir, Name: "n1", Log: quiet()}, newFakeState())
			err := s.Run(t.Context(), func() { t.Error("ready") })
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want one with %q", err, tt.text)
			}
			if _, err := s.Commit(t.Context(), put("a", "")); !errors.Is(err, ErrClosed) {
				t.Errorf("Commit afterwards: %v", err)
			}
			if _, err := s.ReadIndex(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("ReadIndex afterwards: %v", err)
			}
		})
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	startStore(t, dir)
	begin := time.Now()
	err := New(Config{Dir: dir, Name: "n1", Log: quiet()}, newFakeState()).Run(t.Context(), func() { t.Error("ready") })
	want := fmt.Sprintf("data directory %s is in use by another agent (pid %d)", dir, os.Getpid())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("refused after %v", d)
	}
}

func TestCompactionLosesNothing(t *testing.T) {
	dir := t.TempDir()
	var once sync.Once
	n := startStore(t, dir, func(s *Store) {
		s.prepare = func(r *running) {
			// Between loading and watching, revisions come and are compacted.
			r.follow.beforeWatch = func() {
				once.Do(func() {
					var rev int64
					for i := range 5 {
						resp, err := r.cli.Put(t.Context(), s.gen.Load().prefix()+KVKey(fmt.Sprint(i)), string(putKV("", "v").Value))
						if err != nil {
							t.Error(err)
							return
						}
						rev = resp.Header.Revision
					}
					if _, err := r.cli.Compact(t.Context(), rev); err != nil {
						t.Error(err)
					}
				})
			}
		}
	})
	idx := n.must(t, put("after", ""), true)
	if kv := n.st.at(t, idx); len(kv) != 6 {
		t.Errorf("%d entries after the gap", len(kv))
	}
	if got := n.Status().Stats.Reloads; got != 1 {
		t.Errorf("%d reloads", got)
	}
}

func TestOldRevisionsAreCompacted(t *testing.T) {
	n := startStore(t, "", func(s *Store) { s.compactEvery = 5 * time.Millisecond })
	first := n.must(t, put("a", "0"), true)
	cli := n.running.Load().cli
	limit := time.Now().Add(10 * time.Second)
	for i := 0; ; i++ {
		n.must(t, put("a", fmt.Sprint(i)), true)
		_, err := cli.Get(t.Context(), "a", clientv3.WithRev(int64(first)))
		if err != nil && strings.Contains(err.Error(), "compacted") && n.Status().Stats.Compactions > 0 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("revision %d is still there: %v", first, err)
		}
	}
	if st := n.Status().Stats; st.Reloads != 0 || st.Compactions == 0 {
		t.Errorf("%+v", st)
	}
}

func TestGenerationFlip(t *testing.T) {
	n := startStore(t, "")
	old := n.must(t, put("old", "1"), true)
	n.must(t, put("both", "1"), true)
	n.st.at(t, old)
	cli := n.running.Load().cli
	// A restore writes the next generation and flips the pointer.
	for _, k := range []string{"both", "new"} {
		if _, err := cli.Put(t.Context(), generationPrefix("2")+KVKey(k), string(putKV(k, "2").Value)); err != nil {
			t.Fatal(err)
		}
	}
	flip, err := cli.Put(t.Context(), pointerKey, "2")
	if err != nil {
		t.Fatal(err)
	}
	// Commits go to the new generation from then on, known to the watch or not.
	idx := n.must(t, put("later", "2"), true)
	txn := put("both", "3")
	txn.Compares = []Compare{{Key: KVKey("both"), ModIndex: old + 1}}
	n.must(t, txn, false) // computed from the old generation
	kv := n.st.at(t, max(idx, model.Index(flip.Header.Revision)))
	if len(kv) != 3 || string(kv["both"].Value) != "2" || string(kv["new"].Value) != "2" || string(kv["later"].Value) != "2" {
		t.Errorf("state shows %v", kv)
	}
	if n.st.resets != 2 {
		t.Errorf("%d resets", n.st.resets)
	}
	if g := n.Status().Generation; g != "2" {
		t.Errorf("generation %q", g)
	}
	n.must(t, Txn{Compares: []Compare{absent("old")}}, true)
}

func TestLockAndEntryAreOneRecord(t *testing.T) {
	dir := t.TempDir()
	n := startStore(t, dir)
	lock := func(session string, index uint64) Put {
		b, err := Encode(Lock{Session: session, LockIndex: index})
		if err != nil {
			t.Fatal(err)
		}
		return Put{Key: KVLockKey("a"), Value: b}
	}
	want := func(n *node, at model.Index, value, session string, index uint64, mod model.Index) {
		t.Helper()
		kv := n.st.at(t, at)["a"]
		if string(kv.Value) != value || kv.Session != session || kv.LockIndex != index || kv.ModifyIndex != mod {
			t.Errorf("entry is %+v, want value %q, session %q, lock index %d, index %d", kv, value, session, index, mod)
		}
	}
	acquired := n.must(t, Txn{Puts: []Put{putKV("a", "1"), lock("s", 1)}}, true)
	want(n, acquired, "1", "s", 1, acquired)
	blind := n.must(t, put("a", "2"), true)
	want(n, blind, "2", "s", 1, blind)
	released := n.must(t, Txn{Puts: []Put{lock("", 1)}}, true)
	want(n, released, "2", "", 1, released)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startStore(t, dir)
	want(n, released, "2", "", 1, released)
	gone := n.must(t, Txn{DeletePrefixes: []string{KVPrefix("a"), KVLockPrefix("a")}}, true)
	if kv := n.st.at(t, gone); len(kv) != 0 {
		t.Errorf("left: %v", kv)
	}
	again := n.must(t, put("a", "3"), true)
	want(n, again, "3", "", 0, again)
}

func TestUnreadableRecordHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	n := startStore(t, dir)
	idx := n.must(t, Txn{Puts: []Put{{Key: KVKey("bad"), Value: []byte{77}}, putKV("good", "")}}, true)
	if kv := n.st.at(t, idx); len(kv) != 1 || n.Status().Stats.Unreadable != 1 {
		t.Errorf("state shows %v", kv)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startStore(t, dir)
	if kv := n.st.at(t, idx); len(kv) != 1 || n.Status().Stats.Unreadable != 1 {
		t.Errorf("after a restart: %v", kv)
	}
}

func TestStatus(t *testing.T) {
	n := startStore(t, "")
	idx := n.must(t, put("a", ""), true)
	n.st.at(t, idx)
	st := n.Status()
	if st.Leader != "n1" || len(st.Peers) != 1 || st.Peers[0] != "n1" || st.Index != idx || st.DBSize == 0 || st.DBInUse == 0 || st.Alarms != nil {
		t.Errorf("%+v", st)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if st := n.Status(); st.Leader != "" || st.Peers != nil {
		t.Errorf("after the end: %+v", st)
	}
	if _, err := n.Commit(context.Background(), put("a", "")); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after the end: %v", err)
	}
}

func TestMemberNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"n1", "N1", "n1.", "a=b,c", "", "-", "--a", "ü", strings.Repeat("x", 80), strings.Repeat("x", 81)} {
		m := memberName(name)
		if other, dup := seen[m]; dup {
			t.Errorf("%q and %q are both called %q", name, other, m)
		}
		seen[m] = name
		if m == "" || len(m) > 63 || strings.Trim(m, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasPrefix(m, "-") {
			t.Errorf("%q becomes %q", name, m)
		}
	}
	if memberName("n1") != "n1" {
		t.Error("a good name was changed")
	}
}
