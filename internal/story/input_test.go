package story

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// facts are everything that a refused request must not change: what the agent tells and what it keeps.
func (a *agent) facts() []string {
	a.t.Helper()
	var facts []string
	add := func(kind, text string) {
		for line := range strings.Lines(text) {
			facts = append(facts, kind+" "+strings.TrimSpace(line))
		}
	}
	for _, cmd := range [][]string{{"network", "ls"}, {"ps"}, {"service", "ls"}, {"kv", "ls"}} {
		add(strings.Join(cmd, " "), a.cli(append(cmd, "-o", "json")...))
	}
	add("datapath", a.datapath())
	for _, dir := range []string{a.runDir(), a.host.Cgroup()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && (d.IsDir() || strings.HasPrefix(path, a.runDir())) {
				facts = append(facts, "path "+path)
			}
			return err
		})
		if err != nil {
			a.t.Fatal(err)
		}
	}
	file, err := os.ReadFile(filepath.Join(a.dataDir(), "registrations.json"))
	if err != nil {
		a.t.Fatal(err)
	}
	add("file", string(file))
	var status api.Status
	if err := json.Unmarshal([]byte(a.get(api.Prefix+"/status")), &status); err != nil {
		a.t.Fatal(err)
	}
	return append(facts, fmt.Sprintf("problems %q", status.Problems))
}

// unchanged fails the test if the facts are others now.
func (a *agent) unchanged(before []string, what string) {
	a.t.Helper()
	if diff := testlab.Diff(before, a.facts()); len(diff) > 0 {
		a.t.Errorf("%s was refused and still changed something:\n%s", what, strings.Join(diff, "\n"))
	}
}

// newBusyAgent is an agent on a host with a route, a listener at port 9090, a network, a network of one address with the
// workload "web" in it that publishes 8080, and a service without a workload.
func newBusyAgent(t *testing.T) *agent {
	lab := testlab.New(t)
	n1 := lab.Host("n1")
	lab.Link(n1, lab.Host("other"), "198.51.100.0/24")
	n1.Exec("ip", "route", "add", "10.99.0.0/16", "via", "198.51.100.2")
	serveOn(&n1.NS, "taken", ":9090")
	testlab.Eventually(t, settleLimit, func() error {
		_, err := fetchFrom(&n1.NS, "tcp4", "http://127.0.0.1:9090/")
		return err
	})
	a := newAgent(t, n1)
	a.cli("network", "create", "my-network", "--subnet", "10.20.0.0/24")
	a.cli("network", "create", "tiny", "--subnet", "10.30.0.0/30")
	a.run("tiny", "web", "--service", "web", "--port", "80", "-p", "8080:80")
	a.put("/v1/agent/service/register", `{"Name": "db", "Port": 5432, "Check": {"TTL": "10m", "Status": "passing"}}`)
	a.put("/v1/kv/app/colour", "red")
	testlab.Eventually(t, settleLimit, func() error {
		if got := a.datapath(); strings.Count(got, " ok ") < 4 {
			return fmt.Errorf("the balancer has not heard of both services:\n%s", got)
		}
		return nil
	})
	return a
}

