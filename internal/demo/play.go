package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The size of the play.
const (
	instances  = 3
	spread     = 300 // requests that show how a service is balanced
	loadRate   = 500 // new connections a second
	loadTotal  = 2000
	killAfter  = time.Second // of load
	gonePeriod = 2 * time.Second
)

// play is the demonstration from start to end. The world is taken down whatever
// happens.
func (s *stage) play() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_, derr := s.quietly(clean, "down", "--purge")
			err = errors.Join(err, derr)
		}
	}()
	for _, scene := range []func(context.Context) error{
		s.raise, s.discover, s.balance, s.killOne, s.restartAgent, s.publish, s.strike,
	} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	return s.summary()
}

// raise starts the agent, a network and the instances.
func (s *stage) raise(ctx context.Context) error {
	s.heading("One agent, one network, three instances")
	began := time.Now()
	if err := s.startAgent(ctx); err != nil {
		return err
	}
	s.say("$ fairlead agent &    (ready after %s)", since(began))
	s.claim(true, "an agent starts", "%s to ready", since(began))
	if _, err := s.fairlead(ctx, "network", "create", "my-network"); err != nil {
		return err
	}
	began = time.Now()
	for i := range instances {
		name := fmt.Sprintf("web-%d", i+1)
		if _, err := s.fairlead(ctx, "run", "--network", "my-network", "--name", name, "--service", "web", "--port", "80",
			"--check-http", "/", "--check-interval", "1s", "--detach", "--", s.self, ServeCommand, name, "80"); err != nil {
			return err
		}
	}
	if err := s.until(ctx, "three passing instances", func() error { return s.passing(ctx, instances) }); err != nil {
		return err
	}
	s.claim(true, "three instances run, checked over HTTP", "all passing after %s", since(began))
	if _, err := s.fairlead(ctx, "ps"); err != nil {
		return err
	}
	_, err := s.fairlead(ctx, "network", "inspect", "my-network")
	return err
}

// passing asks the Consul API how many instances are healthy.
func (s *stage) passing(ctx context.Context, want int) error {
	b, err := s.api.Do(ctx, http.MethodGet, "/v1/health/service/web?passing", nil)
	if err != nil {
		return err
	}
	var all []json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	if len(all) != want {
		return fmt.Errorf("%d instances pass, want %d", len(all), want)
	}
	return nil
}

// discover shows the catalogue and DNS.
func (s *stage) discover(ctx context.Context) error {
	s.heading("Found by catalogue and DNS")
	if _, err := s.fairlead(ctx, "service", "inspect", "web"); err != nil {
		return err
	}
	var seen []string
	for _, kind := range []string{"A", "AAAA", "SRV"} {
		answers, err := lookup(ctx, "web.service.consul.", kind)
		if err != nil {
			return err
		}
		s.say("$ fairlead dns query web.service.consul %s", kind)
		for _, a := range answers {
			s.say("%s", a)
		}
		seen = append(seen, fmt.Sprintf("%d %s", len(answers), kind))
		s.claims = append(s.claims, claim{"DNS has every instance as " + kind, fmt.Sprintf("%d answers", len(answers)), len(answers) == instances})
	}
	s.say("(%s)", strings.Join(seen, ", "))
	return nil
}

// balance shows how requests from a workload spread, by the service's bare name.
func (s *stage) balance(ctx context.Context) error {
	s.heading("Balanced by one name, http://web/, inside the network")
	all, err := s.load(ctx, "client", spread, loadRate)
	if err != nil {
		return err
	}
	per, failed := count(all)
	least := spread
	for i := range instances {
		least = min(least, per[fmt.Sprintf("web-%d", i+1)])
	}
	s.say("%d requests: %s, failed %d", len(all), counts(per), failed)
	// By weight at random: each has a third; three quarters of that are further
	// off than chance would be once in many thousand runs.
	s.claim(failed == 0 && least >= spread/instances*2/3, "requests to the VIP reach every instance", "%s, failed %d", counts(per), failed)
	return nil
}

