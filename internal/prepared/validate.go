package prepared

import (
	"fmt"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// HiddenToken stands in for a token in what is shown to who may not see it.
const HiddenToken = "<hidden>"

// Limits of node metadata to ask for; Consul's.
const (
	maxMeta      = 64  // entries
	maxMetaKey   = 128 // bytes
	maxMetaValue = 512 // bytes
)

// Validate says what is wrong with a query, as far as that does not depend on
// what else there is. The texts are Consul's.
func Validate(q *model.PreparedQuery) error {
	if err := validate(q); err != nil {
		return fmt.Errorf("Invalid prepared query: %w", err) //nolint:staticcheck // clients know the text
	}
	if q.Tmpl.Type != "" {
		if _, err := compile(q); err != nil {
			return fmt.Errorf("failed compiling template: %w", err)
		}
	}
	return nil
}

//nolint:staticcheck // clients know the texts
func validate(q *model.PreparedQuery) error {
	if q.Name == "" && q.Tmpl.Type == "" && q.Session == "" {
		return fmt.Errorf("Must be bound to a session")
	}
	if q.Token == HiddenToken {
		return fmt.Errorf("Bad Token '%s', it looks like a query definition with a redacted token was submitted", q.Token)
	}
	if q.Service.Service == "" {
		return fmt.Errorf("Must provide a Service name to query")
	}
	f := &q.Service.Failover
	if f.NearestN < 0 {
		return fmt.Errorf("Bad NearestN '%d', must be >= 0", f.NearestN)
	}
	if len(f.Targets) > 0 && (f.NearestN != 0 || len(f.Datacenters) > 0) {
		return fmt.Errorf("Targets cannot be populated with NearestN or Datacenters")
	}
	if err := validateMeta(q.Service.NodeMeta); err != nil {
		return err
	}
	if q.DNS.TTL != "" {
		ttl, err := time.ParseDuration(q.DNS.TTL)
		if err != nil {
			return fmt.Errorf("Bad DNS TTL '%s': %w", q.DNS.TTL, err)
		}
		if ttl < 0 {
			return fmt.Errorf("DNS TTL '%d', must be >=0", ttl)
		}
	}
	return nil
}

//nolint:staticcheck // clients know the texts
func validateMeta(meta map[string]string) error {
	if len(meta) > maxMeta {
		return fmt.Errorf("Node metadata cannot contain more than %d key/value pairs", maxMeta)
	}
	for k, v := range meta {
		switch {
		case k == "":
			return fmt.Errorf("Couldn't load metadata pair ('%s', '%s'): Key cannot be blank", k, v)
		case len(k) > maxMetaKey:
			return fmt.Errorf("Couldn't load metadata pair ('%s', '%s'): Key is too long (limit: %d characters)", k, v, maxMetaKey)
		case len(v) > maxMetaValue:
			return fmt.Errorf("Couldn't load metadata pair ('%s', '%s'): Value is too long (limit: %d characters)", k, v, maxMetaValue)
		}
	}
	return nil
}
