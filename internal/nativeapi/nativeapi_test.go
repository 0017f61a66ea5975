package nativeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
)

// The shapes of everything that can be read. Clients in other languages rely on
// them.
func TestShapes(t *testing.T) {
	s := newWorld().serve(t)
	const endpoint = `{"id": "e1", "workload": "web-1", "network": "my-network", "node": "n1", "aliases": ["www"],
		"addrs": ["10.9.0.2", "fd00:9::2"], "mac": "02:00:00:00:00:01", "host_if": "flv1", "netns": "/proc/1/ns/net",
		"ports": [{"proto": "tcp", "host_port": 8080, "port": 80, "expose": "host"}]}`
	const network = `"name": "my-network", "driver": "bridge", "node": "n1", "mtu": 1400, "internal": true, "labels": {"a": "b"},
		"subnets": [{"prefix": "10.9.0.0/24", "gateway": "10.9.0.1", "reserved": ["10.9.0.128/25"]}, {"prefix": "fd00:9::/64", "gateway": "fd00:9::1"}]`
	const service = `{"name": "web", "vip4": "240.0.0.1", "vip6": "fd01::1", "tags": ["v1", "blue"], "instances": [
		{"id": "web-1", "node": "n1", "address": "10.9.0.2", "port": 80, "status": "critical", "tags": ["v1", "blue"], "meta": {"k": "v"},
			"endpoint": "e1", "checks": [{"id": "c1", "name": "answers", "status": "critical", "output": "refused"}]},
		{"id": "web-2", "node": "n1", "address": "198.51.100.1", "port": 81, "status": "passing", "tags": ["v1"]}]}`
	for path, want := range map[string]string{
		"/host":                `{"node": "n1", "run_dir": "/run/fairlead", "cgroup": "/sys/fs/cgroup/fairlead.slice"}`,
		"/networks":            `[{"name": "empty", "driver": "bridge", "node": "n2", "subnets": []}, {` + network + `}]`,
		"/networks/my-network": `{` + network + `, "endpoints": [` + endpoint + `]}`,
		"/workloads":           `[{"name": "web-1", "pid": 12, "state": "running", "endpoints": []}]`,
		"/services":            `[` + service + `]`,
		"/services/web":        service,
		"/services/consul": `{"name": "consul", "tags": [], "instances": [
			{"id": "consul", "node": "n1", "address": "198.51.100.1", "port": 8300, "status": "passing", "tags": []}]}`,
		"/status": `{"node": "n1", "site": "", "version": "", "pid": 0, "leader": "", "servers": null, "index": 7, "services": 0, "nodes": 0,
			"networks": 0, "endpoints": 0, "problems": []}`,
	} {
		res, body := call(t, s, http.MethodGet, path, "")
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s, %s: %s", path, res.Status, res.Header.Get("Content-Type"), body)
		}
		var got, wanted any
		if err := errors.Join(json.Unmarshal([]byte(body), &got), json.Unmarshal([]byte(want), &wanted)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if !reflect.DeepEqual(got, wanted) {
			t.Errorf("%s: got\n%s\nwant\n%s", path, body, want)
		}
	}
	res, body := call(t, s, http.MethodGet, "/datapath", "")
	if body != "frontend scope=1\n" || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("/datapath: %s, %s: %q", res.Status, res.Header.Get("Content-Type"), body)
	}
}

