package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A target is one server under load and what was measured of it. Used by one goroutine.
type target struct {
	name     string
	http     netip.AddrPort
	dns      netip.AddrPort
	pid      int
	own      *agent // started by the suite; nil for a peer
	client   *http.Client
	sequence uint64 // makes names and values new

	figures map[string][]float64 // by "row/connections/what" or "part/what"; one value for each repeat
	notes   []string
}

func newTarget(name, base, dns string, pid int) (*target, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("target %s: %q is not like http://127.0.0.1:8500", name, base)
	}
	t := &target{name: name, pid: pid, figures: map[string][]float64{}}
	if t.http, err = loopback(u.Host); err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	if t.dns, err = loopback(dns); err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	t.client = &http.Client{Transport: &http.Transport{MaxIdleConns: 2, IdleConnTimeout: time.Second}, Timeout: 30 * time.Second}
	return t, nil
}

// parseTarget reads "name,url,dns,pid".
func parseTarget(text string) (*target, error) {
	part := strings.Split(text, ",")
	if len(part) != 4 {
		return nil, fmt.Errorf("target %q: want name,url,dns,pid", text)
	}
	pid, err := strconv.Atoi(part[3])
	if err != nil || pid <= 1 {
		return nil, fmt.Errorf("target %q: pid %q", text, part[3])
	}
	return newTarget(part[0], part[1], part[2], pid)
}

func (t *target) add(key string, value float64) { t.figures[key] = append(t.figures[key], value) }

// figure is the median of what was measured under a key, and whether anything was.
func (t *target) figure(key string) (float64, bool) {
	values := t.figures[key]
	return median(values), len(values) > 0
}

// note keeps a failure or a remark for the report, each text once.
func (t *target) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, n := range t.notes {
		if n == text {
			return
		}
	}
	t.notes = append(t.notes, text)
}
