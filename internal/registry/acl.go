package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// What the methods for ACLs refuse they refuse in Consul's words, bare. What is
// not there is acl.ErrNotFound, and a second bootstrap acl.ErrBootstrapped, by
// errors.Is. Neither errors nor logs hold a token's secret.

// Limits of how long a new token lives, Consul's.
const (
	minTokenTTL = time.Minute
	maxTokenTTL = 24 * time.Hour
)

// reservedIDs begin the ids of what is built in.
const reservedIDs = "00000000-0000-0000-0000-0000000000"

// maxReaped bounds how many expired tokens are removed in one go.
const maxReaped = 256

// Kinds of unique values.
const (
	uniqueSecret = "aclsecret" // the secret's hash
	uniquePolicy = "aclpolicy" // the name
	uniqueRole   = "aclrole"   // the name
)

// secretKey makes a secret its token's alone. Keys show in errors and logs, so
// it has only the secret's hash.
func secretKey(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return store.UniqueKey(uniqueSecret, hex.EncodeToString(sum[:]))
}

// BootstrapACL makes the site's first token, which may do everything, with the
// secret given or, if that is empty, one made up. It works once; again only when
// Config.ACLResetFile has the index that the refusal names.
func (r *Registry) BootstrapACL(ctx context.Context, secret string) (*model.ACLToken, error) {
	if secret != "" {
		if err := validateTokenID("SecretID", secret); err != nil {
			return nil, err
		}
	}
	t := newToken(secret, "Bootstrap Token (Global Management)")
	reset := false
	index, err := r.write(ctx, "bootstrap ACLs", func(snap *state.Snapshot, p *plan) {
		done, _ := snap.Setting(model.SettingACLBootstrap)
		p.read(store.SettingKey(model.SettingACLBootstrap), done)
		if done != nil {
			reset = true
			if err := r.mayReset(done.ModifyIndex); err != nil {
				p.refuse(err)
				return
			}
		}
		planFirstToken(snap, p, &t)
	})
	if err != nil {
		return nil, bare(err)
	}
	if reset {
		// Left in place it would allow one more after a restore.
		if err := os.Remove(r.cfg.ACLResetFile); err != nil {
			r.log.Warn("remove the file that allowed a second ACL bootstrap", "file", r.cfg.ACLResetFile, "error", err)
		}
	}
	r.log.Info("ACLs bootstrapped", "accessor", t.AccessorID)
	return r.tokenAt(t, index), nil
}

// mayReset reads the file that allows a bootstrap after the one at index done.
func (r *Registry) mayReset(done model.Index) error {
	var given uint64
	if r.cfg.ACLResetFile != "" {
		b, err := os.ReadFile(r.cfg.ACLResetFile)
		if err == nil {
			given, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		}
		if err != nil && !os.IsNotExist(err) {
			r.log.Warn("read the file that allows a second ACL bootstrap", "file", r.cfg.ACLResetFile, "error", err)
		}
	}
	switch given {
	case uint64(done):
		return nil
	case 0:
		return say(acl.ErrBootstrapped, "%s (reset index: %d)", acl.ErrBootstrapped, done)
	}
	return say(nil, "Invalid bootstrap reset index (specified %d, reset index: %d)", given, done)
}

// InitialManagement makes a token that may do everything of the secret, unless
// there is a token with it. After it there is no bootstrap any more.
func (r *Registry) InitialManagement(ctx context.Context, secret string) error {
	// As the anonymous token's it would give every request without one all rights.
	if secret == "" || secret == model.AnonymousSecretID || strings.HasPrefix(secret, reservedIDs) {
		return say(nil, "Invalid Token: SecretID - %q is reserved", secret)
	}
	t := newToken(secret, "Initial Management Token")
	_, err := r.write(ctx, "make the initial management token", func(snap *state.Snapshot, p *plan) {
		if cur, _ := snap.TokenBySecret(secret); cur != nil {
			p.read(store.TokenKey(cur.AccessorID), cur)
			return
		}
		done, _ := snap.Setting(model.SettingACLBootstrap)
		p.read(store.SettingKey(model.SettingACLBootstrap), done)
		planFirstToken(snap, p, &t)
	})
	return bare(err)
}

