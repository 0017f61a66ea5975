// Package local keeps what this node owns: the services and checks registered
// with its agent and the state of the checks. They live in a file that survives
// restarts, and are asserted in the catalogue until the two agree.
//
// The consul and native APIs call Register, Deregister, RegisterCheck, UpdateTTL
// and their like; node calls Declare, then Run. Every method may be called from any goroutine, also
// before and after Run; without Run nothing reaches the catalogue.
//
// Three things meet here, each with one owner:
//
//   - the set of registrations, changed only under the journal, which batches
//     what is changed at the same time into one write to the file;
//   - the states of checks, changed by the reports of health;
//   - the catalogue's view of this node, changed only by the one loop in sync.go,
//     so that an older registration can never overtake a newer one.
//
// A change costs what it changes, however much there is: the file is appended to,
// the loop is told what to look at, and compares everything only when the
// catalogue's view has changed, at most once a second.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/health"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// The errors that callers tell apart, with errors.Is.
var (
	// ErrInvalid: a registration that no catalogue would take. Nothing changed.
	ErrInvalid = fmt.Errorf("%w registration", model.ErrInvalid)
	// ErrUnknownService: no service of that id is registered with this agent.
	ErrUnknownService = errors.New("unknown service")
	// ErrUnknownCheck: no check of that id is registered with this agent.
	ErrUnknownCheck = errors.New("unknown check")
	// ErrScripts: a check would run a program, and this agent runs none of its
	// origin.
	ErrScripts = errors.New("Scripts are disabled on this agent") //nolint:staticcheck // clients know the text
	// ErrNotTTL: the check finds out its state by itself.
	ErrNotTTL = errors.New("not a TTL check")
	// ErrFile: the file of registrations cannot be used or written.
	ErrFile = errors.New("file of registrations")
)

// The values of Config.Scripts.
const (
	ScriptsOff   = "off"   // no check runs a program; so does the empty string
	ScriptsLocal = "local" // those of definition files do
	ScriptsOn    = "on"    // those that came by the API do too
)

// nodeEntry is the id of the entry that holds the checks of the whole node. No
// service has it.
const nodeEntry model.ServiceID = ""

// patience is how long a change waits for the catalogue before it is answered
// with a warning.
const patience = 2 * time.Second

// Catalog is where this node's records are written. Each method returns the
// index of the write once this node's state shows it. An error that has a method
// Refused() bool returning true says that the record will not be taken as it is;
// any other that it may be taken later.
type Catalog interface {
	RegisterNode(ctx context.Context, n model.Node) (model.Index, error)
	// Check says what is wrong with an instance and its checks that no catalogue
	// would take.
	Check(i model.Instance, checks []model.Check) error
	// RegisterMany writes instances and their checks, checks[i] being those of
	// instances[i], and removes other checks that the instances had. External
	// entries in their place are taken over. One that fails does not keep the
	// others; the errors are in the same order, nil for those that went well.
	RegisterMany(ctx context.Context, instances []model.Instance, checks [][]model.Check) []error
	// PutChecks writes checks of instances that are there, or of the node; the
	// rest is as for RegisterMany.
	PutChecks(ctx context.Context, checks []model.Check) []error
	// Deregister removes an instance and its checks.
	Deregister(ctx context.Context, n model.NodeName, id model.ServiceID) (model.Index, error)
	DeleteCheck(ctx context.Context, n model.NodeName, id model.CheckID) (model.Index, error)
}

// Config is what an Agent needs to know.
type Config struct {
	// Dir is the directory of the file; empty keeps registrations in memory only.
	Dir string
	// Node is this node as the catalogue should show it.
	Node model.Node
	// Scripts says which checks may run programs: one of the constants above.
	Scripts string
	// DockerSocket is the container engine's; empty means Docker's own.
	DockerSocket string
	Log          *slog.Logger
}

