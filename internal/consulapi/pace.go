package consulapi

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// timed is a request's body that has to arrive in time. The deadline is the
// connection's; it is lifted at the body's end, since the server reads on behind
// it to notice that a client goes away, and a query may wait for long.
type timed struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration
	end   time.Time // zero: as long as it comes
}

func (t *timed) extend() {
	at := time.Now().Add(t.stall)
	if !t.end.IsZero() && t.end.Before(at) {
		at = t.end
	}
	_ = t.rc.SetReadDeadline(at) // not every connection has one
}

// Read implements io.Reader.
func (t *timed) Read(b []byte) (int, error) {
	t.extend()
	n, err := t.ReadCloser.Read(b)
	if errors.Is(err, io.EOF) {
		_ = t.rc.SetReadDeadline(time.Time{}) // as above
	}
	return n, err
}

// paced is an answer that its client has to take in time, piece by piece.
type paced struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
	begun bool
}

func (p *paced) extend() {
	_ = p.rc.SetWriteDeadline(time.Now().Add(p.stall)) // not every connection has one
}

// Unwrap is for http.ResponseController.
func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (p *paced) WriteHeader(status int) {
	p.begun = p.begun || status >= 200
	p.extend()
	p.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (p *paced) Write(b []byte) (n int, err error) {
	p.begun = true
	for {
		p.extend()
		piece := b[n:min(len(b), n+writePiece)]
		w, err := p.ResponseWriter.Write(piece)
		if n += w; err != nil || n == len(b) {
			return n, err
		}
	}
}

// Flush implements http.Flusher.
func (p *paced) Flush() { _ = p.FlushError() } // an answer that cannot be sent shows at its next write

// FlushError is for http.ResponseController.
func (p *paced) FlushError() error {
	p.begun = true
	p.extend()
	return p.rc.Flush()
}
