package datapath

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// Dump returns everything that m holds as text, one fact per line, sorted. Two implementations that were told the same give the
// same text. For people, tests and support bundles.
func Dump(m Maps) (string, error) {
	var lines []string
	v4, v6, err := m.VIPPools()
	if err != nil {
		return "", fmt.Errorf("dump VIP pools: %w", err)
	}
	if v4.IsValid() {
		lines = append(lines, "vip-pool "+v4.String())
	}
	if v6.IsValid() {
		lines = append(lines, "vip-pool "+v6.String())
	}
	scopes, err := m.Scopes()
	if err != nil {
		return "", fmt.Errorf("dump scopes: %w", err)
	}
	for cookie, s := range scopes {
		lines = append(lines, fmt.Sprintf("namespace cookie=%d scope=%d", cookie, s))
	}
	frontends, err := m.Frontends()
	if err != nil {
		return "", fmt.Errorf("dump frontends: %w", err)
	}
	for f, e := range frontends {
		var b strings.Builder
		fmt.Fprintf(&b, "frontend %s %s", f, e.State)
		for _, be := range e.Backends {
			fmt.Fprintf(&b, " %s*%d", be.Addr, be.Weight)
		}
		lines = append(lines, b.String())
	}
	endpoints, err := m.Endpoints()
	if err != nil {
		return "", fmt.Errorf("dump endpoints: %w", err)
	}
	for _, e := range endpoints {
		lines = append(lines, fmt.Sprintf("endpoint network=%d addr=%s ifindex=%d mac=%s", e.Network, e.Addr, e.IfIndex, net.HardwareAddr(e.MAC[:])))
	}
	if len(lines) == 0 {
		return "", nil
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n", nil
}
