package local

import (
	"container/heap"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// alarms say when the sync loop has to look at a service although nothing
// changes: each has one at most, the first that was set. When it rings, whoever
// looks sets the next.
type alarms struct {
	at    map[model.ServiceID]time.Time
	queue alarmQueue // has also those that an earlier one took the place of
}

type alarm struct {
	id model.ServiceID
	at time.Time
}

// set sets an alarm, unless there is an earlier one; no time is no alarm.
func (a *alarms) set(id model.ServiceID, at time.Time) {
	if t, ok := a.at[id]; at.IsZero() || (ok && !at.Before(t)) {
		return
	}
	if a.at == nil {
		a.at = map[model.ServiceID]time.Time{}
	}
	a.at[id] = at
	heap.Push(&a.queue, alarm{id, at})
}

// ring hands over and forgets the services whose time has come.
func (a *alarms) ring(now time.Time, take func(model.ServiceID)) {
	for len(a.queue) > 0 && !a.queue[0].at.After(now) {
		al := heap.Pop(&a.queue).(alarm)
		if t, ok := a.at[al.id]; ok && t.Equal(al.at) {
			delete(a.at, al.id)
			take(al.id)
		}
	}
}

// next is when the first rings; zero if there is none.
func (a *alarms) next() time.Time {
	if len(a.queue) == 0 {
		return time.Time{}
	}
	return a.queue[0].at
}

// alarmQueue implements heap.Interface.
type alarmQueue []alarm

func (q alarmQueue) Len() int           { return len(q) }
func (q alarmQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q alarmQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *alarmQueue) Push(x any)        { *q = append(*q, x.(alarm)) }

func (q *alarmQueue) Pop() any {
	last := len(*q) - 1
	al := (*q)[last]
	*q = (*q)[:last]
	return al
}
