package nativeapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is what stands behind the API: a state, and boxes that write down what
// they are asked for.
type world struct {
	cfg   Config
	asked []any
	fail  error // of everything that changes something
}

type stopped struct {
	name  string
	grace time.Duration
}

func newWorld() *world {
	w := &world{}
	st := state.New()
	addr4, addr6 := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00:9::2")
	st.Reset(7, []state.Change{
		{Node: &model.Node{Name: "n1", Address: "198.51.100.1"}},
		{Network: &model.Network{
			Name: "my-network", Driver: "bridge", Node: "n1", MTU: 1400, Internal: true, Labels: map[string]string{"a": "b"},
			Pools: []model.Pool{
				{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParseAddr("10.9.0.1"), Reserved: []netip.Prefix{netip.MustParsePrefix("10.9.0.128/25")}},
				{Prefix: netip.MustParsePrefix("fd00:9::/64"), Gateway: netip.MustParseAddr("fd00:9::1")},
			},
		}},
		{Network: &model.Network{Name: "empty", Driver: "bridge", Node: "n2"}},
		{Endpoint: &model.Endpoint{
			ID: "e1", Workload: "web-1", Network: "my-network", Node: "n1", Aliases: []string{"www"}, Addrs: []netip.Addr{addr4, addr6},
			MAC: "02:00:00:00:00:01", HostIf: "flv1", NetNS: "/proc/1/ns/net",
			Ports: []model.PublishedPort{{Proto: "tcp", HostPort: 8080, Port: 80, Expose: "host"}},
		}},
		{VIP: &model.VIP{Service: "web", V4: netip.MustParseAddr("240.0.0.1"), V6: netip.MustParseAddr("fd01::1")}},
		{Instance: &model.Instance{
			Node: "n1", ID: "web-1", Service: "web", Tags: []string{"v1", "blue"}, Address: "10.9.0.2", Port: 80,
			Meta: map[string]string{"k": "v"}, Weights: model.DefaultWeights, Endpoint: "e1",
		}},
		{Instance: &model.Instance{Node: "n1", ID: "web-2", Service: "web", Tags: []string{"v1"}, Port: 81, Weights: model.DefaultWeights}},
		{Instance: &model.Instance{Node: "n1", ID: "consul", Service: model.ConsulService, Port: 8300, Weights: model.DefaultWeights}},
		{Check: &model.Check{Node: "n1", ID: "c1", Name: "answers", Status: model.Critical, Output: "refused", ServiceID: "web-1", ServiceName: "web"}},
	})
	w.cfg = Config{
		Networks: w, Workloads: w, State: st,
		Host:     api.Host{Node: "n1", RunDir: "/run/fairlead", Cgroup: "/sys/fs/cgroup/fairlead.slice"},
		Status:   func(context.Context) api.Status { return api.Status{Node: "n1", Index: 7, Problems: []string{}} },
		Datapath: func() (string, error) { return "frontend scope=1\n", w.fail },
		Classify: func(err error) int {
			if errors.Is(err, errKnown) {
				return http.StatusConflict
			}
			return 0
		},
		Log: slog.New(slog.DiscardHandler),
	}
	return w
}

var errKnown = errors.New("the name is taken")

func (w *world) CreateNetwork(_ context.Context, n model.Network) (model.Network, error) {
	w.asked = append(w.asked, n)
	n.Node = "n1"
	return n, w.fail
}

func (w *world) RemoveNetwork(_ context.Context, name model.NetworkName) error {
	w.asked = append(w.asked, name)
	return w.fail
}

func (w *world) Attach(_ context.Context, s api.WorkloadSpec) (api.Attachment, error) {
	w.asked = append(w.asked, s)
	return api.Attachment{Endpoint: api.Endpoint{ID: "e2", Workload: s.Name, Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.3")}}}, w.fail
}

func (w *world) List() ([]api.Workload, error) {
	return []api.Workload{{Name: "web-1", State: "running", PID: 12, Endpoints: []api.Endpoint{}}}, w.fail
}

func (w *world) Stop(_ context.Context, name string, grace time.Duration) error {
	w.asked = append(w.asked, stopped{name, grace})
	return w.fail
}

// serve starts the API for a test.
func (w *world) serve(t *testing.T) *httptest.Server {
	s := httptest.NewServer(New(w.cfg))
	t.Cleanup(s.Close)
	return s
}

// call makes one request on a connection of its own.
func call(t *testing.T, s *httptest.Server, method, path, body string, edit ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+api.Prefix+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, f := range edit {
		f(req)
	}
	req.Close = true
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}