// load runs a client workload in the network and returns what it saw.
func (s *stage) load(ctx context.Context, name string, n, rate int) ([]Request, error) {
	out, err := s.quietly(ctx, "run", "--network", "my-network", "--name", name, "--",
		s.self, LoadCommand, "http://web/", fmt.Sprint(n), fmt.Sprint(rate))
	if err != nil {
		return nil, err
	}
	var all []Request
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("the load's outcomes: %w", err)
	}
	return all, nil
}

// killOne kills an instance under load and finds out who noticed when.
func (s *stage) killOne(ctx context.Context) error {
	s.heading(fmt.Sprintf("One instance killed under %d new connections a second", loadRate))
	victim, cgroup, addr, err := s.victim(ctx)
	if err != nil {
		return err
	}
	type result struct {
		all []Request
		err error
	}
	loaded := make(chan result, 1)
	began := time.Now()
	go func() {
		all, err := s.load(ctx, "load", loadTotal, loadRate)
		loaded <- result{all, err}
	}()
	timer := time.NewTimer(killAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case r := <-loaded:
		return errors.Join(errors.New("the load ended early"), r.err)
	}
	killed := time.Now()
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill %s: %w", victim, err)
	}
	s.say("killed %s (SIGKILL) after %s of load", victim, killed.Sub(began).Round(time.Millisecond))
	if err := s.until(ctx, victim+" to leave DNS", func() error {
		answers, err := lookup(ctx, "web.service.consul.", "A")
		if err == nil && slices.Contains(answers, addr) {
			err = fmt.Errorf("DNS still answers %s", addr)
		}
		return err
	}); err != nil {
		return err
	}
	leftDNS := time.Since(killed)
	r := <-loaded
	if r.err != nil {
		return r.err
	}
	s.judgeKill(r.all, killed, leftDNS)
	return nil
}

// victim names the instance to be killed, its cgroup and its IPv4 address.
func (s *stage) victim(ctx context.Context) (name, cgroup, addr string, err error) {
	all, err := s.api.Workloads(ctx)
	if err != nil {
		return "", "", "", err
	}
	for _, w := range all {
		if w.Name == "web-2" && len(w.Endpoints) == 1 {
			return w.Name, w.Cgroup, w.Endpoints[0].Addrs[0].String(), nil
		}
	}
	return "", "", "", errors.New("workload web-2 is not there")
}

// judgeKill says how the load met the killing.
func (s *stage) judgeKill(all []Request, killed time.Time, leftDNS time.Duration) {
	var before, failed int
	var leftBalancer time.Duration
	for _, r := range all {
		if r.Error == "" {
			continue
		}
		if r.Start.Add(r.Took).Before(killed) {
			before++
			continue
		}
		failed++
		leftBalancer = max(leftBalancer, r.Start.Sub(killed))
	}
	s.say("%d requests, failed %d; it left DNS after %s, and the last request that met it began %s after the killing",
		len(all), failed, leftDNS.Round(time.Millisecond), leftBalancer.Round(time.Millisecond))
	s.claim(before == 0, "no request fails before", "%d failed", before)
	s.claim(leftDNS < gonePeriod, "a killed instance leaves DNS", "after %s", leftDNS.Round(time.Millisecond))
	s.claim(leftBalancer < gonePeriod, "a killed instance leaves the balancer", "after %s, %d of %d requests failed",
		leftBalancer.Round(time.Millisecond), failed, len(all))
}

