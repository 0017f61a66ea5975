package dns

import (
	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the server's counters.
type metrics struct {
	queries   *prometheus.CounterVec
	byRcode   [16]prometheus.Counter // those of the plain header, looked up once
	forwarded *prometheus.CounterVec
	truncated prometheus.Counter
	kept      prometheus.Counter
	limited   prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairlead_dns_queries_total",
			Help: "DNS queries answered, by the response code given.",
		}, []string{"rcode"}),
		forwarded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairlead_dns_forwarded_total",
			Help: "DNS queries for other resolvers, by where the answer came from: answered, cached, stale or failed.",
		}, []string{"result"}),
		truncated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dns_truncated_total",
			Help: "DNS replies that did not fit the asker's size and were cut.",
		}),
		kept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dns_kept_total",
			Help: "DNS queries over UDP answered with an answer that was kept from before.",
		}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairlead_dns_limited_total",
			Help: "DNS queries over UDP from networks that ask too often, answered with an invitation to TCP only.",
		}),
	}
	for code := range m.byRcode {
		if name, ok := miekg.RcodeToString[code]; ok {
			m.byRcode[code] = m.queries.WithLabelValues(name)
		}
	}
	return m
}

func (m *metrics) replied(reply *miekg.Msg) {
	if code := reply.Rcode; code >= 0 && code < len(m.byRcode) && m.byRcode[code] != nil {
		m.byRcode[code].Inc()
	} else {
		m.queries.WithLabelValues("other").Inc()
	}
	if reply.Truncated {
		m.truncated.Inc()
	}
}

func (m *metrics) forward(from source) { m.forwarded.WithLabelValues(string(from)).Inc() }

// Register makes the server's counters known to reg.
func (s *Server) Register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{s.metrics.queries, s.metrics.forwarded, s.metrics.truncated, s.metrics.kept, s.metrics.limited} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}