// TestBadCommands: each wrong command line says what is wrong, ends with 2 where the words themselves are wrong and with 1
// where the agent refuses them, and changes nothing.
func TestBadCommands(t *testing.T) {
	t.Parallel()
	a := newBusyAgent(t)
	run := func(network, name string, flags ...string) []string { return runArgs(network, name, flags) }
	create := func(args ...string) []string { return append([]string{"network", "create"}, args...) }
	before := a.facts()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{create("x", "--subnet", "10.0.0.0/33"), 2, `--subnet "10.0.0.0/33": netip.ParsePrefix("10.0.0.0/33"): prefix length out of range; want an address and a prefix length`},
		{create("x", "--subnet", "ten"), 2, `--subnet "ten"`},
		{create("x", "--subnet", "10.0.0.1/24"), 1, "10.0.0.1/24 has host bits set, did you mean 10.0.0.0/24"},
		{create("x", "--subnet", "10.40.0.0/32"), 1, "no room for an endpoint"},
		{create("x", "--subnet", "127.0.0.0/24"), 1, "127.0.0.0/24 is in the loopback range"},
		{create("x", "--subnet", "10.40.0.0/24", "--gateway", "10.41.0.1"), 2, "--gateway 10.41.0.1: it lies in none of the subnets"},
		{create("x", "--subnet", "10.40.0.0/24", "--subnet", "10.41.0.0/24"), 1, "they are of one family"},
		{create("x", "--subnet", "10.99.1.0/24"), 1, "10.99.1.0/24 overlaps 10.99.0.0/16 of route"},
		{create("x", "--subnet", "198.51.100.128/25"), 1, "198.51.100.128/25 overlaps 198.51.100.0/24 of "},
		{create("x", "--subnet", "10.20.0.0/16"), 1, `10.20.0.0/16 overlaps 10.20.0.0/24 of network "my-network"`},
		{create("x", "--subnet", "240.1.0.0/16"), 1, "240.1.0.0/16 overlaps 240.0.0.0/4 of the pool of service VIPs"},
		{create("my-network"), 1, `network "my-network": a network of that name exists already`},
		{create("my_network"), 1, `network "my_network": not a valid network name: want 1 to 63 letters`},
		{create("x", "--driver", "pigeon"), 1, `driver "pigeon"`},
		{create("x", "--mtu", "100"), 1, "mtu 100: not a valid network: want 1280 to 65535"},
		{create("x", "--colour", "red"), 2, "unknown flag: --colour"},
		{create(), 2, "NAME"},
		{[]string{"network", "rm", "none"}, 1, `network "none": no such network`},
		{[]string{"network", "rm", "tiny"}, 1, "in use"},
		{[]string{"network", "inspect", "none"}, 1, `network "none": no such network; 'fairlead network ls' lists them`},

		{run("none", "x"), 1, `network "none": no such network`},
		{run("tiny", "x"), 1, "10.30.0.0/30: pool exhausted"},
		{run("tiny", "web"), 1, `workload "web": the workload exists; 'fairlead stop web' ends it`},
		{run("my-network", "web_1"), 1, `workload "web_1": not a valid workload name: want 1 to 63 letters`},
		{run("my-network", ""), 2, "--name"},
		{run("my-network", "x", "-p", "8080:80"), 1, `publish 8080/tcp: the host port is taken by workload "web" in network "tiny"; stop it or choose another host port`},
		{run("my-network", "x", "-p", "9090:80"), 1, "9090/tcp is already in use on this host"},
		{run("my-network", "x", "-p", "9090:80/udp"), 1, "9090/udp is already in use on this host"},
		{run("my-network", "x", "-p", "7000:80", "-p", "7000:81"), 1, "host port 7000/tcp is published twice"},
		{run("my-network", "x", "-p", "70000:80"), 2, `--publish "70000:80": "70000" is not a port from 1 to 65535`},
		{run("my-network", "x", "-p", "7000:80/sctp"), 1, `protocol "sctp": not a valid published port: want tcp or udp`},
		{run("my-network", "x", "-p", "7000:80", "--expose", "world"), 1, `expose "world": not a valid published port: want host, lan or any`},
		{run("my-network", "x", "--ip", "10.21.0.5"), 1, "10.21.0.5"},
		{run("my-network", "x", "--ip", "10.20.0.1"), 1, "10.20.0.1 is the gateway of 10.20.0.0/24"},
		{run("my-network", "x", "--service", "s"), 2, "--service s: say with --port at which port it answers"},
		{run("my-network", "x", "--check-http", "/"), 2, "name it with --service"},
		{run("my-network", "x", "--service", "s", "--port", "80", "--check-http", "health"), 1, `the HTTP check of service "s" is "health": want a path that begins with /`},
		{run("my-network", "x", "--alias", "a b"), 1, `alias "a b": not a valid workload name`},
		{[]string{"run", "--network", "my-network", "--name", "x"}, 2, "the command to run goes behind --"},
		{[]string{"run", "--network", "my-network", "--name", "x", "--", "no-such-program"}, 1, `command "no-such-program": executable file not found in $PATH`},
		{[]string{"stop", "none"}, 1, `workload "none": no such workload on this node; 'fairlead ps' lists them`},

		{[]string{"service", "register", "x"}, 2, "say with --port at which port it answers"},
		{[]string{"service", "register", "x", "--port", "1", "--check-http", "here"}, 2, `--check-http "here": want a URL`},
		{[]string{"service", "deregister", "none"}, 1, `Unknown service ID "none"`},
		{[]string{"service", "inspect", "none"}, 1, `service "none": no such service; 'fairlead service ls' lists them`},
		{[]string{"kv", "get", "none"}, 1, "none"},
		{[]string{"dns", "query", "none.service.consul"}, 1, "does not exist"},
		{[]string{"frobnicate"}, 2, "frobnicate"},
		{[]string{"status", "-o", "xml"}, 2, `--output "xml": want table, json or yaml`},
		{[]string{"status", "--addr", "127.0.0.1:1"}, 1, "no agent answers at http://127.0.0.1:1"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			stdout, stderr, err := a.host.Run(testlab.Cmd{Args: append([]string{binary}, c.args...), Env: a.env()})
			if code := exitCode(err); code != c.code || !strings.Contains(stderr, c.want) || !strings.HasPrefix(stderr, "fairlead: ") {
				t.Errorf("exit code %d (%v), want %d\n%s%swant: %s", code, err, c.code, stdout, stderr, c.want)
			}
		})
	}
	a.unchanged(before, "all of this")
}

