package model

import "time"

// PreparedQuery is a stored question for a service, answered by HTTP and DNS.
type PreparedQuery struct {
	ID      string        `json:"id"` // UUID
	Name    string        `json:"name,omitempty"`
	Session string        `json:"session,omitempty"` // ends with it
	Token   string        `json:"token,omitempty"`   // run with it instead of the asker's
	Service QueryService  `json:"service"`
	DNS     QueryDNS      `json:"dns"`
	Tmpl    QueryTemplate `json:"template"`
	Stamp
}

// QueryService says which instances a prepared query finds.
type QueryService struct {
	Service        string            `json:"service"`
	Failover       QueryFailover     `json:"failover"`
	OnlyPassing    bool              `json:"only_passing,omitempty"`
	IgnoreCheckIDs []CheckID         `json:"ignore_check_ids,omitempty"`
	Near           string            `json:"near,omitempty"`
	Tags           []string          `json:"tags,omitempty"`
	NodeMeta       map[string]string `json:"node_meta,omitempty"`
	ServiceMeta    map[string]string `json:"service_meta,omitempty"`
	Connect        bool              `json:"connect,omitempty"`
}

// QueryFailover says where to look when nothing is found here.
type QueryFailover struct {
	NearestN    int           `json:"nearest_n,omitempty"`
	Datacenters []string      `json:"dcs,omitempty"`
	Targets     []QueryTarget `json:"targets,omitempty"`
}

// QueryTarget is one place to look in turn.
type QueryTarget struct {
	Datacenter string `json:"dc,omitempty"`
	Peer       string `json:"peer,omitempty"`
}

// QueryDNS holds a prepared query's DNS settings.
type QueryDNS struct {
	TTL string `json:"ttl,omitempty"` // a duration as Go prints it; empty means the agent's
}

// QueryTemplate makes one query answer for many names.
type QueryTemplate struct {
	Type            string `json:"type,omitempty"` // "name_prefix_match", or empty for no template
	Regexp          string `json:"regexp,omitempty"`
	RemoveEmptyTags bool   `json:"remove_empty_tags,omitempty"`
}

// UserEvent is what a client fired for others to hear. Events are not
// replicated state: they travel lossily and are kept in memory.
type UserEvent struct {
	ID            string // UUID
	Name          string
	Payload       []byte
	NodeFilter    string // regular expressions; empty matches all
	ServiceFilter string
	TagFilter     string
	LTime         uint64
	At            time.Time
}
