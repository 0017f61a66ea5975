package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// growth registers services with the agent over 16 connections, total of them in equal steps, and adds the rate and the server's CPU
// of each step, and the CPU of the last one as a multiple of the first's: all are to stay the same however many the agent has. A step
// that does not end within the limit is the last.
func growth(ctx context.Context, t *target, total, steps int, limit time.Duration) error {
	next := agentServices(t)
	var first, last float64
	for step := range steps {
		c, err := loadHTTP(ctx, t.http, t.pid, 16, window{length: limit, limit: uint64(total / steps)}, next)
		if err := refused(c, err); err != nil {
			return err
		}
		key := fmt.Sprintf("growth/%d/", (step+1)*total/steps)
		t.add(key+"rate", c.rate())
		last = c.micros(c.cpu)
		t.add(key+"cpu", last)
		if step == 0 {
			first = last
		}
		if c.answered < uint64(total/steps) {
			t.note("agent register: stopped at %d services of one agent, %.0f/s", step*total/steps+int(c.answered), c.rate())
			break
		}
	}
	if last != first { // more than one step
		t.add("growth/cpu", last/max(first, 0.01))
	}
	return forgetAgentServices(ctx, t)
}

// appear registers services with a TCP check of an address that accepts, one after the other, and adds the time from sending the
// registration to the first DNS answer with the instance.
func appear(ctx context.Context, t *target, trials int) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the check: %w", err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_ = c.Close() // a check looks only whether it is accepted
		}
	}()
	defer func() {
		_ = listener.Close() // nothing is lost
		<-accepting
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	for range trials {
		t.sequence++
		name := fmt.Sprintf("bench-appear-%d", t.sequence)
		began := time.Now()
		err := t.call(ctx, http.MethodPut, "/v1/agent/service/register", map[string]any{
			"Name": name, "ID": name, "Address": "127.0.0.1", "Port": port,
			"Check": map[string]string{"TCP": listener.Addr().String(), "Interval": "1s", "Timeout": "1s"},
		}, nil)
		if err != nil {
			return err
		}
		if err := untilInDNS(ctx, t, name); err != nil {
			return err
		}
		t.add("appear/dns", millis(time.Since(began)))
	}
	return forgetAgentServices(ctx, t)
}

// untilInDNS asks for a service every half millisecond until the answer has a record.
func untilInDNS(ctx context.Context, t *target, name string) error {
	query := dnsQuery(name+".service.consul", dnsTypeA)
	fd, err := unix.Socket(family(t.dns), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for DNS: %w", err)
	}
	defer closeQuietly(fd)
	limit := unix.NsecToTimeval(int64(lostAfter))
	if err := errors.Join(unix.Connect(fd, sockaddr(t.dns)), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)); err != nil {
		return fmt.Errorf("socket for DNS: %w", err)
	}
	answer := make([]byte, maxAnswer)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := unix.Write(fd, query); err != nil {
			return fmt.Errorf("ask for %s: %w", name, err)
		}
		n, err := unix.Read(fd, answer)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("ask for %s: %w", name, err)
		}
		if err == nil && dnsFailure(answer[:n]) == "" {
			return nil
		}
		if err := pause(ctx, 500*time.Microsecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is not in DNS after %s", name, patience)
}
