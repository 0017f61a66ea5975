package front

import (
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
)

const (
	// maxHead and maxBody bound a request that is answered here, in bytes;
	// maxLines is how many headers it may have.
	maxHead  = 8 << 10
	maxBody  = 64 << 10
	maxLines = 48
)

// verdict is what becomes of the bytes that have arrived.
type verdict int

const (
	whole   verdict = iota // exactly one ordinary request
	partial                // the beginning of one, as far as can be seen
	odd                    // anything else
)

// head is what comes before a request's body.
type head struct {
	method, target, host string
	header               http.Header
	size                 int // in bytes
	length               int // of the body
}

// parse reads what may be an ordinary request. Whatever leaves room for two
// readings, or takes more than one line of RFC 9112 to understand, is odd. need is
// how many bytes a partial request takes in all, 0 if that is not known yet.
func parse(b []byte) (h head, need int, v verdict) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) >= maxHead || !begins(b) {
			return h, 0, odd
		}
		return h, 0, partial
	}
	h.size = end + 4
	line, lines, _ := bytes.Cut(b[:end+2], []byte("\n"))
	if h.size > maxHead || !h.first(line) || !h.fields(lines) {
		return h, 0, odd
	}
	switch need = h.size + h.length; {
	case len(b) < need:
		return h, need, partial
	case len(b) > need:
		return h, 0, odd
	}
	return h, need, whole
}

// begins reports whether an ordinary request may begin so.
func begins(b []byte) bool {
	known := false
	for _, m := range methods {
		n := min(len(m), len(b))
		known = known || string(b[:n]) == m[:n]
	}
	if !known {
		return false
	}
	for i, c := range b {
		if c == '\n' && b[i-1] != '\r' { // no method begins with it
			return false
		}
	}
	return true
}

// methods are those that are answered here, each with the space behind it.
var methods = []string{"GET ", "PUT ", "DELETE ", "POST "}

// first reads the request line, which still has its CR.
func (h *head) first(line []byte) bool {
	rest, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1\r"))
	if !ok {
		return false
	}
	for _, m := range methods {
		if len(rest) > len(m) && string(rest[:len(m)]) == m {
			h.method = m[:len(m)-1]
			rest = rest[len(m):]
			break
		}
	}
	if h.method == "" || rest[0] != '/' {
		return false
	}
	for _, c := range rest {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	h.target = string(rest)
	return true
}

// fields reads the headers, each line with its end.
func (h *head) fields(lines []byte) bool {
	n := bytes.Count(lines, []byte("\n"))
	if n > maxLines {
		return false
	}
	h.header = make(http.Header, n)
	values := make([]string, n)
	sized := false
	for all := string(lines); all != ""; {
		var line string
		line, all, _ = strings.Cut(all, "\n")
		key, value, ok := field(line)
		if !ok {
			return false
		}
		switch key {
		case "Host":
			if h.host != "" || !isHost(value) {
				return false
			}
			h.host = value
			continue
		case "Content-Length":
			if h.length, ok = length(value); !ok || sized || (h.length > 0 && h.method != http.MethodPut && h.method != http.MethodPost) {
				return false
			}
			sized = true
		case "Connection":
			if !strings.EqualFold(value, "keep-alive") {
				return false
			}
		case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Http2-Settings", "Keep-Alive", "Proxy-Connection", "Pragma":
			return false
		}
		if have := h.header[key]; have != nil {
			h.header[key] = append(have, value)
			continue
		}
		values[0] = value
		h.header[key], values = values[:1:1], values[1:]
	}
	return h.host != ""
}

// field splits a line that still has its CR. The name is in its canonical form.
func field(line string) (key, value string, ok bool) {
	line, ok = strings.CutSuffix(line, "\r")
	if !ok {
		return "", "", false
	}
	key, value, ok = strings.Cut(line, ":")
	if !ok || key == "" {
		return "", "", false
	}
	canonical, upper := true, true
	for i := range len(key) {
		c := key[i]
		if !isToken[c] {
			return "", "", false
		}
		if upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			canonical = false
		}
		upper = c == '-'
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; (c < ' ' && c != '\t') || c >= 0x7f {
			return "", "", false
		}
	}
	if !canonical {
		key = textproto.CanonicalMIMEHeaderKey(key)
	}
	return key, value, true
}

// length reads a body's length of at most maxBody.
func length(s string) (n int, ok bool) {
	if s == "" || len(s) > 6 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int(s[i]-'0')
	}
	return n, n <= maxBody
}

// isHost reports whether a value is a name or an address, perhaps with a port.
func isHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isToken[c] && c != ':' && c != '[' && c != ']' || strings.IndexByte("!#$%&'*+^`|~", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// isToken says which bytes a header's name may have (RFC 9110, 5.6.2).
var isToken = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// request makes a request like others of its connection; false if the server is to
// say what is wrong with it. b is the body, which the request's reader copies.
func (h *head) request(like *http.Request, b *body) (*http.Request, bool) {
	u, err := url.ParseRequestURI(h.target)
	if err != nil {
		return nil, false
	}
	r := new(http.Request)
	*r = *like
	r.Method, r.URL, r.RequestURI, r.Host, r.Header = h.method, u, h.target, h.host, h.header
	r.ContentLength, r.Body = int64(h.length), http.NoBody
	if h.length > 0 {
		r.Body = b
	}
	return r, true
}

// body is one that has arrived. Once it is closed, nothing is read from it any
// more, whoever still has it.
type body struct {
	mu     sync.Mutex // guards following
	left   []byte
	closed bool
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	n := copy(p, b.left)
	if b.left = b.left[n:]; len(b.left) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left, b.closed = nil, true
	return nil
}
