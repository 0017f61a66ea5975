package acl

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// maxCached bounds the tokens and the policies that a Resolver remembers; beyond
// it, it forgets all of them.
const maxCached = 10_000

// Source is where tokens and what they are linked to come from; nil stands for
// what is not there. What is built in need not be in it.
type Source interface {
	TokenBySecret(secret string) *model.ACLToken
	Policy(id string) *model.ACLPolicy
	Role(id string) *model.ACLRole
	// Bootstrapped reports whether the site's first token was ever made.
	Bootstrapped() bool
}

// Config is what a Resolver has to know.
type Config struct {
	// Source returns the newest tokens, policies and roles.
	Source func() Source
	// Datacenter is this site: policies and identities that name others do not
	// count here.
	Datacenter string
	// DefaultAllow allows what no rule of a token speaks of.
	DefaultAllow bool
	// DefaultToken is the secret that requests without one are taken to carry;
	// without it they carry the anonymous token.
	DefaultToken string
	// AgentToken and DNSToken are the secrets that the agent's own work and DNS
	// queries go by; without them it is DefaultToken.
	AgentToken, DNSToken string
}

// Resolver knows what tokens may do. It is safe for use by many goroutines.
//
// What it remembers of a token is good for as long as none of the records that
// it was made of changes, so an answer is never older than the source.
type Resolver struct {
	cfg Config

	mu     sync.Mutex // guards following
	owned  map[TokenKind]string
	tokens map[string]resolved
	parsed map[string]parsed
}

type resolved struct {
	from string // the records it was made of, with their indexes
	auth Authorizer
}

type parsed struct {
	modified model.Index
	rules    Rules
	err      error
}

// TokenKind is what the agent itself uses a token for.
type TokenKind string

// The kinds of tokens that an agent has of its own.
const (
	DefaultToken TokenKind = "default" // of requests that bring none
	AgentToken   TokenKind = "agent"   // of the agent's own work
	DNSToken     TokenKind = "dns"     // of DNS questions
)

// NewResolver returns a Resolver.
func NewResolver(cfg Config) *Resolver {
	return &Resolver{
		cfg: cfg, tokens: map[string]resolved{}, parsed: map[string]parsed{},
		owned: map[TokenKind]string{DefaultToken: cfg.DefaultToken, AgentToken: cfg.AgentToken, DNSToken: cfg.DNSToken},
	}
}

// SetToken replaces one of the agent's own secrets until the agent ends.
func (r *Resolver) SetToken(kind TokenKind, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owned[kind] = secret
}

func (r *Resolver) token(kind TokenKind) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owned[kind]
}

// Resolve returns what the token of a secret may do; the empty secret is the
// default token's, or else the anonymous one's. Errors: ErrNotFound also for a
// token that has expired, ErrNotBootstrapped; a policy that cannot be read.
func (r *Resolver) Resolve(secret string) (Authorizer, error) {
	if secret == "" {
		secret = r.token(DefaultToken)
	}
	src := r.cfg.Source()
	t, err := find(src, secret)
	if err != nil {
		return nil, err
	}
	p := r.collect(src, t)
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.tokens[secret]; ok && known.from == p.from {
		return known.auth, nil
	}
	rules, err := r.parse(&p)
	if err != nil {
		return nil, err
	}
	if len(r.tokens) >= maxCached {
		clear(r.tokens)
	}
	a := New(t.AccessorID, r.cfg.DefaultAllow, rules...)
	r.tokens[secret] = resolved{p.from, a}
	return a, nil
}

// Agent returns what the agent's own work may do.
func (r *Resolver) Agent() Authorizer { return r.own(r.token(AgentToken)) }

// DNS returns what DNS queries may do.
func (r *Resolver) DNS() Authorizer { return r.own(r.token(DNSToken)) }

