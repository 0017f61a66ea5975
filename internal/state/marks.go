package state

// Table is one of the tables that Snapshot.Mark knows.
type Table int

// Tables whose every change somebody has to hear of.
const (
	NodeTable Table = iota
	CheckTable
	SessionTable
	AliveTable
	LockDelayTable
	TokenTable
	EndpointTable
	BlockTable
)

// Mark is the mark of a whole table; nothing of it is read.
func (s *Snapshot) Mark(t Table) Mark {
	switch t {
	case NodeTable:
		return s.nodes.mark()
	case CheckTable:
		return s.checks.mark()
	case SessionTable:
		return s.sessions.mark()
	case AliveTable:
		return s.alive.mark()
	case LockDelayTable:
		return s.lockDelays.mark()
	case TokenTable:
		return s.tokens.mark()
	case EndpointTable:
		return s.endpoints.mark()
	case BlockTable:
		return s.blocks.mark()
	}
	panic("state: mark of an unknown table")
}

func (t *table[V]) mark() Mark { return Mark{Index: t.index, Changed: t.watch()} }
