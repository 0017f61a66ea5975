// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The program on the host's side of every endpoint's veth; it sees what the endpoint sends. Traffic to another endpoint of the same
// network is handed straight to that endpoint's side of its veth, so that it never meets the bridge and the host's forward hook, where
// a foreign firewall may drop it. Everything else goes on to the bridge. Packets from addresses that are not the endpoint's own are
// dropped.
//
// Addresses are 16 bytes in network order, IPv4 in its IPv6-mapped form. A flow that NAT touches is never short-cut: its destination
// is a host address, which is in no network, and hairpin through a published port is masqueraded, so its reply goes to the gateway.
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_ADDRS 4 // MaxVethAddrs
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136

struct address {
	__u32 w[4];
};

struct veth_entry {
	__u32 network;
	__u8 mac[ETH_ALEN];
	__u8 n4;
	__u8 n6;
	__u32 own4[MAX_ADDRS];
	struct address own6[MAX_ADDRS];
};

struct endpoint_key {
	struct address addr;
	__u32 network;
};

struct endpoint_entry {
	__u32 ifindex; // of the host's side
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

struct mac_key {
	__u32 network;
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

enum counter {
	REDIRECTED,
	SPOOFED,
	MALFORMED,
	BRIDGED,
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // ifindex
	__type(value, struct veth_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} veths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

// Where to find a MAC address: for IPv6 link-local destinations, which are no endpoint's registered address but which neighbour
// discovery answers to.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mac_key);
	__type(value, __u32); // ifindex
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

static __always_inline int count(__u32 which, int verdict)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &which);

