package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A window says how long and how much is measured.
type window struct {
	warm   time.Duration // load before the measured part
	length time.Duration // of the measured part
	limit  uint64        // operations at most, warming included; 0 is no limit
}

// A cell is what one window has shown.
type cell struct {
	ops       uint64
	issued    uint64 // operations sent, warming included
	answered  uint64 // of these
	elapsed   time.Duration
	latency   *histogram
	cpu       time.Duration // of the server
	clientCPU time.Duration
	machine   time.Duration // CPU time of everything on the machine
	failed    uint64
	failure   string // the first one
}

func (c *cell) rate() float64 { return float64(c.ops) / max(c.elapsed.Seconds(), 1e-9) }

// micros is a CPU time per operation in microseconds.
func (c *cell) micros(d time.Duration) float64 {
	return float64(d.Microseconds()) / float64(max(c.ops, 1))
}

// others is the share of the machine that neither the server nor the client has used.
func (c *cell) others() float64 {
	whole := c.elapsed.Seconds() * float64(runtime.NumCPU())
	return max(0, (c.machine-c.cpu-c.clientCPU).Seconds()) / max(whole, 1e-9)
}

// A meter turns warming into measuring and measuring into an end at the right moments; both kinds of load tell it of each
// operation.
type meter struct {
	cell
	pid       int
	window    window
	begin     time.Time // of warming, then of measuring
	measuring bool
	over      bool
}

func startMeter(pid int, w window) (*meter, error) {
	m := &meter{pid: pid, window: w, begin: time.Now()}
	m.latency = &histogram{}
	if w.warm > 0 {
		return m, nil
	}
	err := m.measure(m.begin)
	return m, err
}

func (m *meter) measure(now time.Time) (err error) {
	m.begin, m.measuring = now, true
	if m.machine, err = machineTime(); err != nil {
		return err
	}
	m.cpu, err = cpuTime(m.pid)
	m.clientCPU = ownCPU()
	return err
}

// done counts one operation that was answered now. failure is empty for a success.
func (m *meter) done(took time.Duration, failure string) {
	m.answered++
	if failure != "" {
		if m.failed == 0 {
			m.failure = failure
		}
		m.failed++
	}
	if m.measuring && !m.over {
		m.ops++
		m.latency.add(took)
	}
}

// at moves on to measuring or the end when it is time. It is called often, and only from one goroutine.
func (m *meter) at(now time.Time) error {
	switch {
	case m.over:
	case !m.measuring && now.Sub(m.begin) >= m.window.warm:
		return m.measure(now)
	case m.measuring && now.Sub(m.begin) >= m.window.length && m.enough(now), m.full() && m.answered >= m.issued:
		return m.end(now)
	}
	return nil
}

// enough says whether the operations make a figure: of slow ones, those that the window's ends cut in two would be most of what the
// server has worked on. They get up to eight times the length.
func (m *meter) enough(now time.Time) bool {
	return m.ops >= 2*(m.issued-m.answered) || now.Sub(m.begin) >= 8*m.window.length
}

// full says that no further operation may be sent.
func (m *meter) full() bool {
	return m.over || m.window.limit > 0 && m.issued >= m.window.limit
}

func (m *meter) end(now time.Time) error {
	if m.over {
		return nil
	}
	m.over = true
	if !m.measuring { // the limit was reached while warming
		return nil
	}
	m.elapsed = now.Sub(m.begin)
	cpu, err := cpuTime(m.pid)
	m.cpu = cpu - m.cpu
	m.clientCPU = ownCPU() - m.clientCPU
	if err != nil {
		return err
	}
	machine, err := machineTime()
	m.machine = machine - m.machine
	return err
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// A source appends the n-th request of a load to b.
type source func(b []byte, n uint64) []byte

// cycle is a source of requests made beforehand.
func cycle(requests [][]byte) source {
	return func(b []byte, n uint64) []byte { return append(b, requests[n%uint64(len(requests))]...) }
}

// loadHTTP keeps one request in flight on each of n connections for the window. An answer that is no success is counted and told in
// the cell; what ends a connection is an error. All requests have been answered when it returns without one.
func loadHTTP(ctx context.Context, addr netip.AddrPort, pid, n int, w window, next source) (*cell, error) {
	p, err := dialPool(ctx, addr, n)
	if err != nil {
		return nil, err
	}
	defer p.close()
	m, err := startMeter(pid, w)
	if err != nil {
		return nil, err
	}
	var request []byte
	send := func(i int) error {
		request = next(request[:0], m.issued)
		m.issued++
		return p.send(i, request)
	}
	for i := range n {
		if m.full() {
			break
		}
		if err := send(i); err != nil {
			return nil, err
		}
	}
	done := func(i int, c *conn) error {
		m.done(time.Since(c.sent), failureOf(&c.reply))
		if m.full() {
			return nil
		}
		return send(i)
	}
	for last := time.Now(); m.answered < m.issued || !m.over; {
		came, err := p.poll(20*time.Millisecond, done)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if came {
			last = now
		}
		if err := m.at(now); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if now.Sub(last) > patience && m.answered < m.issued {
			return nil, fmt.Errorf("no answer for %s", patience)
		}
	}
	return &m.cell, nil
}

func failureOf(r *response) string {
	if r.status/100 == 2 {
		return ""
	}
	return fmt.Sprintf("status %d: %s", r.status, r.text)
}
