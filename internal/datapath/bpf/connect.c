// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Programs of a cgroup that see connect(), sendmsg(), recvmsg(), getpeername() and the last close() of the processes in it, and
// exchange the address of a frontend (a VIP and port, or a published host address) for that of one of its backends, and back.
//
// Every address here is 16 bytes in network order, IPv4 in its IPv6-mapped form (RFC 4291, 2.5.5.2), so that an IPv4 destination is
// the same key whether an AF_INET or an AF_INET6 socket names it.
//
// User space replaces the backends of a frontend by writing a new set, under a number that was never used before, to a free part of
// the slots array, then pointing the frontend at it; the place of the old set is left alone for a while. Elements of hash maps may be
// recycled while a program still reads them. So values repeat what they belong to (tag, set, cookie), and a reader that finds another
// one starts over.
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ECONNREFUSED 111
#define EHOSTUNREACH 113
#define MPTCP 262 // IPPROTO_MPTCP; older headers lack it
#define TRIES 3   // how often a reader starts over when user space changes a frontend under it
#define PICKS 65536 // a power of two
#define SEARCH 24 // steps of a binary search: more than log2 of the largest backend set

struct address {
	__u32 w[4];
};

struct frontend_key {
	struct address addr;
	__u32 scope;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

enum state {
	STATE_OK = 0,
	STATE_NO_HEALTHY = 1,
	STATE_UNREACHABLE = 2,
};

struct frontend {
	__u32 set;   // zero: no backends
	__u32 start; // of the set in the slots array
	__u32 count; // backends in the set
	__u32 state;
	__u32 tag; // of the key, see tag_of
};

// A slot is a backend and a column of the alias table (A. J. Walker 1977; M. D. Vose, "A linear algorithm for generating random
// numbers with a given distribution", 1991): of those that draw this column, prob in 2^32 take the backend, the others the one in slot
// alias. The slots of a set are in order of address and port.
struct slot {
	struct address addr;
	__be16 port;
	__u16 pad;
	__u32 prob;
	__u32 alias;
	__u32 weight; // for user space
	__u32 set;    // that the slot is in
};

struct peer_key {
	__u64 cookie; // of the socket
	struct address addr;
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

struct peer {
	__u64 cookie; // of the key
	struct address addr;
	__be16 port;
	__u16 pad;
	__u32 set; // in which the backend was last found (sticky only)
};

// What a connected socket asked for and what it got.
struct pick {
	__u64 cookie; // zero: none
	struct address frontend;
	struct address backend;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 proto;
};

struct pool {
	struct address net;
	struct address mask;
};

struct settings {
	struct pool v4;
	struct pool v6;
	__u32 bits4; // prefix length plus one, zero: no pool
	__u32 bits6;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

// Network namespace cookie to scope.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} scopes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} frontends SEC(".maps");

// An array, because a set is then close together in memory: with thousands of services it is cache misses that a pick costs.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct slot);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} slots SEC(".maps");

// UDP: socket and frontend to backend.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct peer_key);
	__type(value, struct peer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sticky SEC(".maps");

// UDP: socket and backend to frontend.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct peer_key);
	__type(value, struct peer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} reverse SEC(".maps");

// The pick of each connected socket, at the place that the last bits of its cookie say. Cookies are given out in order, so this costs next
// to nothing, where socket storage takes 5 % of a connect to make, and an element of a hash map 2 %. Which of several sockets has a place
// is settled by an atomic exchange; the others are in more_picks. fl_sock_release deletes from both.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PICKS);
	__type(key, __u32);
	__type(value, struct pick);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} picks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct pick);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} more_picks SEC(".maps");

// Set before loading: whether bpf_set_retval exists (5.18). Without it every refusal is EPERM.
const volatile __u8 have_set_retval = 1;

enum verdict {
	PASS,    // not ours
	REWRITE, // flow.addr and flow.port are now the backend's
	REFUSE,
	UNREACH,
	AGAIN,
};

struct flow {
	struct address addr;
	__be16 port;
	__u32 proto;
};

static __always_inline bool equal(const struct address *a, const struct address *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline bool within(const struct address *a, const struct pool *p)
{
	return (a->w[0] & p->mask.w[0]) == p->net.w[0] && (a->w[1] & p->mask.w[1]) == p->net.w[1] &&
	       (a->w[2] & p->mask.w[2]) == p->net.w[2] && (a->w[3] & p->mask.w[3]) == p->net.w[3];
}

static __always_inline bool is_vip(const struct flow *f)
{
	__u32 zero = 0;
	struct settings *c = bpf_map_lookup_elem(&config, &zero);

	if (!c)
		return false;
	return (c->bits4 && within(&f->addr, &c->v4)) || (c->bits6 && within(&f->addr, &c->v6));
}

// unknown is the verdict on a destination without a frontend. A UDP socket connected to port 0 sends nothing: resolvers do that to
// learn which source address would be used (RFC 6724), and take an error for an address that cannot be reached.
static __always_inline int unknown(const struct flow *f, int verdict)
{
	if (!is_vip(f) || (f->proto == IPPROTO_UDP && !f->port))
		return PASS;
	return verdict;
}

// tag_of is the same function as in kernel.go.
static __always_inline __u32 tag_of(const struct frontend_key *k)
{
	return (k->addr.w[3] * 0x9e3779b1) ^ (k->scope * 0x85ebca6b) ^ ((__u32)k->port << 16) ^ k->proto;
}

// order compares as memcmp would, address first, then port.
static __always_inline int order(const struct slot *s, const struct peer *p)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 a = bpf_ntohl(s->addr.w[i]), b = bpf_ntohl(p->addr.w[i]);

		if (a != b)
			return a < b ? -1 : 1;
	}
	__u16 a = bpf_ntohs(s->port), b = bpf_ntohs(p->port);

