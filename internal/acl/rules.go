package acl

import (
	"slices"
	"strconv"
	"strings"
)

// Rules are what one policy says.
type Rules struct{ list []rule }

// rule is what a policy says of one name, or of every name with a prefix.
type rule struct {
	resource Resource
	name     string // empty for resources without names
	prefix   bool
	level    level
	// intentions is of services only; none means what level implies.
	intentions level
}

// kinds are the resources of the language.
var kinds = []struct {
	resource Resource
	named    bool // rules name things, or prefixes of names, and stand in blocks
}{
	{ACL, false},
	{Agent, true},
	{Event, true},
	{Identity, true},
	{Key, true},
	{Keyring, false},
	{Mesh, false},
	{Node, true},
	{Operator, false},
	{Peering, false},
	{Query, true},
	{Service, true},
	{Session, true},
}

const prefixSuffix = "_prefix"

// kindOf looks a word up that begins a rule, such as key_prefix.
func kindOf(word string) (r Resource, named, prefix, ok bool) {
	word = strings.ToLower(word)
	base := strings.TrimSuffix(word, prefixSuffix)
	for _, k := range kinds {
		if string(k.resource) == base && (k.named || base == word) {
			return k.resource, k.named, base != word, true
		}
	}
	return "", false, false, false
}

// word is what begins the rule.
func (r *rule) word() string {
	if r.prefix {
		return string(r.resource) + prefixSuffix
	}
	return string(r.resource)
}

// takesIntentions reports whether rules of the resource have that field.
func takesIntentions(r Resource) bool { return r == Service || r == Identity }

// String writes the rules as HCL that Parse reads back as the same rules.
func (rs Rules) String() string {
	var b strings.Builder
	for _, r := range rs.list {
		b.WriteString(r.word())
		if !named(r.resource) {
			b.WriteString(" = " + strconv.Quote(r.level.String()) + "\n")
			continue
		}
		b.WriteString(" " + quote(r.name) + " {\n  policy = " + strconv.Quote(r.level.String()) + "\n")
		if r.intentions != none {
			b.WriteString("  intentions = " + strconv.Quote(r.intentions.String()) + "\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func named(r Resource) bool {
	_, named, _, _ := kindOf(string(r))
	return named
}

// quote writes a name as an HCL string, in which "${" would begin a template.
func quote(s string) string {
	return strings.ReplaceAll(strconv.QuoteToASCII(s), "${", `\u0024{`)
}

// equal reports whether two sets say the same, in the same order.
func (rs Rules) equal(other Rules) bool { return slices.Equal(rs.list, other.list) }
