package health_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/health"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// reports hands the reports of a Runner to a test.
type reports chan string

func (r reports) Report(id model.CheckID, s model.Status, output string) {
	r <- fmt.Sprintf("%s %s %s", id, s, output)
}

// listen opens a port inside a namespace; the listener may be used anywhere.
func listen(t *testing.T, ns *testlab.NS, address string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestChecksInsideANamespace runs the same kinds of check as on the host from
// inside a workload's namespace, where 127.0.0.1 is another loopback.
func TestChecksInsideANamespace(t *testing.T) {
	ns := testlab.New(t).Host("a").Namespace("web")
	l := listen(t, ns, "127.0.0.1:8080")
	l6 := listen(t, ns, "[::1]:8081")
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	go web.Serve(l)
	go web.Serve(l6)
	defer web.Close()

	tests := []struct {
		spec model.CheckSpec
		want string
	}{
		{model.CheckSpec{HTTP: "http://127.0.0.1:8080/x"}, "passing HTTP GET http://127.0.0.1:8080/x: 200 OK Output: hello"},
		{model.CheckSpec{HTTP: "http://[::1]:8081"}, "passing HTTP GET http://[::1]:8081: 200 OK Output: hello"},
		{model.CheckSpec{HTTP: "http://localhost:8081"}, "passing HTTP GET http://localhost:8081: 200 OK Output: hello"},
		{model.CheckSpec{TCP: "127.0.0.1:8080"}, "passing TCP connect 127.0.0.1:8080: Success"},
		{model.CheckSpec{TCP: ":8080"}, "passing TCP connect :8080: Success"},
		{model.CheckSpec{TCP: "127.0.0.1:1"}, "critical dial tcp 127.0.0.1:1: connect: connection refused"},
		{model.CheckSpec{UDP: "127.0.0.1:8080"}, "critical read udp 127.0.0.1:PORT->127.0.0.1:8080: read: connection refused"},
		{model.CheckSpec{UDP: "192.0.2.1:1"}, "critical dial udp 192.0.2.1:1: connect: network is unreachable"},
		{model.CheckSpec{Args: []string{"/bin/cat", "/proc/net/route"}}, "passing Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"},
		{model.CheckSpec{TCP: "192.0.2.1:1"}, "critical dial tcp 192.0.2.1:1: connect: network is unreachable"},
		{model.CheckSpec{TCP: "127.0.0.1:99999"}, `critical dial tcp: port "99999" is not a number from 0 to 65535`},
		{model.CheckSpec{TCP: "web:80"}, `critical dial tcp: "web" is not an IP address: checks inside a network namespace look no names up`},
		{model.CheckSpec{TCP: "127.0.0.1:1", NetNS: "/nowhere"}, "critical dial tcp 127.0.0.1:1: open network namespace /nowhere: no such file or directory"},
		{model.CheckSpec{TCP: "127.0.0.1:1", NetNS: "/dev/null"}, "critical dial tcp 127.0.0.1:1: enter network namespace /dev/null: invalid argument"},
	}
	before := foreign(t)
	got := make(reports)
	r := health.New(got, health.Config{MayRun: func(model.CheckSpec) bool { return true }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	port := regexp.MustCompile(`127.0.0.1:\d+->`)
	for _, tt := range tests {
		tt.spec.ID, tt.spec.Interval = "c", time.Hour
		if tt.spec.NetNS == "" {
			tt.spec.NetNS = ns.NetNSPath()
		}
		r.Set(tt.spec, "")
		row := port.ReplaceAllString(strings.TrimSpace(<-got), "127.0.0.1:PORT->")
		if row != "c "+tt.want {
			t.Errorf("%q\nwant %q", row, "c "+tt.want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	atHome(t, before)
}

// TestTimeoutInsideANamespace asks an address that never answers.
func TestTimeoutInsideANamespace(t *testing.T) {
	lab := testlab.New(t)
	a, b := lab.Host("a"), lab.Host("b")
	wire := lab.Link(a, b, "192.0.2.0/24")
	to := net.JoinHostPort(wire.Addr(b).String(), "80")
	lab.Partition(a, b)
	before := foreign(t)
	got := make(reports)
	r := health.New(got, health.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()

	r.Set(model.CheckSpec{ID: "c", TCP: to, NetNS: a.NetNSPath(), Interval: time.Hour, Timeout: 200 * time.Millisecond}, "")
	if row, want := <-got, "c critical dial tcp "+to+": i/o timeout"; row != want {
		t.Errorf("%q, want %q", row, want)
	}
	r.Set(model.CheckSpec{ID: "d", TCP: to, NetNS: a.NetNSPath(), Interval: time.Hour, Timeout: time.Hour}, "")
	begin := time.Now()
	cancel() // must not wait for the answer
	<-done
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("Run took %v to end", d)
	}
	atHome(t, before)
}

// foreign returns the threads of this process that are in another network
// namespace than its own.
func foreign(t *testing.T) map[string]bool {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net") // the main thread's
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, task := range tasks {
		// A thread that has ended meanwhile has no namespace to read.
		if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
			found[task.Name()] = true
		}
	}
	return found
}

// atHome checks that no thread has been left in a foreign namespace but the lab's
// own, which were there before.
func atHome(t *testing.T, before map[string]bool) {
	t.Helper()
	for tid := range foreign(t) {
		if !before[tid] {
			t.Errorf("thread %s is left in another network namespace", tid)
		}
	}
}