// TestBadRequests: the same over HTTP, with Consul's words where the path is Consul's.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	a := newBusyAgent(t)
	const register = "/v1/agent/service/register"
	networks, workloads := api.Prefix+"/networks", api.Prefix+"/workloads"
	big := strings.Repeat("x", 2<<20)
	before := a.facts()
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"PUT", register, `{"Name": "x"`, 400, "Request decode failed: unexpected EOF"},
		{"PUT", register, ``, 400, "Request decode failed: EOF"},
		{"PUT", register, `{"Port": 80}`, 400, "Missing service name"},
		{"PUT", register, `{"Name": "x", "Port": "eighty"}`, 400, "Request decode failed: Port"},
		{"PUT", register, `{"Name": "x", "Check": {"HTTP": "http://127.0.0.1/"}}`, 400, "Invalid check: Interval must be > 0"},
		{"PUT", register, `{"Name": "x", "Check": {"TTL": "soon"}}`, 400, `invalid duration "soon"`},
		{"PUT", register, `{"Name": "x", "Check": {"TTL": "1s", "HTTP": "http://127.0.0.1/"}}`, 400, "Invalid check: Interval must be > 0"},
		{"PUT", register, `{"Name": "x", "Notes": "` + big + `"}`, 413, "too large"},
		{"POST", register, `{"Name": "x"}`, 405, "method POST not allowed"},
		{"GET", "/v1/agent/service/deregister/db", ``, 405, "method GET not allowed"},
		{"PUT", "/v1/agent/service/deregister/none", ``, 404, `Unknown service ID "none"`},
		{"PUT", "/v1/agent/check/pass/none", ``, 404, `Unknown check ID "none"`},
		{"PUT", "/v1/agent/check/update/service:db", `{"Status": "well"}`, 400, "Invalid check status: 'well'"},
		{"GET", "/v1/health/service/db?index=x", ``, 400, "Invalid index"},
		{"GET", "/v1/catalog/services?dc=elsewhere", ``, 500, "No path to datacenter"},
		{"PUT", "/v1/kv/", `x`, 400, "Missing key name"},
		{"PUT", "/v1/kv/app/colour?cas=x", `x`, 500, "invalid syntax"},
		{"PUT", "/v1/kv/app/colour", big, 413, "Request body(2097152 bytes) too large, max size: 524288 bytes"},
		{"GET", "/v1/nothing", ``, 404, "Invalid URL path"},

		{"POST", networks, `{"name": "x"`, 400, "malformed body: unexpected EOF"},
		{"POST", networks, ``, 400, "body"},
		{"POST", networks, `{}`, 400, `network "": not a valid network name`},
		{"POST", networks, `{"name": "x", "subnet": "10.40.0.0/24"}`, 400, `unknown field "subnet"`},
		{"POST", networks, `{"name": "x", "subnets": [{"prefix": "10.0.0.0/33"}]}`, 400, "10.0.0.0/33"},
		{"POST", networks, `{"name": "x", "subnets": [{}]}`, 400, "not usable as a pool"},
		{"POST", networks, `{"name": "x", "subnets": [{"prefix": "10.99.1.0/24"}]}`, 409, "10.99.1.0/24 overlaps 10.99.0.0/16 of route"},
		{"POST", networks, `{"name": "my-network", "subnets": [{"prefix": "10.40.0.0/24"}]}`, 409, "exists already"},
		{"POST", networks, `{"name": "x", "labels": {"a": "` + big + `"}}`, 413, "the body is larger than 1048576 bytes"},
		{"DELETE", networks + "/none", ``, 404, "no such network"},
		{"DELETE", networks + "/tiny", ``, 409, "in use"},
		{"PUT", networks, `{"name": "x"}`, 405, "Method Not Allowed"},
		{"GET", api.Prefix + "/nothing", ``, 404, "not found"},

		{"POST", workloads, `{"name": "x", "network": "my-network"}`, 400, "netns is missing"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "/proc/self/ns/none"}`, 400, "no such network namespace"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "/etc/passwd"}`, 400, "not a network namespace"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "/proc/self/ns/net"}`, 400, "the host's own network namespace"},
		{"POST", workloads, `{"name": "x", "network": "none", "netns": "NETNS"}`, 404, "no such network; 'fairlead network ls' lists them"},
		{"POST", workloads, `{"network": "my-network", "netns": "NETNS"}`, 400, `workload "": not a valid workload name`},
		{"POST", workloads, `{"name": "x", "network": "tiny", "netns": "NETNS"}`, 409, "pool exhausted"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "NETNS", "addrs": ["10.21.0.5"]}`, 400, "10.21.0.5"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "NETNS", "addrs": ["10.20.0.1"]}`, 400, "10.20.0.1 is the gateway"},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "NETNS", "service": {"name": "s"}}`, 400, `service "s" has no port`},
		{"POST", workloads, `{"name": "x", "network": "my-network", "netns": "NETNS", "service": {"name": "s", "port": 80, "check": {"tcp": true, "interval": -1}}}`, 400, "nterval"},
		{"DELETE", workloads + "/none", ``, 404, `workload "none": no such workload`},
		{"DELETE", workloads + "/web?grace=long", ``, 400, `grace "long": want a duration`},
	} {
		body := strings.ReplaceAll(c.body, "NETNS", a.workload("web").Endpoints[0].NetNS)
		name := c.method + " " + c.path + " " + body
		t.Run(name[:min(len(name), 120)], func(t *testing.T) {
			status, answer, err := a.try(c.method, c.path, body)
			if err != nil || status != c.status || !strings.Contains(answer, c.want) {
				t.Errorf("%d %s %v, want %d %s", status, answer, err, c.status, c.want)
			}
		})
	}
	a.unchanged(before, "all of this")
}

