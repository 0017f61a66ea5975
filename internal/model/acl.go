package model

import "time"

// Ids of what exists without having been created; the values are Consul's.
const (
	AnonymousTokenID  = "00000000-0000-0000-0000-000000000002"
	AnonymousSecretID = "anonymous"
	GlobalPolicyID    = "00000000-0000-0000-0000-000000000001"
	GlobalPolicyName  = "global-management"
	ReadOnlyPolicyID  = "00000000-0000-0000-0000-000000000002"
	ReadOnlyName      = "builtin/global-read-only"
)

// SettingACLBootstrap is the name of the Setting that holds the accessor id of
// the site's first token. Its ModifyIndex is what allows a second bootstrap.
const SettingACLBootstrap = "acl/bootstrap"

// ACLLink names a policy or a role that something is linked to. The ID is what
// counts; the name is filled in when it is read.
type ACLLink struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// ServiceIdentity stands for the policy that a service's own workload needs.
type ServiceIdentity struct {
	ServiceName ServiceName `json:"service"`
	Datacenters []string    `json:"dcs,omitempty"`
}

// NodeIdentity stands for the policy that a node's agent needs.
type NodeIdentity struct {
	NodeName   NodeName `json:"node"`
	Datacenter string   `json:"dc"`
}

// ACLToken is what a client proves its rights with. Its rights are the union of
// what its policies, roles and identities allow.
type ACLToken struct {
	AccessorID        string            `json:"accessor"` // UUID, public
	SecretID          string            `json:"secret"`   // UUID, what a client presents
	Description       string            `json:"description,omitempty"`
	Policies          []ACLLink         `json:"policies,omitempty"`
	Roles             []ACLLink         `json:"roles,omitempty"`
	ServiceIdentities []ServiceIdentity `json:"service_identities,omitempty"`
	NodeIdentities    []NodeIdentity    `json:"node_identities,omitempty"`
	Local             bool              `json:"local,omitempty"`
	ExpirationTTL     time.Duration     `json:"expiration_ttl,omitempty"`
	ExpirationTime    *time.Time        `json:"expiration_time,omitempty"`
	CreateTime        time.Time         `json:"create_time"`
	Stamp
}

// ACLPolicy is a named set of rules in Consul's language, HCL or JSON.
type ACLPolicy struct {
	ID          string   `json:"id"` // UUID
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Rules       string   `json:"rules"`
	Datacenters []string `json:"dcs,omitempty"` // empty: all
	Stamp
}

// ACLRole is a named set of policies and identities that tokens link to.
type ACLRole struct {
	ID                string            `json:"id"` // UUID
	Name              string            `json:"name"`
	Description       string            `json:"description,omitempty"`
	Policies          []ACLLink         `json:"policies,omitempty"`
	ServiceIdentities []ServiceIdentity `json:"service_identities,omitempty"`
	NodeIdentities    []NodeIdentity    `json:"node_identities,omitempty"`
	Stamp
}