// What is asked for reaches the boxes behind as it was meant.
func TestChanges(t *testing.T) {
	w := newWorld()
	s := w.serve(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		asked              any
		answer             string
	}{
		{
			"POST", "/networks", `{"name": "x", "driver": "bridge", "mtu": 1300, "internal": true, "labels": {"a": "b"},
				"subnets": [{"prefix": "10.1.0.0/24", "gateway": "10.1.0.254", "reserved": ["10.1.0.0/28"]}, {"prefix": "fd00:1::/64"}]}`,
			200,
			model.Network{
				Name: "x", Driver: "bridge", MTU: 1300, Internal: true, Labels: map[string]string{"a": "b"},
				Pools: []model.Pool{
					{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.254"), Reserved: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/28")}},
					{Prefix: netip.MustParsePrefix("fd00:1::/64")},
				},
			},
			`"node": "n1"`,
		},
		{"DELETE", "/networks/x", "", 204, model.NetworkName("x"), ""},
		{"DELETE", "/networks/a%2Fb", "", 204, model.NetworkName("a/b"), ""},
		{
			"POST", "/workloads", `{"name": "web", "network": "x", "netns": "/proc/9/ns/net", "addrs": ["10.1.0.9"], "aliases": ["www"],
				"ports": [{"proto": "udp", "host_port": 53, "port": 5353, "expose": "any"}],
				"service": {"name": "dns", "port": 5353, "tags": ["t"], "check": {"tcp": true, "interval": 1000000000, "timeout": 2000000000}}}`,
			200,
			api.WorkloadSpec{
				Name: "web", Network: "x", NetNS: "/proc/9/ns/net", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.9")}, Aliases: []string{"www"},
				Ports: []api.Port{{Proto: "udp", HostPort: 53, Port: 5353, Expose: "any"}},
				Service: &api.Service{
					Name: "dns", Port: 5353, Tags: []string{"t"},
					Check: &api.Check{TCP: true, Interval: time.Second, Timeout: 2 * time.Second},
				},
			},
			`"addrs": [`,
		},
		{"DELETE", "/workloads/web", "", 204, stopped{"web", defaultGrace}, ""},
		{"DELETE", "/workloads/web?grace=0s", "", 204, stopped{"web", 0}, ""},
		{"DELETE", "/workloads/web?grace=1m30s", "", 204, stopped{"web", 90 * time.Second}, ""},
		{"DELETE", "/workloads/web?grace=10m", "", 204, stopped{"web", maxGrace}, ""},
	} {
		w.asked = nil
		res, body := call(t, s, c.method, c.path, c.body)
		if res.StatusCode != c.status || !strings.Contains(body, c.answer) || (c.answer == "" && body != "") {
			t.Errorf("%s %s: %s: %s", c.method, c.path, res.Status, body)
		}
		if len(w.asked) != 1 || !reflect.DeepEqual(w.asked[0], c.asked) {
			t.Errorf("%s %s: asked for\n%+v, want\n%+v", c.method, c.path, w.asked, c.asked)
		}
	}
}

