package acl

import (
	"strings"
	"testing"
)

// One policy in all the ways that it can be written down.
func TestParseSpellings(t *testing.T) {
	want := Rules{[]rule{
		{resource: Key, name: "a", level: read},
		{resource: Key, prefix: true, name: "b/", level: list},
		{resource: Service, name: "web", level: write, intentions: read},
		{resource: Operator, level: read},
	}}
	for name, text := range map[string]string{
		"HCL blocks": `
			key "a" { policy = "read" }
			key_prefix "b/" {
				policy = "list" # a comment
			}
			service "web" {
				policy     = "write"
				intentions = "read"
			}
			operator = "read"`,
		"HCL names inside of the block": `
			key { "a" { policy = "read" } }
			key_prefix { "b/" { policy = "list" } }
			service { "web" { policy = "write" intentions = "read" } }
			operator = "read"`,
		"HCL objects": `
			key = { "a" = { policy = "read" } }
			key_prefix = { "b/" = { policy = "list" } }
			service = [{ "web" = { policy = "write", intentions = "read" } }]
			operator = "read"`,
		"letters of any case": `KEY "a" { Policy = "read" } Key_Prefix "b/" { POLICY = "list" }
			service "web" { policy = "write" Intentions = "read" }
			Operator = "read"`,
		"JSON": `{
			"key": {"a": {"policy": "read"}},
			"key_prefix": {"b/": {"policy": "list"}},
			"service": {"web": {"policy": "write", "intentions": "read"}},
			"operator": "read"
		}`,
		"JSON lists": `{
			"key": [{"a": {"policy": "read"}}],
			"key_prefix": [{"b/": [{"policy": "list"}]}],
			"service": [{"web": [{"policy": "write", "intentions": "read"}]}],
			"operator": "read"
		}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if !got.equal(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestParseEveryResource(t *testing.T) {
	var text strings.Builder
	for _, k := range kinds {
		if !k.named {
			text.WriteString(string(k.resource) + ` = "read"` + "\n")
			continue
		}
		text.WriteString(string(k.resource) + ` "x" { policy = "deny" }` + "\n")
		text.WriteString(string(k.resource) + `_prefix "" { policy = "write" }` + "\n")
	}
	rs, err := Parse(text.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(rs.list) != 8*2+5 {
		t.Errorf("%d rules:\n%s", len(rs.list), rs)
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"not HCL", "key \"a\" {", "Failed to parse ACL rules: "},
		{"cut JSON", `{"key": `, "Failed to parse ACL rules: "},
		{"more than JSON", "{\n\"acl\": \"read\"} x", "Failed to parse ACL rules: line 2: "},
		{"unknown resource", "acl = \"read\"\nservce \"a\" {\n policy = \"read\"\n}", `line 2: there is no resource "servce"`},
		{"prefix of what has no names", `operator_prefix "" { policy = "read" }`, `there is no resource "operator_prefix"`},
		{"intentions as a resource", `intention "a" { policy = "read" }`, `there is no resource "intention"`},
		{"unknown level", "key_prefix \"a\" {\n  policy = \"wirte\"\n}", `Invalid key_prefix policy: line 2: key_prefix "a": policy is "wirte"; it must be deny, read, list or write`},
		{"list of what is no key", `node "a" { policy = "list" }`, `Invalid node policy: line 1: node "a": policy is "list"; it must be deny, read or write`},
		{"unknown level of a resource without names", `acl = "list"`, `Invalid acl policy: line 1: acl: policy is "list"`},
		{"unknown intentions", `service "a" { policy = "read" intentions = "list" }`, `Invalid service policy: line 1: service "a": intentions is "list"; it must be deny, read or write`},
		{"intentions of a node", `node "a" { policy = "read" intentions = "read" }`, `node "a" has no field "intentions"; its fields are policy`},
		{"Sentinel", `key "a" { policy = "write" sentinel { code = "x" } }`, `key "a": a rule has no field "sentinel"`},
		{"unknown field", `key "a" { polcy = "read" }`, `key "a" has no field "polcy"`},
		{"no policy", `key "a" {}`, `Invalid key policy: line 1: "a" has no policy`},
		{"no policy in JSON", `{"key": {"a": {}}}`, `"a" has no policy`},
		{"level without a name", `key = "read"`, `key takes a name and a block`},
		{"block where there are no names", `acl { policy = "read" }`, `acl takes no block`},
		{"number", `key "a" { policy = 1 }`, `key a policy: 1 is not a string`},
		{"too deep", strings.Repeat("{", 40), "brackets are open at once"},
		{"too long", strings.Repeat("#", maxRules+1), "they may have at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.text)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// What is printed reads back as the same rules, and prints alike.
func checkStable(t *testing.T, rs Rules) {
	t.Helper()
	printed := rs.String()
	again, err := Parse(printed)
	if err != nil {
		t.Fatalf("printed rules do not parse: %v\n%s", err, printed)
	}
	if !again.equal(rs) {
		t.Errorf("printed\n%sreads back as\n%s", printed, again)
	}
}

func TestPrintedRulesReadBack(t *testing.T) {
	for _, name := range []string{"", "a", `q"uote\`, "${var.x}", "$${x}", "\n\t\x00", "日本", "{", "//", "# no"} {
		checkStable(t, Rules{[]rule{
			{resource: Key, name: name, level: read},
			{resource: Service, prefix: true, name: name, level: write, intentions: deny},
			{resource: Operator, level: deny},
		}})
	}
	for _, p := range Builtin() {
		rs, err := Parse(p.Rules)
		if err != nil {
			t.Fatal(err)
		}
		checkStable(t, rs)
	}
	checkStable(t, ServiceRules("web"))
	checkStable(t, NodeRules("n1"))
}

func FuzzParseHCL(f *testing.F) {
	for _, seed := range []string{
		`key "a" { policy = "read" } operator = "write"`,
		`service_prefix "" { policy = "write" intentions = "deny" }`,
		`key_prefix { "a" = { policy = "list" } }`,
		"key \"${a}\" {\n policy = <<EOF\nread\nEOF\n}",
		`node = [{ "a" = [{ policy = "deny" }] }]`,
		everywhere(write).String(),
	} {
		f.Add(seed)
	}
	f.Fuzz(fuzzParse)
}

func FuzzParseJSON(f *testing.F) {
	for _, seed := range []string{
		`{"key": {"a": {"policy": "read"}}, "acl": "write"}`,
		`{"service_prefix": [{"": [{"policy": "write", "intentions": "deny"}]}]}`,
		`{"key": {"\u0000${x}": {"policy": "list"}}}`,
		`{"key": [[{"a": {"policy": "read"}}]], "node": {"a": "read"}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.HasPrefix(text, "{") {
			text = "{" + text
		}
		fuzzParse(t, text)
	})
}

func fuzzParse(t *testing.T, text string) {
	rs, err := Parse(text)
	if err != nil {
		return
	}
	checkStable(t, rs)
	a := New("id", true, rs)
	for _, r := range rs.list {
		// A rule for the whole of a prefix cannot grant more than the prefix itself.
		if a.AllowPrefix(r.resource, r.name, Write) && !a.Allow(r.resource, r.name, Write) && named(r.resource) {
			t.Errorf("%s %q: all below may be written, but not it", r.word(), r.name)
		}
	}
}