	return a == b ? 0 : a < b ? -1 : 1;
}

// member reports whether p is one of the count backends of a set.
static __noinline bool member(__u32 set, __u32 start, __u32 count, const struct peer *p)
{
	__u32 low = start, high = start + count;

	if (!p)
		return false;
	for (int i = 0; i < SEARCH && low < high; i++) {
		__u32 at = low + (high - low) / 2;
		struct slot *s = bpf_map_lookup_elem(&slots, &at);

		if (!s)
			return false;
		int o = order(s, p);

		if (!o)
			return s->set == set;
		if (o < 0)
			low = at + 1;
		else
			high = at;
	}
	return false;
}

// draw picks a backend by weight. One random number serves for both steps: its product with the number of columns has the column before
// the binary point and, independent of it, what is compared with prob behind.
static __always_inline int draw(const struct frontend *fe, struct flow *f)
{
	__u64 r = (__u64)bpf_get_prandom_u32() * fe->count;
	__u32 at = fe->start + (r >> 32);
	struct slot *s = bpf_map_lookup_elem(&slots, &at);

	if (!s)
		return AGAIN;
	if ((__u32)r >= s->prob) {
		at = fe->start + s->alias;
		s = bpf_map_lookup_elem(&slots, &at);
		if (!s)
			return AGAIN;
	}
	f->addr = s->addr;
	f->port = s->port;
	barrier();
	return s->set == fe->set ? REWRITE : AGAIN;
}

// draw_sticky gives a UDP socket the backend it already talks to behind this frontend, for as long as that is one of its backends.
static __always_inline int draw_sticky(__u64 cookie, const struct frontend *fe, struct flow *f)
{
	struct peer_key key = { .cookie = cookie, .addr = f->addr, .port = f->port };
	struct peer_key back = { .cookie = cookie };
	struct peer *known = bpf_map_lookup_elem(&sticky, &key);
	struct peer val = {};
	bool found = false;

	if (known) {
		val = *known;
		barrier();
		if (val.cookie == cookie) {
			found = val.set == fe->set;
			if (!found && member(fe->set, fe->start, fe->count, &val)) {
				known->set = fe->set;
				found = true;
			}
		}
	}
	if (found) {
		f->addr = val.addr;
		f->port = val.port;
	} else {
		if (fe->state == STATE_UNREACHABLE)
			return UNREACH;
		if (fe->state != STATE_OK)
			return REFUSE;
		int v = draw(fe, f);

		if (v != REWRITE)
			return v;
		val.cookie = cookie;
		val.addr = f->addr;
		val.port = f->port;
		val.set = fe->set;
		bpf_map_update_elem(&sticky, &key, &val, BPF_ANY);
	}
	back.addr = f->addr;
	back.port = f->port;
	known = bpf_map_lookup_elem(&reverse, &back);
	if (!known || !equal(&known->addr, &key.addr) || known->port != key.port) {
		val.cookie = cookie;
		val.addr = key.addr;
		val.port = key.port;
		bpf_map_update_elem(&reverse, &back, &val, BPF_ANY);
	}
	return REWRITE;
}