func newToken(secret, description string) model.ACLToken {
	if secret == "" {
		secret = uuid.NewString()
	}
	return model.ACLToken{
		AccessorID: uuid.NewString(), SecretID: secret, Description: description,
		Policies:   []model.ACLLink{{ID: model.GlobalPolicyID}},
		CreateTime: time.Now().UTC(),
		Stamp:      model.Stamp{Owner: model.OwnerOperator},
	}
}

// planFirstToken writes a token and that ACLs are bootstrapped.
func planFirstToken(snap *state.Snapshot, p *plan, t *model.ACLToken) {
	if p.refuse(tokenIDFree(snap, p, "SecretID", t.SecretID)); p.refusal != nil {
		return
	}
	planNewToken(p, t)
	p.put(store.SettingKey(model.SettingACLBootstrap), model.Setting{
		Name: model.SettingACLBootstrap, Value: strconv.Quote(t.AccessorID), Stamp: model.Stamp{Owner: model.OwnerOperator},
	})
}

func planNewToken(p *plan, t *model.ACLToken) {
	p.absent(store.TokenKey(t.AccessorID))
	p.put(store.TokenKey(t.AccessorID), t)
	p.absent(secretKey(t.SecretID))
	p.put(secretKey(t.SecretID), t.AccessorID)
}

// tokenAt returns a token as it was written at index.
func (r *Registry) tokenAt(t model.ACLToken, index model.Index) *model.ACLToken {
	if cur, _ := r.st.Snapshot().Token(t.AccessorID); cur != nil {
		return cur
	}
	t.CreateIndex, t.ModifyIndex = index, index
	return &t
}

// PutToken changes a token, or makes one if create is true or t has no
// AccessorID. Ids that are missing are made up; links may have a name in place of
// an id. It returns the token as written.
func (r *Registry) PutToken(ctx context.Context, t model.ACLToken, create bool) (*model.ACLToken, error) {
	create = create || t.AccessorID == ""
	t.Owner = model.OwnerOperator
	what := "change ACL token"
	if create {
		what = "create ACL token"
		if err := fillToken(&t); err != nil {
			return nil, err
		}
	} else if uuid.Validate(t.AccessorID) != nil {
		return nil, say(nil, "AccessorID is not a valid UUID")
	}
	var err error
	if t.ServiceIdentities, err = serviceIdentities("token", t.ServiceIdentities, t.Local); err != nil {
		return nil, err
	}
	if t.NodeIdentities, err = nodeIdentities("token", t.NodeIdentities); err != nil {
		return nil, err
	}
	var written model.ACLToken
	index, err := r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		written = t
		p.refuse(planToken(snap, p, &written, create))
	})
	if err != nil {
		return nil, bare(err)
	}
	return r.tokenAt(written, index), nil
}

// fillToken gives a new token what it lacks.
func fillToken(t *model.ACLToken) error {
	for _, id := range []struct {
		name  string
		value *string
	}{{"AccessorID", &t.AccessorID}, {"SecretID", &t.SecretID}} {
		if *id.value == "" {
			*id.value = uuid.NewString()
		} else if err := validateTokenID(id.name, *id.value); err != nil {
			return err
		}
	}
	t.CreateTime = time.Now().UTC()
	switch ttl := t.ExpirationTTL; {
	case ttl < 0:
		return say(nil, "Token Expiration TTL '%s' should be > 0", ttl)
	case ttl > 0 && t.ExpirationTime != nil:
		return say(nil, "Token Expiration TTL and Expiration Time cannot both be set")
	case ttl > 0:
		end := t.CreateTime.Add(ttl)
		t.ExpirationTime, t.ExpirationTTL = &end, 0
	}
	if t.ExpirationTime == nil {
		return nil
	}
	switch in := t.ExpirationTime.Sub(t.CreateTime); {
	case in < 0:
		return say(nil, "ExpirationTime cannot be before CreateTime")
	case in > maxTokenTTL:
		return say(nil, "ExpirationTime cannot be more than %s in the future (was %s)", maxTokenTTL, in)
	case in < minTokenTTL:
		return say(nil, "ExpirationTime cannot be less than %s in the future (was %s)", minTokenTTL, in)
	}
	return nil
}

