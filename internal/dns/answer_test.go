package dns

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var update = flag.Bool("update", false, "rewrite the expected answers in testdata")

// TestAnswers runs the stories in testdata: facts change the catalogue, a line
// "config setting=value..." is what the server is told, "? name type [from=asker] [edns=size] [tcp] [class=C]" asks, and the indented
// lines below it are the answer.
func TestAnswers(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(text))
			if got == string(text) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s differs (-update rewrites it):\n%s", file, lineDiff(string(text), got))
		})
	}
}

// tell runs a story and returns it with the answers given.
func tell(t *testing.T, story string) string {
	t.Helper()
	z := configure(t, nil)
	st := state.New()
	rev := model.Index(1)
	var out strings.Builder
	for line := range strings.Lines(story) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "    "):
			continue // an answer, told anew
		case strings.TrimSpace(line) == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "config"):
			z = configure(t, strings.Fields(line)[1:])
		case strings.HasPrefix(line, "? "):
			out.WriteString(line + "\n" + ask(t, z, st.Snapshot(), line[2:]))
			continue
		default:
			c, err := parseFact(line)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			rev++
			st.Apply(rev, []state.Change{c})
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// configure makes zones of the settings of a story's line "config", name=value.
// may=service:web,node:n1 is what everybody may read.
func configure(t testing.TB, settings []string) *zones {
	t.Helper()
	cfg := Config{Node: "n1", Resolve: func(secret string) (acl.Authorizer, error) {
		if secret != "all" {
			return nil, errors.New("ACL not found")
		}
		return acl.AllowAll(), nil
	}}
	seconds := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var may func() acl.Authorizer
	for _, s := range settings {
		name, v, _ := strings.Cut(s, "=")
		switch name {
		case "domain":
			cfg.Domain = v
		case "alt-domain":
			cfg.AltDomain = v
		case "only-passing":
			cfg.OnlyPassing = true
		case "node-ttl":
			cfg.NodeTTL = seconds(v)
		case "negative-ttl":
			cfg.NegativeTTL = seconds(v)
		case "service-ttl":
			cfg.ServiceTTL = map[string]time.Duration{}
			for k, v := range pairs(strings.Split(v, ",")) {
				cfg.ServiceTTL[k] = seconds(v)
			}
		case "a-record-limit":
			cfg.ARecordLimit, _ = strconv.Atoi(v)
		case "may":
			may = func() acl.Authorizer { return readers(strings.Split(v, ",")) }
		default:
			t.Fatalf("unknown setting %q", name)
		}
	}
	z := testZones(t, cfg)
	z.may = may
	return z
}

// readers may read what is listed as resource:name.
type readers []string

func (r readers) Allow(res acl.Resource, name string, a acl.Access) bool {
	return a == acl.Read && slices.Contains(r, string(res)+":"+name)
}
func (r readers) AllowPrefix(acl.Resource, string, acl.Access) bool { return false }
func (r readers) Accessor() string                                  { return "" }

func testZones(t testing.TB, cfg Config) *zones {
	t.Helper()
	z, err := newZones(cfg)
	if err != nil {
		t.Fatal(err)
	}
	z.isHost = func(a netip.Addr) bool { return a == netip.MustParseAddr("10.1.0.1") }
	return z
}

// ask puts one question of a story and returns the answer, one fact a line.
func ask(t *testing.T, z *zones, snap *state.Snapshot, line string) string {
	t.Helper()
	f := strings.Fields(line)
	req := new(miekg.Msg)
	req.SetQuestion(f[0], miekg.StringToType[f[1]])
	from, tr := netip.MustParseAddr("127.0.0.1"), transport{udp: true}
	for _, o := range f[2:] {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "from":
			from = netip.MustParseAddr(v)
		case "edns":
			size, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			req.SetEdns0(uint16(size), true)
		case "version":
			req.IsEdns0().SetVersion(1)
		case "opcode":
			req.Opcode = miekg.StringToOpcode[v]
		case "class":
			req.Question[0].Qclass = miekg.StringToClass[v]
		case "subnet":
			p := netip.MustParsePrefix(v)
			family := uint16(1)
			if p.Addr().Is6() {
				family = 2
			}
			opt := req.IsEdns0()
			opt.Option = append(opt.Option, &miekg.EDNS0_SUBNET{Code: miekg.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()})
		case "limit":
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			tr.limit = n
		case "tcp":
			tr.udp = false
		default:
			t.Fatalf("unknown option %q", o)
		}
	}
	r := z.answer(snap, req, from)
	if r.Msg == nil {
		return "    forwarded\n"
	}
	finish(r, req, tr)
	return render(t, r.Msg)
}

// render writes a message as it looks after a trip over the wire.
func render(t *testing.T, m *miekg.Msg) string {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatalf("cannot pack %v: %v", m, err)
	}
	m = new(miekg.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	rcode := miekg.RcodeToString[m.Rcode]
	if m.Rcode == miekg.RcodeBadVers {
		rcode = "BADVERS"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "    %s", rcode)
	if m.Authoritative {
		b.WriteString(" aa")
	}
	if m.Truncated {
		b.WriteString(" tc")
	}
	b.WriteString("\n")
	section := func(name string, rrs []miekg.RR) {
		for i, rr := range rrs {
			switch rr := rr.(type) {
			case *miekg.OPT:
				for _, o := range rr.Option {
					switch o := o.(type) {
					case *miekg.EDNS0_EDE:
						fmt.Fprintf(&b, "    because (%d): %s\n", o.InfoCode, o.ExtraText)
					default:
						fmt.Fprintf(&b, "    option %s\n", o)
					}
				}
				continue
			case *miekg.SOA:
				rr.Serial = 0
			}
			if len(rrs) > 12 && i == 3 {
				fmt.Fprintf(&b, "    ... %d more %s\n", len(rrs)-3, name)
				return
			}
			fmt.Fprintf(&b, "    %s %s\n", name, strings.Join(strings.Fields(strings.Replace(rr.String(), "\tIN\t", " ", 1)), " "))
		}
	}
	section("answer", m.Answer)
	section("authority", m.Ns)
	section("extra", m.Extra)
	return b.String()
}

func lineDiff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			return fmt.Sprintf("line %d:\nwant: %s\ngot:  %s", i+1, strings.Join(w[min(i, len(w)):min(i+6, len(w))], "\n      "), strings.Join(g[min(i, len(g)):min(i+6, len(g))], "\n      "))
		}
	}
	return ""
}