// Agent is what this node owns.
type Agent struct {
	cfg     Config
	me      model.NodeName
	owner   model.Owner
	cat     Catalog
	st      *state.State
	runner  *health.Runner
	journal *journal
	kick    chan struct{} // wakes the sync loop; holds one

	// mu guards the following. What registrations there are, and the checks' specs,
	// changes only with the journal's lock held as well.
	mu      sync.Mutex
	entries map[model.ServiceID]*entry // services, and nodeEntry
	checks  map[model.CheckID]*check   // all entries' checks
	dirty   map[model.ServiceID]bool   // what the sync loop has to look at
	alarms  alarms                     // when it has to look at what does not change
	// news are closed when a check of the service is new, gone or of another state.
	// Who wants to know puts one in.
	news    map[model.ServiceID]chan struct{}
	adopted bool              // the catalogue's states have been taken over
	orphans []model.CheckSpec // of services that the definition files are to bring
	clock   uint64            // counts changes, for entry.version
	last    outcome
}

// outcome is how the last exchange with the catalogue ended.
type outcome struct {
	at  time.Time // of the last one without an error
	err error
}

// entry is one registration, or the checks of the whole node, as those of a
// service without a name and an id. The registration itself is never changed, only
// replaced.
type entry struct {
	reg       model.Registration
	version   uint64 // differs for each change
	confirmed bool   // the catalogue has shown this version
	// shown is confirmed, also if that was before a restart: what the catalogue
	// has instead now is somebody else's doing.
	shown   bool
	refusal // why the catalogue does not take it, if so
	// fate is closed when one of these changes, or the entry goes; nil if nobody
	// waits for that.
	fate chan struct{}
}

// news returns what is closed when the entry is confirmed, refused or gone; the
// agent's mu is held.
func (e *entry) news() <-chan struct{} {
	if e.fate == nil {
		e.fate = make(chan struct{})
	}
	return e.fate
}

// stir wakes those who wait for the entry's fate; the agent's mu is held.
func (e *entry) stir() {
	if e.fate != nil {
		close(e.fate)
		e.fate = nil
	}
}

// check is the state of one of an entry's checks.
type check struct {
	spec   model.CheckSpec
	status model.Status
	output string
	heard  bool      // there has been an outcome since the start
	since  time.Time // when it became critical; zero if it is not
	// due is when an output that the catalogue does not have is written although
	// the state is the same; zero if there is none.
	due time.Time
	// refusal is why the catalogue does not take this one, though it has its service.
	refusal
}

// Open reads the registrations of this node. It starts nothing. An error that
// is ErrFile says which file and what to do about it.
func Open(cfg Config, cat Catalog, st *state.State) (*Agent, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	me := cfg.Node.Name
	cfg.Node.Stamp = model.Stamp{Owner: model.NodeOwner(me)}
	a := &Agent{
		cfg: cfg, me: me, owner: model.NodeOwner(me), cat: cat, st: st,
		journal: newJournal(cfg.Dir),
		kick:    make(chan struct{}, 1),
		entries: map[model.ServiceID]*entry{},
		checks:  map[model.CheckID]*check{},
		dirty:   map[model.ServiceID]bool{},
		news:    map[model.ServiceID]chan struct{}{},
	}
	a.runner = health.New(reporter{a}, health.Config{
		Log: cfg.Log, MayRun: a.runs, DockerSocket: cfg.DockerSocket, Targets: targets{a},
	})
	kept, err := a.journal.file.load(me)
	if err != nil {
		return nil, err
	}
	a.restore(kept, time.Now())
	return a, nil
}

// restore takes over what the file holds.
func (a *Agent) restore(kept contents, now time.Time) {
	node := model.Registration{}
	at := make(map[model.ServiceID]int, len(kept.Registrations))
	for i, r := range kept.Registrations {
		at[r.Instance.ID] = i
	}
	for _, c := range kept.Checks {
		i, there := at[c.ServiceID]
		switch {
		case c.ServiceID == nodeEntry:
			node.Checks = append(node.Checks, c)
		case there:
			kept.Registrations[i].Checks = append(kept.Registrations[i].Checks, c)
		default:
			a.orphans = append(a.orphans, c)
		}
	}
	if len(node.Checks) > 0 {
		kept.Registrations = append(kept.Registrations, node)
	}
	for _, r := range kept.Registrations {
		a.install(r, now, touch{}).shown = true
	}
}

// Run runs the checks and keeps the catalogue in line until ctx ends; its result
// is nil. It calls ready when the catalogue has been brought in line once, or
// after a few seconds if it cannot be reached. It may be called once.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	a.awaitSync(ctx)
	a.startChecks()
	settled := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.runner.Run(ctx) })
	g.Go(func() error {
		a.syncLoop(ctx, sync.OnceFunc(func() { close(settled) }))
		return nil
	})
	g.Go(func() error {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-settled:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		ready()
		return nil
	})
	return g.Wait()
}