func validateTokenID(name, id string) error {
	if strings.HasPrefix(id, reservedIDs) {
		return say(nil, "Invalid Token: %s - UUIDs with the prefix %q are reserved", name, reservedIDs)
	}
	if uuid.Validate(id) != nil || len(id) != len(reservedIDs)+2 {
		return say(nil, "Invalid Token: %s - not a valid UUID", name)
	}
	return nil
}

func planToken(snap *state.Snapshot, p *plan, t *model.ACLToken, create bool) error {
	cur, _ := snap.Token(t.AccessorID)
	if create {
		for _, id := range []struct{ name, value string }{{"AccessorID", t.AccessorID}, {"SecretID", t.SecretID}} {
			if err := tokenIDFree(snap, p, id.name, id.value); err != nil {
				return err
			}
		}
	} else {
		p.read(store.TokenKey(t.AccessorID), cur)
		old := cur
		if cur == nil && t.AccessorID == model.AnonymousTokenID {
			old = acl.Anonymous()
		}
		if err := mayChangeToken(old, t); err != nil {
			return err
		}
	}
	var err error
	if t.Roles, err = roleLinks(snap, p, t.Roles); err != nil {
		return err
	}
	if t.Policies, err = policyLinks(snap, p, t.Policies); err != nil {
		return err
	}
	switch {
	case cur == nil: // a new token, or the anonymous one for the first time
		planNewToken(p, t)
	case !p.same(cur, t):
		p.put(store.TokenKey(t.AccessorID), t)
	}
	return nil
}

// tokenIDFree refuses an id that a token has, be it as an accessor or a secret.
func tokenIDFree(snap *state.Snapshot, p *plan, name, id string) error {
	cur, _ := snap.Token(id)
	if cur == nil {
		cur, _ = snap.TokenBySecret(id)
	}
	if cur == nil {
		return nil
	}
	p.read(store.TokenKey(cur.AccessorID), cur)
	return say(nil, "Invalid Token: %s is already in use", name)
}

// mayChangeToken fills in of a changed token what cannot change.
func mayChangeToken(old, t *model.ACLToken) error {
	switch {
	case old == nil || acl.Expired(old, time.Now()):
		return say(nil, "Cannot find token %q", t.AccessorID)
	case t.SecretID != "" && t.SecretID != old.SecretID:
		return say(nil, "Changing a token's SecretID is not permitted")
	case t.Local != old.Local:
		return say(nil, "Cannot toggle local mode of %s", t.AccessorID)
	case t.ExpirationTTL != 0, t.ExpirationTime != nil && (old.ExpirationTime == nil || !t.ExpirationTime.Equal(*old.ExpirationTime)):
		return say(nil, "Cannot change expiration time of %s", t.AccessorID)
	}
	t.SecretID, t.ExpirationTime, t.CreateTime = old.SecretID, old.ExpirationTime, old.CreateTime
	return nil
}

// DeleteToken removes a token; the anonymous one stays.
func (r *Registry) DeleteToken(ctx context.Context, accessor string) (model.Index, error) {
	if uuid.Validate(accessor) != nil {
		return 0, say(nil, "Accessor ID is missing or an invalid UUID")
	}
	if accessor == model.AnonymousTokenID {
		return 0, say(nil, "Delete operation not permitted on the anonymous token")
	}
	index, err := r.write(ctx, fmt.Sprintf("delete ACL token %s", accessor), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Token(accessor)
		if cur == nil {
			p.absent(store.TokenKey(accessor))
			p.refuse(say(acl.ErrNotFound, "Cannot find token to delete"))
			return
		}
		planDeleteToken(p, cur)
	})
	return index, bare(err)
}

func planDeleteToken(p *plan, t *model.ACLToken) {
	p.remove(store.TokenKey(t.AccessorID), t)
	p.txn.Deletes = append(p.txn.Deletes, secretKey(t.SecretID))
}

// ReapTokens removes tokens that have expired. They have no rights any more
// either way, so it may be called as seldom as one likes.
func (r *Registry) ReapTokens(ctx context.Context) error {
	_, err := r.write(ctx, "remove expired ACL tokens", func(snap *state.Snapshot, p *plan) {
		tokens, _ := snap.Tokens()
		for _, t := range tokens {
			if acl.Expired(t, time.Now()) && len(p.txn.Compares) < maxReaped {
				planDeleteToken(p, t)
			}
		}
	})
	return err
}
