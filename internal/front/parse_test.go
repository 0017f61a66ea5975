package front

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// ordinary are requests that are answered here; the fuzzer starts from them, too.
var ordinary = []string{
	"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /v1/kv/a//b%2Fc?raw&dc=dc1 HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n",
	"PUT /v1/kv/a HTTP/1.1\r\nhost: [::1]:8500\r\ncontent-length: 3\r\nX-CONSUL-TOKEN:  secret \t\r\n\r\nabc",
	"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n",
	"DELETE //a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nX-B:\r\nx-a: 2\r\n\r\n",
}

// strange are requests that only the server behind may judge.
var strange = map[string]string{
	"two lengths":               "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
	"the same length twice":     "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
	"a list of lengths":         "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
	"a length with a sign":      "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
	"a negative length":         "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc",
	"a hexadecimal length":      "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\nabc",
	"an empty length":           "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
	"an endless length":         "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551619\r\n\r\nabc",
	"a long body":               "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n",
	"chunks":                    "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunks and a length":       "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunks in disguise":        "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
	"a space before the colon":  "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc",
	"a name with a space":       "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer Encoding: chunked\r\n\r\n",
	"no name":                   "GET /a HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
	"no colon":                  "GET /a HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n",
	"a folded line":             "GET /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n 2\r\n\r\n",
	"a folded first line":       "GET /a HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n",
	"a bare LF":                 "GET /a HTTP/1.1\r\nHost: x\nX-A: 1\r\n\r\n",
	"a bare LF after the line":  "GET /a HTTP/1.1\nHost: x\r\n\r\n",
	"bare LFs":                  "GET /a HTTP/1.1\nHost: x\n\n",
	"a bare CR":                 "GET /a HTTP/1.1\r\nHost: x\r\nX-A: 1\rX-B: 2\r\n\r\n",
	"a bare CR in the line":     "GET /a\r HTTP/1.1\r\nHost: x\r\n\r\n",
	"two CRs":                   "GET /a HTTP/1.1\r\r\nHost: x\r\n\r\n",
	"a NUL in a value":          "GET /a HTTP/1.1\r\nHost: x\r\nX-A: \x00\r\n\r\n",
	"a NUL in the path":         "GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
	"a byte beyond ASCII":       "GET /a HTTP/1.1\r\nHost: x\r\nX-A: \xc3\xa9\r\n\r\n",
	"a path beyond ASCII":       "GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
	"a fragment":                "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
	"no host":                   "GET /a HTTP/1.1\r\n\r\n",
	"an empty host":             "GET /a HTTP/1.1\r\nHost:\r\n\r\n",
	"two hosts":                 "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
	"the same host twice":       "GET /a HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
	"a host with a path":        "GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n",
	"a host with a space":       "GET /a HTTP/1.1\r\nHost: x y\r\n\r\n",
	"a host with an at":         "GET /a HTTP/1.1\r\nHost: u@x\r\n\r\n",
	"an absolute target":        "GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
	"an asterisk":               "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
	"a tunnel":                  "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
	"no target":                 "GET  HTTP/1.1\r\nHost: x\r\n\r\n",
	"no target and one space":   "GET HTTP/1.1\r\nHost: x\r\n\r\n",
	"two spaces":                "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"a tab":                     "GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n",
	"a space at the end":        "GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
	"a space in the target":     "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
	"HTTP/1.0":                  "GET /a HTTP/1.0\r\nHost: x\r\n\r\n",
	"HTTP/1.2":                  "GET /a HTTP/1.2\r\nHost: x\r\n\r\n",
	"HTTP/2":                    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"HTTP/0.9":                  "GET /a\r\n\r\n",
	"a small version":           "GET /a http/1.1\r\nHost: x\r\n\r\n",
	"a small method":            "get /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"HEAD":                      "HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"OPTIONS":                   "OPTIONS /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"PATCH":                     "PATCH /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"an empty line before":      "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET with a body":           "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
	"DELETE with a body":        "DELETE /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
	"two requests":              "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
	"more than the body":        "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcd",
	"more than no body":         "PUT /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
	"an expectation":            "PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
	"an upgrade":                "GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
	"HTTP/2 by upgrade":         "GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
	"the end of the connection": "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
	"a header of one hop":       "GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\n",
	"trailers":                  "PUT /a HTTP/1.1\r\nHost: x\r\nTrailer: X-A\r\nContent-Length: 0\r\n\r\n",
	"what becomes another":      "GET /a HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\n\r\n",
	"a long header":             "GET /a HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", maxHead) + "\r\n\r\n",
	"a long header, unfinished": "GET /a HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", maxHead),
	"many headers":              "GET /a HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: 1\r\n", maxLines) + "\r\n",
	"the hello of TLS":          "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

func TestOrdinaryRequests(t *testing.T) {
	for _, in := range ordinary {
		if _, _, v := parse([]byte(in)); v != whole {
			t.Errorf("%q: verdict %v", in, v)
		}
		sameAsServer(t, []byte(in))
		// Each beginning of it may become it.
		for n := 1; n < len(in); n++ {
			if _, _, v := parse([]byte(in[:n])); v != partial {
				t.Errorf("%q: verdict %v", in[:n], v)
			}
		}
	}
}

func TestStrangeRequestsAreTheServers(t *testing.T) {
	for name, in := range strange {
		if _, _, v := parse([]byte(in)); v != odd {
			t.Errorf("%s: verdict %v", name, v)
		}
	}
}

func TestPartialRequestSaysWhatItTakes(t *testing.T) {
	in := "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nab"
	if _, need, v := parse([]byte(in)); v != partial || need != len(in)-2+60000 {
		t.Errorf("verdict %v, need %d", v, need)
	}
}

// FuzzParse looks for what is taken here and read otherwise, or refused, by
// net/http.
func FuzzParse(f *testing.F) {
	for _, in := range ordinary {
		f.Add([]byte(in))
	}
	for _, in := range strange {
		if len(in) < 1<<10 {
			f.Add([]byte(in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) { sameAsServer(t, in) })
}

func sameAsServer(t *testing.T, in []byte) {
	t.Helper()
	h, _, v := parse(in)
	if v != whole {
		return
	}
	got, ok := h.request(&http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}, &body{left: bytes.Clone(in[h.size:])})
	if !ok {
		return
	}
	rest := bufio.NewReader(bytes.NewReader(in))
	want, err := http.ReadRequest(rest)
	if err != nil {
		t.Fatalf("%q is refused by net/http: %v", in, err)
	}
	if got.Method != want.Method || got.RequestURI != want.RequestURI || got.Host != want.Host || got.Proto != want.Proto ||
		got.ContentLength != want.ContentLength || got.Close != want.Close || len(want.TransferEncoding) > 0 || len(want.Trailer) > 0 {
		t.Errorf("%q is\n%+v, with net/http\n%+v", in, got, want)
	}
	if !reflect.DeepEqual(got.URL, want.URL) {
		t.Errorf("%q has the URL %#v, with net/http %#v", in, got.URL, want.URL)
	}
	if !reflect.DeepEqual(got.Header, want.Header) {
		t.Errorf("%q has the headers %q, with net/http %q", in, got.Header, want.Header)
	}
	a, aerr := io.ReadAll(got.Body)
	b, berr := io.ReadAll(want.Body)
	if !bytes.Equal(a, b) || aerr != nil || berr != nil {
		t.Errorf("%q has the body %q (%v), with net/http %q (%v)", in, a, aerr, b, berr)
	}
	if more, _ := io.ReadAll(rest); len(more) > 0 {
		t.Errorf("%q has more behind it with net/http: %q", in, more)
	}
}
