package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	var out bytes.Buffer
	s := &stage{out: &out}
	s.claim(true, "it starts", "after %s", time.Second)
	s.claim(true, "it runs", "yes")
	if err := s.summary(); err != nil {
		t.Error(err)
	}
	const want = "\n== Summary\nCLAIM      SEEN      HOLDS\nit starts  after 1s  yes\nit runs    yes       yes\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	s.claim(false, "it flies", "no")
	s.claim(false, "it swims", "no")
	if err := s.summary(); err == nil || err.Error() != "did not hold: it flies; it swims" || strings.Count(out.String(), " NO\n") != 2 {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// verdicts is what was claimed, and whether it holds.
func (s *stage) verdicts() map[string]bool {
	all := map[string]bool{}
	for _, c := range s.claims {
		all[c.what] = c.holds
	}
	return all
}

func TestJudgeKill(t *testing.T) {
	killed := time.Now()
	at := func(start, took time.Duration, failure string) Request {
		return Request{Start: killed.Add(start), Took: took, Error: failure}
	}
	ok := []Request{at(-2*time.Second, time.Millisecond, ""), at(time.Second, time.Millisecond, "")}
	const before, dns, balancer = "no request fails before", "a killed instance leaves DNS", "a killed instance leaves the balancer"
	for name, c := range map[string]struct {
		requests []Request
		leftDNS  time.Duration
		fails    string
		saw      string
	}{
		"nothing failed":     {ok, time.Second, "", "after 0s, 0 of 2 requests failed"},
		"some met it":        {append(ok, at(900*time.Millisecond, time.Second, "timeout")), time.Second, "", "after 900ms, 1 of 3 requests failed"},
		"one was under way":  {append(ok, at(-time.Millisecond, time.Second, "reset")), time.Second, "", "after 0s, 1 of 3 requests failed"},
		"one failed before":  {append(ok, at(-time.Second, time.Millisecond, "refused")), time.Second, before, "after 0s, 0 of 3 requests failed"},
		"it was met later":   {append(ok, at(3*time.Second, time.Millisecond, "refused")), time.Second, balancer, "after 3s, 1 of 3 requests failed"},
		"it stayed in DNS":   {ok, gonePeriod, dns, "after 0s, 0 of 2 requests failed"},
		"it was met just so": {append(ok, at(gonePeriod, time.Millisecond, "refused")), time.Second, balancer, "after 2s, 1 of 3 requests failed"},
	} {
		s := &stage{out: &bytes.Buffer{}}
		s.judgeKill(c.requests, killed, c.leftDNS)
		want := map[string]bool{before: c.fails != before, dns: c.fails != dns, balancer: c.fails != balancer}
		if got := s.verdicts(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if saw := s.claims[2].saw; saw != c.saw {
			t.Errorf("%s: %s, want %s", name, saw, c.saw)
		}
	}
}

func TestJudgeRestart(t *testing.T) {
	killed := time.Now()
	meanwhile, later := Request{Start: killed.Add(10 * time.Millisecond)}, Request{Start: killed.Add(time.Minute)}
	failed := later
	failed.Error = "refused"
	for name, c := range map[string]struct {
		requests []Request
		holds    bool
	}{
		"all went well":         {[]Request{meanwhile, later}, true},
		"one failed":            {[]Request{meanwhile, failed}, false},
		"none came in the time": {[]Request{later}, false},
	} {
		s := &stage{out: &bytes.Buffer{}}
		s.judgeRestart(c.requests, killed, 100*time.Millisecond)
		if s.claims[0].holds != c.holds {
			t.Errorf("%s: %+v", name, s.claims[0])
		}
	}
}

func TestCounts(t *testing.T) {
	per, failed := count([]Request{{Instance: "b"}, {Instance: "a"}, {Error: "refused"}, {Instance: "b"}, {Instance: "c", Error: "cut off"}})
	if failed != 2 || counts(per) != "a 1, b 2" {
		t.Errorf("%s, failed %d", counts(per), failed)
	}
	if per, failed := count(nil); failed != 0 || counts(per) != "" {
		t.Errorf("of nothing: %v %d", per, failed)
	}
}

func TestShorten(t *testing.T) {
	if got := shorten("/tmp/x/fairlead", []string{"run", "--", "/tmp/x/fairlead", "demo-serve"}); strings.Join(got, " ") != "run -- fairlead demo-serve" {
		t.Errorf("%q", got)
	}
}

// The load opens a connection for each request and counts what goes wrong.
func TestLoad(t *testing.T) {
	var connections, served atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if served.Add(1) == 3 {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "web-1")
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	const n, rate = 20, 1000
	began := time.Now()
	all, err := load(s.URL, n, rate)
	if err != nil {
		t.Fatal(err)
	}
	per, failed := count(all)
	if len(all) != n || failed != 1 || per["web-1"] != n-1 || connections.Load() != n {
		t.Errorf("%d outcomes, %d failed, %v, on %d connections", len(all), failed, per, connections.Load())
	}
	if took := time.Since(began); took < (n-1)*time.Second/rate {
		t.Errorf("took %s: too fast for %d a second", took, rate)
	}
	for _, r := range all {
		if r.Start.Before(began) || r.Took <= 0 {
			t.Errorf("times of %+v", r)
		}
	}
}

func TestRolesArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"u", "1"}, {"u", "x", "1"}, {"u", "0", "1"}, {"u", "1", "0"}, {"u", "100001", "1"}, {"u", "1", "10001"}} {
		if code := Load(args); code != 2 {
			t.Errorf("load %q: %d, want 2", args, code)
		}
	}
	if code := Serve([]string{"web"}); code != 2 {
		t.Errorf("serve without a port: %d", code)
	}
	if code := Inside(nil); code != 2 {
		t.Errorf("inside of nothing: %d", code)
	}
}

func TestUntil(t *testing.T) {
	s := &stage{}
	calls := 0
	if err := s.until(t.Context(), "the third call", func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || calls != 3 {
		t.Errorf("%d calls: %v", calls, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	no := errors.New("no")
	if err := s.until(ctx, "what never comes", func() error { return no }); !errors.Is(err, no) || !strings.Contains(err.Error(), "what never comes") {
		t.Errorf("%v", err)
	}
}
