package attach_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

const (
	workerVar = "FAIRLEAD_BENCH_WORKER"
	inARow    = 50
	rounds    = 3
	plugins   = "/usr/lib/cni" // of Debian's containernetworking-plugins
)

// task is what the worker is told, and figures what it answers.
type task struct {
	Dir    string // a scratch directory on a disk
	PinDir string
	Cgroup string
	// Namespaces of each way, by its name; inARow each.
	Namespaces map[string][]string
}

type figures struct {
	Attach, Detach map[string][]time.Duration
	Left           []string // what was found after everything was detached
}

// The ways to attach. Each has networks and namespaces of its own.
const (
	ours = "fairlead, IPv4"
	dual = "fairlead, IPv4 and IPv6"
	peer = "CNI bridge, IPv4"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" {
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func BenchmarkAttach(b *testing.B) {
	h := testlab.New(b).Host("bench")
	ways := []string{peer, ours, dual}
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		fmt.Printf("\nno %s/bridge to compare with; apt-get install containernetworking-plugins brings it\n", plugins)
		ways = ways[1:]
	}
	t := task{
		Dir: b.TempDir(), PinDir: filepath.Join(h.BPFFS(), "fairlead"), Cgroup: filepath.Join(h.Cgroup(), "hooked"),
		Namespaces: map[string][]string{},
	}
	if err := os.Mkdir(t.Cgroup, 0o755); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.Remove(t.Cgroup) })
	for i, way := range ways {
		for n := range inARow {
			t.Namespaces[way] = append(t.Namespaces[way], h.Namespace(fmt.Sprintf("w%d-%d", i, n)).NetNSPath())
		}
	}
	got := run(b, h, t)
	for _, l := range got.Left {
		b.Errorf("left behind: %s", l)
	}
	report(b, ways, got)
}

// run lets the worker do it, inside the host.
func run(b *testing.B, h *testlab.Host, t task) figures {
	b.Helper()
	in, err := json.Marshal(t)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVar+"=1")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	b.Cleanup(func() { // also after a failure
		err := h.Do(func() error {
			if err := datapath.Purge(datapath.Config{Cgroup: t.Cgroup, PinDir: t.PinDir}); err != nil {
				return err
			}
			n, err := netdrv.New(netdrv.Config{StateDir: t.Dir})
			if err != nil {
				return err
			}
			defer n.Close()
			_, err = n.Purge(b.Context())
			return err
		})
		if err != nil && b.Context().Err() == nil {
			b.Error(err)
		}
	})
	if err := h.Do(cmd.Start); err != nil {
		b.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		b.Fatalf("worker: %v", err)
	}
	var got figures
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		b.Fatalf("worker answered %q: %v", out.String(), err)
	}
	return got
}

func report(b *testing.B, ways []string, got figures) {
	fmt.Printf("\n%d in a row, %d times; milliseconds\n%-26s %8s %8s %8s %8s %9s\n", inARow, rounds, "", "p50", "p90", "max", "ratio", "detach p50")
	base := 0.0
	for _, way := range ways {
		p50, p90, most := quantile(got.Attach[way], 0.5), quantile(got.Attach[way], 0.9), quantile(got.Attach[way], 1)
		base = cmp.Or(base, p50)
		fmt.Printf("%-26s %8.2f %8.2f %8.2f %8.3f %9.2f\n", way, p50, p90, most, p50/base, quantile(got.Detach[way], 0.5))
		if way == ours {
			b.ReportMetric(p50, "p50-ms")
			if ways[0] == peer {
				b.ReportMetric(p50/base, "ours/cni")
			}
		}
	}
}

// quantile is in milliseconds.
func quantile(all []time.Duration, q float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond)
}
