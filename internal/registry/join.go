package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// Why a host does not become a node. They say nothing that helps to guess.
var (
	// ErrJoinRefused says that a join token is not good: unknown, used up, expired,
	// withdrawn, or not for what was asked.
	ErrJoinRefused error = refusal("the join token is not good (any more): make another one with 'fairlead token create'")
	// ErrRevokedNode says that the node was taken out of the site for good.
	ErrRevokedNode error = refusal("the node was revoked: remove its data directory and join it as a new node")
)

// What is kept as settings: servers alone hold those.
const (
	joinSettings   = "join/"
	settingRevoked = "revoked-nodes"
	// longestJoin is the longest life of a join token.
	longestJoin = 30 * 24 * time.Hour
)

// JoinGrant is what a join token is good for. The secret itself is not kept.
type JoinGrant struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash"` // identity.SecretHash
	Server  bool      `json:"server,omitempty"`
	Expires time.Time `json:"expires"`
	// Uses is how often it may still be used; 0 is as often as one likes.
	Uses    int       `json:"uses,omitempty"`
	Created time.Time `json:"created"`
}

// Revocation says that a node was taken out of the site for good, and when.
type Revocation struct {
	ID   string    `json:"id"`
	Name string    `json:"name,omitempty"`
	At   time.Time `json:"at"`
}

// PutJoinGrant records what a join token is good for.
func (r *Registry) PutJoinGrant(ctx context.Context, g JoinGrant) (model.Index, error) {
	switch {
	case g.ID == "" || strings.Contains(g.ID, "/"):
		return 0, invalid("join token's id", "is %q", g.ID)
	case !g.Expires.After(time.Now()) || time.Until(g.Expires) > longestJoin:
		return 0, invalid("join token's life", "must be more than none and at most %v", longestJoin)
	case g.Uses < 0:
		return 0, invalid("join token's uses", "is %d; it must not be negative", g.Uses)
	}
	return r.write(ctx, "record a join token", func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Setting(joinSettings + g.ID)
		p.note(cur, joinSettings+g.ID, g)
	})
}

// note puts a setting of the servers' own in the place of cur, as JSON.
func (p *plan) note(cur *model.Setting, name string, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		p.err = err
		return
	}
	p.replace(store.SettingKey(name), cur, &model.Setting{Name: name, Value: string(text), Stamp: model.Stamp{Owner: model.OwnerServers}})
}

// DeleteJoinGrant withdraws a join token; one that is not there is no error.
func (r *Registry) DeleteJoinGrant(ctx context.Context, id string) (model.Index, error) {
	return r.write(ctx, "withdraw a join token", func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Setting(joinSettings + id)
		p.remove(store.SettingKey(joinSettings+id), cur)
	})
}

// JoinGrants lists the join tokens that are still good, as a snapshot has them.
func JoinGrants(snap *state.Snapshot, now time.Time) (list []JoinGrant) {
	for _, s := range snap.Settings() {
		if !strings.HasPrefix(s.Name, joinSettings) {
			continue
		}
		var g JoinGrant
		if json.Unmarshal([]byte(s.Value), &g) == nil && now.Before(g.Expires) {
			list = append(list, g)
		}
	}
	return list
}

// UseJoinGrant takes one use of a join token for a node. Only if the secret is
// the token's, it is still good, allows the role, and nobody alive has the node's
// name, it returns without an error; a token with one use left is gone then,
// whatever becomes of the node.
func (r *Registry) UseJoinGrant(ctx context.Context, id, secret string, n identity.Node) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("admit node %q", n.Name), func(snap *state.Snapshot, p *plan) {
		name := joinSettings + id
		cur, _ := snap.Setting(name)
		var g JoinGrant
		if p.read(store.SettingKey(name), cur); cur == nil || json.Unmarshal([]byte(cur.Value), &g) != nil || !identity.SecretMatches(secret, g.Hash) ||
			!time.Now().Before(g.Expires) || n.Server && !g.Server {
			p.refuse(ErrJoinRefused)
			return
		}
		if Revoked(snap, n.ID) {
			p.refuse(ErrRevokedNode)
			return
		}
		if p.refuse(r.nameFree(snap, p, n)); p.refusal != nil {
			return
		}
		switch g.Uses {
		case 0:
		case 1:
			p.txn.Deletes = append(p.txn.Deletes, store.SettingKey(name))
		default:
			g.Uses--
			p.note(cur, name, g)
		}
	})
}

// nameFree is nil if a node may have its name: nobody has it, the same node has,
// or one that is dead.
func (r *Registry) nameFree(snap *state.Snapshot, p *plan, n identity.Node) error {
	cur, _ := snap.Node(n.Name)
	p.read(store.NodeKey(n.Name), cur)
	if cur == nil || cur.ID == "" || cur.ID == n.ID {
		return nil
	}
	alive, _ := snap.Check(n.Name, model.SerfHealth)
	p.read(store.CheckKey(n.Name, model.SerfHealth), alive)
	if alive != nil && alive.Status == model.Passing {
		return fmt.Errorf("%w: %q is node %s; choose another name, or let that one leave first", ErrNodeNameTaken, n.Name, cur.ID)
	}
	return nil
}

// RevokeNode takes a node's certificates back: they are refused wherever they are
// shown, and it gets no other one. Again is no error.
func (r *Registry) RevokeNode(ctx context.Context, id string, name model.NodeName) (model.Index, error) {
	if id == "" {
		return 0, invalid("node", "has no ID to revoke")
	}
	return r.write(ctx, fmt.Sprintf("revoke node %q", name), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Setting(settingRevoked)
		list := Revocations(snap)
		for _, x := range list {
			if x.ID == id {
				p.read(store.SettingKey(settingRevoked), cur)
				return
			}
		}
		p.note(cur, settingRevoked, append(list, Revocation{ID: id, Name: string(name), At: time.Now().UTC()}))
	})
}

// Revocations lists the nodes that were revoked.
func Revocations(snap *state.Snapshot) (list []Revocation) {
	if s, _ := snap.Setting(settingRevoked); s != nil {
		_ = json.Unmarshal([]byte(s.Value), &list) // written by RevokeNode
	}
	return list
}

// Revoked reports whether a node was revoked.
func Revoked(snap *state.Snapshot, id string) bool {
	return slices.ContainsFunc(Revocations(snap), func(x Revocation) bool { return x.ID == id })
}
