package model_test

import (
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestCheckDefinitions(t *testing.T) {
	for _, c := range []struct {
		d     *model.CheckDefinition
		kind  string
		empty bool
	}{
		{&model.CheckDefinition{}, "", true},
		{&model.CheckDefinition{Header: map[string][]string{}}, "", true},
		{&model.CheckDefinition{Header: map[string][]string{"A": {"b"}}}, "", false},
		{&model.CheckDefinition{Interval: time.Second}, "", false},
		{&model.CheckDefinition{HTTP: "http://a/"}, "http", false},
		{&model.CheckDefinition{TCP: "a:1"}, "tcp", false},
		{&model.CheckDefinition{UDP: "a:1"}, "udp", false},
		{&model.CheckDefinition{GRPC: "a:1"}, "grpc", false},
		{&model.CheckDefinition{H2Ping: "a:1"}, "h2ping", false},
		{&model.CheckDefinition{OSService: "a"}, "os_service", false},
	} {
		if c.d.Type() != c.kind || c.d.Empty() != c.empty {
			t.Errorf("%+v: type %q, empty %v", c.d, c.d.Type(), c.d.Empty())
		}
	}
	if (*model.CheckDefinition)(nil).Type() != "" {
		t.Error("a check without a definition has a type")
	}
	differs(t, model.CheckDefinition{}, func(a, b model.CheckDefinition) bool {
		return model.Check{Definition: &a}.Same(model.Check{Definition: &b})
	})
}
