package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// server is one process.
type server struct {
	name string
	addr netip.AddrPort // for nodes
	http string
	cmd  *exec.Cmd
	out  *text
	end  sync.Once
}

// text is what a process writes, while it does.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(b)
}

func (t *text) find(r *regexp.Regexp) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return r.FindString(t.b.String())
}

func (s *server) kill() {
	s.end.Do(func() {
		_ = s.cmd.Process.Kill() // it may have ended
		_ = s.cmd.Wait()
	})
}

// site is three servers.
type site struct {
	servers []*server
	token   string
}

var joinToken = regexp.MustCompile(`flj1-[0-9A-Za-z_-]+`)

// startSite starts them at addresses of loopback that nothing else uses.
func startSite(ctx context.Context, o options, dir string) (*site, error) {
	s := &site{}
	for i := range 3 {
		addr := netip.AddrFrom4([4]byte{127, 91, byte(os.Getpid()), byte(i + 1)})
		one := &server{name: fmt.Sprintf("s%d", i+1), addr: netip.AddrPortFrom(addr, 8300), http: addr.String() + ":8500", out: &text{}}
		own := filepath.Join(dir, one.name)
		args := []string{
			"up", "--registry-only", "--node-name", one.name, "--advertise", addr.String(), "--http-addr", one.http, "--dns-addr", addr.String() + ":8600",
			"--data-dir", filepath.Join(own, "data"), "--run-dir", filepath.Join(own, "run"), "--resolv-conf", "/dev/null",
		}
		if i > 0 {
			args = append(args, "--join", s.token, "--server")
		}
		one.cmd = exec.Command(o.binary, args...)
		one.cmd.Stdout, one.cmd.Stderr = one.out, one.out
		if o.verbose {
			one.cmd.Stderr = os.Stderr
		}
		if err := one.cmd.Start(); err != nil {
			s.stop()
			return nil, err
		}
		s.servers = append(s.servers, one)
		if err := one.ready(ctx); err != nil {
			s.stop()
			return nil, err
		}
		if i == 0 {
			s.token = one.out.find(joinToken)
		}
	}
	return s, pause(ctx, 3*time.Second) // until all vote
}

func (s *server) ready(ctx context.Context) error {
	for range 300 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && s.out.find(joinToken) != "" || resp.StatusCode == http.StatusOK && s.name != "s1" {
				return nil
			}
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New(s.name + " does not start")
}

func (s *site) stop() {
	for _, one := range s.servers {
		one.kill()
	}
}

// last is what the servers wrote last.
func (s *site) last() string {
	var all []string
	for _, one := range s.servers {
		one.out.mu.Lock()
		b := one.out.b.Bytes()
		all = append(all, one.name+":\n"+string(b[max(0, len(b)-4000):]))
		one.out.mu.Unlock()
	}
	return strings.Join(all, "\n")
}

// cost is that of all three.
func (s *site) cost() (sum cost, err error) {
	for _, one := range s.servers {
		c, err := costOf(one.cmd.Process.Pid)
		if err != nil {
			return sum, err
		}
		sum.memory += c.memory
		sum.cpu += c.cpu
	}
	return sum, nil
}

// over is the part of one CPU that they take together for a while.
func (s *site) over(ctx context.Context, d time.Duration) (float64, error) {
	before, err := s.cost()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	after, err := s.cost()
	return (after.cpu - before.cpu) / d.Seconds(), err
}