	if (n)
		(*n)++;
	return verdict;
}

// header returns the first need bytes of the packet, or NULL.
static __always_inline void *header(struct __sk_buff *skb, __u32 need)
{
	void *data = (void *)(long)skb->data;

	if (data + need <= (void *)(long)skb->data_end)
		return data;
	if (bpf_skb_pull_data(skb, need))
		return NULL;
	data = (void *)(long)skb->data;
	if (data + need <= (void *)(long)skb->data_end)
		return data;
	return NULL;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

static __always_inline bool own4(const struct veth_entry *v, __u32 a)
{
	bool own = !a;

#pragma unroll
	for (int i = 0; i < MAX_ADDRS; i++)
		own |= v->own4[i] == a;
	return own;
}

static __always_inline bool link_local(const struct in6_addr *a)
{
	return a->s6_addr[0] == 0xfe && (a->s6_addr[1] & 0xc0) == 0x80;
}

// own6 also accepts link-local addresses, and the unspecified one (unused entries are that).
static __always_inline bool own6(const struct veth_entry *v, const struct in6_addr *a)
{
	bool own = link_local(a) || !(a->s6_addr32[0] | a->s6_addr32[1] | a->s6_addr32[2] | a->s6_addr32[3]);

#pragma unroll
	for (int i = 0; i < MAX_ADDRS; i++)
		own |= v->own6[i].w[0] == a->s6_addr32[0] && v->own6[i].w[1] == a->s6_addr32[1] &&
		       v->own6[i].w[2] == a->s6_addr32[2] && v->own6[i].w[3] == a->s6_addr32[3];
	return own;
}

// deliver hands the packet to the endpoint behind the veth ifindex. The packet was received by the host's side of the sender's veth
// and so counts as somebody else's until its type is set.
static __always_inline int deliver(struct __sk_buff *skb, __u32 ifindex, const __u8 *mac, bool rewrite)
{
	if (rewrite && bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return count(MALFORMED, TC_ACT_SHOT);
	bpf_skb_change_type(skb, PACKET_HOST);
	return count(REDIRECTED, bpf_redirect_peer(ifindex, 0));
}

// to_endpoint delivers to an address of the sender's network if an endpoint has it.
static __always_inline int to_endpoint(struct __sk_buff *skb, const __u8 *dest, const struct endpoint_key *key)
{
	struct endpoint_entry *found = bpf_map_lookup_elem(&endpoints, key);
	struct endpoint_entry e;

	if (!found)
		return count(BRIDGED, TC_ACT_OK);
	e = *found;
	if (e.ifindex == skb->ifindex) // duplicate address detection asks for one's own address
		return count(BRIDGED, TC_ACT_OK);
	return deliver(skb, e.ifindex, e.mac, !same_mac(dest, e.mac));
}

// to_mac delivers to a MAC address of the sender's network if an endpoint has it.
static __always_inline int to_mac(struct __sk_buff *skb, const struct mac_key *key, bool rewrite)
{
	__u32 *ifindex = bpf_map_lookup_elem(&macs, key);

	if (!ifindex || *ifindex == skb->ifindex)
		return count(BRIDGED, TC_ACT_OK);
	return deliver(skb, *ifindex, key->mac, rewrite);
}

// mac_of recovers the MAC address that a link-local address was made from (RFC 4291, appendix A). A namespace that makes them otherwise
// is found by way of the bridge.
static __always_inline bool mac_of(const struct in6_addr *a, struct mac_key *key)
{
	const __u8 *b = a->s6_addr;

	if (b[11] != 0xff || b[12] != 0xfe)
		return false;
	key->mac[0] = b[8] ^ 2;
	key->mac[1] = b[9];
	key->mac[2] = b[10];
	key->mac[3] = b[13];
	key->mac[4] = b[14];
	key->mac[5] = b[15];
	return true;
}

static __always_inline int from_arp(struct __sk_buff *skb, const struct veth_entry *v)
{
	struct {
		struct ethhdr eth;
		struct arphdr arp;
		__u8 sender_mac[ETH_ALEN];
		__u8 sender[4];
	} __attribute__((packed)) *p = header(skb, sizeof(*p));
	__u32 sender;

	if (!p)
		return count(MALFORMED, TC_ACT_SHOT);
	__builtin_memcpy(&sender, p->sender, sizeof(sender));
	if (!same_mac(p->eth.h_source, v->mac) || !same_mac(p->sender_mac, v->mac) || !own4(v, sender))
		return count(SPOOFED, TC_ACT_SHOT);
	return count(BRIDGED, TC_ACT_OK);
}

static __always_inline int from_ipv4(struct __sk_buff *skb, const struct veth_entry *v)
{
	struct ethhdr *eth = header(skb, sizeof(*eth) + sizeof(struct iphdr));
	struct iphdr *ip = (void *)(eth + 1);
	struct endpoint_key key = { .network = v->network };

	if (!eth)
		return count(MALFORMED, TC_ACT_SHOT);
	if (!same_mac(eth->h_source, v->mac) || !own4(v, ip->saddr))
		return count(SPOOFED, TC_ACT_SHOT);
	key.addr.w[2] = bpf_htonl(0xffff);
	key.addr.w[3] = ip->daddr;
	return to_endpoint(skb, eth->h_dest, &key);
}

static __always_inline int from_ipv6(struct __sk_buff *skb, const struct veth_entry *v)
{
	struct ethhdr *eth = header(skb, sizeof(*eth) + sizeof(struct ipv6hdr));
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct endpoint_key key = { .network = v->network };
	struct mac_key mac = { .network = v->network };

	if (!eth)
		return count(MALFORMED, TC_ACT_SHOT);
	if (!same_mac(eth->h_source, v->mac) || !own6(v, &ip->saddr))
		return count(SPOOFED, TC_ACT_SHOT);
	__builtin_memcpy(mac.mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(&key.addr, &ip->daddr, sizeof(key.addr));
	bool local = link_local(&ip->daddr);

	// Neighbour discovery: the address that it is about follows the ICMP header (RFC 4861, 4.3 and 4.4).
	if (ip->nexthdr == IPPROTO_ICMPV6) {
		const __u32 need = sizeof(*eth) + sizeof(*ip) + sizeof(struct icmp6hdr) + sizeof(struct in6_addr);
		void *data = header(skb, need);

		if (data) {
			struct icmp6hdr *icmp = data + sizeof(*eth) + sizeof(*ip);
			struct in6_addr *target = (void *)(icmp + 1);

			if (icmp->icmp6_type == NEIGHBOUR_ADVERTISEMENT && !own6(v, target))
				return count(SPOOFED, TC_ACT_SHOT);
			if (icmp->icmp6_type == NEIGHBOUR_SOLICITATION) {
				if (link_local(target))
					return mac_of(target, &mac) ? to_mac(skb, &mac, true) : count(BRIDGED, TC_ACT_OK);
				__builtin_memcpy(&key.addr, target, sizeof(key.addr));
				return to_endpoint(skb, mac.mac, &key);
			}
		}
	}
	if (local)
		return to_mac(skb, &mac, false);
	return to_endpoint(skb, mac.mac, &key);
}

SEC("tc")
int fl_veth(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct veth_entry *v = bpf_map_lookup_elem(&veths, &ifindex);

	if (!v || skb->vlan_present) // a VLAN of the endpoint's own making has no member beyond the bridge
		return TC_ACT_OK;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return from_ipv4(skb, v);
	case bpf_htons(ETH_P_IPV6):
		return from_ipv6(skb, v);
	case bpf_htons(ETH_P_ARP):
		return from_arp(skb, v);
	}
	return count(BRIDGED, TC_ACT_OK);
}

char __license[] SEC("license") = "GPL";
