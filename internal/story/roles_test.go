package story

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// roleVariable makes this test program play a role instead of running tests. A workload or a client of a story is this
// program, since it then does exactly what the test says and nothing has to be installed.
const roleVariable = "FAIRLEAD_STORY_ROLE"

// dialLimit bounds one connection or datagram exchange of a client.
const dialLimit = 3 * time.Second

// play runs a role and returns its exit code:
//
//	serve NAME [ADDR...]            answers HTTP and UDP at each address (":80") with "NAME CALLER-IP"
//	                                until SIGUSR1, from which on it refuses connections, but lives
//	fetch NETWORK WHAT...           asks each once (tcp4 http://web/, udp6 web:80); a line "ANSWER via PEER" for each,
//	                                or "error: ..." and exit code 1
//	http METHOD URL [FILE]          one request, with the file as its body; status, index (if any) and body of the answer,
//	                                each on a line. Exit code 1 unless the status is 2xx
func play(role string, args []string) int {
	var err error
	switch role {
	case "serve":
		err = serve(args[0], args[1:])
	case "fetch":
		err = fetchAll(args[0], args[1:])
	case "http":
		err = request(args)
	default:
		err = fmt.Errorf("no role %q", role)
		if callers[role] != nil {
			err = call(role, args)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

// serve answers until it is ended.
func serve(name string, addrs []string) error {
	if len(addrs) == 0 {
		addrs = []string{":80"}
	}
	ended := make(chan error)
	crash := make(chan os.Signal, 1)
	signal.Notify(crash, syscall.SIGUSR1)
	var listeners []net.Listener
	for _, addr := range addrs {
		p, err := net.ListenPacket("udp", addr) // first, so that whoever sees the other answer knows of both
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		srv := &http.Server{ReadHeaderTimeout: dialLimit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s %s", name, host)
		})}
		listeners = append(listeners, l)
		go func() {
			if err := srv.Serve(l); !errors.Is(err, net.ErrClosed) {
				ended <- err
			}
		}()
		go func() { ended <- echo(p, name) }()
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-crash:
			for _, l := range listeners {
				_ = l.Close() // once is enough
			}
		}
	}
}

func echo(p net.PacketConn, name string) error {
	buf := make([]byte, 1500)
	for {
		_, from, err := p.ReadFrom(buf)
		if err != nil {
			return err
		}
		host, _, _ := net.SplitHostPort(from.String())
		if _, err := p.WriteTo([]byte(name+" "+host), from); err != nil {
			return err
		}
	}
}

func fetchAll(network string, targets []string) error {
	var errs []error
	for _, target := range targets {
		answer, err := fetch(network, target)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", network, target, err))
			continue
		}
		fmt.Println(answer)
	}
	return errors.Join(errs...)
}

func fetch(network, target string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	var d net.Dialer
	if strings.HasPrefix(network, "udp") {
		c, err := d.DialContext(ctx, network, target)
		if err != nil {
			return "", err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(dialLimit)); err != nil {
			return "", err
		}
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		return string(buf[:n]) + " via " + c.RemoteAddr().String(), err
	}
	peer := ""
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err == nil {
			peer = c.RemoteAddr().String()
		}
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body) + " via " + peer, err
}

func request(args []string) error {
	body := []byte(nil)
	if len(args) > 2 {
		var err error
		if body, err = os.ReadFile(args[2]); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(context.Background(), args[0], args[1], bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	const index = "X-Consul-Index"
	if n := resp.Header.Get(index); n != "" {
		fmt.Printf("%s: %s\n", index, n)
	}
	if _, err = io.Copy(os.Stdout, resp.Body); err == nil && resp.StatusCode/100 != 2 {
		err = errors.New(resp.Status)
	}
	return err
}
