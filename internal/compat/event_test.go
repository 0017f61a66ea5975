package compat

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

func TestEventMethods(t *testing.T) {
	c := startAgent(t).client()
	e := c.Event()
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Tags: []string{"v1"}}))
	if all, meta, err := e.List("", nil); err != nil || len(all) != 0 || meta.LastIndex == 0 {
		t.Fatalf("before the first: %v, %+v, %v", all, meta, err)
	}
	id, _, err := e.Fire(&api.UserEvent{Name: "deploy", Payload: []byte{0, 1, 255}, NodeFilter: "n[0-9]", ServiceFilter: "web", TagFilter: "v1"}, nil)
	must(t, err)
	for _, elsewhere := range []*api.UserEvent{{Name: "deploy", NodeFilter: "db"}, {Name: "deploy", ServiceFilter: "db"}, {Name: "deploy", ServiceFilter: "web", TagFilter: "v2"}} {
		_, _, err := e.Fire(elsewhere, nil)
		must(t, err)
	}
	all, meta, err := e.List("deploy", nil)
	must(t, err)
	if len(all) != 1 || all[0].ID != id || !bytes.Equal(all[0].Payload, []byte{0, 1, 255}) || all[0].Version != 1 || all[0].LTime == 0 || all[0].TagFilter != "v1" {
		t.Fatalf("list: %+v", all)
	}
	if meta.LastIndex != e.IDToIndex(id) {
		t.Errorf("index %d, that of the id is %d", meta.LastIndex, e.IDToIndex(id))
	}
	next := make(chan []*api.UserEvent, 1)
	go func() {
		all, _, err := e.List("deploy", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
		if err != nil {
			t.Error(err)
		}
		next <- all
	}()
	for _, name := range []string{"other", "deploy"} {
		_, _, err := e.Fire(&api.UserEvent{Name: name}, nil)
		must(t, err)
	}
	if all := <-next; len(all) != 2 || all[1].Payload != nil {
		t.Errorf("waited for %+v", all)
	}
	for want, bad := range map[string]*api.UserEvent{
		"Missing name": {},
		"Cannot provide tag filter without service":   {Name: "a", TagFilter: "x"},
		"Invalid node filter":                         {Name: "a", NodeFilter: "("},
		"user event exceeds configured limit of 512 ": {Name: "a", Payload: make([]byte, 600)},
	} {
		if _, _, err := e.Fire(bad, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", bad, err, want)
		}
	}
}
