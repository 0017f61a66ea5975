package story

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// debianPython is the interpreter that Debian's python3-consul belongs to.
const debianPython = "/usr/bin/python3"

// pythonScript is the first example of the field. The library is 0.7.1, which speaks to the agent as Consul was in 2017;
// of what it does wrong by now (GET instead of PUT for deregistration and TTL checks) the script uses nothing.
const pythonScript = "testdata/example.py"

// TestPythonConsul drives the agent by Debian's python3-consul.
func TestPythonConsul(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.File("/usr/lib/python3/dist-packages/consul/__init__.py"))
	lab := testlab.New(t)
	h := lab.Host("n1")
	a := newAgent(t, h)
	python := func(step string) (string, error) {
		return h.Try(debianPython, pythonScript, step)
	}
	must := func(step string) string {
		t.Helper()
		out, err := python(step)
		if err != nil {
			t.Fatalf("%s: %v\n%s", step, err, out)
		}
		return strings.TrimSpace(out)
	}
	srv := serveOn(&h.NS, "db", "127.0.0.1:8888")
	testlab.Eventually(t, settleLimit, func() error {
		_, err := fetchFrom(&h.NS, "tcp4", "http://127.0.0.1:8888/")
		return err
	})

	must("register")
	if got, want := must("catalogue"), "consul: []\ndb: ['primary', 'v2']\ndb-1 at 127.0.0.1:8888 on n1"; got != want {
		t.Errorf("catalogue:\n%s\nwant:\n%s", got, want)
	}
	if got, want := must("kv"), "b'red' flags 7, keys ['app/colour', 'app/size'], gone None"; got != want {
		t.Errorf("kv: %s, want %s", got, want)
	}
	// health.service follows the check by blocking queries, each of which wakes the client when something changes. The
	// check runs every 10 s.
	if got := must("passing"); got != "db-1 HTTP GET http://127.0.0.1:8888/: 200 OK Output: db 127.0.0.1" {
		t.Errorf("passing: %q", got)
	}
	srv.Kill()
	if got := must("none"); !strings.Contains(got, "critical") || !strings.Contains(got, "connection refused") {
		t.Errorf("after the server's end: %q", got)
	}
	serveOn(&h.NS, "db", "127.0.0.1:8888")
	if got := must("passing"); !strings.Contains(got, "200 OK") {
		t.Errorf("after the server's return: %q", got)
	}

	var checks map[string]struct {
		Status, Interval, Timeout string
	}
	if err := json.Unmarshal([]byte(a.do(http.MethodGet, "/v1/agent/checks", "")), &checks); err != nil {
		t.Fatal(err)
	}
	if c := checks["service:db-1"]; c.Status != "passing" || c.Interval != "10s" || c.Timeout != "2s" {
		t.Errorf("the agent's checks: %+v", checks)
	}
}
