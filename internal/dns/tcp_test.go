package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	miekg "github.com/miekg/dns"
)

// onePipe runs a stream's conversation over a pipe, whose answers to messages are
// what answer says. It returns the client's end; done closes at the end of the
// conversation.
func onePipe(t *testing.T, answer func(context.Context, []byte, netip.Addr) []byte) (c net.Conn, done chan struct{}) {
	t.Helper()
	client, server := net.Pipe()
	done = make(chan struct{})
	go func() {
		defer close(done)
		(&stream{answer: answer}).converse(t.Context(), server)
	}()
	t.Cleanup(func() { client.Close() })
	return client, done
}

func send(t *testing.T, c net.Conn, messages ...string) {
	t.Helper()
	var b []byte
	for _, m := range messages {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn) string {
	t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// echo answers with the question after as many seconds as its first digit says.
func echo(ctx context.Context, wire []byte, _ netip.Addr) []byte {
	select {
	case <-time.After(time.Duration(wire[0]-'0') * time.Second):
		return bytes.Clone(wire)
	case <-ctx.Done():
		return nil
	}
}

func TestAnswersOvertakeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, done := onePipe(t, echo)
		send(t, c, "3 slow", "1 quick", "2 middling")
		for _, want := range []string{"1 quick", "2 middling", "3 slow"} {
			if got := receive(t, c); got != want {
				t.Errorf("%q came, want %q", got, want)
			}
		}
		c.Close()
		<-done
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			sent []byte
			want time.Duration
		}{
			{"nothing", nil, idleTimeout},
			{"half a length", []byte{0}, messageTimeout},
			{"half a message", []byte{0, 9, '0', 'x'}, messageTimeout},
		} {
			c, done := onePipe(t, echo)
			began := time.Now()
			if _, err := c.Write(tt.sent); tt.sent != nil && err != nil {
				t.Fatal(err)
			}
			<-done
			if took := time.Since(began); took != tt.want {
				t.Errorf("after %s: closed after %v, want %v", tt.name, took, tt.want)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("after %s: %v", tt.name, err)
			}
		}
	})
}

// Who waits for us is not idle.
func TestWaitingConnectionsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := func(ctx context.Context, wire []byte, _ netip.Addr) []byte {
			select {
			case <-time.After(3 * idleTimeout):
				return wire
			case <-ctx.Done():
				return nil
			}
		}
		c, done := onePipe(t, late)
		send(t, c, "late")
		if got := receive(t, c); got != "late" {
			t.Error(got)
		}
		<-done
	})
}

// A client that does not read is hung up on, and one that asks without end is
// answered only so many questions at a time.
func TestGreedyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, done := onePipe(t, echo)
		send(t, c, "0 unread")
		began := time.Now()
		<-done
		if took := time.Since(began); took != messageTimeout {
			t.Errorf("hung up after %v, want %v", took, messageTimeout)
		}

		var mu sync.Mutex
		now, most := 0, 0
		c, done = onePipe(t, func(ctx context.Context, wire []byte, from netip.Addr) []byte {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			defer func() { mu.Lock(); now--; mu.Unlock() }()
			return echo(ctx, wire, from)
		})
		go func() {
			for range 3 * maxPipelined {
				send(t, c, "1")
			}
		}()
		for range 3 * maxPipelined {
			receive(t, c)
		}
		c.Close()
		<-done
		if most != maxPipelined {
			t.Errorf("%d questions were answered at a time, want %d", most, maxPipelined)
		}
	})
}

// What was asked before the asker closed its side is still answered.
func TestHalfClosedConnection(t *testing.T) {
	s := start(t, Config{})
	conn, err := net.Dial("tcp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := new(miekg.Msg)
	req.SetQuestion("web.service.consul.", miekg.TypeA)
	wire, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	send(t, conn, string(wire))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	m := new(miekg.Msg)
	if err := m.Unpack([]byte(receive(t, conn))); err != nil || len(m.Answer) != 2 {
		t.Errorf("%v, %v", m, err)
	}
}

func TestManyConnections(t *testing.T) {
	s := start(t, Config{})
	const conns = 200
	var wg sync.WaitGroup
	for range conns {
		wg.Go(func() {
			conn, err := miekg.Dial("tcp", s.at)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for range 3 {
				req := new(miekg.Msg)
				req.SetQuestion("web.service.consul.", miekg.TypeA)
				if err := conn.WriteMsg(req); err != nil {
					t.Error(err)
					return
				}
				if m, err := conn.ReadMsg(); err != nil || m.Id != req.Id || len(m.Answer) != 2 {
					t.Errorf("%v, %v", m, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Over a connection, too, what is no proper query gets the right refusal or none.
func TestBadMessagesOverTCP(t *testing.T) {
	s := start(t, Config{})
	header := func(bits uint16, qd byte) []byte {
		return []byte{0, 77, byte(bits >> 8), byte(bits), 0, qd, 0, 0, 0, 0, 0, 0}
	}
	for _, tt := range []struct {
		name string
		wire []byte
		want int // -1: silence
	}{
		{"nothing", nil, -1},
		{"half a header", make([]byte, 7), -1},
		{"a reply", header(1<<15, 1), -1},
		{"no question", header(0, 0), miekg.RcodeFormatError},
		{"a question that is cut", header(0, 1), miekg.RcodeFormatError},
		{"NOTIFY", header(4<<11, 1), miekg.RcodeNotImplemented},
	} {
		reply := s.answerWire(t.Context(), tt.wire, netip.MustParseAddr("127.0.0.1"))
		got := -1
		if reply != nil {
			m := new(miekg.Msg)
			if err := m.Unpack(reply); err != nil || m.Id != 77 || !m.Response {
				t.Errorf("%s: %v, %v", tt.name, m, err)
			}
			got = m.Rcode
		}
		if got != tt.want {
			t.Errorf("%s: rcode %d, want %d", tt.name, got, tt.want)
		}
	}
}
