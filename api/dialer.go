package api

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/api/internal/load"
)

// defaultDialTimeout is for one instance to accept a connection.
const defaultDialTimeout = 2 * time.Second

// Dialer connects to services by their names. Its DialContext stands in for that of
// a net.Dialer, for instance in a database driver.
//
// A name of a service (see ParseName) is resolved to an instance, the one with the
// least latency x (open connections + 1), and the next if that does not accept the
// connection. The port is the instance's: the one in the address, which callers have
// to give, counts only if the instance was registered without. Other addresses are
// connected to as they are.
//
// The fields must not be changed after first use. It is safe for concurrent use.
type Dialer struct {
	Resolver *Resolver
	// Dial connects to one address; nil is a net.Dialer that takes 2 s at most.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Patience is how long instances are tried and waited for; 0 is DefaultPatience.
	Patience time.Duration

	pools pools
}

// DialContext connects to the address "host:port"; for the name of a service, the
// port may be left out. When no instance takes the connection its error is the last
// one's, or ErrNoInstance.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := d.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: defaultDialTimeout}).DialContext
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		host, port = addr, ""
	}
	sel, ok := ParseName(host)
	if !ok {
		return dial(ctx, network, addr)
	}
	search := d.pools.of(d.Resolver, sel, 0).search(cmp.Or(d.Patience, DefaultPatience))
	var last error
	for {
		pick, err := search.next(ctx)
		switch {
		case ctx.Err() != nil:
			if pick != nil {
				pick.Done(load.Abandoned)
			}
			return nil, fmt.Errorf("connect to %s: %w", addr, cmp.Or(last, ctx.Err()))
		case err != nil:
			return nil, fmt.Errorf("connect to %s: %w", addr, cmp.Or(last, err))
		}
		to := pick.Value.Addr()
		if pick.Value.Port == 0 {
			to = net.JoinHostPort(pick.Value.Host, port)
		}
		conn, err := dial(ctx, network, to)
		switch {
		case err == nil:
			pick.Observe(load.OK)
			return counted(conn, pick.Release), nil
		case ctx.Err() != nil:
			pick.Done(load.Abandoned)
		default:
			pick.Done(load.Refused)
		}
		last = err
	}
}

// counted calls closed when the connection is closed.
func counted(c net.Conn, closed func()) net.Conn {
	once := sync.OnceFunc(closed)
	if tcp, ok := c.(*net.TCPConn); ok {
		return &countedTCP{tcp, once}
	}
	return &countedConn{c, once}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// countedTCP keeps what a TCP connection can do beyond a net.Conn, such as closing
// one direction.
type countedTCP struct {
	*net.TCPConn
	closed func()
}

func (c *countedTCP) Close() error {
	c.closed()
	return c.TCPConn.Close()
}
