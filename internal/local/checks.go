package local

import (
	"fmt"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// outputHold is how long a check's new output waits for a change of state to
	// travel with, so that a chatty check costs the catalogue one write in this
	// time (Consul's check_update_interval). The first one does not wait.
	outputHold = 5 * time.Minute
	// minDeregisterAfter is Consul's: a service that takes some time to start
	// must not be removed before it has had a chance.
	minDeregisterAfter = time.Minute
)

// reporter is the door for health's outcomes.
type reporter struct{ a *Agent }

// Report takes an outcome. It calls nobody, as health asks.
func (r reporter) Report(id model.CheckID, status model.Status, output string) {
	a := r.a
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.checks[id]
	if c == nil {
		return
	}
	first := !c.heard && c.output == ""
	c.heard = true
	if status != c.status {
		c.become(status, output, time.Now())
		a.tell(c.spec.ServiceID)
		a.look(c)
		return
	}
	if output != c.output {
		c.output = output
		switch {
		case first: // it says why the state is what a registration begins with
			c.due = time.Now()
			a.look(c)
		case c.due.IsZero():
			c.due = time.Now().Add(task.Jitter(outputHold))
			a.look(c) // it has to know when
		}
	}
}

// look makes the sync loop look at a check; a.mu is held.
func (a *Agent) look(c *check) {
	a.dirty[c.spec.ServiceID] = true
	a.wake()
}

// become changes a check's state.
func (c *check) become(status model.Status, output string, now time.Time) {
	c.output = output
	if status != model.Critical {
		c.since = time.Time{}
	} else if c.since.IsZero() {
		c.since = now
	}
	c.status = status
}

// adopt takes over the states that the catalogue shows for checks that have not
// been heard of since the start, once, as soon as there is a whole snapshot: a
// restarted agent must not drain what was working.
func (a *Agent) adopt(snap *state.Snapshot) {
	select {
	case <-a.st.Synced():
	default:
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.adopted {
		return
	}
	a.adopted = true
	shown, _ := snap.NodeChecks(a.me)
	for _, s := range shown {
		c := a.checks[s.ID]
		if c != nil && !c.heard && s.Owner == a.owner && s.ServiceID == c.spec.ServiceID && s.Status.Valid() {
			c.become(s.Status, s.Output, now)
			a.tell(s.ServiceID)
		}
	}
}

// tell wakes those who follow the states of a service's checks; a.mu is held.
func (a *Agent) tell(id model.ServiceID) {
	if news := a.news[id]; news != nil {
		close(news)
		delete(a.news, id)
	}
}

// follow returns what is closed when the states of a service's checks may have
// changed; a.mu is held.
func (a *Agent) follow(id model.ServiceID) <-chan struct{} {
	if a.news[id] == nil {
		a.news[id] = make(chan struct{})
	}
	return a.news[id]
}

// mayRun fails if the check would run a program that this agent does not run.
func (a *Agent) mayRun(c model.CheckSpec) error {
	switch {
	case a.runs(c):
		return nil
	case c.Declared:
		return fmt.Errorf("%w; to enable those of definition files, set script-checks to local or on", ErrScripts)
	}
	return fmt.Errorf("%w from remote calls; to enable them, set script-checks to on", ErrScripts)
}

// runs says whether this agent runs such a check.
func (a *Agent) runs(c model.CheckSpec) bool {
	return !c.RunsPrograms() || a.cfg.Scripts == ScriptsOn || (a.cfg.Scripts == ScriptsLocal && c.Declared)
}

// record is a check as the catalogue should show it; a.mu is held if e and c are
// the agent's.
func (a *Agent) record(e *entry, c *check) model.Check {
	return model.Check{
		Node: a.me, ID: c.spec.ID, Name: c.spec.Name, Status: c.status,
		Notes: c.spec.Notes, Output: c.output,
		ServiceID: e.reg.Instance.ID, ServiceName: e.reg.Instance.Service, ServiceTags: e.reg.Instance.Tags,
		Type: c.spec.Type(), Interval: duration(c.spec.Interval), Timeout: duration(c.spec.Timeout),
		Stamp: model.Stamp{Owner: a.owner},
	}
}

func duration(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return d.String()
}

// deadline is when the entry's service is removed because a check of it has
// been critical for too long; false if that is not to happen. a.mu is held.
func (a *Agent) deadline(e *entry) (time.Time, *check) {
	var first time.Time
	var why *check
	for _, spec := range e.reg.Checks {
		c := a.checks[spec.ID]
		if spec.DeregisterAfter <= 0 || c.since.IsZero() {
			continue
		}
		if t := c.since.Add(max(spec.DeregisterAfter, minDeregisterAfter)); why == nil || t.Before(first) {
			first, why = t, c
		}
	}
	return first, why
}

// reap removes those of the services whose deadline has come, and sets alarms for
// the others.
func (a *Agent) reap(ids []model.ServiceID, now time.Time) {
	var over []model.ServiceID
	a.mu.Lock()
	for _, id := range ids {
		e := a.entries[id]
		if e == nil || id == nodeEntry {
			continue // there is no service to remove
		}
		t, why := a.deadline(e)
		switch {
		case why == nil:
		case t.After(now):
			a.alarms.set(id, t)
		default:
			over = append(over, id)
		}
	}
	a.mu.Unlock()
	for _, id := range over {
		if err := a.removeIfOver(id, now); err != nil {
			a.cfg.Log.Warn("remove service that stayed critical", "service", id, "error", err)
			a.mu.Lock()
			a.alarms.set(id, now.Add(30*time.Second)) // the disk may have recovered
			a.mu.Unlock()
		}
	}
}

// removeIfOver removes a service unless its checks have recovered meanwhile.
func (a *Agent) removeIfOver(id model.ServiceID, now time.Time) error {
	var why model.CheckID
	err := a.commit(&change{id: id, edit: func(old *model.Registration) (*model.Registration, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		e := a.entries[id]
		if old == nil || e == nil || !same(*old, e.reg) {
			return old, nil // removed or registered anew meanwhile
		}
		t, c := a.deadline(e)
		if c == nil || t.After(now) {
			return old, nil
		}
		why = c.spec.ID
		return nil, nil
	}})
	if err == nil && why != "" {
		a.cfg.Log.Info("service removed: a check stayed critical", "service", id, "check", why)
	}
	return err
}

// sooner returns the earlier of two times; zero means never.
func sooner(t, u time.Time) time.Time {
	if t.IsZero() || (!u.IsZero() && u.Before(t)) {
		return u
	}
	return t
}
