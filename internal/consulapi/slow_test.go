package consulapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

// pipes is a listener of connections in memory, whose deadlines follow fake time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// dial makes a connection to the server.
func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// inMemory runs f in fake time with a server of h.
func inMemory(t *testing.T, l consulapi.Limits, h http.HandlerFunc, f func(t *testing.T, p *pipes)) {
	t.Helper()
	l.Log = quiet()
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		serveOn(t, consulapi.NewGuard(l).Server(h), p)
		f(t, p)
	})
}

// TestSlowClients: who does not send, or does not take, what is under way is cut
// off; who waits for a change is not.
func TestSlowClients(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, len(b))
	}
	trickle := func(c net.Conn, pause time.Duration) (sent int) {
		for ; ; sent++ {
			if _, err := c.Write([]byte("x")); err != nil {
				return sent
			}
			time.Sleep(pause) // fake
		}
	}
	t.Run("header that does not come", func(t *testing.T) {
		inMemory(t, consulapi.Limits{}, echo, func(t *testing.T, p *pipes) {
			c, start := p.dial(), time.Now()
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX: ")
			must(t, err)
			trickle(c, time.Second)
			if took := time.Since(start); took > 12*time.Second {
				t.Errorf("cut off after %v", took)
			}
		})
	})
	t.Run("body that stops", func(t *testing.T) {
		inMemory(t, consulapi.Limits{}, echo, func(t *testing.T, p *pipes) {
			c, start := p.dial(), time.Now()
			_, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello")
			must(t, err)
			if got := status(c); got != "HTTP/1.1 400 Bad Request" || time.Since(start) != 30*time.Second {
				t.Errorf("%s after %v", got, time.Since(start))
			}
		})
	})
	t.Run("body that trickles", func(t *testing.T) {
		inMemory(t, consulapi.Limits{}, echo, func(t *testing.T, p *pipes) {
			c, start := p.dial(), time.Now()
			_, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
			must(t, err)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { trickle(c, time.Second) })
			if got := status(c); got != "HTTP/1.1 400 Bad Request" || time.Since(start) != time.Minute {
				t.Errorf("%s after %v", got, time.Since(start))
			}
			must(t, c.Close())
		})
	})
	t.Run("body that nobody reads", func(t *testing.T) {
		inMemory(t, consulapi.Limits{}, func(http.ResponseWriter, *http.Request) {}, func(t *testing.T, p *pipes) {
			c, start := p.dial(), time.Now()
			_, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
			must(t, err)
			_, err = io.Copy(io.Discard, c)
			must(t, err)
			if took := time.Since(start); took > time.Minute {
				t.Errorf("the connection was kept for %v", took)
			}
		})
	})
	t.Run("snapshot that comes slowly", func(t *testing.T) {
		inMemory(t, consulapi.Limits{}, echo, func(t *testing.T, p *pipes) {
			c := p.dial()
			_, err := io.WriteString(c, "PUT /v1/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
			must(t, err)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for range 10 {
					_, _ = c.Write([]byte("x"))
					time.Sleep(20 * time.Second) // fake
				}
			})
			if got := status(c); got != "HTTP/1.1 200 OK" {
				t.Error(got)
			}
			must(t, c.Close())
		})
	})
	t.Run("answer that is not taken", func(t *testing.T) {
		var failed chan error // made in the bubble of fake time
		big := func(w http.ResponseWriter, _ *http.Request) {
			_, err := w.Write(make([]byte, 1<<20))
			failed <- err
		}
		inMemory(t, consulapi.Limits{}, big, func(t *testing.T, p *pipes) {
			failed = make(chan error, 1)
			c, start := p.dial(), time.Now()
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			must(t, err)
			if err := <-failed; err == nil || time.Since(start) != 30*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			must(t, c.Close())
		})
	})
	t.Run("answer that is taken slowly", func(t *testing.T) {
		big := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }
		inMemory(t, consulapi.Limits{}, big, func(t *testing.T, p *pipes) {
			c := p.dial()
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			must(t, err)
			total, piece := 0, make([]byte, 32<<10)
			for {
				n, err := c.Read(piece)
				if total += n; err != nil {
					break
				}
				time.Sleep(time.Second) // fake
			}
			if total < 1<<20 {
				t.Errorf("%d bytes arrived", total)
			}
		})
	})
	t.Run("query that waits", func(t *testing.T) {
		wait := func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				t.Error(err)
			}
			select {
			case <-time.After(9 * time.Minute):
				fmt.Fprint(w, "changed")
			case <-r.Context().Done():
				t.Errorf("%s: cut off", r.Method)
			}
		}
		inMemory(t, consulapi.Limits{}, wait, func(t *testing.T, p *pipes) {
			c := p.dial()
			in := bufio.NewReader(c)
			// Twice on one connection, without a body and with one.
			for _, request := range []string{
				"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
				"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
				"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
			} {
				go func() { _, _ = io.WriteString(c, request) }()
				resp, err := http.ReadResponse(in, nil)
				must(t, err)
				if resp.StatusCode == http.StatusContinue {
					resp, err = http.ReadResponse(in, nil)
					must(t, err)
				}
				if b, err := io.ReadAll(resp.Body); string(b) != "changed" {
					t.Errorf("%q, %v", b, err)
				}
			}
			must(t, c.Close())
		})
	})
}

// TestQueryOfClientThatLeft: a query that waits ends when its client goes away,
// also if that client sent a body which nobody asked for.
func TestQueryOfClientThatLeft(t *testing.T) {
	for name, body := range map[string]string{
		"no body":      "\r\n",
		"a body":       "Content-Length: 2\r\n\r\n{}",
		"chunks":       "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"half a body":  "Content-Length: 9\r\n\r\n{}",
		"a large body": "Content-Length: 600000\r\n\r\n" + strings.Repeat("x", 600_000),
	} {
		t.Run(name, func(t *testing.T) {
			var ended chan time.Time
			var api http.Handler
			serve := func(w http.ResponseWriter, r *http.Request) {
				api.ServeHTTP(w, r)
				ended <- time.Now()
			}
			inMemory(t, consulapi.Limits{}, serve, func(t *testing.T, p *pipes) {
				ended = make(chan time.Time, 1)
				api = newWorld().handler()
				c, start := p.dial(), time.Now()
				_, err := io.WriteString(c, "GET /v1/catalog/nodes?index=10&wait=5m HTTP/1.1\r\nHost: x\r\n"+body)
				must(t, err)
				synctest.Wait()
				must(t, c.Close())
				if took := (<-ended).Sub(start); took > 0 {
					t.Errorf("it ended after %v", took)
				}
			})
		})
	}
}
