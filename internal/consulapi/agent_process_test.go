package consulapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
)

// process writes down what an agent is asked to do to itself.
type process struct {
	asked []string
	err   error
}

func (p *process) Reload(context.Context) error {
	p.asked = append(p.asked, "reload")
	return p.err
}

func (p *process) Leave(context.Context) error {
	p.asked = append(p.asked, "leave")
	return p.err
}

func (p *process) SetToken(_ context.Context, kind, secret string) error {
	p.asked = append(p.asked, kind+"="+secret)
	return p.err
}

// allowing is an authority that is there and lets everybody do everything.
type allowing struct{}

func (allowing) Resolve(string) (acl.Authorizer, error) { return acl.AllowAll(), nil }

// exchangeWith makes one request and returns its answer's status and body.
func exchangeWith(h http.Handler, method, url, body string) (int, string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, url, strings.NewReader(body)))
	return rec.Code, rec.Body.String()
}

func TestWhatAnAgentDoesToItself(t *testing.T) {
	p := &process{}
	deps := newWorld().deps()
	deps.Process, deps.Tokens, deps.Authority = p, p, allowing{}
	h := consulapi.New(consulapi.Config{Log: slog.New(slog.DiscardHandler)}, deps)
	tests := []struct {
		url, body, asked string
		status           int
		answer           string
	}{
		{"/v1/agent/reload", "", "reload", 200, ""},
		{"/v1/agent/leave", "", "leave", 200, ""},
		{"/v1/agent/token/default", `{"Token":"s"}`, "default=s", 200, ""},
		{"/v1/agent/token/acl_token", `{"Token":"s"}`, "default=s", 200, ""},
		{"/v1/agent/token/agent", `{"Token":""}`, "agent=", 200, ""},
		{"/v1/agent/token/acl_agent_token", `{"Token":"s"}`, "agent=s", 200, ""},
		{"/v1/agent/token/agent_recovery", `{"Token":"s"}`, "agent_recovery=s", 200, ""},
		{"/v1/agent/token/agent_master", `{"Token":"s"}`, "agent_recovery=s", 200, ""},
		{"/v1/agent/token/replication", `{"Token":"s"}`, "replication=s", 200, ""},
		{"/v1/agent/token/config_file_service_registration", `{"Token":"s"}`, "config_file_service_registration=s", 200, ""},
		{"/v1/agent/token/dns", `{"Token":"s"}`, "dns=s", 200, ""},
		{"/v1/agent/token/odd", `{"Token":"s"}`, "", 404, `Token "odd" is unknown`},
		{"/v1/agent/token/dns", `{`, "", 400, "Request decode failed: unexpected EOF"},
	}
	for _, tt := range tests {
		p.asked = nil
		status, answer := exchangeWith(h, http.MethodPut, tt.url, tt.body)
		if status != tt.status || answer != tt.answer || strings.Join(p.asked, " ") != tt.asked {
			t.Errorf("%s %s: %d %q, asked %q", tt.url, tt.body, status, answer, p.asked)
		}
	}
	p.err = errors.New("services-dir: no such directory")
	if status, answer := exchangeWith(h, http.MethodPut, "/v1/agent/reload", ""); status != 500 || answer != p.err.Error() {
		t.Errorf("a reload that fails: %d %q", status, answer)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairlead_size", Help: "Size."}, func() float64 { return 3 }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "fairlead_writes_total", Help: "Writes."}, func() float64 { return 4 }),
	)
	times := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "fairlead_seconds", Help: "Time."}, []string{"route"})
	reg.MustRegister(times)
	times.WithLabelValues("kv").Observe(1)
	times.WithLabelValues("kv").Observe(2)
	deps := newWorld().deps()
	deps.Metrics = reg
	h := consulapi.New(consulapi.Config{Log: slog.New(slog.DiscardHandler)}, deps)
	status, answer := exchangeWith(h, http.MethodGet, "/v1/agent/metrics", "")
	var got map[string]any
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || got["Timestamp"] == "" {
		t.Fatalf("%d %s: %v", status, answer, err)
	}
	delete(got, "Timestamp")
	short, err := json.Marshal(got)
	want := `{"Counters":[{"Count":4,"Labels":{},"Max":0,"Mean":1,"Min":0,"Name":"fairlead_writes_total","Rate":0,"Stddev":0,"Sum":4}],` +
		`"Gauges":[{"Labels":{},"Name":"fairlead_size","Value":3}],"Points":[],` +
		`"Samples":[{"Count":2,"Labels":{"route":"kv"},"Max":0,"Mean":1.5,"Min":0,"Name":"fairlead_seconds","Rate":0,"Stddev":0,"Sum":3}]}`
	if err != nil || string(short) != want {
		t.Errorf("got  %s\nwant %s", short, want)
	}
	if status, answer := exchangeWith(h, http.MethodGet, "/v1/agent/metrics?format=prometheus", ""); status != 200 || !strings.Contains(answer, "\nfairlead_writes_total 4\n") {
		t.Errorf("%d %s", status, answer)
	}
	r := httptest.NewRequest(http.MethodGet, "/v1/agent/metrics", nil)
	r.Header.Set("Accept", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
	rec := httptest.NewRecorder()
	if h.ServeHTTP(rec, r); !strings.Contains(rec.Body.String(), "# TYPE fairlead_size gauge") {
		t.Errorf("for a scraper: %s", rec.Body)
	}
}

