package consulapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/go-bexpr"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestDecodeSpellings(t *testing.T) {
	want := model.CheckSpec{
		ID: "c", Name: "Service 'web' check", ServiceID: "web", HTTP: "https://x/", Method: "POST", Header: map[string][]string{"A_b": {"c"}},
		TLSSkipVerify: true, TLSServerName: "y", NoRedirects: true, Interval: 2 * time.Second, Timeout: time.Second,
		DeregisterAfter: time.Hour, SuccessBeforePassing: 1, FailuresBeforeWarning: 2, FailuresBeforeCritical: 3, OutputMaxSize: 5,
	}
	for _, body := range []string{
		`{"Name":"web","Check":{"CheckID":"c","HTTP":"https://x/","Method":"POST","Header":{"A_b":["c"]},"TLSSkipVerify":true,"TLSServerName":"y",
		 "DisableRedirects":true,"Interval":"2s","Timeout":"1s","DeregisterCriticalServiceAfter":"1h","SuccessBeforePassing":1,
		 "FailuresBeforeWarning":2,"FailuresBeforeCritical":3,"OutputMaxSize":5}}`,
		`{"name":"web","checks":[{"check_id":"c","http":"https://x/","method":"POST","header":{"A_b":["c"]},"tls_skip_verify":true,"tls_server_name":"y",
		 "disable_redirects":true,"interval":2000000000,"timeout":1e9,"deregister_critical_service_after":"60m","success_before_passing":1,
		 "failures_before_warning":2,"failures_before_critical":3,"output_max_size":5}]}`,
		// Said twice: the spelling without underscores wins.
		`{"name":"web","check":{"id":"c","tls_server_name":"n","TLSServerName":"y","http":"https://x/","method":"POST","header":{"A_b":["c"]},"tls_skip_verify":true,
		 "disable_redirects":true,"interval":"2s","timeout":"1s","deregistercriticalserviceafter":"1h","success_before_passing":1,
		 "failures_before_warning":2,"failures_before_critical":3,"output_max_size":5}}`,
	} {
		var s serviceBody
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		r, warnings, err := s.registration("n1")
		if err != nil || len(warnings) > 0 || len(r.Checks) != 1 {
			t.Fatalf("%v, %v, %d checks", err, warnings, len(r.Checks))
		}
		got, _ := json.Marshal(r.Checks[0])
		exp, _ := json.Marshal(want)
		if string(got) != string(exp) {
			t.Errorf("got  %s\nwant %s", got, exp)
		}
	}
}

// FuzzRegister: whatever the body, decoding answers with a client's error or with
// a registration that can be kept and shown.
func FuzzRegister(f *testing.F) {
	for _, s := range []string{
		`{"Name":"web","Port":80,"Check":{"HTTP":"http://x/","Interval":"10s"}}`,
		`{"name":"web","checks":[{"ttl":"10s"},null,{"tcp":"x:1","interval":1e10}]}`,
		`{"Name":"w","Weights":{"Passing":1},"Meta":{"a":"b"},"TaggedAddresses":{"lan":{"Address":"::1","Port":1}},"Address":"::1"}`,
		`{"Name":"w","Connect":{"sidecar_service":{}},"Proxy":{},"Check":{"Timeout":-1,"TTL":"1h"}}`,
		`{"NA_ME":"w","name":"v","Check":{"TTL":9e99}}`, `[]`, `null`, `{}`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var s serviceBody
		if json.Unmarshal(body, &s) != nil {
			return
		}
		r, _, err := s.registration("n1")
		if err != nil {
			var fe *failed
			if !errors.As(err, &fe) || fe.status != http.StatusBadRequest || fe.reason == "" {
				t.Fatalf("not a client's error: %v", err)
			}
			return
		}
		if r.Instance.Service == "" || r.Instance.ID == "" || r.Instance.Port < 0 || r.Instance.Weights.Passing < 1 {
			t.Fatalf("invalid instance %+v", r.Instance)
		}
		ids := map[model.CheckID]bool{}
		for _, c := range r.Checks {
			if c.ID == "" || c.Name == "" || c.ServiceID != r.Instance.ID || c.Type() == "" || ids[c.ID] {
				t.Fatalf("invalid check %+v", c)
			}
			if c.TTL == 0 && c.Interval < minInterval {
				t.Fatalf("check runs too often: %+v", c)
			}
			ids[c.ID] = true
		}
		if _, err := json.Marshal(shapeAgentService(&r.Instance, "dc1")); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSpread: a filter that was rewritten still parses.
func FuzzSpread(f *testing.F) {
	f.Add(`Checks.Status == "critical" and not (Node.Node != a or "x" in Service.Tags)`)
	f.Add("Checks.Output matches `a\"b` or Checks.ServiceTags is empty")
	f.Fuzz(func(t *testing.T, expr string) {
		if len(expr) > 200 {
			return
		}
		if out := spread(expr); out != expr {
			if _, err := bexpr.CreateEvaluator(out); err != nil {
				t.Fatalf("%q became %q: %v", expr, out, err)
			}
		}
	})
}
