package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Serve is the demonstration's service: it answers every request with its name,
// on all addresses of both families, until it is ended.
func Serve(args []string) int {
	if len(args) != 2 {
		return 2
	}
	name, port := args[0], args[1]
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	srv := &http.Server{
		Addr: ":" + port, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, name) // a caller that went away is not our error
		}),
	}
	go func() {
		<-ctx.Done()
		_ = srv.Close() // that it was closed is what it should be
	}()
	if err := srv.ListenAndServe(); ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Request is the outcome of one of the load's requests.
type Request struct {
	Start    time.Time     `json:"start"`
	Took     time.Duration `json:"took"`
	Instance string        `json:"instance,omitempty"`
	Error    string        `json:"error,omitempty"`
}

// requestTimeout bounds one request of the load.
const requestTimeout = time.Second

// Load makes requests to a URL at an even rate, each on a new connection, and
// prints the outcomes as JSON. Its arguments are the URL, the number of requests
// and how many a second. The name is looked up once: what is balanced is the
// service's one address.
func Load(args []string) int {
	if len(args) != 3 {
		return 2
	}
	n, err1 := strconv.Atoi(args[1])
	rate, err2 := strconv.Atoi(args[2])
	if err1 != nil || err2 != nil || n <= 0 || n > 100_000 || rate <= 0 || rate > 10_000 {
		return 2
	}
	out, err := load(args[0], n, rate)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	return 0
}

func load(url string, n, rate int) ([]Request, error) {
	var once sync.Map // host name -> address
	dialer := &net.Dialer{Timeout: requestTimeout}
	client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			ip, ok := once.Load(host)
			if !ok {
				found, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
				if err != nil {
					return nil, err
				}
				ip, _ = once.LoadOrStore(host, found[0].String())
			}
			return dialer.DialContext(ctx, network, net.JoinHostPort(ip.(string), port))
		},
	}}
	out := make([]Request, n)
	out[0] = request(client, url) // which looks the name up
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	for i := 1; i < n; i++ {
		<-tick.C
		wg.Go(func() { out[i] = request(client, url) })
	}
	wg.Wait()
	return out, nil
}

func request(client *http.Client, url string) Request {
	r := Request{Start: time.Now()}
	res, err := client.Get(url)
	if err == nil {
		var b []byte
		b, err = io.ReadAll(res.Body)
		_ = res.Body.Close() // it was read to its end
		r.Instance = string(b)
	}
	if err != nil {
		r.Error = err.Error()
	}
	r.Took = time.Since(r.Start)
	return r
}
