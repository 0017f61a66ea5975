package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// record is a policy, a role, a token or a prepared query as JSON has it.
type record map[string]any

func (r record) text(field string) string {
	s, _ := r[field].(string)
	return s
}

// named is a kind of records that are known by a name of their own.
type named struct {
	kind, what string
	list       string   // path that lists them
	read       string   // path before an id that reads one; empty: the list says all
	id         string   // field with the id
	key        string   // field that both ends know a record by
	also       string   // field that two records cannot share either
	fields     []string // what is copied
	create     func(record) (method, path string)
	update     func(id string) (path string)
	// skip says why a record is not copied; empty: it is.
	skip func(record) string
}

const globalManagement = "global-management"

func put(path string) func(record) (string, string) {
	return func(record) (string, string) { return http.MethodPut, path }
}

func at(prefix string) func(string) string {
	return func(id string) string { return prefix + url.PathEscape(id) }
}

var policies = named{
	kind: Policies, what: "policy", list: "/v1/acl/policies", read: "/v1/acl/policy/", id: "ID", key: "Name",
	fields: []string{"Name", "Description", "Rules", "Datacenters"},
	create: put("/v1/acl/policy"), update: at("/v1/acl/policy/"),
	skip: func(r record) string {
		if name := r.text("Name"); name == globalManagement || strings.HasPrefix(name, "builtin/") {
			return "built in"
		}
		return ""
	},
}

var roles = named{
	kind: Roles, what: "role", list: "/v1/acl/roles", read: "/v1/acl/role/", id: "ID", key: "Name",
	fields: []string{"Name", "Description", "Policies", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies"},
	create: put("/v1/acl/role"), update: at("/v1/acl/role/"),
}

var tokens = named{
	kind: Tokens, what: "token", list: "/v1/acl/tokens", read: "/v1/acl/token/", id: "AccessorID", key: "AccessorID", also: "SecretID",
	fields: []string{
		"AccessorID", "SecretID", "Description", "Policies", "Roles", "ServiceIdentities", "NodeIdentities",
		"TemplatedPolicies", "Local", "ExpirationTime",
	},
	create: put("/v1/acl/token"), update: at("/v1/acl/token/"),
	skip: func(r record) string {
		switch {
		case r.text("AuthMethod") != "":
			return "it came from a login with " + r.text("AuthMethod") + "; log in again"
		case r.text("SecretID") == "<hidden>":
			return "its secret is hidden; the token for Consul needs acl:write"
		}
		return ""
	},
}

var queries = named{
	kind: Queries, what: "query", list: "/v1/query", id: "ID", key: "Name",
	fields: []string{"Name", "Template", "Service", "DNS", "Token"},
	create: func(record) (string, string) { return http.MethodPost, "/v1/query" },
	update: at("/v1/query/"),
	skip: func(r record) string {
		switch {
		case r.text("Name") == "":
			return "it has no name"
		case r.text("Session") != "":
			return "it ends with a session"
		case r.text("Token") == "<hidden>":
			return "its token is hidden; the token for Consul needs acl:write"
		}
		return ""
	},
}

func (im *importing) queries(ctx context.Context) error { return im.copyNamed(ctx, queries) }

// acl copies policies, roles and tokens, in this order: each names those before.
// Secrets and accessors are kept, so that whoever has a token can go on with it.
func (im *importing) acl(ctx context.Context) error {
	for _, n := range []named{policies, roles, tokens} {
		if err := im.copyNamed(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (im *importing) copyNamed(ctx context.Context, n named) error {
	im.begin(n.kind)
	source, err := im.from.all(ctx, n)
	if err != nil {
		return fmt.Errorf("read the %s in Consul: %w", n.kind, err)
	}
	there, err := im.to.all(ctx, n)
	if err != nil {
		return fmt.Errorf("read the %s: %w", n.kind, err)
	}
	for _, key := range slices.Sorted(maps.Keys(source)) {
		what := fmt.Sprintf("%s %q", n.what, key)
		r, old := source[key], there[key]
		if n.skip != nil {
			if why := n.skip(r); why == "built in" {
				continue
			} else if why != "" {
				im.remark("%s was not copied: %s", what, why)
				continue
			}
		}
		if other := n.taken(r, there); old == nil && other != "" {
			im.remark("%s was not copied: its secret is that of %s here", what, other)
			continue
		}
		if err := im.copyOne(ctx, n, what, n.content(r), old); err != nil {
			return err
		}
	}
	return nil
}

// taken names the record that has what r cannot share, empty if none has.
func (n named) taken(r record, there map[string]record) string {
	for key, other := range there {
		if n.also != "" && r.text(n.also) != "" && r.text(n.also) == other.text(n.also) {
			return key
		}
	}
	return ""
}

func (im *importing) copyOne(ctx context.Context, n named, what string, r, old record) error {
	o := created
	method, path := n.create(r)
	switch {
	case old == nil:
	case reflect.DeepEqual(r, n.content(old)):
		im.done(n.kind, unchanged, what)
		return nil
	case !im.cfg.Overwrite:
		im.done(n.kind, conflict, what)
		return nil
	default:
		o, method, path = replaced, http.MethodPut, n.update(old.text(n.id))
	}
	if !im.cfg.DryRun {
		err := im.write(ctx, what, method, path, r)
		var refused *statusError
		if errors.As(err, &refused) && !again(err) && refused.status != http.StatusForbidden {
			// One record that the target does not take is no reason to stop.
			im.done(n.kind, conflict, what+": "+refused.text)
			return nil
		}
		if err != nil {
			return err
		}
	}
	im.done(n.kind, o, what)
	return nil
}

// all reads every record of a kind, by its key.
func (e *end) all(ctx context.Context, n named) (map[string]record, error) {
	var list []record
	if _, err := e.get(ctx, n.list, nil, &list); err != nil {
		return nil, err
	}
	out := map[string]record{}
	for _, r := range list {
		if n.read != "" {
			var full record
			found, err := e.get(ctx, n.read+url.PathEscape(r.text(n.id)), nil, &full)
			if err != nil {
				return nil, err
			}
			if !found {
				continue // deleted meanwhile
			}
			r = full
		}
		key := r.text(n.key)
		if key == "" {
			key = r.text(n.id)
		}
		out[key] = r
	}
	return out, nil
}

// content is what is copied of a record: links by name, since ids differ between
// ends, and nothing that is empty.
func (n named) content(r record) record {
	out := record{}
	for _, f := range n.fields {
		v := trimmed(r[f])
		if links, ok := v.([]any); ok && (f == "Policies" || f == "Roles") {
			v = byName(links)
		}
		if v != nil {
			out[f] = v
		}
	}
	return out
}

func byName(links []any) any {
	var names []string
	for _, l := range links {
		if m, ok := l.(map[string]any); ok {
			name, _ := m["Name"].(string)
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out []any
	for _, name := range names {
		out = append(out, map[string]any{"Name": name})
	}
	return out
}

// trimmed leaves out what says nothing: null, "", 0, false, and lists and objects
// without content. What is left of two records can be compared.
func trimmed(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if x = trimmed(x); x != nil {
				out[k] = x
			}
		}
		if len(out) > 0 {
			return out
		}
		return nil
	case []any:
		if len(v) > 0 {
			return v
		}
		return nil
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}
