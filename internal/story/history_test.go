package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/fairlead-net/fairlead/api"
)

// historyVariable says for how many seconds histories are made; `make histories` gives 1800.
const historyVariable = "FAIRLEAD_HISTORY_SECONDS"

// asked is what a client asked of one key, told what it heard.
type asked struct {
	Key string
	Op  string // get, put, cas, delete, acquire or release
	// Value is what is written; for a lock who asks.
	Value string
	// Was is the value that a cas expects; empty for none.
	Was string
}

type told struct {
	// Unknown says that the client was told nothing it could rely on: the operation took place at any later time, or never.
	Unknown bool
	OK      bool
	Value   string // of a get, empty for none
}

// register is what one key should be: every value is written once, so that a value stands for the index that cas goes by. Of a lock
// the value is its holder.
var register = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range all {
			k := o.Input.(asked).Key
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range byKey {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(asked), output.(told)
		holds, next := true, in.Value
		switch in.Op {
		case "get":
			return out.Unknown || out.Value == now, now
		case "delete":
			next = ""
		case "cas":
			holds = now == in.Was
		case "acquire":
			holds = now == "" || now == in.Value
		case "release":
			holds, next = now == in.Value, ""
		}
		if !holds {
			next = now
		}
		return out.Unknown || out.OK == holds, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// historian has clients ask servers and writes down what they saw.
type historian struct {
	t       *testing.T
	servers []*server
	begin   time.Time
	reads   string // how a get asks: ?consistent
	mu      sync.Mutex
	ops     []porcupine.Operation
}

func (h *historian) now() int64 { return time.Since(h.begin).Nanoseconds() }

// client asks until ctx ends.
func (h *historian) client(ctx context.Context, id int, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(id))) //nolint:gosec // not a secret
	session, indexes, seen := h.session(ctx), map[string]string{}, map[string]string{}
	for n := 0; ctx.Err() == nil; n++ {
		// Keys change every few seconds: what is unknown about one does not burden the check of the others.
		epoch := time.Since(h.begin) / (3 * time.Second)
		q := asked{Key: fmt.Sprintf("h/%d/%d", epoch, r.IntN(3)), Value: fmt.Sprintf("%d-%d", id, n)}
		q.Op = []string{"get", "get", "put", "cas", "delete", "acquire", "release"}[r.IntN(7)]
		path := "/v1/kv/" + q.Key
		switch q.Op {
		case "get":
			path += h.reads
		case "cas":
			if q.Was = seen[q.Key]; q.Was == "" {
				indexes[q.Key] = "0"
			}
			path += "?cas=" + indexes[q.Key]
		case "acquire", "release":
			if session == "" {
				session = h.session(ctx)
				continue
			}
			q.Key, q.Value = q.Key+"/lock", session
			path = "/v1/kv/" + q.Key + "?" + q.Op + "=" + session
		}
		a, index := h.ask(ctx, h.servers[r.IntN(len(h.servers))], id, q, path)
		if q.Op == "get" && !a.Unknown {
			seen[q.Key], indexes[q.Key] = a.Value, index
		}
		pause := time.NewTimer(time.Duration(r.IntN(8)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// session makes one that nothing but its end ends; empty if that fails.
func (h *historian) session(ctx context.Context) string {
	for _, s := range h.servers {
		status, body, _, err := send(ctx, s, http.MethodPut, "/v1/session/create", `{"Node": "s1", "NodeChecks": [], "LockDelay": "0s"}`)
		var out struct{ ID string }
		if err == nil && status == http.StatusOK && json.Unmarshal(body, &out) == nil {
			return out.ID
		}
	}
	return ""
}

// ask asks once and writes it down.
func (h *historian) ask(ctx context.Context, s *server, id int, q asked, path string) (a told, index string) {
	method := map[string]string{"get": http.MethodGet, "delete": http.MethodDelete}[q.Op]
	if method == "" {
		method = http.MethodPut
	}
	call := h.now()
	status, body, index, err := send(context.WithoutCancel(ctx), s, method, path, q.Value)
	end := h.now()
	switch {
	case err == nil && status == http.StatusNotFound && q.Op == "get":
	case err == nil && status == http.StatusOK && q.Op == "get":
		a.Value = string(body)
	case err == nil && status == http.StatusOK:
		a.OK = strings.TrimSpace(string(body)) == "true"
	default:
		a.Unknown = true
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.Unknown && q.Op == "get" {
		return a, "" // it says nothing
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: id, Input: q, Call: call, Output: a, Return: end})
	return a, index
}

// send asks one server; of a key it returns the raw value and its ModifyIndex.
func send(ctx context.Context, s *server, method, path, body string) (status int, answer []byte, index string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+":8500"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil, "", err
	}
	if method != http.MethodGet || resp.StatusCode != http.StatusOK {
		return resp.StatusCode, answer, "", nil
	}
	var list []struct {
		Value       []byte
		ModifyIndex uint64
	}
	if err := json.Unmarshal(answer, &list); err != nil || len(list) != 1 {
		return 0, nil, "", errors.Join(err, errors.New("not one key"))
	}
	return resp.StatusCode, list[0].Value, strconv.FormatUint(list[0].ModifyIndex, 10), nil
}

// trouble kills and pauses servers until ctx ends; they all run when it returns.
func (h *historian) trouble(ctx context.Context, r *rand.Rand) (kinds map[string]int) {
	kinds = map[string]int{}
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		wait(time.Duration(500+r.IntN(1500)) * time.Millisecond)
		victim := h.servers[r.IntN(len(h.servers))]
		kind := []string{"kill the leader", "kill any", "pause the leader", "pause any"}[r.IntN(4)]
		if strings.HasSuffix(kind, "leader") {
			if leader := h.leader(); leader != nil {
				victim = leader
			}
		}
		kinds[kind]++
		if strings.HasPrefix(kind, "kill") {
			victim.kill()
			wait(time.Duration(r.IntN(2000)) * time.Millisecond)
			victim.start()
			continue
		}
		victim.signal(syscall.SIGSTOP)
		wait(time.Duration(r.IntN(3000)) * time.Millisecond)
		victim.signal(syscall.SIGCONT)
	}
	return kinds
}

// leader is the server that leads, as the first to answer sees it; nil if nobody does.
func (h *historian) leader() *server {
	for _, s := range h.servers {
		list, err := s.site()
		if err != nil {
			continue
		}
		i := slices.IndexFunc(list, func(m api.Server) bool { return m.Leader })
		if i < 0 {
			return nil
		}
		for _, s := range h.servers {
			if s.name == list[i].Name {
				return s
			}
		}
	}
	return nil
}

// TestHistoriesAreLinearizable: whatever clients of all servers see of keys and locks while servers are killed and paused is what
// one server that never fails would have shown them.
func TestHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	length := 12 * time.Second
	if v := os.Getenv(historyVariable); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		length = time.Duration(n) * time.Second
	}
	seed := rand.Uint64()
	h := &historian{t: t, servers: together(t), begin: time.Now(), reads: "?consistent"}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for id := range 6 {
		wg.Go(func() { h.client(ctx, id, seed) })
	}
	kinds := h.trouble(ctx, rand.New(rand.NewPCG(seed, 1<<32))) //nolint:gosec // not a secret
	wg.Wait()
	unknown := 0
	for _, o := range h.ops {
		if o.Output.(told).Unknown {
			unknown++
		}
	}
	t.Logf("seed %d: %d operations, %d of them of unknown outcome, over %v of %v", seed, len(h.ops), unknown, length, kinds)
	if len(h.ops)-unknown < int(length/time.Second)*10 {
		t.Error("too few were answered to say anything")
	}
	h.check(porcupine.Ok)
}

