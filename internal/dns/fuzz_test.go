package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// everything is the catalogue of all stories at once.
func everything(f *testing.F) *state.Snapshot {
	f.Helper()
	st := state.New()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	rev := model.Index(1)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.TrimSpace(line) == "" || strings.ContainsAny(line[:1], " #?-") || strings.HasPrefix(line, "config") {
				continue
			}
			c, err := parseFact(line)
			if err != nil {
				f.Fatal(err)
			}
			rev++
			st.Apply(rev, []state.Change{c})
		}
	}
	return st.Snapshot()
}

// FuzzPacket answers any packet at all. Whatever comes out fits the asker and
// is a reply to the question.
func FuzzPacket(f *testing.F) {
	snap := everything(f)
	add := func(name string, qtype uint16) {
		req := new(miekg.Msg)
		req.SetQuestion(name, qtype)
		req.SetEdns0(1400, true)
		wire, err := req.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, false)
		f.Add(wire, true)
	}
	for _, n := range []string{
		"consul.", "web.service.consul.", "_web._tcp.service.consul.", "v1.web.service.dc1.consul.", "n1.node.internal.",
		"0a090002.addr.dc1.consul.", "api.virtual.consul.", "plain.query.consul.", "geo-web.query.consul.", "_v2.only._udp.query.consul.", "web.connect.consul.", "x.ingress.consul.", "1.0.1.10.in-addr.arpa.", "db.net-a.internal.", "db.", ".", "example.com.",
		"2.0.210.10.in-addr.arpa.", "x.service.consul.", `we\.b.service.consul.`, `\000\255.service.consul.`,
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.0.d.f.ip6.arpa.",
	} {
		add(n, miekg.TypeA)
		add(n, miekg.TypeSRV)
		add(n, miekg.TypeANY)
	}
	z := New(Config{Node: "n1"}, nil).zones
	z.isHost = nil
	asker := netip.MustParseAddr("10.210.0.4")
	f.Fuzz(func(t *testing.T, wire []byte, udp bool) {
		req := new(miekg.Msg)
		if req.Unpack(wire) != nil {
			return
		}
		m := z.answer(snap, req, asker)
		if m.Msg == nil {
			m.Msg = downstream(upstream(req), req)
		}
		finish(m, req, transport{udp: udp})
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("cannot pack the reply to %v: %v", req, err)
		}
		size := miekg.MaxMsgSize
		if opt := req.IsEdns0(); udp && opt != nil {
			size = max(miekg.MinMsgSize, int(opt.UDPSize()))
		} else if udp {
			size = miekg.MinMsgSize
		}
		if len(out) > size {
			t.Fatalf("%d bytes, %d asked for", len(out), size)
		}
		if m.Id != req.Id {
			t.Fatalf("id %d in the reply to %d", m.Id, req.Id)
		}
	})
}

func FuzzReverse(f *testing.F) {
	f.Add("4.3.2.1.in-addr.arpa.")
	f.Add("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.0.d.f.ip6.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		ip, ok := reverseAddr(name)
		if !ok {
			return
		}
		back, err := miekg.ReverseAddr(ip.String())
		if err != nil || !strings.EqualFold(back, name) {
			// miekg writes IPv4-mapped addresses as IPv4.
			if !ip.Is4In6() {
				t.Errorf("%q is %s, whose reverse name is %q (%v)", name, ip, back, err)
			}
		}
	})
}
