package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a handler on a loopback port for the test.
func serve(t *testing.T, handler http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	addr, err := loopback(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestLoadHTTPCountsEachRequestOnce(t *testing.T) {
	var seen sync.Map
	var bodies atomic.Int64
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies.Add(int64(len(body)))
		if _, twice := seen.LoadOrStore(r.URL.Path, true); twice {
			t.Errorf("%s twice", r.URL.Path)
		}
		if r.URL.Path == "/7" {
			http.Error(w, "no seven", http.StatusTeapot)
			return
		}
		_, _ = io.WriteString(w, strings.Repeat("x", 10_000))
	})
	w := window{length: time.Minute, limit: 500}
	c, err := loadHTTP(t.Context(), addr, os.Getpid(), 8, w, func(b []byte, n uint64) []byte {
		return appendRequest(b, http.MethodPut, fmt.Sprintf("/%d", n), []byte("abc"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.issued != 500 || c.answered != 500 || c.ops != 500 || c.latency.total != 500 || bodies.Load() != 1500 {
		t.Errorf("issued %d, answered %d, counted %d, %d bytes sent", c.issued, c.answered, c.ops, bodies.Load())
	}
	if c.failed != 1 || c.failure != "status 418: no seven\n" || refused(c, nil) == nil {
		t.Errorf("%d failed: %q", c.failed, c.failure)
	}
}

func TestLoadHTTPEndsWithItsWindow(t *testing.T) {
	addr := serve(t, func(http.ResponseWriter, *http.Request) {})
	w := window{warm: 10 * time.Millisecond, length: 30 * time.Millisecond}
	c, err := loadHTTP(t.Context(), addr, os.Getpid(), 2, w, cycle([][]byte{appendRequest(nil, http.MethodGet, "/", nil)}))
	if err != nil {
		t.Fatal(err)
	}
	if c.ops == 0 || c.ops > c.answered || c.answered != c.issued || c.elapsed < w.length {
		t.Errorf("counted %d of %d answered of %d in %v", c.ops, c.answered, c.issued, c.elapsed)
	}
}

func TestLoadHTTPTellsOfAClosedConnection(t *testing.T) {
	addr := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := loadHTTP(t.Context(), addr, os.Getpid(), 1, window{length: time.Minute}, cycle([][]byte{appendRequest(nil, http.MethodGet, "/", nil)}))
	if err == nil {
		t.Error("a connection closed without an answer is no error")
	}
}

func TestLoadHTTPEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := loadHTTP(ctx, addr, os.Getpid(), 1, window{length: time.Minute}, cycle([][]byte{appendRequest(nil, http.MethodGet, "/", nil)}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestWatchersComeFromSeveralAddresses(t *testing.T) {
	var sources sync.Map
	changed := make(chan struct{})
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		sources.Store(host, true)
		w.Header().Set("X-Consul-Index", "5")
		switch {
		case r.Method == http.MethodPut:
			close(changed)
		case r.URL.Query().Get("index") == "5":
			w.Header().Set("X-Consul-Index", "6")
			<-changed
		}
	})
	p, err := dialPool(t.Context(), addr, perSource+3)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	w := &watchers{pool: p, n: perSource + 2}
	for _, step := range []func() error{
		func() error { return w.park(t.Context()) },
		func() error { return w.woken(t.Context(), nil) },
		func() error { return w.park(t.Context()) },
		func() error { return p.send(w.n, appendInstance(nil, 0, 0, 1)) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	woken := 0
	if err := w.woken(t.Context(), func() { woken++ }); err != nil || woken != w.n || w.index != 6 {
		t.Errorf("%d of %d woken, index %d: %v", woken, w.n, w.index, err)
	}
	hosts := 0
	sources.Range(func(any, any) bool { hosts++; return true })
	if hosts != 2 {
		t.Errorf("connections from %d addresses, want 2", hosts)
	}
}

// serveDNS answers each query with its own header, a record counted, except for every lose-th one, which it drops.
func serveDNS(t *testing.T, lose int) netip.AddrPort {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { socket.Close(); <-done })
	go func() {
		defer close(done)
		buffer := make([]byte, maxAnswer)
		for i := 1; ; i++ {
			n, from, err := socket.ReadFrom(buffer)
			if err != nil {
				return
			}
			if lose > 0 && i%lose == 0 {
				continue
			}
			buffer[2] |= 0x80
			binary.BigEndian.PutUint16(buffer[6:], 1)
			if _, err := socket.WriteTo(buffer[:n], from); err != nil {
				return
			}
		}
	}()
	addr, err := loopback(socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestLoadDNS(t *testing.T) {
	queries := [][]byte{dnsQuery("a.service.consul", dnsTypeA), dnsQuery("bb.service.consul.", dnsTypeSRV)}
	for _, inFlight := range []int{1, 16, maxBatch} {
		c, err := loadDNS(t.Context(), serveDNS(t, 0), os.Getpid(), 2, inFlight, window{length: time.Minute, limit: 1000}, queries)
		if err != nil {
			t.Fatal(err)
		}
		if c.answered != c.issued || c.issued < 1000 || c.failed != 0 {
			t.Errorf("%d in flight: %d of %d answered, %d failed: %s", inFlight, c.answered, c.issued, c.failed, c.failure)
		}
	}
}

func TestLoadDNSGivesLostQueriesUp(t *testing.T) {
	c, err := loadDNS(t.Context(), serveDNS(t, 50), os.Getpid(), 1, 8, window{length: time.Minute, limit: 100}, [][]byte{dnsQuery("a", dnsTypeA)})
	if err != nil {
		t.Fatal(err)
	}
	if c.answered != c.issued || c.failed != 2 || c.failure != "no answer over UDP" {
		t.Errorf("%d of %d answered, %d failed: %s", c.answered, c.issued, c.failed, c.failure)
	}
}

func TestDNSWire(t *testing.T) {
	want := "\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ab\x06consul\x00\x00\x21\x00\x01"
	if got := string(dnsQuery("ab.consul", dnsTypeSRV)); got != want {
		t.Errorf("query %q", got)
	}
	for answer, failure := range map[string]string{
		"\x00\x00\x81\x00\x00\x01\x00\x01\x00\x00\x00\x00": "",
		"\x00\x00\x81\x03\x00\x01\x00\x00\x00\x00\x00\x00": "DNS answer code 3",
		"\x00\x00\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00": "DNS answer without a record",
		"\x00\x00\x01\x00\x00\x01\x00\x01\x00\x00\x00\x00": "not a DNS answer",
		"\x00": "not a DNS answer",
	} {
		if got := dnsFailure([]byte(answer)); got != failure {
			t.Errorf("%q: %q, want %q", answer, got, failure)
		}
	}
}

func TestMemoryIsNoDisk(t *testing.T) {
	if err := onDisk("/dev/shm"); err == nil {
		t.Error("/dev/shm is taken for a disk")
	}
	if err := onDisk("/var/tmp/absent/absent"); err == nil {
		t.Error("a directory that is not there is accepted")
	}
}