// What cannot be is refused with a reason, and nothing is asked for.
func TestRefused(t *testing.T) {
	w := newWorld()
	s := w.serve(t)
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	host := func(name string) func(*http.Request) {
		return func(r *http.Request) { r.Host = name }
	}
	plain := func(*http.Request) {}
	large := `{"name": "` + strings.Repeat("x", maxBody) + `"}`
	for _, c := range []struct {
		method, path, body string
		edit               func(*http.Request)
		status             int
		want               string
	}{
		{"GET", "/networks/other", "", plain, 404, `network "other": no such network; 'fairlead network ls' lists them`},
		{"GET", "/services/other", "", plain, 404, `service "other": no such service`},
		{"GET", "/nothing", "", plain, 404, "not found"},
		{"PUT", "/networks", "{}", plain, 405, "Method Not Allowed"},
		{"POST", "/host", "{}", plain, 405, "Method Not Allowed"},
		{"PATCH", "/workloads/web", "{}", plain, 405, "Method Not Allowed"},
		{"DELETE", "/services/web", "", plain, 405, "Method Not Allowed"},

		{"POST", "/networks", "", plain, 400, "the body is empty"},
		{"POST", "/networks", "{", plain, 400, "malformed body"},
		{"POST", "/networks", "[]", plain, 400, "malformed body"},
		{"POST", "/networks", `{"name": "x"} {}`, plain, 400, "malformed body"},
		{"POST", "/networks", `{"nam": "x"}`, plain, 400, `unknown field "nam"`},
		{"POST", "/networks", `{"name": "x", "subnets": [{"prefix": "10.0.0.0/33"}]}`, plain, 400, "10.0.0.0/33"},
		{"POST", "/workloads", `{"name": "x", "servce": {}}`, plain, 400, `unknown field "servce"`},
		{"POST", "/workloads", `{"name": "x", "service": {"port": 65536}}`, plain, 400, "port"},
		{"POST", "/networks", large, plain, 413, fmt.Sprintf("larger than %d bytes", maxBody)},
		{"POST", "/networks", `{"name": "x"}` + strings.Repeat(" ", maxBody), plain, 413, "larger than"},

		{"DELETE", "/workloads/web?grace=soon", "", plain, 400, `grace "soon": want a duration`},
		{"DELETE", "/workloads/web?grace=-1s", "", plain, 400, "from 0s to 10m0s"},
		{"DELETE", "/workloads/web?grace=11m", "", plain, 400, "from 0s to 10m0s"},

		{"POST", "/networks", `{"name": "x"}`, header("Origin", "http://evil.example"), 403, "web pages"},
		{"POST", "/networks", `{"name": "x"}`, header("Origin", "null"), 403, "web pages"},
		{"DELETE", "/networks/x", "", header("Origin", "http://127.0.0.1:8500"), 403, "web pages"},
		{"POST", "/networks", `{"name": "x"}`, header("Content-Type", "text/plain"), 415, `"text/plain": want application/json`},
		{"POST", "/networks", `{"name": "x"}`, header("Content-Type", "application/x-www-form-urlencoded"), 415, "application/json"},
		{"POST", "/networks", `{"name": "x"}`, header("Content-Type", ""), 415, "application/json"},
		{"POST", "/networks", `{"name": "x"}`, host("evil.example:8500"), 403, `"evil.example"`},
		{"DELETE", "/workloads/web", "", host("localhost.evil.example"), 403, "at an address of the agent"},
	} {
		res, body := call(t, s, c.method, c.path, c.body, c.edit)
		if res.StatusCode != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %s: %.200s\nwant %d with %q", c.method, c.path, res.Status, body, c.status, c.want)
		}
	}
	if len(w.asked) > 0 {
		t.Errorf("asked for %+v", w.asked)
	}

	for _, edit := range []func(*http.Request){
		plain, header("Content-Type", "application/json; charset=utf-8"), host("localhost:8500"), host("LOCALHOST"), host("[::1]:8500"), host("[::1]"), host("127.0.0.1"),
	} {
		if res, body := call(t, s, "POST", "/networks", `{"name": "x"}`, edit); res.StatusCode != http.StatusOK {
			t.Errorf("what must be let in: %s: %s", res.Status, body)
		}
	}
	if res, _ := call(t, s, "GET", "/networks", "", host("n1.example:8500")); res.StatusCode != http.StatusOK {
		t.Errorf("reading by another name: %s", res.Status)
	}
}

// The status of an error of the boxes behind is Classify's to say.
func TestErrors(t *testing.T) {
	w := newWorld()
	s := w.serve(t)
	for _, c := range []struct {
		fail   error
		status int
	}{
		{fmt.Errorf("attach web: %w", errKnown), http.StatusConflict},
		{errors.New("out of luck"), http.StatusInternalServerError},
	} {
		w.fail = c.fail
		for _, path := range []string{"POST /networks", "POST /workloads", "DELETE /networks/x", "DELETE /workloads/x", "GET /workloads", "GET /datapath"} {
			method, path, _ := strings.Cut(path, " ")
			body := ""
			if method == "POST" {
				body = `{"name": "x"}`
			}
			res, text := call(t, s, method, path, body)
			if res.StatusCode != c.status || text != c.fail.Error()+"\n" {
				t.Errorf("%s %s: %s: %s", method, path, res.Status, text)
			}
		}
	}
}

// The project's own client gets through, and its refusals have words.
func TestClient(t *testing.T) {
	w := newWorld()
	s := w.serve(t)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	c, err := api.New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.CreateNetwork(t.Context(), api.Network{Name: "x"}); err != nil || n.Name != "x" || n.Node != "n1" {
		t.Errorf("%+v %v", n, err)
	}
	if a, err := c.Attach(t.Context(), api.WorkloadSpec{Name: "web"}); err != nil || a.Endpoint.ID != "e2" {
		t.Errorf("%+v %v", a, err)
	}
	if err := errors.Join(c.RemoveNetwork(t.Context(), "x"), c.Stop(t.Context(), "web", time.Second)); err != nil {
		t.Error(err)
	}
	w.fail = errKnown
	var refused *api.Error
	if err := c.Stop(t.Context(), "web", time.Second); !errors.As(err, &refused) || refused.Status != http.StatusConflict || refused.Message != errKnown.Error() {
		t.Errorf("%v", err)
	}
}
