package front

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// gatherBytes is how much of an answer is gathered whose length is known;
	// more is sent as it comes, without being copied.
	gatherBytes = 32 << 10
	// unknownBytes is how much is gathered of one whose length is not known.
	unknownBytes = 1 << 20
	// sniffBytes is how much net/http looks at to guess what a body is.
	sniffBytes = 512
)

// outs are what answers are written in.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// response is the http.ResponseWriter of a connection's requests, one after the
// other. It writes what net/http would, but for the order of the headers and the
// form of a body whose length its handler does not say.
type response struct {
	conn   *conn
	header http.Header

	status   int // 0 before WriteHeader
	declared int // the body's length; -1 if it is not known
	written  int // of the body, gathered or sent
	stall    time.Duration
	typed    bool // no Content-Type is to be guessed
	dated    bool // there is a Date
	last     bool // the connection ends
	sealed   bool // the head is complete
	failed   bool // the client has gone

	out  *[]byte // head, and body behind it once it is sealed; not sent yet
	body []byte  // gathered before that
}

// begin makes the response that of another request.
func (w *response) begin() {
	clear(w.header)
	*w = response{conn: w.conn, header: w.header, declared: -1, stall: w.conn.front.cfg.Stall}
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. Informational answers are not sent.
func (w *response) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %v", status))
	case w.status != 0 || status < 200:
		return
	}
	w.status = status
	w.out = outs.Get().(*[]byte)
	b := (*w.out)[:0]
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	if text := http.StatusText(status); text != "" {
		b = append(b, text...)
	} else {
		b = strconv.AppendInt(append(b, "status code "...), int64(status), 10)
	}
	b = append(b, "\r\n"...)
	w.last = w.conn.over()
	w.typed = !w.hasBody()
	for key, values := range w.header {
		if w.special(key, values) {
			continue
		}
		for _, v := range values {
			b = appendField(b, key, v)
		}
	}
	*w.out = b
}

// special notes what a header means to this connection; true if it is not sent as
// it is.
func (w *response) special(key string, values []string) bool {
	switch key {
	case "Content-Length":
		if n, err := strconv.Atoi(strings.Join(values, ",")); err == nil && n >= 0 && w.hasBody() {
			w.declared = n
		}
		return true
	case "Content-Type", "Content-Encoding":
		w.typed = w.typed || key == "Content-Type" || len(values) > 0 && values[0] != ""
		return w.status == http.StatusNotModified && key == "Content-Type"
	case "Date":
		w.dated = true
	case "Connection":
		w.last = w.last || len(values) > 0 && strings.EqualFold(values[0], "close")
		return true
	case "Transfer-Encoding", "Trailer":
		return true
	}
	return !isName(key)
}

func isName(key string) bool {
	for i := range len(key) {
		if !isToken[key[i]] {
			return false
		}
	}
	return key != ""
}

// appendField adds a header; what would end its line becomes a space.
func appendField(b []byte, key, value string) []byte {
	b = append(b, key...)
	b = append(b, ": "...)
	begin := len(b)
	b = append(b, strings.Trim(value, " \t\r\n")...)
	for i, c := range b[begin:] {
		if c == '\r' || c == '\n' {
			b[begin+i] = ' '
		}
	}
	return append(b, "\r\n"...)
}

// hasBody reports whether the status lets an answer have a body.
func (w *response) hasBody() bool {
	return w.status != http.StatusNoContent && w.status != http.StatusNotModified
}

// Write implements io.Writer. What it is given is copied or sent.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !w.hasBody() {
		return 0, http.ErrBodyNotAllowed
	}
	w.written += len(p)
	if w.declared >= 0 && w.written > w.declared {
		return 0, http.ErrContentLength
	}
	if !w.sealed && w.declared >= 0 && (w.written == w.declared || w.typed) {
		w.seal(p)
	}
	switch {
	case w.sealed && len(*w.out)+len(p) <= gatherBytes:
		*w.out = append(*w.out, p...)
		return len(p), nil
	case w.sealed:
		return w.send(p)
	case len(w.body)+len(p) <= unknownBytes && (w.declared < 0 || len(w.body)+len(p) <= gatherBytes):
		w.body = append(w.body, p...)
		return len(p), nil
	}
	w.seal(p)
	return w.send(p)
}

// seal completes the head, and puts what was gathered of the body behind it; next
// is what comes then. A body that has no known length yet ends with the connection.
func (w *response) seal(next []byte) {
	w.sealed = true
	b := *w.out
	if !w.typed && len(w.body)+len(next) > 0 {
		begin := w.body
		if n := sniffBytes - len(begin); n > 0 {
			begin = append(begin[:len(begin):len(begin)], next[:min(n, len(next))]...)
		}
		b = appendField(b, "Content-Type", http.DetectContentType(begin))
	}
	if !w.dated {
		b = append(b, "Date: "...)
		b = append(b, w.conn.front.today(time.Now())...)
		b = append(b, "\r\n"...)
	}
	switch {
	case w.declared >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(w.declared), 10)
		b = append(b, "\r\n"...)
	case w.hasBody():
		w.last = true
	}
	if w.last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	b = append(b, w.body...)
	*w.out, w.body = b, nil
}

// send writes what was gathered, and p behind it. It returns how much of p was
// written.
func (w *response) send(p []byte) (n int, err error) {
	if w.failed {
		return 0, net.ErrClosed
	}
	w.conn.writeUntil(time.Now(), w.stall)
	before := len(*w.out)
	if len(p) == 0 {
		n, err = w.conn.sock.Write(*w.out)
	} else {
		var sent int64
		pieces := net.Buffers{*w.out, p}
		sent, err = pieces.WriteTo(w.conn.sock)
		n = int(sent)
	}
	*w.out = (*w.out)[:0]
	w.failed = err != nil
	return max(0, n-before), err
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() } // an answer that cannot be sent shows at its next write

// FlushError is for http.ResponseController.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sealed {
		w.seal(nil)
	}
	_, err := w.send(nil)
	return err
}

// SetReadDeadline is for http.ResponseController. The request is there already.
func (w *response) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is for http.ResponseController. A time that is not to come
// soon is taken for what Config.Stall has.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.stall = w.conn.front.cfg.Stall
	if !t.IsZero() {
		w.stall = min(w.stall, time.Until(t))
	}
	return nil
}

// finish sends what is left; false if the connection ends.
func (w *response) finish() bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sealed {
		if w.declared < 0 && w.hasBody() {
			w.declared = len(w.body)
		}
		w.seal(nil)
	}
	if len(*w.out) > 0 {
		_, _ = w.send(nil) // failed says it
	}
	// One that is shorter than was said cannot be followed by another.
	whole := w.declared < 0 || w.written == w.declared
	again := whole && !w.last && !w.failed
	if whole && w.last && !w.failed {
		w.conn.goodbye()
	}
	w.drop()
	return again
}

// drop gives up what has not been sent.
func (w *response) drop() {
	if w.out != nil && cap(*w.out) <= 2*gatherBytes {
		outs.Put(w.out)
	}
	w.out, w.body = nil, nil
}

var (
	_ http.ResponseWriter = (*response)(nil)
	_ http.Flusher        = (*response)(nil)
)
