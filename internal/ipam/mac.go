package ipam

import (
	"crypto/sha256"
	"net"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
)

// MAC is the hardware address of an endpoint's interface, "02:xx:xx:xx:xx:xx":
// made from its IPv4 address, so that an address that moves to a new endpoint
// keeps its neighbours' caches right; without one, from the endpoint's id.
func MAC(id model.EndpointID, addrs []netip.Addr) string {
	for _, a := range addrs {
		if a.Is4() {
			b := a.As4()
			return net.HardwareAddr{0x02, 0xf1, b[0], b[1], b[2], b[3]}.String()
		}
	}
	sum := sha256.Sum256([]byte(id))
	return net.HardwareAddr{0x02, 0xf6, sum[0], sum[1], sum[2], sum[3]}.String()
}
