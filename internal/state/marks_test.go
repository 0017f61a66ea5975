package state_test

import (
	"net/netip"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// A table's mark moves with every change in the table, deletions included, and
// with no other.
func TestMarkOfATable(t *testing.T) {
	tests := map[state.Table]state.Change{
		state.NodeTable:      {Node: &model.Node{Name: "n"}},
		state.CheckTable:     {Check: &model.Check{Node: "n", ID: "c"}},
		state.SessionTable:   {Session: &model.Session{ID: "s"}},
		state.AliveTable:     {Alive: &model.Alive{Session: "s"}},
		state.LockDelayTable: {LockDelay: &model.LockDelay{Key: "k"}},
		state.EndpointTable:  {Endpoint: &model.Endpoint{ID: "e"}},
		state.BlockTable:     {Block: &model.Block{Network: "n", Prefix: netip.MustParsePrefix("10.0.0.0/24")}},
		state.TokenTable:     {Token: &model.ACLToken{AccessorID: "a", SecretID: "x"}},
	}
	for table, change := range tests {
		st := state.New()
		st.Reset(1, nil)
		for _, del := range []bool{false, true} {
			before := map[state.Table]state.Mark{}
			for other := range tests {
				before[other] = st.Snapshot().Mark(other)
			}
			change.Delete = del
			st.Apply(st.Snapshot().Index()+1, []state.Change{change})
			for other, mark := range before {
				moved := st.Snapshot().Mark(other).Index != mark.Index
				woken := false
				select {
				case <-mark.Changed:
					woken = true
				default:
				}
				if want := other == table; moved != want || woken != want {
					t.Errorf("change of table %d, deleted %v: table %d moved %v, woke %v", table, del, other, moved, woken)
				}
			}
		}
	}
}
