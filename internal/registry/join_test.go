package registry_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func grant(uses int, server bool) registry.JoinGrant {
	return registry.JoinGrant{ID: "t", Hash: identity.SecretHash("secret"), Uses: uses, Server: server, Expires: time.Now().Add(time.Hour)}
}

func joining(name string, server bool) identity.Node {
	return identity.Node{ID: "id-" + name, Name: model.NodeName(name), Site: "dc1", Server: server}
}

func TestAJoinTokenIsGoodForAsManyAsItSays(t *testing.T) {
	e := setup(t)
	e.must(e.PutJoinGrant(t.Context(), grant(3, false)))
	var wg sync.WaitGroup
	var in atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			_, err := newRegistry(e.fake, e.st).UseJoinGrant(t.Context(), "t", "secret", joining(string(rune('a'+i)), false))
			switch {
			case err == nil:
				in.Add(1)
			case !errors.Is(err, registry.ErrJoinRefused) && !errors.Is(err, registry.ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for in.Load() < 3 { // those who met too often may come again
		if _, err := e.UseJoinGrant(t.Context(), "t", "secret", joining("z", false)); err != nil {
			t.Fatal(err)
		}
		in.Add(1)
	}
	if in.Load() != 3 {
		t.Errorf("%d nodes joined with a token for 3", in.Load())
	}
	if _, err := e.UseJoinGrant(t.Context(), "t", "secret", joining("y", false)); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("once more: %v", err)
	}
	if left := registry.JoinGrants(e.snap(), time.Now()); len(left) != 0 {
		t.Errorf("%+v is left", left)
	}
}

func TestJoinTokensThatAreNotGood(t *testing.T) {
	e := setup(t)
	use := func(id, secret string, server bool) error {
		_, err := e.UseJoinGrant(t.Context(), id, secret, joining("a", server))
		return err
	}
	if err := use("t", "secret", false); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("one that was never made: %v", err)
	}
	e.must(e.PutJoinGrant(t.Context(), grant(0, false)))
	if err := use("t", "guess", false); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("a guess: %v", err)
	}
	if err := use("t", "secret", true); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("a server with an agent's: %v", err)
	}
	for range 3 {
		if err := use("t", "secret", false); err != nil {
			t.Error(err)
		}
	}
	if left := registry.JoinGrants(e.snap(), time.Now()); len(left) != 1 {
		t.Errorf("%+v", left)
	}
	if left := registry.JoinGrants(e.snap(), time.Now().Add(2*time.Hour)); len(left) != 0 {
		t.Errorf("expired: %+v", left)
	}
	e.must(e.DeleteJoinGrant(t.Context(), "t"))
	if err := use("t", "secret", false); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("one that was withdrawn: %v", err)
	}
	for what, g := range map[string]registry.JoinGrant{
		"no id": {Expires: time.Now().Add(time.Hour)}, "expired": {ID: "x", Expires: time.Now()},
		"for ever": {ID: "x", Expires: time.Now().AddDate(1, 0, 0)}, "fewer than none": {ID: "x", Uses: -1, Expires: time.Now().Add(time.Hour)},
	} {
		if _, err := e.PutJoinGrant(t.Context(), g); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestANameIsOneNodesAsLongAsItLives(t *testing.T) {
	e := setup(t)
	e.must(e.PutJoinGrant(t.Context(), grant(0, false)))
	e.must(e.RegisterNode(t.Context(), model.Node{Name: "a", ID: "another", Address: "10.0.0.1"}))
	health := func(s model.Status) {
		e.must(e.PutCheck(t.Context(), model.Check{
			Node: "a", ID: model.SerfHealth, Name: "Serf Health Status", Status: s, Stamp: model.Stamp{Owner: model.OwnerServers},
		}))
	}
	health(model.Passing)
	if _, err := e.UseJoinGrant(t.Context(), "t", "secret", joining("a", false)); !errors.Is(err, registry.ErrNodeNameTaken) {
		t.Errorf("while another lives: %v", err)
	}
	health(model.Critical)
	if _, err := e.UseJoinGrant(t.Context(), "t", "secret", joining("a", false)); err != nil {
		t.Errorf("when it is dead: %v", err)
	}
}

func TestARevokedNodeDoesNotComeBack(t *testing.T) {
	e := setup(t)
	e.must(e.PutJoinGrant(t.Context(), grant(0, false)))
	n := joining("a", false)
	e.must(e.RevokeNode(t.Context(), n.ID, n.Name))
	e.unwritten(func() { e.must(e.RevokeNode(t.Context(), n.ID, n.Name)) })
	if !registry.Revoked(e.snap(), n.ID) || registry.Revoked(e.snap(), "id-b") {
		t.Errorf("%+v", registry.Revocations(e.snap()))
	}
	if _, err := e.UseJoinGrant(t.Context(), "t", "secret", n); !errors.Is(err, registry.ErrRevokedNode) {
		t.Errorf("with a token: %v", err)
	}
	if _, err := e.RevokeNode(t.Context(), "", "a"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("nobody: %v", err)
	}
}
