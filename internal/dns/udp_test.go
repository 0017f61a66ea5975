package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func listenUDP(t *testing.T, network, addr string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		t.Fatalf("%T", pc)
	}
	return conn
}

// The sockets of one address are ours alone, take all askers together, and close
// with the server.
func TestSocketsOfOneAddress(t *testing.T) {
	s := start(t, Config{})
	if err := New(Config{Addr: s.at, Node: "n1"}, nil).Run(t.Context(), func() { t.Error("ready beside another server") }); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second server: %v", err)
	}
	for range 32 { // each from a port of its own
		if m := query(t, "udp", s.at, "web.service.consul.", miekg.TypeA); len(m.Answer) != 2 {
			t.Errorf("%v", m)
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// Without sharing, it takes that all of them are gone.
	listenUDP(t, "udp", s.at)
}

func TestSpread(t *testing.T) {
	first := listenUDP(t, "udp", "127.0.0.1:0")
	all := spread(t.Context(), first, "127.0.0.1", 3)
	for _, c := range all[1:] {
		defer c.Close()
		if c.LocalAddr().String() != first.LocalAddr().String() {
			t.Errorf("%s beside %s", c.LocalAddr(), first.LocalAddr())
		}
	}
	if len(all) != 3 {
		t.Errorf("%d sockets, want 3", len(all))
	}
	// Where there cannot be more, one does.
	alone := listenUDP(t, "udp", "127.0.0.1:0")
	if all := spread(t.Context(), alone, "not an address", 3); len(all) != 1 || all[0] != alone {
		t.Errorf("%d sockets", len(all))
	}
}

// Answers leave from the address that was asked, also where a socket has all of
// them, be they kept or made.
func TestAnswersLeaveFromTheAddressAsked(t *testing.T) {
	st, err := catalog(hostFacts)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Node: "n1"}, st)
	for network, tt := range map[string]struct {
		at    string
		take  takeSocket
		asked []string
	}{
		"udp4": {"0.0.0.0:0", blocked, []string{"127.0.0.1", "127.0.0.5"}},
		"udp":  {"[::]:0", polled, []string{"127.0.0.1", "127.0.0.5", "::1"}},
		"udp6": {"[::1]:0", blocked, []string{"::1"}},
	} {
		t.Run(network, func(t *testing.T) {
			conn := listenUDP(t, network, tt.at)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.serveUDP(ctx, conn, tt.take, 2, make(chan struct{}, 8)) }()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			for _, ip := range tt.asked {
				to := netip.AddrPortFrom(netip.MustParseAddr(ip), addrPort(conn.LocalAddr()).Port())
				for range 4 {
					// Only a reply from that very address arrives.
					if m := query(t, "udp", to.String(), "web.service.consul.", miekg.TypeA); len(m.Answer) != 2 {
						t.Errorf("%v", m)
					}
				}
				if m := query(t, "udp", to.String(), "web.service.consul.", miekg.TypeANY); len(m.Answer) != 4 {
					t.Errorf("%v", m)
				}
			}
		})
	}
	if !isKept(s, "web.service.consul.", miekg.TypeA) {
		t.Error("nothing was kept")
	}
}

// isKept reports whether the server keeps an answer for this host.
func isKept(s *Server, name string, qtype uint16) bool {
	req := new(miekg.Msg)
	req.SetQuestion(name, qtype)
	wire, err := req.Pack()
	var q plainQuery
	return err == nil && q.parse(wire) && s.kept.find(&q, hostClass) != nil
}

// More queries than fit in a batch, sent before the first is read.
func TestManyAtOnce(t *testing.T) {
	s := start(t, Config{})
	conn, err := net.Dial("udp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	const many = 3 * mainBatch
	names := []string{"web.service.consul.", "nosuch.service.consul.", "mail.service.consul.", "n1.node.consul."}
	asked := map[uint16]string{}
	for i := range uint16(many) {
		req := new(miekg.Msg)
		req.SetQuestion(names[int(i)%len(names)], miekg.TypeA)
		req.Id = i
		asked[i] = req.Question[0].Name
		wire, err := req.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(wire); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 4096)
	for len(asked) > 0 {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%d unanswered: %v", len(asked), err)
		}
		m := new(miekg.Msg)
		if err := m.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if m.Question[0].Name != asked[m.Id] {
			t.Errorf("%d: %v, want %s", m.Id, m.Question, asked[m.Id])
		}
		delete(asked, m.Id)
	}
}
