// Command agents measures a site with many agents: three servers as processes of
// their own, and the given number of agents in this one. Each agent has its own
// certificate, its own connections over loopback, the session, the change feed and
// a whole copy of the catalogue; what it lacks of a real one is HTTP, DNS and
// checks.
//
// It prints what the agents cost the servers, how long a registration on one agent
// takes to be visible on all, and what happens when a server that holds a third of
// them is killed.
//
//	go run ./bench/agents --agents 1000
package main
