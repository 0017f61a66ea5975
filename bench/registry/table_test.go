package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.456: "0.46", 9.5: "9.50", 12.34: "12.3", 999: "999", 1234.5: "1,234", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) is %s, want %s", v, got, want)
		}
	}
	for v, want := range map[float64]string{44: "44/s", 950: "950/s", 5678: "5.7k/s", 112_400: "112k/s"} {
		if got := perSecond(v); got != want {
			t.Errorf("perSecond(%v) is %s, want %s", v, got, want)
		}
	}
}

// measured is a target with the figures of one row and one part.
func measured(t *testing.T, name string, cpu float64) *target {
	t.Helper()
	x, err := newTarget(name, "http://127.0.0.1:1", "127.0.0.1:2", 3)
	if err != nil {
		t.Fatal(err)
	}
	for key, v := range map[string]float64{
		"health/64/rate": 21_000, "health/64/p50": 0.5, "health/64/p99": 12, "health/64/cpu": cpu, "memory/idle": 38,
	} {
		x.add(key, v)
	}
	return x
}

func TestReportWithoutPeer(t *testing.T) {
	ours := measured(t, "fairlead", 50)
	ours.own = &agent{}
	ours.note("one thing")
	ours.note("one thing")
	var out bytes.Buffer
	report(&out, []*target{ours})
	for _, want := range []string{
		"| health/service ?passing | fairlead ", "| 21.0k/s, p50 0.50 p99 12.0 ms | - / - / 50.0 ", "| 450-610 ",
		"| RSS idle | MiB  | 38.0 ", "| 450 ", "| 1/9.00 | <= 56.2 ", "recorded elsewhere", "rough", "fairlead: one thing\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "KV PUT") || strings.Count(out.String(), "one thing") != 1 {
		t.Errorf("rows that were not measured, or a note twice:\n%s", &out)
	}
}

func TestReportWithPeer(t *testing.T) {
	ours := measured(t, "fairlead", 50)
	ours.own = &agent{}
	var out bytes.Buffer
	report(&out, []*target{ours, measured(t, "consul", 160)})
	if strings.Contains(out.String(), "recorded") {
		t.Errorf("recorded figures beside a peer:\n%s", &out)
	}
	for _, want := range []string{"consul, measured here", "| 1/3.20 | <= 20.0 ", "not met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestJudge(t *testing.T) {
	ours, peer := measured(t, "fairlead", 50), measured(t, "consul", 160)
	tests := []struct {
		goal goal
		peer *target
		met  bool
	}{
		{goal{key: "health/64/cpu", recorded: 450, share: 1. / 8}, nil, true},
		{goal{key: "health/64/cpu", recorded: 450, share: 1. / 8}, peer, false},
		{goal{key: "memory/idle", limit: 38}, nil, true},
		{goal{key: "memory/idle", limit: 37}, nil, false},
		{goal{key: "health/64/rate", limit: 21_000, atLeast: true}, nil, true},
		{goal{key: "health/64/rate", limit: 21_001, atLeast: true}, nil, false},
		{goal{key: "absent", limit: 1, atLeast: true}, nil, false},
		{goal{key: "absent", limit: 1}, nil, false},
	}
	for _, test := range tests {
		if v := test.goal.judge(ours, test.peer); v.met != test.met {
			t.Errorf("%+v: %+v", test.goal, v)
		}
	}
}

// Goals and recorded figures whose key no row makes would never be printed.
func TestKeysExist(t *testing.T) {
	made := map[string]bool{"scale": true, "growth": true, "load": true}
	for _, key := range known() {
		if made[key] && key != "scale" && key != "growth" {
			t.Errorf("two rows %s", key)
		}
		made[key] = true
	}
	check := func(key string) {
		row, _, _ := strings.Cut(key, "/")
		if !made[row] {
			t.Errorf("no row makes %s", key)
		}
	}
	for _, g := range goals {
		check(g.key)
	}
	for _, e := range extras {
		check(e.key)
	}
	for key := range recordedConsul {
		check(key)
	}
}

func TestWriteJSON(t *testing.T) {
	var out bytes.Buffer
	if err := writeJSON(&out, []*target{measured(t, "fairlead", 50)}); err != nil {
		t.Fatal(err)
	}
	var results []struct {
		Name    string
		Figures map[string][]float64
	}
	if err := json.Unmarshal(out.Bytes(), &results); err != nil {
		t.Fatal(err)
	}
	if len(results) != 1 || results[0].Name != "fairlead" || results[0].Figures["health/64/cpu"][0] != 50 {
		t.Errorf("%+v", results)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"--rows", "health,watch", "--quick", "--target", "consul,http://127.0.0.1:8500,127.0.0.1:8600,99"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.wants("watch") || o.wants("kv-put") || o.repeat != 1 || len(o.peers) != 1 {
		t.Errorf("%+v", o)
	}
	if p := o.peers[0]; p.name != "consul" || p.http.Port() != 8500 || p.dns.Port() != 8600 || p.pid != 99 {
		t.Errorf("%+v", p)
	}
	for _, bad := range [][]string{
		{"--rows", "nothing"},
		{"--http", "http://127.0.0.1:8500"},
		{"--http", "http://192.0.2.1:8500", "--pid", "99"},
		{"--http", "https://127.0.0.1:8500", "--pid", "99"},
		{"--target", "consul,http://127.0.0.1:8500,127.0.0.1:8600"},
		{"--target", "consul,http://127.0.0.1:8500,192.0.2.1:53,99"},
		{"--target", "consul,http://127.0.0.1:8500,127.0.0.1:8600,1"},
		{"--repeat", "0"},
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}
