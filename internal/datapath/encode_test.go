package datapath

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestAliasTableKeepsTheWeights adds up what each backend gets of all columns.
func TestAliasTableKeepsTheWeights(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var total float64
		backends := make([]Backend, 1+r.IntN(40))
		for i := range backends {
			backends[i].Weight = uint32(r.Uint64N(uint64(1) << r.IntN(33)))
			total += float64(backends[i].Weight)
		}
		prob, alias := aliasTable(backends)
		got := make([]float64, len(backends))
		for i, p := range prob {
			got[i] += float64(p) / (1 << 32)
			got[alias[i]] += 1 - float64(p)/(1<<32)
		}
		if total == 0 {
			continue
		}
		for i, b := range backends {
			want := float64(b.Weight) / total * float64(len(backends))
			if b.Weight == 0 && got[i] != 0 || math.Abs(got[i]-want) > 1e-6 {
				t.Fatalf("weights %v: backend %d gets %v columns, want %v", backends, i, got[i], want)
			}
		}
	}
}

func TestFrontendSurvivesEncoding(t *testing.T) {
	for _, f := range []Frontend{
		{HostScope, TCP, netip.MustParseAddr("240.1.2.3"), 80},
		{7, UDP, netip.MustParseAddr("fd00::1"), 65535},
	} {
		if got := decodeFrontend(f.encode()); got != f {
			t.Errorf("%s became %s", f, got)
		}
	}
}
