package node

import "net"

// outgoingAddr is the address of this host that others most likely reach: the
// one a packet to a public address would leave from. Nothing is sent: connecting
// a UDP socket only looks up the route. The targets are documentation addresses
// (RFC 5737, RFC 3849).
func outgoingAddr() string {
	for _, target := range []string{"203.0.113.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", target)
		if err != nil {
			continue
		}
		a, ok := c.LocalAddr().(*net.UDPAddr)
		_ = c.Close() // nothing was sent
		if ok {
			return a.AddrPort().Addr().Unmap().String()
		}
	}
	return "127.0.0.1"
}
