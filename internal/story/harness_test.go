package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// settleLimit bounds everything that is expected to happen soon. It is generous since many tests share the machine.
const settleLimit = 30 * time.Second

// Where an agent answers on its host unless told otherwise.
const (
	httpAddr = "127.0.0.1:8500"
	dnsAddr  = "127.0.0.1:8600"
)

// agent is a real `fairlead agent` on a host of a lab, with directories of its own.
type agent struct {
	t      testing.TB
	host   *testlab.Host
	flags  []string
	joins  bool // it is one of a site of several: `fairlead up`
	proc   *testlab.Proc
	before []string // the host's inventory when no agent had run yet
	gone   bool     // down was called
}

// newAgent starts an agent on the host and returns when it is ready. When the test ends it is taken down with all it made,
// and the host must then be as it was before; so wires and whatever else the test itself puts there come first.
func newAgent(t testing.TB, h *testlab.Host, flags ...string) *agent {
	t.Helper()
	testlab.Eventually(t, settleLimit, func() error { // an address has its routes when nobody else turned out to have it
		if out := h.Exec("ip", "-o", "-6", "addr", "show", "tentative"); out != "" {
			return fmt.Errorf("addresses of %s that are not settled:\n%s", h.Name(), out)
		}
		return nil
	})
	return begin(&agent{t: t, host: h, flags: flags, before: h.Inventory()})
}

// begin starts an agent, which is taken down when the test ends.
func begin(a *agent) *agent {
	a.t.Helper()
	t := a.t
	t.Cleanup(func() {
		if t.Failed() {
			a.showLogs()
		}
		a.down()
	})
	a.start()
	return a
}

// dataDir and runDir are the agent's directories.
func (a *agent) dataDir() string { return filepath.Join(a.host.Dir(), "data") }
func (a *agent) runDir() string  { return filepath.Join(a.host.Dir(), "run") }

// env is the agent's configuration, which its commands share.
func (a *agent) env() []string {
	return []string{
		"FAIRLEAD_DATA_DIR=" + a.dataDir(), "FAIRLEAD_RUN_DIR=" + a.runDir(), "FAIRLEAD_CGROUP=" + a.host.Cgroup(),
		"FAIRLEAD_BPFFS=" + a.host.BPFFS(), "FAIRLEAD_NODE_NAME=" + a.host.Name(),
	}
}

// launch starts the agent's process and does not wait.
func (a *agent) launch() {
	a.t.Helper()
	command := "agent"
	if a.joins {
		command = "up"
	}
	a.proc = a.host.StartCmd(testlab.Cmd{
		Args: append([]string{binary, command}, a.flags...), Env: a.env(), Cgroup: a.host.AgentCgroup(),
	})
}

// start starts the agent and waits until it is ready.
func (a *agent) start() {
	a.t.Helper()
	a.launch()
	a.ready()
}

// ready waits until the agent says that it is.
func (a *agent) ready() {
	a.t.Helper()
	testlab.Eventually(a.t, settleLimit, func() error {
		if !a.proc.Running() {
			return nil
		}
		status, body, err := a.try(http.MethodGet, "/readyz", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	})
	if !a.proc.Running() {
		a.t.Fatalf("the agent on %s ended (%v):\n%s", a.host.Name(), a.proc.Wait(0), a.log())
	}
}

// stop ends the agent as a service manager does; it must end well. Workloads go on.
func (a *agent) stop() {
	a.t.Helper()
	if err := a.proc.Stop(); err != nil {
		a.t.Fatalf("stop the agent on %s: %v\n%s", a.host.Name(), err, a.log())
	}
}

// kill ends the agent with SIGKILL.
func (a *agent) kill() { a.proc.Kill() }

func (a *agent) restart() {
	a.t.Helper()
	a.stop()
	a.start()
}

// log is what the agent has written since its last start.
func (a *agent) log() string { return a.proc.Output() }

// showLogs puts the workloads' output into the test's; the lab does that for the agent's.
func (a *agent) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(a.runDir(), "logs", "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		a.t.Logf("%s:\n%s", filepath.Base(path), text)
	}
}

// down ends the agent and everything it made, and proves that nothing is left. A second call does nothing.
func (a *agent) down() {
	a.t.Helper()
	if a.gone {
		return
	}
	a.gone = true
	if out, err := a.tryCLI("down", "--purge"); err != nil {
		a.t.Errorf("take the agent on %s down: %v\n%s", a.host.Name(), err, out)
	}
	for _, dir := range []string{a.dataDir(), a.runDir(), filepath.Join(a.host.BPFFS(), "fairlead")} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			a.t.Errorf("after down --purge, %s: %v, want it gone", dir, err)
		}
	}
	diff := testlab.Diff(a.before, a.host.Inventory())
	diff = slices.DeleteFunc(diff, func(fact string) bool {
		// The lab itself ends, and looks for, the processes.
		return strings.HasPrefix(fact[2:], "process ")
	})
	if len(diff) > 0 {
		a.t.Errorf("after down --purge the host %s is not as before:\n%s", a.host.Name(), strings.Join(diff, "\n"))
	}
}