// own resolves a configured secret. One that stands for nothing has no rights
// but the anonymous token's.
func (r *Resolver) own(secret string) Authorizer {
	for _, s := range []string{secret, model.AnonymousSecretID} {
		if a, err := r.Resolve(s); err == nil {
			return a
		}
	}
	return DenyAll()
}

// Secret is the secret that a request with the given one is taken to carry.
func (r *Resolver) Secret(given string) string {
	if given == "" {
		given = r.token(DefaultToken)
	}
	if given == "" {
		return model.AnonymousSecretID
	}
	return given
}

// find returns the living token of a secret.
func find(src Source, secret string) (*model.ACLToken, error) {
	anonymous := secret == "" || secret == model.AnonymousSecretID
	if anonymous {
		secret = model.AnonymousSecretID
	}
	t := src.TokenBySecret(secret)
	switch {
	case t != nil && !Expired(t, time.Now()):
		return t, nil
	case anonymous:
		return Anonymous(), nil
	case !src.Bootstrapped():
		return nil, ErrNotBootstrapped
	}
	return nil, ErrNotFound
}

// parts are what a token's rights are made of.
type parts struct {
	from     string
	policies []*model.ACLPolicy
	services []model.ServiceName
	nodes    []model.NodeName
}

// collect follows a token's links. What is linked but no longer there counts as
// not linked.
func (r *Resolver) collect(src Source, t *model.ACLToken) parts {
	var p parts
	var from strings.Builder
	note := func(id string, modified model.Index) {
		from.WriteString(id)
		from.WriteByte('@')
		from.WriteString(strconv.FormatUint(uint64(modified), 10))
		from.WriteByte(' ')
	}
	policies := func(links []model.ACLLink) {
		for _, l := range links {
			policy := BuiltinPolicy(l.ID)
			if policy == nil {
				policy = src.Policy(l.ID)
			}
			if policy != nil && r.here(policy.Datacenters) {
				note(policy.ID, policy.ModifyIndex)
				p.policies = append(p.policies, policy)
			}
		}
	}
	identities := func(services []model.ServiceIdentity, nodes []model.NodeIdentity) {
		for _, s := range services {
			if r.here(s.Datacenters) {
				p.services = append(p.services, s.ServiceName)
			}
		}
		for _, n := range nodes {
			if n.Datacenter == r.cfg.Datacenter {
				p.nodes = append(p.nodes, n.NodeName)
			}
		}
	}
	note(t.AccessorID, t.ModifyIndex)
	policies(t.Policies)
	identities(t.ServiceIdentities, t.NodeIdentities)
	for _, l := range t.Roles {
		if role := src.Role(l.ID); role != nil {
			note(role.ID, role.ModifyIndex)
			policies(role.Policies)
			identities(role.ServiceIdentities, role.NodeIdentities)
		}
	}
	p.from = from.String()
	return p
}

// here reports whether a list of sites includes this one; an empty list does.
func (r *Resolver) here(sites []string) bool {
	return len(sites) == 0 || slices.Contains(sites, r.cfg.Datacenter)
}

// parse returns the rules that a token's rights are made of. r.mu is held.
func (r *Resolver) parse(p *parts) ([]Rules, error) {
	var all []Rules
	for _, policy := range p.policies {
		known, ok := r.parsed[policy.ID]
		if !ok || known.modified != policy.ModifyIndex {
			known = parsed{modified: policy.ModifyIndex}
			known.rules, known.err = Parse(policy.Rules)
			if len(r.parsed) >= maxCached {
				clear(r.parsed)
			}
			r.parsed[policy.ID] = known
		}
		if known.err != nil {
			// Leaving it out might leave out what it denies.
			return nil, Errorf("policy %q cannot be read: %v", policy.Name, known.err)
		}
		all = append(all, known.rules)
	}
	for _, s := range p.services {
		all = append(all, ServiceRules(s))
	}
	for _, n := range p.nodes {
		all = append(all, NodeRules(n))
	}
	return all, nil
}
