package node

import (
	"errors"
	"net/http"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/front"
)

// door is what has the plain HTTP connections first: it answers what is answered
// at once, and gives the rest to the server with the same handler.
func (a *Agent) door(h http.Handler) (*front.Front, error) {
	f := front.New(front.Config{
		Handler: h, Takes: consulapi.Prompt, First: consulapi.DefaultHeader, Idle: consulapi.KeepAlive, Stall: consulapi.DefaultStall,
		Grace: shutdownGrace, Enter: a.guard.Enter, Left: a.guard.Left, Log: a.log,
	})
	return f, errors.Join(
		a.metrics.Register(count("http_prompt_requests_total", "Requests that were answered without the HTTP server.",
			func() float64 { return float64(f.Stats().Answered) })),
		a.metrics.Register(count("http_handed_connections_total", "Connections without TLS that the HTTP server got.",
			func() float64 { return float64(f.Stats().Handed) })),
	)
}