// awaitSync gives the catalogue a moment to arrive: checks that begin with the
// state they had disturb nobody. Without a catalogue they begin all the same.
func (a *Agent) awaitSync(ctx context.Context) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-a.st.Synced():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// startChecks hands every check to the runner, with the state it last had.
func (a *Agent) startChecks() {
	a.journal.mu.Lock() // no change may come in between
	defer a.journal.mu.Unlock()
	a.adopt(a.st.Snapshot())
	a.mu.Lock()
	starts := make([]start, 0, len(a.checks))
	for _, c := range a.checks {
		starts = append(starts, start{c.spec, c.status})
	}
	a.mu.Unlock()
	for _, s := range starts {
		a.runner.Set(s.spec, s.status)
	}
}

// Services returns the registrations, sorted by id. The copies are the caller's.
func (a *Agent) Services() []model.Registration {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]model.Registration, 0, len(a.entries))
	for id, e := range a.entries {
		if id != nodeEntry {
			all = append(all, clone(e.reg))
		}
	}
	slices.SortFunc(all, func(x, y model.Registration) int { return cmp.Compare(x.Instance.ID, y.Instance.ID) })
	return all
}

// Service returns one registration; false if there is none of that id. The copy
// is the caller's.
func (a *Agent) Service(id model.ServiceID) (model.Registration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[id]
	if e == nil || id == nodeEntry {
		return model.Registration{}, false
	}
	return clone(e.reg), true
}

// Check returns one check with its present state and output; false if there is
// none of that id. The copy is the caller's.
func (a *Agent) Check(id model.CheckID) (model.Check, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.checks[id]
	if c == nil {
		return model.Check{}, false
	}
	r := a.record(a.entries[c.spec.ServiceID], c)
	r.ServiceTags = slices.Clone(r.ServiceTags)
	return r, true
}

// Checks returns the checks with their present state and output, sorted by id.
// The copies are the caller's.
func (a *Agent) Checks() []model.Check {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]model.Check, 0, len(a.checks))
	for _, e := range a.entries {
		for _, spec := range e.reg.Checks {
			c := a.record(e, a.checks[spec.ID])
			c.ServiceTags = slices.Clone(c.ServiceTags)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(x, y model.Check) int { return cmp.Compare(x.ID, y.ID) })
	return all
}

// Status says how far the catalogue is in line with this node.
type Status struct {
	// Pending are the services whose last change the catalogue has not confirmed.
	Pending []model.ServiceID
	// Rejected says why the catalogue does not take a service as it is; it is
	// tried again with growing delays.
	Rejected map[model.ServiceID]string
	// InLine is when the two last agreed; zero if they never did.
	InLine time.Time
	// Error is the last exchange's error; empty if it went well.
	Error string
}

// Status returns the present status.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{InLine: a.last.at, Rejected: map[model.ServiceID]string{}}
	if a.last.err != nil {
		s.Error = a.last.err.Error()
	}
	for id, e := range a.entries {
		if id == nodeEntry {
			id = "(checks of the node)"
		}
		if !e.confirmed {
			s.Pending = append(s.Pending, id)
		}
		if e.err != nil {
			s.Rejected[id] = e.err.Error()
		}
	}
	slices.Sort(s.Pending)
	return s
}

// UpdateTTL notes what the owner of a TTL check says about it. It fails with
// ErrUnknownCheck, ErrNotTTL or ErrInvalid; the catalogue hears of it soon after.
func (a *Agent) UpdateTTL(id model.CheckID, status model.Status, output string) error {
	if !status.Valid() {
		return fmt.Errorf("%w: check %q: state %q is not passing, warning or critical", ErrInvalid, id, status)
	}
	err := a.runner.TTL(id, status, output)
	switch {
	case errors.Is(err, health.ErrUnknownCheck):
		return fmt.Errorf("%w %q", ErrUnknownCheck, id)
	case errors.Is(err, health.ErrNotTTL):
		return fmt.Errorf("check %q: %w", id, ErrNotTTL)
	}
	return err
}
