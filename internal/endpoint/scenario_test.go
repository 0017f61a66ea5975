package endpoint_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
)

var update = flag.Bool("update", false, "write the answers that the scenarios give")

// TestScenarios plays testdata/*.txt. A scenario is a sequence of steps, each with
// what happens, then "----", then what came of it: errors, and what is recorded,
// in the kernel and in the maps that was not before ("+") or is no more ("-").
//
// What can happen:
//
//	start, stop                  an agent begins and ends; the kernel stays
//	boot, sync                   an agent begins, and its catalogue comes later
//	lose                         it ends, and its catalogue with it (--dev)
//	namespace PATH               the path leads to a new namespace
//	kill PATH                    the namespace goes, and the interfaces in it
//	network NAME [PREFIX...]     create it
//	rm NAME                      remove it
//	attach NETWORK/WORKLOAD PATH [ADDR...] [HOST:PORT/PROTO[@EXPOSE]...] [alias=NAME...]
//	detach NETWORK/WORKLOAD
//	cut NETWORK/WORKLOAD         somebody deletes its interface
//	cut NETWORK                  somebody deletes its bridge
//	stray NETWORK/WORKLOAD       an interface of ours that nothing else tells of
//	occupy PROTO/PORT, free PROTO/PORT   somebody of the host listens, and stops
//	fail OPERATION [always]      the next call of it fails, or all until "mend OPERATION"
//	wait DURATION
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(text)) })
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s plays differently (-update writes it down):\n%s", file, got)
			}
		})
	}
}

// play runs a scenario and returns it with the answers that were given.
func play(t *testing.T, text string) string {
	w := newWorld(t)
	var out strings.Builder
	var step, before []string
	answer := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case answer && line != "":
			continue // the old answer
		case answer:
			answer = false
			out.WriteString("\n")
		case line == "----":
			out.WriteString("----\n")
			for _, s := range step {
				if err := w.do(strings.Fields(s)); err != nil {
					fmt.Fprintf(&out, "%s: %v\n", strings.Fields(s)[0], strings.ReplaceAll(err.Error(), "\n", "; "))
				}
				synctest.Wait()
			}
			after := strings.Split(strings.TrimSpace(w.dump()), "\n")
			for _, l := range differences(before, after) {
				out.WriteString(l + "\n")
			}
			before, step, answer = after, nil, true
		default:
			out.WriteString(line + "\n")
			if line != "" && !strings.HasPrefix(line, "#") {
				step = append(step, line)
			}
		}
	}
	return out.String()
}

func differences(before, after []string) []string {
	var out []string
	for _, l := range before {
		if l != "" && !slices.Contains(after, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range after {
		if l != "" && !slices.Contains(before, l) {
			out = append(out, "+ "+l)
		}
	}
	return out
}

func (w *world) do(f []string) error {
	switch f[0] {
	case "start":
		w.start()
	case "boot":
		w.boot()
	case "sync":
		w.sync()
	case "stop":
		w.halt()
	case "lose":
		w.halt()
		w.disk = nil
	case "namespace":
		w.namespace(f[1])
	case "kill":
		w.kill(f[1])
	case "network":
		n := model.Network{Name: model.NetworkName(f[1])}
		for _, p := range f[2:] {
			n.Pools = append(n.Pools, model.Pool{Prefix: netip.MustParsePrefix(p)})
		}
		_, err := w.set.CreateNetwork(w.t.Context(), n)
		return err
	case "rm":
		return w.set.RemoveNetwork(w.t.Context(), model.NetworkName(f[1]))
	case "attach":
		e, want, err := parseEndpoint(f[1:])
		if err != nil {
			w.t.Fatal(err)
		}
		_, err = w.set.Attach(w.t.Context(), e, want)
		return err
	case "detach":
		return w.set.Detach(w.t.Context(), idOf(f[1]))
	case "cut":
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.links, netdrv.HostIf(idOf(f[1])))
		delete(w.bridges, netdrv.BridgeName(model.NetworkName(f[1])))
	case "stray":
		e, _, err := parseEndpoint([]string{f[1], ""})
		if err != nil {
			w.t.Fatal(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.links[netdrv.HostIf(idOf(f[1]))] = link{endpoint: e}
	case "occupy", "free":
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.held, f[1]); f[0] == "occupy" {
			w.held[f[1]] = true
		}
	case "fail":
		w.fail(f[1], failure{always: len(f) > 2})
	case "mend":
		w.fail(f[1], failure{done: true})
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(d) // of the bubble's clock
	default:
		return errors.New("unknown")
	}
	return nil
}

// idOf is the id of NETWORK/WORKLOAD.
func idOf(name string) model.EndpointID {
	network, workload, _ := strings.Cut(name, "/")
	return endpoint.ID("n1", model.WorkloadName(workload), model.NetworkName(network))
}

func parseEndpoint(f []string) (e model.Endpoint, want []netip.Addr, err error) {
	network, workload, _ := strings.Cut(f[0], "/")
	e.Network, e.Workload, e.NetNS = model.NetworkName(network), model.WorkloadName(workload), f[1]
	for _, word := range f[2:] {
		if alias, ok := strings.CutPrefix(word, "alias="); ok {
			e.Aliases = append(e.Aliases, alias)
			continue
		}
		if a, err := netip.ParseAddr(word); err == nil {
			want = append(want, a)
			continue
		}
		var p model.PublishedPort
		word, expose, _ := strings.Cut(word, "@")
		ports, proto, _ := strings.Cut(word, "/")
		p.Proto, p.Expose = model.Protocol(proto), model.Expose(expose)
		if _, err := fmt.Sscanf(ports, "%d:%d", &p.HostPort, &p.Port); err != nil {
			return e, nil, fmt.Errorf("%q: %w", word, err)
		}
		e.Ports = append(e.Ports, p)
	}
	return e, want, nil
}
