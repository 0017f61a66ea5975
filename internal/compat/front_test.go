package compat

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// asked are requests that are answered without net/http's server.
var asked = []struct{ method, target, body string }{
	{"PUT", "/v1/kv/front/a", "value"},
	{"PUT", "/v1/kv/front/a", ""},
	{"PUT", "/v1/kv/front/b?flags=7", strings.Repeat("b", 3000)},
	{"PUT", "/v1/kv/front/b?flags=x", "1"},
	{"PUT", "/v1/kv/front//odd%20%25%3F%23key", "1"},
	{"PUT", "/v1/kv/front/c?cas=1", "1"},
	{"PUT", "/v1/kv/front/c?acquire=none", "1"},
	{"PUT", "/v1/kv/", "1"},
	{"POST", "/v1/kv/front/a", "1"},
	{"GET", "/v1/kv/front/a", ""},
	{"GET", "/v1/kv/front/a?raw", ""},
	{"GET", "/v1/kv/front/b?raw&stale", ""},
	{"GET", "/v1/kv/front/b?pretty", ""},
	{"GET", "/v1/kv/front//odd%20%25%3F%23key?raw", ""},
	{"GET", "/v1/kv/front/none", ""},
	{"GET", "/v1/kv/front?recurse", ""},
	{"GET", "/v1/kv/front/?keys&separator=%2F", ""},
	{"GET", "/v1/kv/front/a?dc=elsewhere", ""},
	{"GET", "/v1/kv/front/a?ns=other", ""},
	{"GET", "/v1/kv/front/a?stale&max_stale=x", ""},
	{"PUT", "/v1/agent/service/register", `{"Name":"front","ID":"front-1","Port":80,"Check":{"TTL":"10m","Status":"passing"}}`},
	{"PUT", "/v1/agent/service/register", `{"Name":`},
	{"PUT", "/v1/agent/check/pass/service:front-1", ""},
	{"PUT", "/v1/agent/check/pass/none", ""},
	{"GET", "/v1/agent/services", ""},
	{"GET", "/v1/agent/checks", ""},
	{"GET", "/v1/agent/service/front-1", ""},
	{"GET", "/v1/agent/health/service/name/front", ""},
	{"PUT", "/v1/catalog/register", `{"Node":"far","Address":"127.1.2.3","Service":{"Service":"front","ID":"front-2","Port":81}}`},
	{"GET", "/v1/catalog/services", ""},
	{"GET", "/v1/catalog/nodes", ""},
	{"GET", "/v1/catalog/node/far", ""},
	{"GET", "/v1/catalog/service/front?cached", ""},
	{"GET", "/v1/health/service/front?passing", ""},
	{"GET", "/v1/health/service/front?filter=Service.Port%20%3D%3D%2081", ""},
	{"GET", "/v1/health/service/front?filter=nonsense", ""},
	{"GET", "/v1/health/state/any", ""},
	{"GET", "/v1/health/checks/front", ""},
	{"GET", "/v1/session/list", ""},
	{"PUT", "/v1/session/destroy/none", ""},
	{"PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"front/t","Value":"dA=="}},{"KV":{"Verb":"get","Key":"front/t"}}]`},
	{"GET", "/v1/status/leader", ""},
	{"GET", "/v1/status/peers", ""},
	{"GET", "/v1/status/none", ""},
	{"DELETE", "/v1/status/leader", ""},
	{"DELETE", "/v1/kv/front/t", ""},
	{"DELETE", "/v1/kv/front/?recurse", ""},
	{"GET", "/v1/query/none/execute", ""},
	{"GET", "/v1/kv/front/a?a=%zz", ""},
}

// indexes differ between two writes of the same, as the times of things do.
var indexes = regexp.MustCompile(`"(CreateIndex|ModifyIndex|Index|LastContact)": ?\d+|"(Output)":"[^"]*"`)

// TestFrontAnswersAsTheServer sends the same requests to both.
func TestFrontAnswersAsTheServer(t *testing.T) {
	a := startAgent(t)
	for _, headers := range []string{"", "Accept-Encoding: gzip\r\nUser-Agent: Go-http-client/1.1\r\nX-Consul-Token: none\r\n"} {
		for _, q := range asked {
			before := prompt(t, a)
			// TE takes a request to the server behind.
			got := onWire(t, a.http, q.method, q.target, headers, q.body)
			want := onWire(t, a.http, q.method, q.target, headers+"TE: trailers\r\n", q.body)
			if n := prompt(t, a) - before; n != 1 {
				t.Errorf("%s %s: %d were answered without the server", q.method, q.target, n)
			}
			if got != want {
				t.Errorf("%s %s (%q) is\n%.500s\nand with the server\n%.500s", q.method, q.target, headers, got, want)
			}
		}
	}
}

// prompt is how many requests were answered without the server.
func prompt(t *testing.T, a *agent) (n int) {
	t.Helper()
	resp, err := http.Get("http://" + a.http + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	_, line, ok := strings.Cut(string(b), "\nfairlead_http_prompt_requests_total ")
	if _, err := fmt.Sscan(line, &n); !ok || err != nil {
		t.Fatalf("no metric of it: %v", err)
	}
	return n
}

// onWire is an answer as text, but for what differs from time to time.
func onWire(t *testing.T, addr, method, target, headers, body string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(settleLimit)))
	length := ""
	if method == "PUT" || method == "POST" {
		length = fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	_, err = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s", method, target, addr, headers, length, body)
	must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	resp.Header.Del("Date")
	if resp.Header.Get("Content-Length") != fmt.Sprint(len(b)) {
		t.Errorf("%s %s: %d bytes, length %q", method, target, len(b), resp.Header.Get("Content-Length"))
	}
	resp.Header.Set("Content-Length", "n") // of numbers that differ
	if resp.Header.Get("X-Consul-Index") != "" {
		resp.Header.Set("X-Consul-Index", "n")
	}
	if resp.Header.Get("Content-Encoding") == "gzip" {
		zr, err := gzip.NewReader(bytes.NewReader(b))
		must(t, err)
		b, err = io.ReadAll(zr)
		must(t, err)
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, resp.Status, resp.Close, resp.TransferEncoding, resp.Uncompressed)
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		fmt.Fprintln(&out, k, resp.Header[k])
	}
	out.Write(indexes.ReplaceAll(b, []byte("$1$2")))
	return out.String()
}
