package dns

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var update = flag.Bool("update", false, "rewrite the expected answers in testdata")

// TestAnswers runs the stories in testdata: facts change the catalogue, a line
// "? name type [from=asker] [edns=size] [tcp] [class=C]" asks, and the indented
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
	z := testZones(t)
	st := state.New()
	rev := model.Index(1)
	var out strings.Builder
	for line := range strings.Lines(story) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "    "):
			continue // an answer, told anew
		case strings.TrimSpace(line) == "", strings.HasPrefix(line, "#"):
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

func testZones(t testing.TB) *zones {
	t.Helper()
	z, err := newZones(Config{Node: "n1"})
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
	from, udp := netip.MustParseAddr("127.0.0.1"), true
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
		case "tcp":
			udp = false
		default:
			t.Fatalf("unknown option %q", o)
		}
	}
	m, why := z.answer(snap, req, from)
	if m == nil {
		return "    forwarded\n"
	}
	finish(m, req, why, udp)
	return render(t, m)
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
					fmt.Fprintf(&b, "    because: %s\n", o.(*miekg.EDNS0_EDE).ExtraText)
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
