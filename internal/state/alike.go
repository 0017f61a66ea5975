package state

import (
	"maps"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
)

// alike remembers, while an edit lasts, one record of each service, for those that
// follow to share what they have in common with it: the instances of a service
// hardly differ in more than where they are, and a new version of a record hardly
// from the one before. A record decoded by itself has every string and map for
// itself, which is most of what it takes.
type alike struct {
	instances map[model.ServiceName]*model.Instance
	checks    map[model.ServiceName]*model.Check
}

// same makes two equal strings one.
func same[S ~string](to *S, from S) {
	if *to == from {
		*to = from
	}
}

func sameList(to *[]string, from []string) {
	if len(*to) > 0 && slices.Equal(*to, from) {
		*to = from
	}
}

func sameMap[V comparable](to *map[string]V, from map[string]V) {
	if len(*to) > 0 && maps.Equal(*to, from) {
		*to = from
	}
}

// shareInstance is called before i can be seen. before is its version until now, nil
// if there was none.
func (e *edit) shareInstance(i, before *model.Instance) {
	if i == before {
		return // it can be seen already
	}
	if n, ok := e.nodes.get(key(i.Node)); ok {
		i.Node = n.Name
		same(&i.Address, n.Address)
	}
	if before != nil {
		i.ID = before.ID
		shareWithInstance(i, before)
	}
	if like := e.instanceOf(i.Service); like != nil && like != before {
		shareWithInstance(i, like)
	}
	e.alike.instances[i.Service] = i
}

// instanceOf returns any instance of a service.
func (e *edit) instanceOf(name model.ServiceName) *model.Instance {
	if i := e.alike.instances[name]; i != nil {
		return i
	}
	if svc, ok := e.services.get(key(name)); ok && len(svc.Members) > 0 {
		return svc.Members[0].Instance
	}
	return nil
}

func shareWithInstance(i, like *model.Instance) {
	same(&i.Service, like.Service)
	same(&i.Address, like.Address)
	same(&i.Kind, like.Kind)
	same(&i.Owner, like.Owner)
	sameList(&i.Tags, like.Tags)
	sameMap(&i.Meta, like.Meta)
	sameMap(&i.TaggedAddresses, like.TaggedAddresses)
}

// shareCheck does the same for a check.
func (e *edit) shareCheck(c, before *model.Check) {
	if c == before {
		return
	}
	for _, s := range []model.Status{model.Passing, model.Warning, model.Critical} {
		same(&c.Status, s)
	}
	if n, ok := e.nodes.get(key(c.Node)); ok {
		c.Node = n.Name
	}
	if c.ServiceID != "" {
		if i, ok := e.instances.get(key2(c.Node, c.ServiceID)); ok {
			c.ServiceID = i.ID
			same(&c.ServiceName, i.Service)
			sameList(&c.ServiceTags, i.Tags)
		}
	}
	if before != nil {
		c.ID = before.ID
		shareWithCheck(c, before)
	}
	if like := e.checkOf(c); like != nil && like != before {
		shareWithCheck(c, like)
	}
	e.alike.checks[c.ServiceName] = c
}

// checkOf returns any check of the same service.
func (e *edit) checkOf(c *model.Check) *model.Check {
	if like := e.alike.checks[c.ServiceName]; like != nil {
		return like
	}
	svc, ok := e.services.get(key(c.ServiceName))
	if !ok || len(svc.Members) == 0 || len(svc.Members[0].Checks) == 0 {
		return nil
	}
	// Those of the instance are behind those of its node.
	return svc.Members[0].Checks[len(svc.Members[0].Checks)-1]
}

func shareWithCheck(c, like *model.Check) {
	same(&c.Name, like.Name)
	same(&c.Notes, like.Notes)
	same(&c.Output, like.Output)
	same(&c.Type, like.Type)
	same(&c.Interval, like.Interval)
	same(&c.Timeout, like.Timeout)
	same(&c.Owner, like.Owner)
	same(&c.ServiceName, like.ServiceName)
	sameList(&c.ServiceTags, like.ServiceTags)
}
