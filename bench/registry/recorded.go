package main

// recordedConsul are Consul 1.21.4's cells as they were measured once on another 2-core machine, for the rows of the load table:
// with 1, 16 and 64 connections, and the server's CPU for an operation.
var recordedConsul = map[string][4]string{
	"kv-put":           {"1.1-1.9k/s", "3.2-7.4k/s", "5.7-8.4k/s, p99 23-92", "150"},
	"kv-get":           {"5.8-6.4k/s", "15-21k/s", "17-19k/s", "66"},
	"agent-register":   {"326/s, 127/s at 1,500", "83/s, p50 182", "", "2,600-8,900"},
	"catalog-register": {"392/s", "1.1-1.7k/s", "", "900-1,200"},
	"health":           {"1.7-1.9k/s", "3.1-3.5k/s", "3.2-3.7k/s, p99 100", "450-610"},
	"health-stale":     {"1.9k/s", "3.3k/s", "4.4k/s", "370-410"},
	"health-cached":    {"2.2k/s", "4.2-5.3k/s", "4.9-5.7k/s", "270-400"},
	"catalog-services": {"", "164-186/s", "", "10,000-12,000"},
	"health-state":     {"", "44/s", "", "41,000"},
	"dns-a":            {"3.0k/s", "5.6-8.3k/s", "7.8k/s", "190-290"},
	"dns-srv":          {"2.8k/s", "5.7-7.3k/s", "6.2k/s", "220-290"},
}

// A goal compares one figure with a limit: a fixed one, or a share of what the peer has.
type goal struct {
	key      string // of the figure
	label    string
	unit     string
	recorded float64 // Consul's figure as recorded, the better end of a range; 0 is none
	share    float64 // of the peer's figure; 0 is a fixed limit
	limit    float64 // fixed
	atLeast  bool    // the figure is to be at least the limit, else at most
}

// goals are the acceptance figures of the load suite. CPU is judged at 64 connections, and at 16 for what Consul was
// measured with no more: registering with the agent and catalog/services.
var goals = []goal{
	{key: "health/64/cpu", label: "health/service CPU", unit: "us", recorded: 450, share: 1. / 8},
	{key: "kv-get/64/cpu", label: "KV GET CPU", unit: "us", recorded: 66, share: 1. / 2},
	{key: "kv-put/64/cpu", label: "KV PUT CPU", unit: "us", recorded: 150, share: 1. / 2},
	{key: "agent-register/16/cpu", label: "agent register CPU", unit: "us", recorded: 2600, share: 1. / 20},
	{key: "catalog-services/16/cpu", label: "catalog/services CPU", unit: "us", recorded: 10_000, share: 1. / 50},
	{key: "scale/growth", label: "catalog/services CPU, 10 x the instances", unit: "x", limit: 1.25},
	{key: "dns-a/64/cpu", label: "DNS A CPU", unit: "us", recorded: 190, limit: 10},
	{key: "dns-srv/64/cpu", label: "DNS SRV CPU", unit: "us", recorded: 220, limit: 10},
	{key: "dns-a-batch/64/cpu", label: "DNS A CPU, in batches", unit: "us", recorded: 190, limit: 10},
	{key: "dns-srv-batch/64/cpu", label: "DNS SRV CPU, in batches", unit: "us", recorded: 220, limit: 10},
	{key: "kv-put/64/rate", label: "KV PUT, 64 connections", unit: "/s", recorded: 8400, limit: 15_000, atLeast: true},
	{key: "health/64/rate", label: "health/service, 64 connections", unit: "/s", recorded: 3700, limit: 20_000, atLeast: true},
	{key: "dns-a/64/rate", label: "DNS A, 64 sockets", unit: "/s", recorded: 7800, limit: 90_000, atLeast: true},
	{key: "dns-srv/64/rate", label: "DNS SRV, 64 sockets", unit: "/s", recorded: 6200, limit: 90_000, atLeast: true},
	{key: "dns-a-batch/64/rate", label: "DNS A in batches, 64 sockets", unit: "/s", recorded: 8400, limit: 90_000, atLeast: true},
	{key: "dns-srv-batch/64/rate", label: "DNS SRV in batches, 64 sockets", unit: "/s", recorded: 6400, limit: 90_000, atLeast: true},
	{key: "agent-register/16/rate", label: "agent register, 16 connections", unit: "/s", recorded: 83, limit: 2000, atLeast: true},
	{key: "growth/5000/rate", label: "agent register at 5,000 services", unit: "/s", limit: 2000, atLeast: true},
	{key: "growth/cpu", label: "agent register CPU, last step to first", unit: "x", recorded: 8.9 / 2.6, limit: 1.25},
	{key: "appear/dns", label: "registered with a check -> in DNS", unit: "ms", recorded: 580, limit: 50},
	{key: "watch/1000/last", label: "1,000 watchers, last woken", unit: "ms", recorded: 64, limit: 25},
	{key: "watch/5000/last", label: "5,000 watchers, last woken", unit: "ms", recorded: 852, limit: 120},
	{key: "watch/5000/held", label: "5,000 held watches", unit: "MiB", recorded: 190, limit: 60},
	{key: "memory/idle", label: "RSS idle", unit: "MiB", recorded: 98, limit: 60},
	{key: "memory/instances", label: "RSS with 10,000 instances", unit: "MiB", recorded: 261, limit: 120},
	{key: "memory/read", label: "RSS after the reads", unit: "MiB", recorded: 490, limit: 200},
	{key: "start/first-write", label: "cold start to first write", unit: "ms", recorded: 6900, limit: 1000},
	{key: "restart/first-answer", label: "restart with 10,000 instances", unit: "ms", recorded: 13_000, limit: 2000},
}

