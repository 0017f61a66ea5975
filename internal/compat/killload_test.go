package compat

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// records are one kind of thing that a client writes and reads back, by name.
type records interface {
	// set writes a value; "" removes. Old is what the record has for certain.
	set(name, old, value string) error
	// all are the records that there are, as long as what they consist of agrees.
	all() (map[string]string, error)
}

// killWriter writes records that nobody else does, and knows what each must be.
type killWriter struct {
	records
	t    *testing.T
	next int               // makes each value another
	sure map[string]string // what was acknowledged
	// name and value are of the write that was cut off, if there was one.
	name, value string

	acknowledged, cut, applied int
}

func (w *killWriter) work(r *rand.Rand) {
	for {
		name := strconv.Itoa(r.IntN(20))
		w.next++
		value := strconv.Itoa(w.next)
		if w.sure[name] != "" && r.IntN(5) == 0 {
			value = ""
		}
		if err := w.set(name, w.sure[name], value); err != nil {
			w.name, w.value = name, value
			w.cut++
			mustBeCutOff(w.t, err)
			return
		}
		w.acknowledged++
		w.keep(name, value)
	}
}

func (w *killWriter) keep(name, value string) {
	if value == "" {
		delete(w.sure, name)
	} else {
		w.sure[name] = value
	}
}

// verify expects each record to be as acknowledged; that of the write that was cut off may be as this would have made it.
func (w *killWriter) verify(round int) {
	w.t.Helper()
	var wrong error
	for deadline := time.Now().Add(settleLimit); ; { // what is in the agent's file is in the catalogue soon
		have, err := w.all()
		if wrong = err; err == nil {
			wrong = w.compare(have)
		}
		if wrong == nil {
			break
		}
		var lost *lostWrite
		if errors.As(wrong, &lost) && !lost.mayCome || time.Now().After(deadline) {
			w.t.Errorf("round %d: %T: %v", round, w.records, wrong)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	w.name, w.value = "", ""
}

type lostWrite struct {
	text    string
	mayCome bool
}

func (l *lostWrite) Error() string { return l.text }

func (w *killWriter) compare(have map[string]string) error {
	_, eventually := w.records.(*serviceRecords)
	if w.name != "" && have[w.name] == w.value && w.sure[w.name] != w.value {
		w.applied++
		w.keep(w.name, w.value)
	}
	for name, value := range w.sure {
		if have[name] != value {
			return &lostWrite{fmt.Sprintf("record %s is %q, but %q was acknowledged", name, have[name], value), eventually}
		}
	}
	for name, value := range have {
		if w.sure[name] != value {
			return &lostWrite{fmt.Sprintf("record %s is %q, but its removal was acknowledged", name, value), eventually}
		}
	}
	return nil
}

// kvRecords are entries, written blindly.
type kvRecords struct {
	kv     *api.KV
	prefix string
}

func (k *kvRecords) set(name, _, value string) error {
	var err error
	if value == "" {
		_, err = k.kv.Delete(k.prefix+name, nil)
	} else {
		_, err = k.kv.Put(kv(k.prefix+name, value), nil)
	}
	return err
}

func (k *kvRecords) all() (map[string]string, error) {
	list, _, err := k.kv.List(k.prefix, nil)
	have := map[string]string{}
	for _, e := range list {
		have[strings.TrimPrefix(e.Key, k.prefix)] = string(e.Value)
	}
	return have, err
}

// pairRecords are entries in pairs, written by one transaction each, on the condition of what they were.
type pairRecords struct {
	kv     *api.KV
	prefix string
}

func (p *pairRecords) set(name, old, value string) error {
	var ops api.KVTxnOps
	for _, half := range []string{"a", "b"} {
		key := p.prefix + name + "/" + half
		if old != "" {
			e, _, err := p.kv.Get(key, nil)
			if err != nil {
				return err
			}
			if e == nil || string(e.Value) != old {
				return fmt.Errorf("%s is %v, not %s", key, e, old)
			}
			ops = append(ops, &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: e.ModifyIndex})
		} else {
			ops = append(ops, &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: key})
		}
		if value == "" {
			ops = append(ops, &api.KVTxnOp{Verb: api.KVDelete, Key: key})
		} else {
			ops = append(ops, &api.KVTxnOp{Verb: api.KVSet, Key: key, Value: []byte(value)})
		}
	}
	ok, resp, _, err := p.kv.Txn(ops, nil)
	if err == nil && !ok {
		return fmt.Errorf("refused: %+v", resp.Errors)
	}
	return err
}

func (p *pairRecords) all() (map[string]string, error) {
	list, _, err := p.kv.List(p.prefix, nil)
	have, other := map[string]string{}, map[string]string{}
	for _, e := range list {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(e.Key, p.prefix), "/a"); ok {
			have[name] = string(e.Value)
		} else {
			other[strings.TrimSuffix(strings.TrimPrefix(e.Key, p.prefix), "/b")] = string(e.Value)
		}
	}
	for name := range have {
		if other[name] != have[name] {
			return nil, &lostWrite{text: fmt.Sprintf("half of a transaction: %q and %q", have[name], other[name])}
		}
	}
	if len(other) != len(have) {
		return nil, &lostWrite{text: fmt.Sprintf("halves of transactions: %v and %v", have, other)}
	}
	return have, err
}