// tryCLI runs a command of the binary in the host, from a cgroup below the agent's. The error ends with stderr.
func (a *agent) tryCLI(args ...string) (string, error) {
	stdout, stderr, err := a.host.Run(testlab.Cmd{Args: append([]string{binary}, args...), Env: a.env()})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr))
	}
	return stdout, err
}

// cli is tryCLI for what must succeed.
func (a *agent) cli(args ...string) string {
	a.t.Helper()
	out, err := a.tryCLI(args...)
	if err != nil {
		a.t.Fatalf("fairlead %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// client is an HTTP client whose connections start inside the host; call CloseIdleConnections after use. It does not ask
// for its connection to be closed: Go's server then resets it while a body that is refused still comes in.
func (a *agent) client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: a.dial}}
}

// dial connects from inside the host to a literal address.
func (a *agent) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = a.host.Do(func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// try makes one request to the agent.
func (a *agent) try(method, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+httpAddr+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" && strings.HasPrefix(path, api.Prefix) {
		req.Header.Set("Content-Type", "application/json") // the native API takes nothing else
	}
	client := a.client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// do is try for a request that the agent must answer with 2xx.
func (a *agent) do(method, path, body string) string {
	a.t.Helper()
	status, answer, err := a.try(method, path, body)
	if err != nil || status/100 != 2 {
		a.t.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
	}
	return answer
}

func (a *agent) get(path string) string       { a.t.Helper(); return a.do(http.MethodGet, path, "") }
func (a *agent) put(path, body string) string { a.t.Helper(); return a.do(http.MethodPut, path, body) }

// datapath is what the balancer's maps hold, one fact a line.
func (a *agent) datapath() string { a.t.Helper(); return a.get(api.Prefix + "/datapath") }

// service is a service with its VIPs and instances; nil while there is none.
func (a *agent) service(name string) *api.ServiceInfo {
	a.t.Helper()
	status, body, err := a.try(http.MethodGet, api.Prefix+"/services/"+name, "")
	if status == http.StatusNotFound {
		return nil
	}
	var s api.ServiceInfo
	if err = errors.Join(err, json.Unmarshal([]byte(body), &s)); err != nil {
		a.t.Fatalf("service %s: %d %s: %v", name, status, body, err)
	}
	return &s
}

// run starts a workload in the background: `fairlead run -d --network NETWORK --name NAME FLAGS -- serve NAME`.
// It answers HTTP and UDP at port 80 over IPv4 and IPv6 with "NAME CALLER-IP"; see play.
func (a *agent) run(network, name string, flags ...string) {
	a.t.Helper()
	a.cli(runArgs(network, name, flags)...)
}

func runArgs(network, name string, flags []string) []string {
	args := append([]string{"run", "-d", "--network", network, "--name", name, "-e", roleVariable + "=serve"}, flags...)
	return append(args, "--", self, name)
}

// workload is a workload as `fairlead ps` shows it.
func (a *agent) workload(name string) api.Workload {
	a.t.Helper()
	var all []api.Workload
	if err := json.Unmarshal([]byte(a.cli("ps", "-o", "json")), &all); err != nil {
		a.t.Fatal(err)
	}
	for _, w := range all {
		if w.Name == name {
			return w
		}
	}
	a.t.Fatalf("no workload %s in %v", name, all)
	return api.Workload{}
}

// inside runs a program in the namespaces of a workload.
func (a *agent) inside(workload string, cmd testlab.Cmd) (string, error) {
	a.t.Helper()
	pid := strconv.Itoa(a.workload(workload).PID)
	cmd.Args = append([]string{"nsenter", "--target", pid, "--net", "--mount", "--"}, cmd.Args...)
	stdout, stderr, err := a.host.Run(cmd)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr))
	}
	return stdout, err
}

// fetchCmd is a client that asks each target once; see play.
func fetchCmd(network string, targets ...string) testlab.Cmd {
	return testlab.Cmd{Args: append([]string{self, network}, targets...), Env: []string{roleVariable + "=fetch"}}
}

// fetchFrom asks from a host (or a namespace in it) and returns a line "ANSWER via PEER" for each target.
func fetchFrom(n *testlab.NS, network string, targets ...string) (string, error) {
	stdout, stderr, err := n.Run(fetchCmd(network, targets...))
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr))
	}
	return stdout, err
}

// fetchInside asks from inside a workload.
func (a *agent) fetchInside(workload, network string, targets ...string) (string, error) {
	a.t.Helper()
	return a.inside(workload, fetchCmd(network, targets...))
}

// serveOn starts a server on a host outside of any network of the agent's; see play.
func serveOn(n *testlab.NS, name string, addrs ...string) *testlab.Proc {
	return n.StartCmd(testlab.Cmd{Args: append([]string{self, name}, addrs...), Env: []string{roleVariable + "=serve"}})
}

// dig asks the agent's DNS server and returns the short answer, sorted by line.
func (a *agent) dig(args ...string) string {
	a.t.Helper()
	host, port, _ := net.SplitHostPort(dnsAddr)
	return sorted(a.host.Exec(append([]string{"dig", "@" + host, "-p", port, "+short", "+tries=1", "+time=5"}, args...)...))
}

func sorted(lines string) string {
	all := strings.Split(strings.TrimSpace(lines), "\n")
	slices.Sort(all)
	return strings.Join(all, "\n")
}
