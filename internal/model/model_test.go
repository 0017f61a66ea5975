package model_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestWorse(t *testing.T) {
	for _, c := range []struct{ a, b, want model.Status }{
		{model.Passing, model.Passing, model.Passing},
		{model.Passing, model.Warning, model.Warning},
		{model.Critical, model.Warning, model.Critical},
		{model.Passing, "unheard-of", "unheard-of"},
	} {
		if got := c.a.Worse(c.b); got != c.want {
			t.Errorf("%s.Worse(%s) = %s, want %s", c.a, c.b, got, c.want)
		}
		if got := c.b.Worse(c.a); got != c.want {
			t.Errorf("%s.Worse(%s) = %s, want %s", c.b, c.a, got, c.want)
		}
	}
}

// Every field of a record counts for Same but its stamp: a change of one that did
// not count would never reach the catalogue.
func TestSameLooksAtEveryField(t *testing.T) {
	differs(t, model.Instance{}, func(a, b model.Instance) bool { return a.Same(b) })
	differs(t, model.Check{}, func(a, b model.Check) bool { return a.Same(b) })
	if !(model.Check{Output: "a"}).SameButOutput(model.Check{Output: "b"}) {
		t.Error("SameButOutput looks at the output")
	}
}

// differs changes one field of zero after the other and asks same.
func differs[T any](t *testing.T, zero T, same func(a, b T) bool) {
	t.Helper()
	typ := reflect.TypeFor[T]()
	for i := range typ.NumField() {
		changed := zero
		field := reflect.ValueOf(&changed).Elem().Field(i)
		if !fill(field) {
			t.Fatalf("%s.%s: the test cannot change a %s", typ, typ.Field(i).Name, field.Type())
		}
		stamp := typ.Field(i).Name == "Stamp"
		if same(zero, changed) != stamp || same(changed, zero) != stamp || !same(changed, changed) {
			t.Errorf("%s.Same is wrong about %s", typ, typ.Field(i).Name)
		}
	}
}

// fill gives a value something else than zero.
func fill(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.Zero(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	case reflect.Struct:
		return fill(v.Field(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return fill(v.Elem())
	default:
		return false
	}
	return true
}

func TestClonesShareNothing(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/24")
	n := model.Network{Pools: []model.Pool{{Prefix: p, Reserved: []netip.Prefix{p}}}, Labels: map[string]string{"a": "b"}}
	c := n.Clone()
	c.Pools[0].Reserved[0], c.Labels["a"] = netip.Prefix{}, "c"
	if n.Pools[0].Reserved[0] != p || n.Labels["a"] != "b" {
		t.Errorf("a network's clone changed it: %+v", n)
	}
	i := model.Instance{Tags: []string{"a"}, Meta: map[string]string{"a": "b"}, Places: []model.Place{{Port: 1}}}
	d := i.Clone()
	d.Tags[0], d.Meta["a"], d.Places[0].Port = "c", "c", 2
	if i.Tags[0] != "a" || i.Meta["a"] != "b" || i.Places[0].Port != 1 {
		t.Errorf("an instance's clone changed it: %+v", i)
	}
}

func TestFamilies(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")
	both := model.Network{Pools: []model.Pool{{Prefix: v6}, {Prefix: v4}}}
	if p, ok := both.Pool4(); !ok || p.Prefix != v4 {
		t.Errorf("Pool4 = %v, %t", p, ok)
	}
	if p, ok := both.Pool6(); !ok || p.Prefix != v6 {
		t.Errorf("Pool6 = %v, %t", p, ok)
	}
	if p, ok := (model.Network{Pools: both.Pools[:1]}).Pool4(); ok {
		t.Errorf("Pool4 of an IPv6 network = %v", p)
	}
	e := model.Endpoint{Addrs: []netip.Addr{v6.Addr(), v4.Addr()}}
	if e.Addr4() != v4.Addr() || e.Addr6() != v6.Addr() || (model.Endpoint{}).Addr4().IsValid() {
		t.Errorf("the addresses of %v: %v, %v", e.Addrs, e.Addr4(), e.Addr6())
	}
}

func TestCheckType(t *testing.T) {
	for want, spec := range map[string]model.CheckSpec{
		"http": {HTTP: "http://x/"}, "tcp": {TCP: "x:1"}, "ttl": {TTL: time.Second}, "": {},
	} {
		if got := spec.Type(); got != want {
			t.Errorf("Type of %+v = %q, want %q", spec, got, want)
		}
	}
}
