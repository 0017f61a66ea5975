package state_test

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// apart returns a record's strings as a decoder makes them: each for itself.
func apart(id string) []state.Change {
	c := strings.Clone
	return []state.Change{
		{Check: &model.Check{
			Node: model.NodeName(c("n1")), ID: model.CheckID("service:" + id), Name: c("Service 'web' check"), Status: model.Status(c("passing")),
			ServiceID: model.ServiceID(c(id)), ServiceName: model.ServiceName(c("web")), ServiceTags: []string{c("v1")}, Output: c("all well"),
		}},
		{Instance: &model.Instance{
			Node: model.NodeName(c("n1")), ID: model.ServiceID(c(id)), Service: model.ServiceName(c("web")), Tags: []string{c("v1")},
			Address: c("10.0.0.1"), Meta: map[string]string{c("version"): c("1.4.2")},
		}},
		{Node: &model.Node{Name: model.NodeName(c("n1")), Address: c("10.0.0.1")}},
	}
}

func oneString[S ~string](a, b S) bool {
	return a == b && unsafe.StringData(string(a)) == unsafe.StringData(string(b))
}

func TestRecordsShareWhatTheyHaveInCommon(t *testing.T) {
	s := state.New()
	s.Reset(5, apart("w1"))
	s.Apply(6, apart("w2")[:2])
	s.Apply(7, apart("w2")[1:2]) // a new version of an instance
	s.Apply(8, apart("w2")[:1])  // and of a check
	snap := s.Snapshot()
	n, _ := snap.Node("n1")
	for _, id := range []model.ServiceID{"w1", "w2"} {
		i, _ := snap.Instance("n1", id)
		c, _ := snap.Check("n1", "service:"+model.CheckID(id))
		one, _ := snap.Instance("n1", "w1")
		first, _ := snap.Check("n1", "service:w1")
		for what, shared := range map[string]bool{
			"an instance's node":      oneString(i.Node, n.Name),
			"an instance's address":   oneString(i.Address, n.Address),
			"an instance's service":   oneString(i.Service, one.Service),
			"an instance's tags":      len(i.Tags) == 1 && &i.Tags[0] == &one.Tags[0],
			"a check's node":          oneString(c.Node, n.Name),
			"a check's instance":      oneString(c.ServiceID, i.ID),
			"a check's service":       oneString(c.ServiceName, i.Service),
			"a check's tags":          len(c.ServiceTags) == 1 && &c.ServiceTags[0] == &i.Tags[0],
			"a check's name":          oneString(c.Name, first.Name),
			"a check's output":        oneString(c.Output, first.Output),
			"a check's status":        oneString(c.Status, model.Passing),
			"an instance's meta data": i.Meta["version"] == "1.4.2" && oneString(i.Meta["version"], one.Meta["version"]),
		} {
			if !shared {
				t.Errorf("%s: %s is a copy", id, what)
			}
		}
	}
}

// What is alike is shared, what is not stays as it is, and what was seen is not
// written to.
func TestSharingChangesNothing(t *testing.T) {
	s := state.New()
	s.Reset(5, apart("w1"))
	old, _ := s.Snapshot().Instance("n1", "w1")
	other := apart("w1")
	i, c := other[1].Instance, other[0].Check
	i.Tags, i.Meta, i.Address, c.Output, c.Status = []string{"v2"}, map[string]string{"version": "2"}, "10.0.0.2", "ill", model.Critical
	s.Apply(6, other[:2])
	now, _ := s.Snapshot().Instance("n1", "w1")
	check, _ := s.Snapshot().Check("n1", "service:w1")
	if now.Tags[0] != "v2" || now.Meta["version"] != "2" || now.Address != "10.0.0.2" || check.Output != "ill" || check.Status != model.Critical || check.ServiceTags[0] != "v1" {
		t.Errorf("%+v, %+v", now, check)
	}
	if old.Tags[0] != "v1" || old.Meta["version"] != "1.4.2" || old.Address != "10.0.0.1" {
		t.Errorf("the old version became %+v", old)
	}
}
