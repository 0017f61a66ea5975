package consulapi_test

import (
	"net"
	"net/http"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

// TestConnectionsCountedBefore: what Enter has counted is not counted again by the
// server, whoever sees its end.
func TestConnectionsCountedBefore(t *testing.T) {
	g := consulapi.NewGuard(consulapi.Limits{ConnsPerClient: 1, Log: quiet()})
	srv := g.Server(http.NotFoundHandler())
	c, other := net.Pipe()
	defer c.Close()
	defer other.Close()
	one := from{c}
	if !g.Enter(one) || g.Enter(one) {
		t.Fatal("not one of two is let in")
	}
	g.Left(one)
	if !g.Enter(one) {
		t.Fatal("one that has left still counts")
	}
	srv.ConnContext(t.Context(), returned{one})
	srv.ConnState(returned{one}, http.StateClosed)
	if !g.Enter(one) || g.Enter(one) {
		t.Error("one that the server has had counts twice, or still")
	}
}

// from is a connection with a client's address.
type from struct{ net.Conn }

func (from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 1} }

type returned struct{ from }

func (returned) Returned() {}