// An extra is a figure of the second table.
type extra struct {
	key, label, unit string
	recorded         string
}

var extras = []extra{
	{"start/first-write", "cold start to first write", "ms", "6,900-10,100 (raft_multiplier=1: 1,500-2,100)"},
	{"memory/idle", "RSS idle", "MiB", "98"},
	{"memory/instances", "RSS with 10,000 instances", "MiB", "261-328"},
	{"memory/read", "RSS after the reads", "MiB", "490-598"},
	{"memory/paused", "RSS after a pause", "MiB", ""},
	{"load/rate", "catalog register while the instances are loaded, 16 connections", "/s", ""},
	{"load/cpu", "... CPU", "us", ""},
	{"scale/cpu", "catalog/services CPU with 1,000 instances, 16 connections", "us", ""},
	{"watch/1000/first", "1,000 watchers: first woken", "ms", "3-7"},
	{"watch/1000/median", "... median", "ms", "35-109"},
	{"watch/1000/last", "... last", "ms", "64-166"},
	{"watch/1000/held", "... RSS held", "MiB", "53"},
	{"watch/1000/after", "... RSS after the changes", "MiB", ""},
	{"watch/5000/first", "5,000 watchers: first woken", "ms", ""},
	{"watch/5000/median", "... median", "ms", "450-556"},
	{"watch/5000/last", "... last", "ms", "852-1,011"},
	{"watch/5000/held", "... RSS held", "MiB", "190"},
	{"watch/5000/after", "... RSS after the changes", "MiB", ""},
	{"growth/1000/rate", "agent register, services 1-1,000, 16 connections", "/s", ""},
	{"growth/1000/cpu", "... CPU", "us", "2,600 (few services)"},
	{"growth/3000/rate", "agent register, services 2,001-3,000", "/s", ""},
	{"growth/3000/cpu", "... CPU", "us", "8,900 (1,500 services)"},
	{"growth/5000/rate", "agent register, services 4,001-5,000", "/s", ""},
	{"growth/5000/cpu", "... CPU", "us", ""},
	{"appear/dns", "registered with a passing check -> in DNS, p50", "ms", "580"},
	{"restart/stop", "stop with 10,000 instances", "ms", ""},
	{"restart/first-write", "restart with 10,000 instances: first write", "ms", ""},
	{"restart/first-answer", "... first full answer", "ms", "13,000"},
}
