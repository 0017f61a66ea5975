package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// registrar answers what a registration asks; lost makes it forget the instance.
func (a *fakeAgent) registrar(lost *bool) {
	a.answer = func(r *http.Request, _ string) (int, string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		path := r.URL.Path
		switch {
		case path == "/v1/agent/checks":
			return 200, "{}"
		case path == "/v1/agent/service/register":
			*lost = false
		case *lost:
			return 404, "unknown"
		}
		return 200, ""
	}
}

// paths are calls without what comes behind their paths.
func paths(calls []string) string {
	for i, c := range calls {
		method, rest, _ := strings.Cut(c, " ")
		rest, _, _ = strings.Cut(rest, " ")
		rest, _, _ = strings.Cut(rest, "?")
		calls[i] = method + " " + strings.TrimPrefix(rest, "/v1/agent/")
	}
	return strings.Join(calls, ", ")
}

func TestRegisteredIsKeptAndDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		var lost bool
		a.registrar(&lost)
		var sick atomic.Bool
		r, err := c.Register(t.Context(), api.Registration{
			Name: "web", Port: 80,
			Check: api.HealthCheck{Probe: func(context.Context) error {
				if sick.Load() {
					return errors.New("no database")
				}
				return nil
			}},
		})
		if err != nil || r.ID() != "web-80" {
			t.Fatal(r, err)
		}
		if got := paths(a.seen()); got != "PUT service/register, GET checks" {
			t.Errorf("registration: %s", got)
		}
		time.Sleep(time.Minute)
		calls := a.seen()
		if len(calls) < 12 || len(calls) > 24 || !strings.Contains(calls[0], `{"Output":"","Status":"passing"}`) {
			t.Errorf("a minute's heartbeats: %d, the first %q", len(calls), calls[0])
		}

		sick.Store(true)
		time.Sleep(api.DefaultTTL / 3)
		if calls = a.seen(); !strings.Contains(calls[0], `{"Output":"no database","Status":"critical"}`) {
			t.Errorf("heartbeat of one that is not well: %q", calls)
		}
		a.set(func() { lost = true })
		time.Sleep(api.DefaultTTL / 3)
		if got := paths(a.seen()); !strings.Contains(got, "PUT check/update/service:web-80, PUT service/register") {
			t.Errorf("after the agent lost it: %s", got)
		}

		began := time.Now()
		if err := r.Close(); err != nil || time.Since(began) < api.DefaultDrainTime {
			t.Errorf("Close = %v after %s", err, time.Since(began))
		}
		want := "PUT service/maintenance/web-80, PUT service/deregister/web-80"
		if got := paths(a.seen()); !strings.HasSuffix(got, want) {
			t.Errorf("drain: %s; want %s", got, want)
		}
		if err := r.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// An agent that is away is waited for: soon again, so that the time to live does not run out.
func TestRegisteredOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		var lost bool
		a.registrar(&lost)
		ctx, end := context.WithCancel(t.Context())
		r, err := c.Register(ctx, api.Registration{Name: "web", Check: api.HealthCheck{TCP: "127.0.0.1:80"}, DrainTime: -1})
		if err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.away = true })
		time.Sleep(10 * time.Second)
		a.seen()
		a.set(func() { a.away, lost = false, true })
		time.Sleep(3 * time.Second)
		if got := paths(a.seen()); !strings.HasPrefix(got, "GET service/web, PUT service/register") {
			t.Errorf("when the agent is back: %s", got)
		}
		end()
		<-r.Done()
		if got := paths(a.seen()); !strings.HasSuffix(got, "PUT service/maintenance/web, PUT service/deregister/web") {
			t.Errorf("after the end of the context: %s", got)
		}
	})
}

func TestRegisterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		if _, err := c.Register(t.Context(), api.Registration{}); err == nil {
			t.Error("a registration without a name is accepted")
		}
		a.answer = func(*http.Request, string) (int, string) { return 403, "permission denied" }
		if _, err := c.Register(t.Context(), api.Registration{Name: "web"}); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("a refusal: %v", err)
		}
		if n := len(a.seen()); n != 1 {
			t.Errorf("a refusal is tried again: %d calls", n)
		}
		a.away = true
		began := time.Now()
		if _, err := c.Register(t.Context(), api.Registration{Name: "web"}); err == nil || time.Since(began) < 10*time.Second {
			t.Errorf("without an agent: %v after %s", err, time.Since(began))
		}
	})
}

// What a program left behind that died while it was drained is ended; what a person began
// is not.
func TestRegisterEndsAnOldDrain(t *testing.T) {
	for notes, want := range map[string]string{
		"draining: the program is about to end": "PUT service/register, GET checks, PUT service/maintenance/web",
		"new disk":                              "PUT service/register, GET checks",
	} {
		synctest.Test(t, func(t *testing.T) {
			a, c := newFakeAgent(t)
			a.answer = func(r *http.Request, _ string) (int, string) {
				if r.URL.Path == "/v1/agent/checks" {
					return 200, `{"_service_maintenance:web": {"Notes": "` + notes + `"}}`
				}
				return 200, ""
			}
			r, err := c.Register(t.Context(), api.Registration{Name: "web", DrainTime: -1})
			if err != nil {
				t.Fatal(err)
			}
			if got := paths(a.seen()); got != want {
				t.Errorf("maintenance because of %q: %s; want %s", notes, got, want)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
