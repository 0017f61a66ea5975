package consulapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Texts that clients match on.
const (
	noLeader  = "No cluster leader"
	noPath    = "No path to datacenter"
	kvSizeDoc = " See https://developer.hashicorp.com/docs/agent/config/config-files#kv_max_value_size."
)

// gzipMin is the size in bytes of the smallest body worth compressing.
const gzipMin = 1 << 10

// failed is an error that knows its status; its text is the answer's body.
type failed struct {
	status int
	reason string
}

func (f *failed) Error() string { return f.reason }

func fail(status int, format string, args ...any) error {
	return &failed{status, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return fail(http.StatusBadRequest, format, args...)
}

func tooLarge(size, limit int64, more string) string {
	return fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes.%s", size, limit, more)
}

// answer is a status with either a value to encode as JSON or a body as is.
type answer struct {
	status int
	value  any
	isJSON bool
	body   []byte
	ctype  string
	// zipped returns body compressed, once for all who share the answer.
	zipped func() []byte
	// written says that the endpoint has sent everything itself.
	written bool
	// parked says that the request is in the lot, and not answered yet.
	parked bool
}

// value answers with v as JSON, null for nil.
func value(v any) answer { return answer{status: http.StatusOK, value: v, isJSON: true} }

// empty answers 200 without a body.
func empty() answer { return answer{status: http.StatusOK} }

func text(status int, s string) answer {
	return answer{status: status, body: []byte(s), ctype: "text/plain; charset=utf-8"}
}

// encoded returns an answer with its value as a body, pretty if asked for.
func (h *handler) encoded(r *http.Request, a answer) answer {
	if !a.isJSON {
		return a
	}
	b, err := encode(a.value, wantsPretty(r))
	if err != nil {
		h.log.Error("encode answer", "path", r.URL.Path, "error", err)
		return text(http.StatusInternalServerError, err.Error())
	}
	return answer{status: a.status, body: b, ctype: "application/json"}
}

func wantsPretty(r *http.Request) bool {
	return strings.Contains(r.URL.RawQuery, "pretty") && r.URL.Query().Has("pretty")
}

// write sends an answer, compressed if worthwhile.
func (h *handler) write(w http.ResponseWriter, r *http.Request, a answer) {
	if a.written {
		return
	}
	a = h.encoded(r, a)
	if a.ctype != "" {
		w.Header().Set("Content-Type", a.ctype)
	}
	if len(a.body) > gzipMin && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		if a.zipped != nil {
			a.body = a.zipped()
		} else {
			a.body = compress(a.body)
		}
		w.Header().Set("Content-Encoding", "gzip")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	if _, err := w.Write(a.body); err != nil {
		h.log.Debug("write answer", "path", r.URL.Path, "error", err)
	}
}

// zippers are kept because one takes close to a megabyte.
var zippers = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

func compress(body []byte) []byte {
	zw, _ := zippers.Get().(*gzip.Writer)
	defer zippers.Put(zw)
	var z bytes.Buffer
	zw.Reset(&z)
	// A write to a bytes.Buffer cannot fail.
	_, _ = zw.Write(body)
	_ = zw.Close()
	return bytes.Clone(z.Bytes())
}

func encode(v any, pretty bool) ([]byte, error) {
	if !pretty {
		return json.Marshal(v)
	}
	b, err := json.MarshalIndent(v, "", "    ")
	return append(b, '\n'), err
}

// acceptsGzip reads an Accept-Encoding header: gzip or * with a weight above 0.
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		if name = strings.TrimSpace(name); name != "gzip" && name != "*" {
			continue
		}
		q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		if !ok {
			return true
		}
		f, err := strconv.ParseFloat(q, 64)
		return err == nil && f > 0
	}
	return false
}
