package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Setting is the name of the cluster-wide setting that holds the configuration of
// the certificate authority: an object as ParseConfig reads it.
const Setting = "connect-ca"

// Limits of how long leaves are good for; Consul's.
const (
	minLeafTTL = time.Hour
	maxLeafTTL = 365 * 24 * time.Hour
)

// Config is what a site can say about its certificate authority.
type Config struct {
	LeafTTL time.Duration
	// Rotation is the age at which a root is replaced; 0 means a year before its
	// end.
	Rotation time.Duration
}

// ParseConfig reads a configuration as clients of Consul write it, in any
// spelling of LeafCertTTL and RotationPeriod; the empty text is the default. Keys
// that change nothing here pass, those that ask for a certificate authority of
// another kind are an error.
func ParseConfig(text string) (Config, error) {
	c := Config{LeafTTL: DefaultLeafTTL}
	if text == "" {
		return c, nil
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return c, fmt.Errorf("configuration is not a JSON object: %w", err)
	}
	for name, v := range fields {
		var err error
		switch strings.ToLower(strings.ReplaceAll(name, "_", "")) {
		case "leafcertttl":
			c.LeafTTL, err = duration(v)
		case "rotationperiod":
			c.Rotation, err = duration(v)
		case "privatekey", "rootcert":
			if v != "" && v != nil {
				err = errors.New("is not supported: the site makes its own root; leave it out")
			}
		case "privatekeytype":
			if v != "ec" {
				err = fmt.Errorf("is %v; only ec is supported", v)
			}
		case "privatekeybits":
			if fmt.Sprint(v) != "256" {
				err = fmt.Errorf("is %v; only 256 is supported", v)
			}
		}
		if err != nil {
			return c, fmt.Errorf("%s %w", name, err)
		}
	}
	switch {
	case c.LeafTTL < minLeafTTL:
		return c, fmt.Errorf("leaf cert TTL must be greater or equal than %s", minLeafTTL)
	case c.LeafTTL > maxLeafTTL:
		return c, fmt.Errorf("leaf cert TTL must be less than %s", maxLeafTTL)
	case c.Rotation != 0 && c.Rotation < c.LeafTTL:
		return c, fmt.Errorf("RotationPeriod is %s; it must be 0 or at least the leaf cert TTL, %s", c.Rotation, c.LeafTTL)
	}
	return c, nil
}

func duration(v any) (time.Duration, error) {
	switch v := v.(type) {
	case nil:
		return 0, nil
	case string:
		d, err := time.ParseDuration(v)
		if err != nil {
			return 0, fmt.Errorf("is %q; write a duration such as 72h", v)
		}
		return d, nil
	case float64:
		return time.Duration(v), nil
	}
	return 0, fmt.Errorf("is %v; write a duration such as \"72h\"", v)
}
