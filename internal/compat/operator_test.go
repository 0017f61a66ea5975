package compat

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestStatusMethods(t *testing.T) {
	c := startAgent(t).client()
	leader, err := c.Status().Leader()
	if err != nil || leader != "127.0.0.1:8300" {
		t.Errorf("leader: %q, %v", leader, err)
	}
	peers, err := c.Status().Peers()
	if err != nil || !slices.Equal(peers, []string{leader}) {
		t.Errorf("peers: %v, %v", peers, err)
	}
	if l, err := c.Status().LeaderWithQueryOptions(&api.QueryOptions{Datacenter: "dc1"}); err != nil || l != leader {
		t.Errorf("leader here: %q, %v", l, err)
	}
	if _, err := c.Status().PeersWithQueryOptions(&api.QueryOptions{Datacenter: "elsewhere"}); err == nil || !strings.Contains(err.Error(), "No path to datacenter") {
		t.Errorf("peers elsewhere: %v", err)
	}
}

func TestOperatorRaft(t *testing.T) {
	c := startAgent(t).client()
	conf, err := c.Operator().RaftGetConfiguration(nil)
	if err != nil || len(conf.Servers) != 1 {
		t.Fatalf("configuration: %+v, %v", conf, err)
	}
	s := conf.Servers[0]
	if s.Node != "n1" || s.Address != "127.0.0.1:8300" || !s.Leader || !s.Voter || len(s.ID) != 36 || s.LastIndex == 0 || conf.Index == 0 || s.ProtocolVersion != "3" {
		t.Errorf("server: %+v", s)
	}
	op := c.Operator()
	for what, err := range map[string]error{
		`id "x" was not found`:           op.RaftRemovePeerByID("x", nil),
		`address "1.2.3.4:1" was not`:    op.RaftRemovePeerByAddress("1.2.3.4:1", nil),
		"cannot be removed":              op.RaftRemovePeerByID(s.ID, nil),
		"this site has one server: it c": op.RaftRemovePeerByAddress(s.Address, nil),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
	for id, what := range map[string]string{"": "no other can lead", "x": `id "x" was not found`} {
		if _, err := op.RaftLeaderTransfer(id, nil); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("transfer to %q: %v, want %s", id, err, what)
		}
	}
}

func TestOperatorAutopilot(t *testing.T) {
	op := startAgent(t).client().Operator()
	conf, err := op.AutopilotGetConfiguration(nil)
	if err != nil || !conf.CleanupDeadServers || conf.LastContactThreshold.Duration() != 200*time.Millisecond || conf.MaxTrailingLogs != 250 ||
		conf.ServerStabilizationTime.Duration() != 10*time.Second {
		t.Fatalf("configuration: %+v, %v", conf, err)
	}
	conf.CleanupDeadServers = false
	if err := op.AutopilotSetConfiguration(conf, nil); err != nil {
		t.Fatal(err)
	}
	set, err := op.AutopilotGetConfiguration(nil)
	if err != nil || set.CleanupDeadServers || set.ModifyIndex == 0 {
		t.Fatalf("after a change: %+v, %v", set, err)
	}
	stale := *set
	set.MaxTrailingLogs = 300
	if ok, err := op.AutopilotCASConfiguration(set, nil); err != nil || !ok {
		t.Errorf("compare and set: %v, %v", ok, err)
	}
	if ok, err := op.AutopilotCASConfiguration(&stale, nil); err != nil || ok {
		t.Errorf("compare with what is gone and set: %v, %v", ok, err)
	}

	health, err := op.AutopilotServerHealth(nil)
	if err != nil || !health.Healthy || health.FailureTolerance != 0 || len(health.Servers) != 1 {
		t.Fatalf("health: %+v, %v", health, err)
	}
	if s := health.Servers[0]; s.Name != "n1" || s.SerfStatus != "alive" || !s.Leader || !s.Voter || !s.Healthy || s.LastContact.Duration() != 0 || s.StableSince.IsZero() || s.LastTerm == 0 {
		t.Errorf("server: %+v", s)
	}
	state, err := op.AutopilotState(nil)
	if err != nil || !state.Healthy || len(state.Voters) != 1 || state.Leader != state.Voters[0] {
		t.Fatalf("state: %+v, %v", state, err)
	}
	if s := state.Servers[state.Leader]; s.Status != api.AutopilotServerLeader || s.NodeStatus != "alive" || s.NodeType != api.AutopilotTypeVoter {
		t.Errorf("server: %+v", s)
	}
}

func TestOperatorUsageAndKeyring(t *testing.T) {
	c := startAgent(t).client()
	if _, err := c.Catalog().Register(external(), nil); err != nil {
		t.Fatal(err)
	}
	usage, _, err := c.Operator().Usage(nil)
	if err != nil {
		t.Fatal(err)
	}
	if u := usage.Usage["dc1"]; u.Nodes != 2 || u.Services != 2 || u.ServiceInstances != 2 || u.BillableServiceInstances != 1 {
		t.Errorf("usage: %+v", u)
	}
	if _, err := c.Operator().KeyringList(nil); err == nil || !strings.Contains(err.Error(), "There is no keyring") {
		t.Errorf("keyring: %v", err)
	}
}
