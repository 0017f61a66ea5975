package demo

import (
	"context"
	"fmt"

	miekg "github.com/miekg/dns"
)

// server is where the agent answers DNS unless it is told otherwise.
const server = "127.0.0.1:8600"

// lookup asks the agent's DNS and returns the answers' data.
func lookup(ctx context.Context, name, kind string) ([]string, error) {
	q := new(miekg.Msg).SetQuestion(name, miekg.StringToType[kind])
	q.SetEdns0(4096, false)
	c := &miekg.Client{Timeout: requestTimeout}
	a, _, err := c.ExchangeContext(ctx, q, server)
	if err != nil {
		return nil, fmt.Errorf("look up %s %s: %w", name, kind, err)
	}
	var out []string
	for _, rr := range a.Answer {
		switch rr := rr.(type) {
		case *miekg.A:
			out = append(out, rr.A.String())
		case *miekg.AAAA:
			out = append(out, rr.AAAA.String())
		case *miekg.SRV:
			out = append(out, fmt.Sprintf("%d %d %d %s", rr.Priority, rr.Weight, rr.Port, rr.Target))
		}
	}
	return out, nil
}