// restartAgent kills the agent under load: the data path does not need it.
func (s *stage) restartAgent(ctx context.Context) error {
	s.heading("The agent killed and started again under load")
	type result struct {
		all []Request
		err error
	}
	loaded := make(chan result, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		all, err := s.load(ctx, "steady", loadTotal/2, loadRate)
		loaded <- result{all, err}
	}()
	<-started
	if err := s.until(ctx, "the load to run", func() error { return s.attached(ctx, "steady") }); err != nil {
		return err
	}
	timer := time.NewTimer(killAfter / 2)
	defer timer.Stop()
	<-timer.C
	if err := s.agent.Process.Kill(); err != nil {
		return fmt.Errorf("kill the agent: %w", err)
	}
	_ = s.agent.Wait() // it was killed
	killed := time.Now()
	if err := s.startAgent(ctx); err != nil {
		return err
	}
	away := time.Since(killed).Round(time.Millisecond)
	r := <-loaded
	if r.err != nil {
		return r.err
	}
	s.judgeRestart(r.all, killed, away)
	err := s.until(ctx, "the registrations to be back", func() error { return s.passing(ctx, instances-1) })
	s.claim(err == nil, "registrations are back without a client's help", "%d instances pass", instances-1)
	return nil
}

// judgeRestart says how the load did without the agent, which was away from
// killed on for as long as away.
func (s *stage) judgeRestart(all []Request, killed time.Time, away time.Duration) {
	_, failed := count(all)
	meanwhile := 0
	for _, r := range all {
		if r.Start.After(killed) && r.Start.Before(killed.Add(away)) {
			meanwhile++
		}
	}
	s.say("away for %s; %d requests, %d of them meanwhile, failed %d", away, len(all), meanwhile, failed)
	s.claim(failed == 0 && meanwhile > 0, "connections go on while the agent is away", "%s away, %d requests meanwhile, %d of %d failed", away, meanwhile, failed, len(all))
}

func (s *stage) attached(ctx context.Context, name string) error {
	all, err := s.api.Workloads(ctx)
	if err != nil {
		return err
	}
	for _, w := range all {
		if w.Name == name && len(w.Endpoints) > 0 && w.PID != 0 {
			return nil
		}
	}
	return fmt.Errorf("workload %s is not there", name)
}

// publish shows a published port, used from the host.
func (s *stage) publish(ctx context.Context) error {
	s.heading("A published port")
	if _, err := s.fairlead(ctx, "run", "--network", "my-network", "--name", "front", "--publish", "8080:80", "--detach", "--",
		s.self, ServeCommand, "front", "80"); err != nil {
		return err
	}
	got := ""
	err := s.until(ctx, "the published port to answer", func() error {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8080/", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(res.Body)
		got = string(b)
		return errors.Join(err, res.Body.Close())
	})
	s.say("$ curl http://127.0.0.1:8080/\n%s", got)
	s.claim(err == nil && got == "front", "a published port leads to its workload", "%q answers", got)
	_, perr := s.fairlead(ctx, "ps")
	return perr
}

// strike takes everything down and looks for what is left.
func (s *stage) strike(ctx context.Context) error {
	s.heading("Everything removed")
	out, err := s.quietly(ctx, "down", "--purge")
	if err != nil {
		return err
	}
	_ = s.agent.Wait() // down ended it
	lines := strings.Split(strings.TrimSpace(out), "\n")
	s.say("$ fairlead down --purge\n%d things removed: %s; ...", len(lines), strings.Join(lines[:min(3, len(lines))], "; "))
	left, err := s.left()
	if err != nil {
		return err
	}
	s.claim(len(left) == 0, "'down --purge' leaves nothing behind", "%d things removed, left: %s", len(lines), strings.Join(append(left, "nothing")[:max(1, len(left))], ", "))
	return nil
}

// left looks for what an agent may leave, without asking Fairlead.
func (s *stage) left() ([]string, error) {
	var all []string
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("look for links: %w", err)
	}
	for _, l := range links {
		if l.Name != "lo" {
			all = append(all, "link "+l.Name)
		}
	}
	for _, pattern := range []string{
		filepath.Join(s.dir, "run"), filepath.Join(s.dir, "data"), filepath.Join(s.dir, "bpf", "*"), filepath.Join(s.cgroup, "*", "*.scope"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for files: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func count(all []Request) (per map[string]int, failed int) {
	per = map[string]int{}
	for _, r := range all {
		if r.Error != "" {
			failed++
			continue
		}
		per[r.Instance]++
	}
	return per, failed
}

func counts(per map[string]int) string {
	var out []string
	for name, n := range per {
		out = append(out, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }
