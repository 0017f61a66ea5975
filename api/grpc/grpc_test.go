package fairleadgrpc

import (
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead-net/fairlead/api/internal/load"
)

func TestTargets(t *testing.T) {
	for target, want := range map[string]string{
		"fairlead:///web": "web", "fairlead:web": "web", "fairlead:///web?tag=v1": "v1.web",
		"fairlead:///v1.web.service.consul": "v1.web", "fairlead:///web.service.dc1.consul": "web.dc1",
		"fairlead://web": "", "fairlead:///": "", "fairlead:///a/b": "", "fairlead://host/web": "",
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		sel, err := selection(*u)
		if (err == nil) != (want != "") || err == nil && sel.String() != want {
			t.Errorf("%s: %s, %v; want %q", target, sel, err, want)
		}
	}
}

func TestServiceConfig(t *testing.T) {
	got, err := serviceConfig(nil)
	if err != nil || got != `{"loadBalancingConfig":[{"fairlead_load":{}}]}` {
		t.Error(got, err)
	}
	got, err = serviceConfig([]string{"a.B/C", "a.D/"})
	if err != nil || !strings.Contains(got, `"name":[{"service":"a.B","method":"C"},{"service":"a.D"}]`) {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "a.B", "/a.B/C"} {
		if _, err := serviceConfig([]string{bad}); err == nil {
			t.Errorf("idempotent call %q is accepted", bad)
		}
	}
}

func TestOutcome(t *testing.T) {
	for code, want := range map[codes.Code]load.Outcome{
		codes.OK: load.OK, codes.NotFound: load.OK, codes.Unavailable: load.Failed, codes.DeadlineExceeded: load.Failed,
		codes.Canceled: load.Abandoned,
	} {
		if got := outcome(status.Error(code, "")); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
	}
}