// serviceRecords are registrations on the agent.
type serviceRecords struct {
	agent  *api.Agent
	prefix string
}

func (s *serviceRecords) set(name, _, value string) error {
	if value == "" {
		return s.agent.ServiceDeregister(s.prefix + name)
	}
	return s.agent.ServiceRegister(&api.AgentServiceRegistration{
		Name: "killed", ID: s.prefix + name, Port: 80, Meta: map[string]string{"value": value},
		Check: &api.AgentServiceCheck{TTL: "1h", Status: "passing"},
	})
}

func (s *serviceRecords) all() (map[string]string, error) {
	services, err := s.agent.Services()
	have := map[string]string{}
	for id, e := range services {
		if name, ok := strings.CutPrefix(id, s.prefix); ok {
			have[name] = e.Meta["value"]
		}
	}
	return have, err
}

const killLock = "killed/lock"

// locker takes one lock again and again, with a session for each time or several.
type locker struct {
	load    *killLoad
	session string // acknowledged, and not given up
	ended   string // given up for certain
	taken   int
}

func (k *locker) work() {
	for {
		if err := k.once(); err != nil {
			mustBeCutOff(k.load.t, err)
			return
		}
	}
}

// mustBeCutOff fails the test for an error that a killed agent does not explain.
func mustBeCutOff(t *testing.T, err error) {
	t.Helper()
	var network net.Error
	if !errors.As(err, &network) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("refused: %v", err)
	}
}

func (k *locker) once() error {
	l := k.load
	if k.session == "" {
		id, _, err := l.client.Session().Create(&api.SessionEntry{Name: "killed", LockDelay: time.Nanosecond, Behavior: "release"}, nil)
		if err != nil {
			return err
		}
		k.session = id
	}
	e := &api.KVPair{Key: killLock, Value: []byte(k.session), Session: k.session}
	ok, _, err := l.client.KV().Acquire(e, nil)
	if err != nil || !ok {
		return err
	}
	k.taken++
	l.hand(k, nil)
	if held, _, err := l.client.KV().Get(killLock, nil); err != nil {
		return err // holds it still
	} else if held.Session != k.session {
		l.t.Errorf("%s holds the lock, but the agent says %q", k.session, held.Session)
	}
	l.hand(nil, k)
	if k.taken%3 != 0 {
		_, _, err = l.client.KV().Release(e, nil)
		return err
	}
	old := k.session
	k.session = "" // whether or not it is answered
	if _, err := l.client.Session().Destroy(old, nil); err != nil {
		return err
	}
	k.ended = old
	return nil
}

// hand notes that the lock goes to somebody, who is the only one.
func (l *killLoad) hand(to, from *locker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder != from {
		l.t.Errorf("the lock is held by two")
	}
	l.holder = to
}

// verify expects a session that was acknowledged to be there with what it holds, and one that was destroyed to be gone.
func (k *locker) verify(round int) {
	l := k.load
	sessions, _, err := l.client.Session().List(nil)
	must(l.t, err)
	there := map[string]bool{}
	for _, s := range sessions {
		there[s.ID] = true
	}
	if k.session != "" && !there[k.session] {
		l.t.Errorf("round %d: session %s was acknowledged and is gone", round, k.session)
	}
	if k.ended != "" && there[k.ended] {
		l.t.Errorf("round %d: session %s was destroyed and is there", round, k.ended)
	}
	lock, _, err := l.client.KV().Get(killLock, nil)
	must(l.t, err)
	if lock == nil {
		return
	}
	if lock.Session != "" && !there[lock.Session] {
		l.t.Errorf("round %d: the lock is held by session %s, which is gone", round, lock.Session)
	}
	if l.holder == k {
		if lock.Session != k.session {
			l.t.Errorf("round %d: %s holds the lock, but the agent says %q", round, k.session, lock.Session)
		}
		l.holder = nil
	}
	if k.session != "" && lock.Session == k.session { // taken, but not told so, or not let go
		_, _, err := l.client.KV().Release(&api.KVPair{Key: killLock, Session: k.session}, nil)
		must(l.t, err)
	} else if lock.Session != "" && !l.owns(lock.Session) { // its destruction was cut off
		_, err := l.client.Session().Destroy(lock.Session, nil)
		must(l.t, err)
	}
}

func (l *killLoad) owns(session string) bool {
	for _, k := range l.lockers {
		if k.session == session {
			return true
		}
	}
	return false
}

// watchedIndex is the index of one query, which never goes back.
type watchedIndex struct {
	t    *testing.T
	url  string
	last uint64
}

func (w *watchedIndex) look() error {
	resp, err := http.Get(w.url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	at, err := strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", w.url, resp.Status, err)
	}
	if at < w.last {
		w.t.Errorf("%s: index %d after %d", w.url, at, w.last)
	}
	w.last = at
	return nil
}
