package nativeapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// socket is a line of /proc/net/tcp as the kernel writes it.
func socket(local, remote, state string, uid int) string {
	return fmt.Sprintf("   0: %s %s %s 00000000:00000000 00:00000000 00000000  %4d        0 12345 1 0000000000000000 100 0 0 10 0\n", local, remote, state, uid)
}

func TestGuard(t *testing.T) {
	const (
		agent  = "0100007F:2134"                         // 127.0.0.1:8500
		caller = "0100007F:9C40"                         // 127.0.0.1:40000
		other  = "0100007F:0050"                         // 127.0.0.1:80
		agent6 = "00000000000000000000000001000000:2134" // [::1]:8500
		call6  = "00000000000000000000000001000000:9C40" // [::1]:40000
		mapped = "0000000000000000FFFF00000100007F:9C40" // [::ffff:127.0.0.1]:40000
		agentM = "0000000000000000FFFF00000100007F:2134" // [::ffff:127.0.0.1]:8500
	)
	const me = 1000
	const from4, from6 = "127.0.0.1:40000", "[::1]:40000"
	for name, c := range map[string]struct {
		from, to   string
		tcp, tcp6  string
		want       string // empty: allowed
		otherwise  int    // status, 403 unless given
		unreadable bool
	}{
		"root":                           {from: from4, tcp: socket(caller, agent, "01", 0)},
		"the agent's user":               {from: from4, tcp: socket(caller, agent, "01", me)},
		"another user":                   {from: from4, tcp: socket(caller, agent, "01", 1001), want: "user 1001. Use sudo"},
		"the agent's own end is root's":  {from: from4, tcp: socket(agent, caller, "01", 0) + socket(caller, agent, "01", 1001), want: "user 1001"},
		"IPv6":                           {from: from6, to: "[::1]:8500", tcp6: socket(call6, agent6, "01", 0)},
		"IPv6, another user":             {from: from6, to: "[::1]:8500", tcp6: socket(call6, agent6, "01", 1001), want: "user 1001"},
		"IPv4 from a socket for both":    {from: from4, tcp6: socket(mapped, agentM, "01", 0)},
		"IPv4 to a listener for both":    {from: "[::ffff:127.0.0.1]:40000", to: "[::ffff:127.0.0.1]:8500", tcp: socket(caller, agent, "01", 0)},
		"another's, of both":             {from: from4, tcp6: socket(mapped, agentM, "01", 1001), want: "user 1001"},
		"from elsewhere":                 {from: "198.51.100.7:40000", tcp: socket(caller, agent, "01", 0), want: "from the agent's own host only; the call came from 198.51.100.7"},
		"no socket at all":               {from: from4, want: "own host only"},
		"no IPv6 in the kernel":          {from: from4, tcp: socket(caller, agent, "01", 0), tcp6: "-"},
		"a line that makes no sense":     {from: from4, tcp: "x\n" + socket("zz:1", agent, "01", 0) + socket(caller, "0100007F", "01", 0) + socket(caller, agent, "01", 0)},
		"another port":                   {from: "127.0.0.1:40001", tcp: socket(caller, agent, "01", 0), want: "own host only"},
		"who is nobody":                  {from: "pipe", want: "cannot tell who"},
		"which way":                      {from: from4, to: "-", want: "cannot tell where"},
		"files that cannot be read":      {from: from4, unreadable: true, want: "tell who is calling", otherwise: http.StatusInternalServerError},
		"root's connection to elsewhere": {from: from4, tcp: socket(caller, other, "01", 0) + socket(caller, agent, "01", 1001), want: "user 1001"},
		// What is left of a connection that its process has closed belongs to
		// nobody, and the kernel shows it as root's.
		"closed by its caller": {from: from4, tcp: socket(caller, agent, "05", 0), want: "own host only"},
		"left from before":     {from: from4, tcp: socket(caller, agent, "06", 0) + socket(caller, agent, "01", 1001), want: "user 1001"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g := guard{uid: me}
			for file, text := range map[string]string{"tcp": c.tcp, "tcp6": c.tcp6} {
				path := filepath.Join(dir, file)
				g.files = append(g.files, path)
				if c.unreadable {
					if err := os.Mkdir(path, 0o700); err != nil { // opens, and cannot be read
						t.Fatal(err)
					}
				} else if text != "-" {
					if err := os.WriteFile(path, []byte(head+text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := httptest.NewRequest(http.MethodDelete, "http://127.0.0.1:8500/", nil)
			r.RemoteAddr = c.from
			if c.to == "" {
				c.to = "127.0.0.1:8500"
			}
			if to, err := netip.ParseAddrPort(c.to); err == nil {
				r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(net.TCPAddrFromAddrPort(to))))
			}
			err := g.allow(r)
			if c.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			var ref *refusal
			if status := c.otherwise; status == 0 && (!errors.As(err, &ref) || ref.status != http.StatusForbidden) {
				t.Errorf("%v: want 403", err)
			}
		})
	}
}

// The real files know this process's own sockets, of both families.
func TestGuardOfThisHost(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		w := newWorld()
		s := httptest.NewUnstartedServer(New(w.cfg))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Listener.Close() // which it has made by itself
		s.Listener = l
		s.Start()
		t.Cleanup(s.Close)
		if res, body := call(t, s, http.MethodDelete, "/networks/x", ""); res.StatusCode != http.StatusNoContent {
			t.Errorf("a call to %s: %s: %s", s.URL, res.Status, body)
		}
	}
}
