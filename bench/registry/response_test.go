package main

import (
	"errors"
	"strings"
	"testing"
)

// feedAll gives an answer in pieces of n bytes and returns what the parser has read.
func feedAll(t *testing.T, r *response, answer string, n int) (done bool, err error) {
	t.Helper()
	for len(answer) > 0 {
		if done {
			t.Fatalf("complete with %q to come", answer)
		}
		piece := answer[:min(n, len(answer))]
		answer = answer[len(piece):]
		if done, err = r.feed([]byte(piece)); err != nil {
			return false, err
		}
	}
	return done, nil
}

func TestResponse(t *testing.T) {
	tests := []struct {
		name, answer string
		status       int
		index        uint64
		body         string
		closes       bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Type: x\r\nX-Consul-Index: 17\r\nContent-Length: 5\r\n\r\nhello", 200, 17, "hello", false},
		{"lower case", "HTTP/1.1 200 OK\r\ncontent-length:3\r\nx-consul-index:  4 \r\n\r\nabc", 200, 4, "abc", false},
		{"empty", "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", 204, 0, "", true},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n", 200, 0, "hello, world", false},
		{"trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\nA: b\r\n\r\n", 200, 0, "0123456789", false},
		{"failure", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops", 500, 0, "oops", false},
	}
	for _, test := range tests {
		for _, n := range []int{1, 2, 3, 7, 1 << 10} {
			r := &response{keep: true}
			r.reset()
			done, err := feedAll(t, r, test.answer, n)
			if err != nil || !done {
				t.Errorf("%s in pieces of %d: done %v, %v", test.name, n, done, err)
				continue
			}
			if r.status != test.status || r.index != test.index || string(r.text) != test.body || r.closes != test.closes {
				t.Errorf("%s in pieces of %d: read %d, index %d, body %q, closes %v", test.name, n, r.status, r.index, r.text, r.closes)
			}
			if r.size != int64(len(test.body)) {
				t.Errorf("%s in pieces of %d: size %d", test.name, n, r.size)
			}
		}
	}
}

func TestResponseIsUsedAgain(t *testing.T) {
	r := &response{}
	for range 3 {
		r.reset()
		done, err := feedAll(t, r, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 5)
		if !done || err != nil || string(r.text) != "no" || failureOf(r) != "status 404: no" {
			t.Fatalf("done %v, %v, text %q", done, err, r.text)
		}
	}
}

func TestResponseRefuses(t *testing.T) {
	tests := map[string]string{
		"another protocol":   "SMTP ready here\r\n\r\n",
		"status":             "HTTP/1.1 abc OK\r\n\r\n",
		"header":             "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
		"length":             "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
		"chunk":              "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"bytes after it":     "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
		"bytes after chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
		"a head without end": "HTTP/1.1 200 OK\r\n" + strings.Repeat("x", maxHead),
	}
	for name, answer := range tests {
		if _, err := (&response{}).feed([]byte(answer)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := (&response{}).feed([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab")); !errors.Is(err, errMore) {
		t.Errorf("two bytes for one: %v", err)
	}
}

func TestAppendRequest(t *testing.T) {
	if got := string(appendRequest(nil, "GET", "/v1/x?y", nil)); got != "GET /v1/x?y HTTP/1.1\r\nHost: bench\r\n\r\n" {
		t.Errorf("GET: %q", got)
	}
	if got := string(appendRequest([]byte("#"), "PUT", "/", []byte("abc"))); got != "#PUT / HTTP/1.1\r\nHost: bench\r\nContent-Length: 3\r\n\r\nabc" {
		t.Errorf("PUT: %q", got)
	}
}
