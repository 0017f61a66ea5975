package wire

import (
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// table is a table of the catalogue. The numbers are part of the format.
type table byte

const (
	tableNode table = 1 + iota
	tableInstance
	tableCheck
	tableVIP
	tableNetwork
	tableEndpoint
	tableLease
	tableCARoot
	tableBlock
)

// Carries reports whether agents hold what a change is of.
func Carries(c *state.Change) bool { return tableOf(c) != 0 }

// tableOf is the table of a change; 0 if agents do not hold it.
func tableOf(c *state.Change) table {
	switch {
	case c.Node != nil:
		return tableNode
	case c.Instance != nil:
		return tableInstance
	case c.Check != nil:
		return tableCheck
	case c.VIP != nil:
		return tableVIP
	case c.Network != nil:
		return tableNetwork
	case c.Endpoint != nil:
		return tableEndpoint
	case c.Lease != nil:
		return tableLease
	case c.CARoot != nil:
		return tableCARoot
	case c.Block != nil:
		return tableBlock
	}
	return 0
}

// blank puts an empty record into a change and returns it; nil for a table that
// this version does not know.
func (t table) blank(c *state.Change) (record any, stamp *model.Stamp) {
	switch t {
	case tableNode:
		c.Node = &model.Node{}
	case tableInstance:
		c.Instance = &model.Instance{}
	case tableCheck:
		c.Check = &model.Check{}
	case tableVIP:
		c.VIP = &model.VIP{}
	case tableNetwork:
		c.Network = &model.Network{}
	case tableEndpoint:
		c.Endpoint = &model.Endpoint{}
	case tableLease:
		c.Lease = &model.AddressLease{}
	case tableCARoot:
		c.CARoot = &model.CARoot{}
	case tableBlock:
		c.Block = &model.Block{}
	default:
		return nil, nil
	}
	return t.record(c)
}

// record is the one that a change of the table is of.
func (t table) record(c *state.Change) (record any, stamp *model.Stamp) {
	switch t {
	case tableNode:
		return c.Node, &c.Node.Stamp
	case tableInstance:
		return c.Instance, &c.Instance.Stamp
	case tableCheck:
		return c.Check, &c.Check.Stamp
	case tableVIP:
		return c.VIP, &c.VIP.Stamp
	case tableNetwork:
		return c.Network, &c.Network.Stamp
	case tableEndpoint:
		return c.Endpoint, &c.Endpoint.Stamp
	case tableLease:
		return c.Lease, &c.Lease.Stamp
	case tableBlock:
		return c.Block, &c.Block.Stamp
	}
	return c.CARoot, &c.CARoot.Stamp
}
