package story

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// Further roles (see play), for callers that go on while something happens to what they call. They are processes, since the balancer
// knows callers by their cgroup. Each prints one try a line and ends at SIGTERM, or by itself.
//
//	load ADDR:PORT RATE               new connections, RATE a second
//	lookup ADDR:PORT NAME             DNS queries, each repeated until it is answered
//	datagrams connected|sendto ADDR   datagrams from one socket
//	dial [udp:]ADDR:PORT...           one try each
var callers = map[string]func(ctx context.Context, args []string, say func(try)) error{
	"load": load, "lookup": lookup, "datagrams": datagrams, "dial": dialEach,
}

// callerLimit and tryLimit bound every caller, so that none outlives a test that forgot it.
const (
	callerLimit = 2 * time.Minute
	tryLimit    = 60_000
)

// try is what a role saw of one connection, datagram or query. Times are of the machine's monotonic clock.
type try struct {
	Start time.Duration `json:"start"` // since boot
	Took  time.Duration `json:"took"`
	To    string        `json:"to,omitempty"`   // what it was meant for
	Name  string        `json:"name,omitempty"` // of the server that answered
	Peer  string        `json:"peer,omitempty"` // address that the answer came from
	Err   string        `json:"err,omitempty"`
}

// monotonic is the clock that all processes of the machine share.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// call plays one of callers.
func call(role string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, callerLimit)
	defer cancel()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	return callers[role](ctx, args, func(t try) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(t) // a file of the test
	})
}

// load makes new connections at a steady rate, also while earlier ones wait.
func load(ctx context.Context, args []string, say func(try)) error {
	addr := args[0]
	var rate int
	if _, err := fmt.Sscan(args[1], &rate); err != nil {
		return err
	}
	interval := time.Second / time.Duration(rate)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	begin := time.Now()
	for n := 0; n < tryLimit; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// A busy machine loses ticks; the rate is kept.
		for due := int(time.Since(begin) / interval); n < due; n++ {
			all.Go(func() { say(connectOnce("tcp", addr)) })
		}
	}
	return nil
}

// connectOnce makes one connection and asks the server's name.
func connectOnce(network, addr string) try {
	t := try{Start: monotonic(), To: addr}
	var err error
	t.Name, t.Peer, err = askName(network, addr)
	if err != nil {
		t.Err = err.Error()
	}
	t.Took = monotonic() - t.Start
	return t
}

func askName(network, addr string) (name, peer string, err error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, addr)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.Close() }()
	peer = c.RemoteAddr().String()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", peer, err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", peer, err
	}
	if network == "udp" {
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		return firstWord(string(buf[:n])), peer, err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", peer, err
	}
	_, body, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok {
		return "", peer, fmt.Errorf("answer %q", answer)
	}
	return firstWord(body), peer, nil
}

// firstWord is the server's own name, without what it says of its caller.
func firstWord(answer string) string {
	name, _, _ := strings.Cut(answer, " ")
	return name
}

