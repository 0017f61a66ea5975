package state_test

import (
	"fmt"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// catalogue is 10,000 services of three instances with a check each, on 100
// nodes.
func catalogue(b *testing.B) *state.State {
	b.Helper()
	const services, perService, nodes = 10_000, 3, 100
	var records []state.Change
	for n := range nodes {
		records = append(records, node(fmt.Sprintf("n%d", n), "10.0.0.1"),
			check(fmt.Sprintf("n%d", n), "serfHealth", "", model.Passing))
	}
	for i := range services * perService {
		n, id := fmt.Sprintf("n%d", i%nodes), fmt.Sprintf("s%d-%d", i/perService, i%perService)
		records = append(records, inst(n, id, fmt.Sprintf("s%d", i/perService), "v1"),
			check(n, "service:"+id, id, model.Passing))
	}
	s := state.New()
	s.Reset(1, records)
	return s
}

func BenchmarkService(b *testing.B) {
	s := catalogue(b)
	b.ReportAllocs()
	for b.Loop() {
		svc, _ := s.Snapshot().Service("s7777")
		if len(svc.Members) != 3 {
			b.Fatal("wrong service")
		}
	}
}

func BenchmarkServiceParallel(b *testing.B) {
	s := catalogue(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Snapshot().Service("s7777")
		}
	})
}

// One check of one service changes.
func BenchmarkApplyCheck(b *testing.B) {
	s := catalogue(b)
	status := []model.Status{model.Passing, model.Critical}
	rev := model.Index(1)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		i := int(rev) % 30_000
		id := fmt.Sprintf("s%d-%d", i/3, i%3)
		s.Apply(rev, []state.Change{check(fmt.Sprintf("n%d", i%100), "service:"+id, id, status[rev%2])})
	}
}

// One instance of a service of a thousand instances changes its health.
func BenchmarkApplyCheckOfLargeService(b *testing.B) {
	s := catalogue(b)
	var more []state.Change
	for i := range 1000 {
		more = append(more, inst(fmt.Sprintf("n%d", i%100), fmt.Sprintf("big-%d", i), "big", "v1"))
	}
	s.Apply(2, more)
	rev := model.Index(2)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		i := int(rev) % 1000
		s.Apply(rev, []state.Change{check(fmt.Sprintf("n%d", i%100), "c", fmt.Sprintf("big-%d", i), model.Warning)})
	}
}

// A node dies that carries 300 instances.
func BenchmarkApplyNodeCheck(b *testing.B) {
	s := catalogue(b)
	rev := model.Index(1)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		s.Apply(rev, []state.Change{check("n7", "serfHealth", "", model.Critical)})
	}
}

func BenchmarkReset(b *testing.B) {
	for b.Loop() {
		catalogue(b)
	}
}