// check tells whether there is an order that explains all that was seen.
func (h *historian) check(want porcupine.CheckResult) {
	h.t.Helper()
	got, info := porcupine.CheckOperationsVerbose(register, h.ops, 5*time.Minute)
	if got == want {
		return
	}
	h.t.Errorf("the history of %d operations is %s", len(h.ops), got)
	file, err := os.CreateTemp("", "fairlead-history-*.html")
	if err == nil {
		err = errors.Join(porcupine.Visualize(register, info, file), file.Close())
	}
	h.t.Logf("see %s (%v)", file.Name(), err)
}

// TestAStaleReadIsCaught: a server that gives what it has for what is consistent is found out. Reads of any server's own copy are
// just that.
func TestAStaleReadIsCaught(t *testing.T) {
	t.Parallel()
	h := &historian{t: t, servers: together(t), begin: time.Now(), reads: "?stale"}
	for n := range 200 {
		h.ops = nil
		for i, q := range []asked{{Key: "k", Op: "put", Value: fmt.Sprintf("v%d", n)}, {Key: "k", Op: "get"}, {Key: "k", Op: "get"}, {Key: "k", Op: "get"}} {
			path := "/v1/kv/k"
			if q.Op == "get" {
				path += h.reads
			}
			h.ask(t.Context(), h.servers[i%3], 0, q, path)
		}
		if n == 0 {
			continue // nothing was there before
		}
		if porcupine.CheckOperations(register, withPast(h.ops, fmt.Sprintf("v%d", n-1))) {
			continue
		}
		t.Logf("caught in round %d", n)
		return
	}
	t.Error("200 reads right behind a write, from servers that did not take it: none was stale, or none was caught")
}

// withPast is a history in which a value was there first.
func withPast(ops []porcupine.Operation, value string) []porcupine.Operation {
	first := porcupine.Operation{Input: asked{Key: "k", Op: "put", Value: value}, Call: -2, Output: told{OK: true}, Return: -1}
	return append([]porcupine.Operation{first}, ops...)
}
