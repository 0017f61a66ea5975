package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Largest head of an answer that is accepted, in bytes.
const maxHead = 16 << 10

var (
	errHead = errors.New("not an HTTP/1.1 answer")
	errMore = errors.New("more bytes than one answer")
)

type phase uint8

const (
	inHead phase = iota
	inBody
	inChunkSize
	inChunk
	inTrailer
)

// A response follows one HTTP/1.1 answer through the reads of its connection and keeps only what is measured: its status, its index
// and its size. It does not allocate once its buffers have grown. reset it for the next answer.
type response struct {
	status int
	index  uint64 // of X-Consul-Index, 0 without
	size   int64  // bytes of the body so far
	closes bool   // the server ends the connection after this answer
	text   []byte // start of the body of an answer that is no success, or all of it if keep is set
	keep   bool

	phase phase
	head  []byte // what is there of a line or head that did not come in one read
	left  int64  // bytes to come of the body or the chunk with its line end
}

func (r *response) reset() {
	*r = response{head: r.head[:0], text: r.text[:0], keep: r.keep}
}

// feed takes the next bytes of the connection and says whether the answer is complete.
func (r *response) feed(p []byte) (done bool, err error) {
	for {
		switch r.phase {
		case inHead:
			head, rest, ok := r.until(p, "\r\n\r\n")
			if !ok {
				return false, r.tooLong()
			}
			if err := r.parseHead(head); err != nil {
				return false, err
			}
			r.head, p = r.head[:0], rest
		case inBody:
			n := min(int64(len(p)), r.left)
			r.body(p[:n])
			r.left -= n
			if r.left > 0 {
				return false, nil
			}
			return true, surplus(p[n:])
		case inChunkSize:
			line, rest, ok := r.until(p, "\r\n")
			if !ok {
				return false, r.tooLong()
			}
			digits, _, _ := bytes.Cut(line, []byte(";"))
			n, err := strconv.ParseUint(string(bytes.TrimSpace(digits)), 16, 31)
			if err != nil {
				return false, fmt.Errorf("size of a chunk: %w", err)
			}
			r.head, p = r.head[:0], rest
			r.left, r.phase = int64(n)+2, inChunk
			if n == 0 {
				r.phase = inTrailer
			}
		case inChunk:
			n := min(int64(len(p)), r.left)
			r.body(p[:max(0, min(n, r.left-2))]) // without the line end
			r.left -= n
			p = p[n:]
			if r.left > 0 {
				return false, nil
			}
			r.phase = inChunkSize
		case inTrailer:
			line, rest, ok := r.until(p, "\r\n")
			if !ok {
				return false, r.tooLong()
			}
			last := len(line) == 0
			r.head, p = r.head[:0], rest
			if last {
				return true, surplus(p)
			}
		}
	}
}

// until returns what comes before the separator, from earlier reads and p together, and what follows it. Without the separator it
// keeps p for the next read.
func (r *response) until(p []byte, sep string) (before, after []byte, ok bool) {
	if len(r.head) == 0 {
		if i := bytes.Index(p, []byte(sep)); i >= 0 {
			return p[:i], p[i+len(sep):], true
		}
		r.head = append(r.head, p...)
		return nil, nil, false
	}
	old := len(r.head)
	r.head = append(r.head, p...)
	i := bytes.Index(r.head, []byte(sep))
	if i < 0 {
		return nil, nil, false
	}
	return r.head[:i], p[i+len(sep)-old:], true
}

func (r *response) tooLong() error {
	if len(r.head) > maxHead {
		return errHead
	}
	return nil
}

func surplus(rest []byte) error {
	if len(rest) > 0 {
		return errMore
	}
	return nil
}

func (r *response) body(p []byte) {
	r.size += int64(len(p))
	if r.keep {
		r.text = append(r.text, p...)
	} else if r.status/100 != 2 && len(r.text) < 200 {
		r.text = append(r.text, p[:min(len(p), 200-len(r.text))]...)
	}
}

func (r *response) parseHead(head []byte) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return errHead
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return errHead
	}
	r.status = status
	r.phase, r.left = inBody, 0
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return errHead
		}
		if err := r.header(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}

func (r *response) header(name, value []byte) (err error) {
	switch {
	case len(name) == 14 && equalFold(name, "content-length"):
		r.left, err = strconv.ParseInt(string(value), 10, 63)
	case len(name) == 14 && equalFold(name, "x-consul-index"):
		r.index, err = strconv.ParseUint(string(value), 10, 64)
	case len(name) == 17 && equalFold(name, "transfer-encoding"):
		r.phase = inChunkSize
	case len(name) == 10 && equalFold(name, "connection"):
		r.closes = equalFold(value, "close")
	}
	if err != nil {
		return fmt.Errorf("header %s: %w", name, err)
	}
	return nil
}

func equalFold(a []byte, lower string) bool {
	if len(a) != len(lower) {
		return false
	}
	for i := range a {
		c := a[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// appendRequest appends one request of a connection that is kept. The body may be nil.
func appendRequest(b []byte, method, path string, body []byte) []byte {
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: bench\r\n"...)
	if body != nil {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	return append(b, body...)
}
