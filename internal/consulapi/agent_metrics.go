package consulapi

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairlead-net/fairlead/internal/acl"
)

// metricsShape is what Consul shows of its metrics. There each figure is that of
// the last ten seconds; here counters and samples count from the agent's start.
type metricsShape struct {
	Timestamp string
	Gauges    []gaugeShape
	Points    []struct{}
	Counters  []sampleShape
	Samples   []sampleShape
}

type gaugeShape struct {
	Name   string
	Value  float64
	Labels map[string]string
}

type sampleShape struct {
	Name   string
	Count  uint64
	Rate   float64
	Sum    float64
	Min    float64
	Max    float64
	Mean   float64
	Stddev float64
	Labels map[string]string
}

// agentMetrics shows the agent's metrics, in Consul's form or Prometheus'.
func (h *handler) agentMetrics(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Read); err != nil {
		return answer{}, err
	}
	if h.Metrics == nil {
		return answer{}, unavailable("Metrics are")
	}
	if c.params.Get("format") == "prometheus" || acceptsExposition(c.r.Header.Get("Accept")) {
		promhttp.HandlerFor(h.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(c.w, c.r)
		return answer{status: http.StatusOK, written: true}, nil
	}
	families, err := h.Metrics.Gather()
	if err != nil {
		return answer{}, fmt.Errorf("gather metrics: %w", err)
	}
	out := metricsShape{
		Timestamp: time.Now().UTC().Format("2006-01-02 15:04:05 -0700 MST"),
		Gauges:    []gaugeShape{}, Points: []struct{}{}, Counters: []sampleShape{}, Samples: []sampleShape{},
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			sample := func(n uint64, sum float64) sampleShape {
				mean := 0.0
				if n > 0 {
					mean = sum / float64(n)
				}
				return sampleShape{Name: f.GetName(), Count: n, Sum: finite(sum), Mean: finite(mean), Labels: labels}
			}
			switch {
			case m.GetGauge() != nil:
				out.Gauges = append(out.Gauges, gaugeShape{f.GetName(), finite(m.GetGauge().GetValue()), labels})
			case m.GetUntyped() != nil:
				out.Gauges = append(out.Gauges, gaugeShape{f.GetName(), finite(m.GetUntyped().GetValue()), labels})
			case m.GetCounter() != nil:
				v := m.GetCounter().GetValue()
				out.Counters = append(out.Counters, sample(uint64(max(v, 0)), v))
			case m.GetHistogram() != nil:
				out.Samples = append(out.Samples, sample(m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()))
			case m.GetSummary() != nil:
				out.Samples = append(out.Samples, sample(m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum()))
			}
		}
	}
	return value(out), nil
}

// finite makes a number that JSON can hold.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// acceptsExposition reports whether an Accept header asks for Prometheus' text.
func acceptsExposition(accept string) bool {
	for part := range strings.SplitSeq(strings.ToLower(accept), ",") {
		kind, params, _ := strings.Cut(part, ";")
		switch strings.TrimSpace(kind) {
		case "application/openmetrics-text":
			return true
		case "text/plain":
			if strings.Contains(strings.ReplaceAll(params, " ", ""), "version=0.0.4") || strings.Contains(strings.ReplaceAll(params, " ", ""), "version=0.4.0") {
				return true
			}
		}
	}
	return false
}