// resolve finds the frontend of a flow and picks a backend.
static __always_inline int resolve(struct bpf_sock_addr *ctx, struct flow *f)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	__u32 *scope = bpf_map_lookup_elem(&scopes, &netns);
	struct frontend_key key = { .addr = f->addr, .port = f->port };

	if (!scope)
		return unknown(f, UNREACH);
	if (f->proto == MPTCP)
		f->proto = IPPROTO_TCP;
	key.scope = *scope;
	key.proto = f->proto;
	for (int i = 0; i < TRIES; i++) {
		struct frontend *found = bpf_map_lookup_elem(&frontends, &key);
		struct frontend fe;
		int v;

		if (!found)
			return unknown(f, REFUSE);
		fe = *found;
		barrier();
		if (found->tag != tag_of(&key))
			continue;
		if (f->proto == IPPROTO_UDP)
			v = draw_sticky(bpf_get_socket_cookie(ctx), &fe, f);
		else if (fe.state == STATE_OK)
			v = draw(&fe, f);
		else
			v = fe.state == STATE_UNREACHABLE ? UNREACH : REFUSE;
		if (v != AGAIN)
			return v;
	}
	return UNREACH;
}

static __always_inline int fail(int verdict)
{
	if (have_set_retval)
		bpf_set_retval(verdict == REFUSE ? -ECONNREFUSED : -EHOSTUNREACH);
	return 0;
}

// remember records the pick of a socket that connects. It is not forgotten when the socket connects elsewhere, which would cost every
// connect a look; whoever reads it compares it with the address that the socket is connected to.
static __always_inline void remember(const struct pick *pick)
{
	__u64 cookie = pick->cookie;
	__u32 at = cookie & (PICKS - 1);
	struct pick *p = bpf_map_lookup_elem(&picks, &at);

	if (!p)
		return;
	if (p->cookie != cookie && __sync_val_compare_and_swap(&p->cookie, 0, cookie)) {
		bpf_map_update_elem(&more_picks, &cookie, pick, BPF_ANY);
		return;
	}
	p->frontend = pick->frontend;
	p->backend = pick->backend;
	p->frontend_port = pick->frontend_port;
	p->backend_port = pick->backend_port;
	p->proto = pick->proto;
}

// recall returns what was remembered of a socket.
static __always_inline struct pick *recall(__u64 cookie)
{
	__u32 at = cookie & (PICKS - 1);
	struct pick *p = bpf_map_lookup_elem(&picks, &at);

	if (p && p->cookie == cookie)
		return p;
	return bpf_map_lookup_elem(&more_picks, &cookie);
}

// outgoing is the body of connect and sendmsg. It returns REWRITE when f changed, PASS when not; otherwise the call has failed.
static __always_inline int outgoing(struct bpf_sock_addr *ctx, struct flow *f, bool connects)
{
	struct pick p = { .frontend = f->addr, .frontend_port = f->port };
	int v = resolve(ctx, f);

	if (connects && v == REWRITE) {
		p.cookie = bpf_get_socket_cookie(ctx);
		p.backend = f->addr;
		p.backend_port = f->port;
		p.proto = f->proto;
		remember(&p);
	}
	return v;
}

// picked turns the backend that a connected socket got back into what it asked for.
static __always_inline bool picked(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct pick *p = recall(bpf_get_socket_cookie(ctx));

	if (!p || !equal(&p->backend, &f->addr) || p->backend_port != f->port)
		return false;
	f->addr = p->frontend;
	f->port = p->frontend_port;
	return true;
}

