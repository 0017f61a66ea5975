package consulapi

import (
	"testing"

	"github.com/hashicorp/go-bexpr"
)

// FuzzSpread: a filter that was rewritten still parses.
func FuzzSpread(f *testing.F) {
	f.Add(`Checks.Status == "critical" and not (Node.Node != a or "x" in Service.Tags)`)
	f.Add(`Checks.0=="\227="`)
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