func TestHost(t *testing.T) {
	h := newWorld().handler()
	status, answer := exchangeWith(h, http.MethodGet, "/v1/agent/host", "")
	var got struct {
		Memory struct{ Total, Available uint64 }
		CPU    []map[string]any
		Host   struct{ Hostname, OS, KernelVersion string }
		Disk   struct {
			Path  string
			Total uint64
		}
		CollectionTime int64
		Errors         []string
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 {
		t.Fatalf("%d %s: %v", status, answer, err)
	}
	if got.Memory.Total == 0 || len(got.CPU) == 0 || got.Host.Hostname == "" || got.Host.OS != "linux" ||
		got.Disk.Path != "/" || got.Disk.Total == 0 || got.CollectionTime == 0 || got.Errors != nil {
		t.Errorf("%s", answer)
	}
}

// TestMonitor: a client sees what is logged from its level on, with everything
// that was said with With, in the form of Consul's logs.
func TestMonitor(t *testing.T) {
	var kept strings.Builder
	logs := consulapi.NewLogs(slog.NewTextHandler(&kept, &slog.HandlerOptions{Level: slog.LevelWarn}))
	log := slog.New(logs).With("node", "n1").WithGroup("sync")
	deps := newWorld().deps()
	deps.Logs = logs
	s := httptest.NewServer(consulapi.New(consulapi.Config{Log: slog.New(slog.DiscardHandler)}, deps))
	defer s.Close()
	watch := func(query string) (*bufio.Scanner, func()) {
		resp, err := http.Get(s.URL + "/v1/agent/monitor" + query)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		return bufio.NewScanner(resp.Body), func() { resp.Body.Close() }
	}
	plain, end := watch("")
	all, endAll := watch("?loglevel=debug&logjson")
	log.Debug("deep", "a", 1)
	log.Info("began", "of", "one two", "empty", "")
	log.Warn("slow", slog.Group("g", "x", 1))

	for _, want := range []string{
		` [INFO]  agent: began: node=n1 sync.of="one two" sync.empty=""`,
		` [WARN]  agent: slow: node=n1 sync.g.x=1`,
	} {
		if !plain.Scan() || !strings.HasSuffix(plain.Text(), want) {
			t.Errorf("%q, want one that ends in %q", plain.Text(), want)
		}
	}
	var line map[string]any
	if !all.Scan() || json.Unmarshal(all.Bytes(), &line) != nil || line["@level"] != "debug" || line["@message"] != "deep" ||
		line["sync.a"] != "1" || line["node"] != "n1" || line["@timestamp"] == nil {
		t.Errorf("%s", all.Text())
	}
	end()
	endAll()
	if text := kept.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN msg=slow node=n1 sync.g.x=1") {
		t.Errorf("the agent's own log: %s", text)
	}
	if logs.Enabled(t.Context(), slog.LevelInfo) {
		s.Close() // ends what still notices that its client is gone
		if logs.Enabled(t.Context(), slog.LevelInfo) {
			t.Error("somebody still watches")
		}
	}
}

// TestMonitorOfARevokedToken: who watches sees nothing more once its token is gone.
func TestMonitorOfARevokedToken(t *testing.T) {
	logs := consulapi.NewLogs(slog.DiscardHandler)
	w := newWorld()
	s := secure(w, false)
	deps := w.deps()
	deps.Logs, deps.Authority = logs, s.authority
	server := httptest.NewServer(consulapi.New(consulapi.Config{Node: w.node, Log: slog.New(slog.DiscardHandler)}, deps))
	defer server.Close()
	secret := s.token(`agent_prefix "" { policy = "read" }`)
	resp, err := http.Get(server.URL + "/v1/agent/monitor?token=" + secret)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	slog.New(logs).Info("before")
	if !lines.Scan() || !strings.Contains(lines.Text(), "before") {
		t.Fatalf("%q", lines.Text())
	}
	gone, _ := w.st.Snapshot().TokenBySecret(secret)
	if _, err := s.reg.DeleteToken(t.Context(), gone.AccessorID); err != nil {
		t.Fatal(err)
	}
	slog.New(logs).Info("after")
	if lines.Scan() {
		t.Errorf("%q", lines.Text())
	}
}

// TestMonitorThatIsSlow: whoever does not read holds up nobody.
func TestMonitorThatIsSlow(t *testing.T) {
	logs := consulapi.NewLogs(slog.DiscardHandler)
	deps := newWorld().deps()
	deps.Logs = logs
	h := consulapi.New(consulapi.Config{Log: slog.New(slog.DiscardHandler)}, deps)
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	done := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(&stuck{header: http.Header{}, Writer: writer, started: started},
			httptest.NewRequest(http.MethodGet, "/v1/agent/monitor", nil).WithContext(ctx))
	}()
	<-started
	for range 2000 {
		slog.New(logs).Info("line")
	}
	cancel()
	reader.Close()
	<-done
}

// stuck is an answer that nobody reads.
type stuck struct {
	io.Writer
	header  http.Header
	started chan struct{}
}

func (s *stuck) Header() http.Header { return s.header }
func (s *stuck) WriteHeader(int)     {}
func (s *stuck) Flush() {
	select {
	case <-s.started:
	default:
		close(s.started)
	}
}