// lookup asks a DNS server the same question again and again. A query that is not answered is repeated, as resolvers do, and counts
// as one try that took until the answer.
func lookup(ctx context.Context, args []string, say func(try)) error {
	m := new(miekg.Msg)
	m.SetQuestion(miekg.Fqdn(args[1]), miekg.TypeA)
	client := miekg.Client{Timeout: 500 * time.Millisecond}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		t := try{Start: monotonic(), To: args[1]}
		for t.Name == "" {
			r, _, err := client.Exchange(m.Copy(), args[0])
			switch {
			case err != nil:
				t.Err = err.Error()
			case r.Rcode != miekg.RcodeSuccess || len(r.Answer) == 0:
				t.Name = "none: " + miekg.RcodeToString[r.Rcode]
			default:
				t.Name, t.Err = r.Answer[0].(*miekg.A).A.String(), ""
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
		t.Took = monotonic() - t.Start
		say(t)
	}
}

// datagrams asks the server's name from one socket until ctx ends. After an error a connected socket is of no more use, and is made
// anew.
func datagrams(ctx context.Context, args []string, say func(try)) error {
	connected, addr := args[0] == "connected", args[1]
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return err
	}
	open := func() (*net.UDPConn, error) {
		if connected {
			return net.DialUDP("udp", nil, to)
		}
		return net.ListenUDP("udp", nil)
	}
	c, err := open()
	if err != nil {
		return err
	}
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for n := 0; n < tryLimit && ctx.Err() == nil; n++ {
		t := try{Start: monotonic(), To: addr}
		t.Name, t.Peer, err = exchange(c, connected, to)
		t.Took = monotonic() - t.Start
		if err != nil {
			t.Err = err.Error()
		}
		say(t)
		if err != nil && connected {
			_ = c.Close()
			if c, err = open(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return c.Close()
}

func exchange(c *net.UDPConn, connected bool, to *net.UDPAddr) (name, peer string, err error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", "", err
	}
	if connected {
		_, err = c.Write([]byte("who"))
	} else {
		_, err = c.WriteTo([]byte("who"), to)
	}
	if err != nil {
		return "", "", err
	}
	buf := make([]byte, 1500)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return "", "", err
	}
	return firstWord(string(buf[:n])), from.String(), nil
}

// dialEach tries every address once, one after the other.
func dialEach(_ context.Context, args []string, say func(try)) error {
	for _, arg := range args {
		network, addr := "tcp", arg
		if rest, ok := strings.CutPrefix(arg, "udp:"); ok {
			network, addr = "udp", rest
		}
		say(connectOnce(network, strings.TrimPrefix(addr, "tcp:")))
	}
	return nil
}

// tries reads what a role has printed so far; other lines are left out.
func tries(t testing.TB, output string) []try {
	t.Helper()
	var all []try
	lines := bufio.NewScanner(strings.NewReader(output))
	for lines.Scan() {
		var one try
		if json.Unmarshal(lines.Bytes(), &one) == nil && one.Start != 0 {
			all = append(all, one)
		}
	}
	return all
}

// failed are the tries that ended in an error.
func failed(all []try) []try {
	var bad []try
	for _, one := range all {
		if one.Err != "" {
			bad = append(bad, one)
		}
	}
	return bad
}

// longest is the try that took longest.
func longest(all []try) try {
	var worst try
	for _, one := range all {
		if one.Took > worst.Took {
			worst = one
		}
	}
	return worst
}

// counted says how often each server answered.
func counted(all []try) map[string]int {
	n := map[string]int{}
	for _, one := range all {
		if one.Err == "" {
			n[one.Name]++
		}
	}
	return n
}

// flowing waits until each of the callers has made n more tries.
func flowing(t testing.TB, n int, all ...*testlab.Proc) {
	t.Helper()
	want := map[*testlab.Proc]int{}
	for _, p := range all {
		want[p] = len(tries(t, p.Output())) + n
	}
	for _, p := range all {
		testlab.Eventually(t, settleLimit, func() error {
			if !p.Running() {
				return fmt.Errorf("it has ended: %s", p.Output())
			}
			if now := len(tries(t, p.Output())); now < want[p] {
				return fmt.Errorf("%d tries, want %d", now, want[p])
			}
			return nil
		})
	}
}

// startCaller starts a caller on the host, or in the namespaces of one of its workloads.
func (a *agent) startCaller(workload string, args ...string) *testlab.Proc {
	a.t.Helper()
	cmd := testlab.Cmd{Args: append([]string{self}, args[1:]...), Env: []string{roleVariable + "=" + args[0]}}
	if workload != "" {
		pid := strconv.Itoa(a.workload(workload).PID)
		cmd.Args = append([]string{"nsenter", "--target", pid, "--net", "--mount", "--"}, cmd.Args...)
	}
	return a.host.StartCmd(cmd)
}

// finish ends a caller and returns its tries.
func finish(t testing.TB, p *testlab.Proc) []try {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Errorf("caller: %v\n%s", err, p.Output())
	}
	return tries(t, p.Output())
}

// dialFrom tries each address once, from the host or a workload.
func (a *agent) dialFrom(workload string, addrs ...string) []try {
	a.t.Helper()
	p := a.startCaller(workload, append([]string{"dial"}, addrs...)...)
	if err := p.Wait(settleLimit); err != nil {
		a.t.Fatalf("dial %v: %v\n%s", addrs, err, p.Output())
	}
	return tries(a.t, p.Output())
}

// serveIn starts a workload (see run) and waits until its server answers.
func (a *agent) serveIn(network, name string, flags ...string) {
	a.t.Helper()
	a.run(network, name, flags...)
	a.serving(name)
}

// serving waits until a workload's server answers.
func (a *agent) serving(name string) {
	a.t.Helper()
	at := net.JoinHostPort(a.workload(name).Endpoints[0].Addrs[0].String(), "80")
	testlab.Eventually(a.t, settleLimit, func() error {
		c, err := a.dial(a.t.Context(), "tcp", at)
		if err != nil {
			return err
		}
		return c.Close()
	})
}
