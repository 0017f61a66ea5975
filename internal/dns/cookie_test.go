package dns

import (
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The examples of RFC 9018, appendix A.
func TestCookiesAreThoseOfTheRFC(t *testing.T) {
	for _, tt := range []struct {
		secret, client, asker, server string
		seconds                       uint32
	}{
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", "010000005cf79f111f8130c3eee29480", 1559731985},
		{"dd3bdf9344b678b185a6f5cb60fca715", "22681ab97d52c298", "2001:db8:220:1:59de:d0f4:8769:82b8", "010000005cf7c57926556bd0934c72f8", 1559741817},
	} {
		c := newCookies([16]byte(unhex(t, tt.secret)))
		if got := hex.EncodeToString(c.make(unhex(t, tt.client), netip.MustParseAddr(tt.asker), tt.seconds)); got != tt.server {
			t.Errorf("the cookie for %s is %s, want %s", tt.asker, got, tt.server)
		}
	}
}

func withCookie(hexCookie string) *miekg.Msg {
	req := new(miekg.Msg)
	req.SetQuestion("web.service.consul.", miekg.TypeA)
	req.SetEdns0(1232, false)
	opt := req.IsEdns0()
	opt.Option = append(opt.Option, &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: hexCookie})
	return req
}

func TestCookieCheck(t *testing.T) {
	const client = "2464c4abcf10c957"
	c, asker, now := newCookies([16]byte{1}), netip.MustParseAddr("198.51.100.1"), time.Unix(1_700_000_000, 0)
	made := func(age time.Duration) string {
		return hex.EncodeToString(c.make(unhex(t, client), asker, uint32(now.Add(-age).Unix())))
	}
	for _, tt := range []struct {
		name, cookie string
		asker        netip.Addr
		proved, ok   bool
		same         bool // the answer has the cookie that was brought
	}{
		{name: "a client's alone", cookie: client, ok: true},
		{name: "ours", cookie: client + made(time.Minute), ok: true, proved: true, same: true},
		{name: "an old one of ours", cookie: client + made(45*time.Minute), ok: true, proved: true},
		{name: "too old", cookie: client + made(61*time.Minute), ok: true},
		{name: "a little ahead", cookie: client + made(-time.Minute), ok: true, proved: true, same: true},
		{name: "too far ahead", cookie: client + made(-6*time.Minute), ok: true},
		{name: "somebody else's", cookie: client + made(0), asker: netip.MustParseAddr("198.51.100.2"), ok: true},
		{name: "for another client cookie", cookie: "0000000000000000" + made(0), ok: true},
		{name: "another server's kind", cookie: client + "0011223344556677", ok: true},
		{name: "too short", cookie: "2464c4abcf10c9"},
		{name: "half a server's", cookie: client + "00112233"},
		{name: "too long", cookie: client + made(0) + made(0) + "00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := asker
			if tt.asker.IsValid() {
				from = tt.asker
			}
			answer, proved, ok := c.check(withCookie(tt.cookie), from, now)
			if proved != tt.proved || ok != tt.ok {
				t.Errorf("proved %v, ok %v, want %v, %v", proved, ok, tt.proved, tt.ok)
			}
			if !ok {
				return
			}
			if (answer == tt.cookie) != tt.same || answer[:16] != tt.cookie[:16] {
				t.Errorf("the answer's cookie is %s to %s, want the same: %v", answer, tt.cookie, tt.same)
			}
			if _, good, _ := c.check(withCookie(answer), from, now); !good {
				t.Error("the answer's own cookie is not taken")
			}
		})
	}
	if answer, proved, ok := c.check(new(miekg.Msg), asker, now); answer != "" || proved || !ok {
		t.Error("without EDNS there is no cookie")
	}
}
