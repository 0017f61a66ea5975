package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/migrate"
	"github.com/fairlead-net/fairlead/internal/node"
)

// TestOurAgentTakesWhatIsTranslated: every file that is written for it has only
// settings that it knows, with values that it takes.
func TestOurAgentTakesWhatIsTranslated(t *testing.T) {
	entries, err := os.ReadDir("../../internal/migrate/testdata/consul")
	if err != nil || len(entries) == 0 {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "fairlead")
			var stdout, stderr bytes.Buffer
			code := execute(t.Context(), []string{"config", "from-consul", "--out", dir, filepath.Join("../../internal/migrate/testdata/consul", e.Name())}, strings.NewReader(""), &stdout, &stderr)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, &stderr)
			}
			file := filepath.Join(dir, "fairlead.yaml")
			if !strings.HasPrefix(stdout.String(), file+"\n") {
				t.Errorf("it does not say what it wrote: %s", &stdout)
			}
			cfg, err := node.Load(file, func(string) (string, bool) { return "", false }, nil)
			if err != nil {
				t.Fatal(err)
			}
			services, checks, _, err := migrate.Definitions(cfg.ServicesDir)
			if err != nil {
				t.Error(err)
			}
			if written := strings.Count(stdout.String(), "\n") - 1; len(services)+len(checks) != written {
				t.Errorf("%d services and %d checks in %d files", len(services), len(checks), written)
			}
		})
	}
}

func TestFromConsulPrints(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := execute(t.Context(), []string{"config", "from-consul", "--strict", "../../internal/migrate/testdata/consul/split"}, strings.NewReader(""), &stdout, &stderr)
	const settings = `# Translated from Consul's configuration by 'fairlead config from-consul'.
site: lab
node_meta: kind=small,zone=b
http_addr: 127.0.0.1:9500
dns_addr: 127.0.0.1:8653
recursors: 192.0.2.1,192.0.2.2:5353
acl: true
acl_default_token: 2f1f6c2e-5f0e-49a4-a9f1-0a6c0a7a3a01
log_level: debug
`
	const report = `KEY        PLACE                                                        WHY                                              WHAT TO DO
data_dir   ../../internal/migrate/testdata/consul/split/10-base.hcl:2   it holds Consul's own data, in Consul's format   keep it for the way back; 'fairlead import consul' copies what is in it into a new one
fairlead: warning: 5 definitions of services and checks: --out writes them into files
fairlead: 1 key cannot be honoured
`
	if stdout.String() != settings || stderr.String() != report || code != 1 {
		t.Errorf("exit %d\n%s\n%s", code, &stdout, &stderr)
	}
}
