package health

import (
	"context"

	"github.com/fairlead-net/fairlead/internal/model"
)

// follow keeps the check in the state of what it stands for, until ctx ends.
func (c *check) follow(ctx context.Context, of Targets) {
	if of == nil {
		c.outcome(model.Critical, "this agent follows no aliases")
		return
	}
	for {
		status, output, changed := of.Target(c.spec)
		if status != "" {
			c.outcome(status, output)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed[0]:
		case <-changed[1]:
		}
	}
}