// TestReadersAndRoot: whoever reaches the agent reads, and root changes networks and workloads.
func TestReadersAndRoot(t *testing.T) {
	t.Parallel()
	a := newBusyAgent(t)
	before := a.facts()
	nobody := func(args ...string) (stdout, stderr string, err error) {
		setpriv := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
		return a.host.Run(testlab.Cmd{Args: append(setpriv, args...), Env: a.env()})
	}
	cli := func(args ...string) (stdout, stderr string, err error) {
		return nobody(append([]string{binary}, args...)...)
	}
	for _, args := range [][]string{{"network", "ls"}, {"network", "inspect", "tiny"}, {"ps"}, {"service", "ls"}, {"status"}, {"status", "--datapath"}} {
		if stdout, stderr, err := cli(args...); err != nil || stdout == "" {
			t.Errorf("nobody reads %v: %v\n%s%s", args, err, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"network", "create", "x"}, {"network", "rm", "my-network"}, {"stop", "web"}} {
		_, stderr, err := cli(args...)
		if want := "changed by root only; the call came from user 65534. Use sudo"; exitCode(err) != 1 || !strings.Contains(stderr, want) {
			t.Errorf("nobody tries %v: %v\n%s", args, err, stderr)
		}
	}
	for _, c := range []struct{ url, body, want string }{
		{"http://127.0.0.1:8500", `{"name": "x"}`, "403"},
		{"http://127.0.0.1:8500", `{`, "403"}, // before the body is looked at
	} {
		_, stderr, err := nobody("busybox", "wget", "-q", "-O-", "--header", "Content-Type: application/json", "--post-data", c.body, c.url+api.Prefix+"/networks")
		if err == nil || !strings.Contains(stderr, c.want) {
			t.Errorf("nobody posts to %s: %v\n%s", c.url, err, stderr)
		}
	}
	for _, args := range [][]string{{"agent"}, {"down"}, {"run", "--network", "my-network", "--name", "x", "--", "true"}} {
		if _, stderr, err := cli(args...); exitCode(err) != 1 || !strings.Contains(stderr, "needs root") || !strings.Contains(stderr, "sudo") {
			t.Errorf("nobody tries %v: %v\n%s", args, err, stderr)
		}
	}
	a.unchanged(before, "this")
	if status, answer, err := a.try(http.MethodPost, api.Prefix+"/networks", `{"name": "by-root"}`); status/100 != 2 {
		t.Errorf("root makes a network: %d %s %v", status, answer, err)
	}
}

// TestBadAgents: an agent that cannot be says why, and leaves the host and the agent that is there alone.
func TestBadAgents(t *testing.T) {
	t.Parallel()
	a := newBusyAgent(t)
	h := a.host
	dir := func(name string) string { return filepath.Join(h.Dir(), name) }
	if err := os.WriteFile(dir("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(name, file, text string) {
		if err := os.Mkdir(dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir(name), file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("spoilt", "registrations.json", `{"version": 1, "registr`)
	write("future", "registrations.json", `{"version": 99}`)
	write("strange", "node-id", "me\n")
	write("closed", "x", "")
	if err := os.Chmod(dir("closed"), 0); err != nil {
		t.Fatal(err)
	}
	write("config", "bad.yaml", "http_adr: 127.0.0.1:1\nsite: [a]\n")
	fresh := []string{"--run-dir", dir("run2"), "--data-dir", dir("data2")}
	with := func(base []string, more ...string) []string { return append(slices.Clone(base), more...) }
	spare := []string{"--http-addr", "127.0.0.1:8501", "--dns-addr", "127.0.0.1:8601"}
	// The kernel finishes link-local addresses when it likes.
	inventory := func() []string {
		return slices.DeleteFunc(h.Inventory(), func(fact string) bool { return strings.Contains(fact, " fe80::") })
	}
	inUse := fmt.Sprintf("in use by another agent (pid %d)", a.proc.Pid())

	before, host := a.facts(), inventory()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 1, "run-dir " + a.runDir() + " is " + inUse},
		{with(spare, "--run-dir", dir("run2")), 1, "data directory " + a.dataDir() + " is " + inUse},
		{with(spare, fresh...), 1, "another one works in this network namespace"},
		{with(fresh, "--cgroup", filepath.Join(h.Cgroup(), "cmd")), 1, "http-addr 127.0.0.1:8500 is in use: another agent or program listens there"},
		{with(fresh, "--cgroup", filepath.Join(h.Cgroup(), "cmd")), 1, "dns-addr 127.0.0.1:8600 is in use: another agent or program listens there"},
		{[]string{"--check", "--data-dir", dir("file")}, 1, "data-dir " + dir("file") + ": it is not a directory"},
		{[]string{"--check", "--data-dir", dir("closed")}, 1, "data-dir " + dir("closed") + ": open " + dir("closed") + ": permission denied"},
		{with(spare, "--run-dir", dir("run2"), "--data-dir", dir("closed")), 1, "permission denied"},
		{with(spare, "--run-dir", dir("run2"), "--data-dir", dir("spoilt")), 1, "Repair it, restore it from a backup, or move it away"},
		{with(spare, "--run-dir", dir("run2"), "--data-dir", dir("future")), 1, "version 99"},
		{with(spare, "--run-dir", dir("run2"), "--data-dir", dir("strange")), 1, "remove the file to be a new node"},
		{[]string{"--check", "--cgroup", dir("file")}, 1, "it is not in a cgroup v2 hierarchy"},
		{[]string{"--check", "--http-addr", "here", "--site", "a b", "--vip-pool", "10.0.0.0/25"}, 2, `http-addr "here": want an IP address and a port`},
		{[]string{"--check", "--http-addr", "here", "--site", "a b", "--vip-pool", "10.0.0.0/25"}, 2, `vip-pool "10.0.0.0/25": want an IPv4 prefix of at most 24 bits`},
		{[]string{"--check", "--vip-pool", "198.51.0.0/16"}, 1, "virtual addresses: 198.51.0.0/16 overlaps 198.51.100.0/24 of address 198.51.100.1/24 on eth0; set --vip-pool"},
		{with(spare, "--run-dir", dir("run2"), "--data-dir", dir("data2"), "--vip-pool", "10.30.0.0/16"), 1, "virtual addresses: 10.30.0.0/16 overlaps 10.30.0.0/30 of address 10.30.0.1/30 on fl-"},
		{[]string{"--check", "--config", dir("config/bad.yaml")}, 2, `bad.yaml:1: unknown key "http_adr"; did you mean "http_addr"?`},
		{[]string{"--check", "--config", dir("config/none.yaml")}, 2, "no such file"},
		{[]string{"--chekc"}, 2, "unknown flag: --chekc"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			// Root that cannot read everything, as on a network file system.
			setpriv := []string{"setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", binary, "agent"}
			stdout, stderr, err := h.Run(testlab.Cmd{Args: append(setpriv, c.args...), Env: a.env()})
			if code := exitCode(err); code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("exit code %d (%v), want %d\n%s%swant: %s", code, err, c.code, stdout, stderr, c.want)
			}
		})
		for _, left := range []string{"run2", "data2"} {
			if err := os.RemoveAll(dir(left)); err != nil {
				t.Fatal(err)
			}
		}
		if diff := testlab.Diff(host, inventory()); len(diff) > 0 {
			t.Errorf("agent %v changed the host:\n%s", c.args, strings.Join(diff, "\n"))
			host = inventory()
		}
	}
	a.unchanged(before, "a second agent")
	if got := a.cli("agent", "--check", "--data-dir", dir("new"), "--run-dir", dir("new")); got != "ok\n" {
		t.Errorf("check of good settings: %q", got)
	}
	if _, err := os.Stat(dir("new")); err == nil {
		t.Error("--check made a directory")
	}
}