// incoming does the same for the source of a datagram on any UDP socket.
static __always_inline bool incoming(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct peer_key key = { .cookie = bpf_get_socket_cookie(ctx), .addr = f->addr, .port = f->port };
	struct peer *p = bpf_map_lookup_elem(&reverse, &key);

	if (!p)
		return picked(ctx, f); // connected so long ago that its entry has made room for others
	f->addr = p->addr;
	f->port = p->port;
	barrier();
	if (p->cookie == key.cookie)
		return true;
	f->addr = key.addr;
	f->port = key.port;
	return false;
}

static __always_inline void read4(struct bpf_sock_addr *ctx, struct flow *f)
{
	f->addr.w[0] = 0;
	f->addr.w[1] = 0;
	f->addr.w[2] = bpf_htonl(0xffff);
	f->addr.w[3] = ctx->user_ip4;
	f->port = ctx->user_port;
	f->proto = ctx->protocol;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct flow *f)
{
	ctx->user_ip4 = f->addr.w[3];
	ctx->user_port = f->port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, struct flow *f)
{
	f->addr.w[0] = ctx->user_ip6[0];
	f->addr.w[1] = ctx->user_ip6[1];
	f->addr.w[2] = ctx->user_ip6[2];
	f->addr.w[3] = ctx->user_ip6[3];
	f->port = ctx->user_port;
	f->proto = ctx->protocol;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct flow *f)
{
	ctx->user_ip6[0] = f->addr.w[0];
	ctx->user_ip6[1] = f->addr.w[1];
	ctx->user_ip6[2] = f->addr.w[2];
	ctx->user_ip6[3] = f->addr.w[3];
	ctx->user_port = f->port;
}

#define OUTGOING(hook, n, connects)                       \
	SEC("cgroup/" #hook #n)                               \
	int fl_##hook##n(struct bpf_sock_addr *ctx)           \
	{                                                     \
		struct flow f = {};                               \
		int v;                                            \
                                                          \
		read##n(ctx, &f);                                 \
		v = outgoing(ctx, &f, connects);                  \
		if (v == PASS)                                    \
			return 1;                                     \
		if (v != REWRITE)                                 \
			return fail(v);                               \
		write##n(ctx, &f);                                \
		return 1;                                         \
	}

#define INCOMING(hook, n, translate)                      \
	SEC("cgroup/" #hook #n)                               \
	int fl_##hook##n(struct bpf_sock_addr *ctx)           \
	{                                                     \
		struct flow f = {};                               \
                                                          \
		read##n(ctx, &f);                                 \
		if (translate(ctx, &f))                           \
			write##n(ctx, &f);                            \
		return 1;                                         \
	}

OUTGOING(connect, 4, true)
OUTGOING(connect, 6, true)
OUTGOING(sendmsg, 4, false)
OUTGOING(sendmsg, 6, false)
INCOMING(recvmsg, 4, incoming)
INCOMING(recvmsg, 6, incoming)
INCOMING(getpeername, 4, picked)
INCOMING(getpeername, 6, picked)

// fl_sock_release sees the last close of a socket. Its pick may be in both maps, if the place was taken at its first connect only.
SEC("cgroup/sock_release")
int fl_sock_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u32 at = cookie & (PICKS - 1);
	struct pick *place = bpf_map_lookup_elem(&picks, &at);
	struct pick *p = recall(cookie);

	if (!p)
		return 1;
	if (p->proto == IPPROTO_UDP) {
		struct peer_key key = { .cookie = cookie, .addr = p->frontend, .port = p->frontend_port };

		bpf_map_delete_elem(&sticky, &key);
		key.addr = p->backend;
		key.port = p->backend_port;
		bpf_map_delete_elem(&reverse, &key);
	}
	if (bpf_map_lookup_elem(&more_picks, &cookie))
		bpf_map_delete_elem(&more_picks, &cookie);
	if (place && place->cookie == cookie)
		place->cookie = 0;
	return 1;
}

char __license[] SEC("license") = "GPL";
