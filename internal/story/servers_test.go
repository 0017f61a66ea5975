package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// server is one `fairlead up` of a site on this machine's loopback network, where each has an address of its own.
type server struct {
	t    *testing.T
	name string
	addr string // IP
	dir  string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closes when the process has ended
	err  error         // of its end
}

// output is what a process writes, while it does.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// newServers are three that have not started. Their addresses are those of no other test's.
func newServers(t *testing.T) []*server {
	t.Helper()
	net := rand.IntN(1 << 14)
	var all []*server
	for i := range 3 {
		all = append(all, newServer(t, fmt.Sprintf("s%d", i+1), fmt.Sprintf("127.%d.%d.%d", 128+net>>8, net&0xff, i+1)))
	}
	return all
}

// newServer is one that has not started; it ends with the test.
func newServer(t *testing.T, name, addr string) *server {
	t.Helper()
	s := &server{t: t, name: name, addr: addr, dir: t.TempDir(), out: &output{}}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("%s:\n%s", s.name, s.out)
		}
	})
	return s
}

func (s *server) launch(flags ...string) {
	s.t.Helper()
	s.cmd = exec.Command(binary, append([]string{
		"up", "--registry-only", "--node-name", s.name, "--advertise", s.addr, "--http-addr", s.addr + ":8500", "--dns-addr", s.addr + ":8600",
		"--data-dir", filepath.Join(s.dir, "data"), "--run-dir", filepath.Join(s.dir, "run"), "--resolv-conf", "/dev/null",
	}, flags...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, done := s.cmd, make(chan struct{})
	s.done = done
	go func() {
		s.err = cmd.Wait()
		close(done)
	}()
}

// start waits until the server is ready.
func (s *server) start(flags ...string) {
	s.t.Helper()
	s.launch(flags...)
	s.ready()
}

func (s *server) ready() {
	s.t.Helper()
	testlab.Eventually(s.t, settleLimit, func() error {
		select {
		case <-s.done:
			return fmt.Errorf("%s has ended: %w", s.name, s.err)
		default:
		}
		_, err := s.ask(http.MethodGet, "/readyz", "")
		return err
	})
}

// kill ends the server with SIGKILL.
func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

// ask sends one request; an answer that says no is an error.
func (s *server) ask(method, path, body string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+":8500"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s of %s: %s: %s", method, path, s.name, resp.Status, b)
	}
	return string(b), err
}

// site are the servers as one of them lists them.
func (s *server) site() ([]api.Server, error) {
	text, err := s.ask(http.MethodGet, api.Prefix+"/servers", "")
	var all []api.Server
	if err == nil {
		err = json.Unmarshal([]byte(text), &all)
	}
	return all, err
}

var joinToken = regexp.MustCompile(`flj1-[0-9A-Za-z_-]+`)

// together starts three servers with three commands and waits until all vote.
func together(t *testing.T) []*server {
	t.Helper()
	all := newServers(t)
	all[0].start()
	token := joinToken.FindString(all[0].out.String())
	if token == "" {
		t.Fatalf("no join token:\n%s", all[0].out)
	}
	for _, s := range all[1:] {
		s.launch("--join", token, "--server") // both at once
	}
	for _, s := range all[1:] {
		s.ready()
	}
	voting(t, all[0], 3)
	return all
}

// voting waits until so many servers vote and one leads.
func voting(t *testing.T, s *server, n int) {
	t.Helper()
	testlab.Eventually(t, settleLimit, func() error {
		list, err := s.site()
		if err != nil {
			return err
		}
		voters, leaders := 0, 0
		for _, m := range list {
			if m.Voter {
				voters++
			}
			if m.Leader {
				leaders++
			}
		}
		if voters != n || leaders != 1 || len(list) != n {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
}

// TestThreeServersOutliveTheirLeader: one is killed again and again while clients write to the others; what was answered is
// there, also on the one that was killed, and reading goes on.
func TestThreeServersOutliveTheirLeader(t *testing.T) {
	t.Parallel()
	all := together(t)
	written := 0
	write := func(s *server) error {
		key := "/v1/kv/k" + strconv.Itoa(written)
		text, err := s.ask(http.MethodPut, key, strconv.Itoa(written))
		if err == nil && strings.TrimSpace(text) != "true" {
			err = fmt.Errorf("%s: %q", key, text)
		}
		if err == nil {
			written++
		}
		return err
	}
	for round := range 3 {
		for _, s := range all {
			if err := write(s); err != nil {
				t.Fatal(err)
			}
		}
		list, err := all[0].site()
		if err != nil {
			t.Fatal(err)
		}
		var leader *server
		var others []*server
		for i, s := range all {
			if list[i].Leader {
				leader = s
			} else {
				others = append(others, s)
			}
		}
		if leader == nil {
			t.Fatalf("nobody leads: %+v", list)
		}
		leader.kill()
		begin := time.Now()
		for _, s := range others {
			if _, err := s.ask(http.MethodGet, "/v1/catalog/nodes", ""); err != nil {
				t.Errorf("reading without a leader: %v", err)
			}
		}
		testlab.Eventually(t, settleLimit, func() error { return errors.Join(write(others[0]), write(others[1])) })
		back := time.Since(begin)
		others[0].sees(leader.name, "critical")
		t.Logf("round %d: writes are back after %v, its node is dead after %v", round, back.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		leader.start()
		others[1].sees(leader.name, "passing")
		for i := range written {
			for _, s := range all {
				if got, err := s.ask(http.MethodGet, fmt.Sprintf("/v1/kv/k%d?raw", i), ""); err != nil || got != strconv.Itoa(i) {
					t.Errorf("key %d on %s: %q, %v", i, s.name, got, err)
				}
			}
		}
	}
}

// TestAServerIsReplaced: a dead one is removed, another joins in its place, and a healthy one makes room for one that waits. The
// registry answers all the time.
func TestAServerIsReplaced(t *testing.T) {
	t.Parallel()
	all := together(t)
	if _, err := all[1].ask(http.MethodPut, "/v1/kv/k", "v"); err != nil {
		t.Fatal(err)
	}
	remove := func(name, query string) error {
		_, err := all[0].ask(http.MethodDelete, api.Prefix+"/servers/"+name+query, "")
		return err
	}
	join := func(name, addr, token string) *server {
		s := newServer(t, name, addr)
		s.launch("--join", token, "--server")
		return s
	}
	dead := all[2]
	dead.kill()
	if err := remove(dead.name, "?replace=true"); err == nil || !strings.Contains(err.Error(), "join one with") {
		t.Errorf("replaced by nobody: %v", err)
	}
	if err := remove(dead.name, ""); err != nil {
		t.Fatal(err)
	}
	token := all[0].token(1)
	next := join("s4", dead.addr, token)
	next.ready()
	voting(t, all[1], 3)
	if got, err := next.ask(http.MethodGet, "/v1/kv/k?raw", ""); err != nil || got != "v" {
		t.Errorf("on the new server: %q, %v", got, err)
	}
	late := join("s5", strings.TrimSuffix(dead.addr, "3")+"5", token)
	<-late.done
	if late.err == nil || !strings.Contains(late.out.String(), "token is not good") {
		t.Errorf("the token works twice: %v\n%s", late.err, late.out)
	}
	waits := join("s6", strings.TrimSuffix(dead.addr, "3")+"6", all[0].token(1))
	waits.ready()
	if err := remove(next.name, "?replace=true"); err != nil {
		t.Fatal(err)
	}
	voting(t, all[1], 3)
	select {
	case <-next.done:
		if !strings.Contains(next.out.String(), "removed from the cluster") {
			t.Errorf("it ends without saying why: %v\n%s", next.err, next.out)
		}
	case <-time.After(settleLimit):
		t.Error("a server that was removed runs")
	}
}

// sees waits until a node's health is as wanted.
func (s *server) sees(node, status string) {
	s.t.Helper()
	testlab.Eventually(s.t, settleLimit, func() error {
		text, err := s.ask(http.MethodGet, "/v1/health/node/"+node, "")
		var checks []struct{ CheckID, Status string }
		if err == nil {
			err = json.Unmarshal([]byte(text), &checks)
		}
		for _, c := range checks {
			if strings.HasPrefix(c.CheckID, "service:") {
				continue // health that its agent speaks of
			}
			if err == nil && c.Status != status {
				err = fmt.Errorf("%s sees %s: %s is %s, not %s", s.name, node, c.CheckID, c.Status, status)
			}
		}
		return err
	})
}

// token makes a join token for servers.
func (s *server) token(uses int) string {
	s.t.Helper()
	text, err := s.ask(http.MethodPost, api.Prefix+"/join-tokens", fmt.Sprintf(`{"server": true, "uses": %d}`, uses))
	if err != nil {
		s.t.Fatal(err)
	}
	return joinToken.FindString(text)
}
