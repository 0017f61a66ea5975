package api_test

import (
	"context"
	"fmt"
	"io"
	"log" //nolint:depguard // an example is a program of its own
	"net"
	"net/http"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// serve answers HTTP on a free port of the loopback interface, and lines on TCP too.
func serve(answer string) (port int, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })}
	go s.Serve(l)
	return l.Addr().(*net.TCPAddr).Port, func() { s.Close() }
}

// register is for examples that need a service to talk to.
func register(name string, port int) (stop func()) {
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	r, err := client.Register(context.Background(), api.Registration{Name: name, Port: port, DrainTime: -1})
	if err != nil {
		log.Fatal(err)
	}
	return func() { r.Close() }
}

func ExampleClient_Register() {
	ctx := context.Background() // in a program: signal.NotifyContext
	port, stop := serve("hello")
	defer stop()

	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	registered, err := client.Register(ctx, api.Registration{
		Name: "greeter", Port: port, Tags: []string{"v1"},
		Check: api.HealthCheck{
			TTL:   15 * time.Second,
			Probe: func(context.Context) error { return nil }, // such as a ping of the database
		},
		DrainTime: 50 * time.Millisecond, // the default is 5 s
	})
	if err != nil {
		log.Fatal(err)
	}

	service, err := client.Service(ctx, "greeter")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(service.Instances[0].Status, service.Instances[0].Tags)

	// Before the program ends: nobody finds it any more, then it is removed.
	if err := registered.Close(); err != nil {
		log.Fatal(err)
	}
	_, err = client.Service(ctx, "greeter")
	fmt.Println(api.IsNotFound(err))
	// Output:
	// passing [v1]
	// true
}

func ExampleResolver() {
	defer register("cache", 6379)()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	resolver := api.NewResolver(client)
	defer resolver.Close()

	cache := resolver.Service("cache")
	snapshot, err := cache.Wait(ctx) // until there is a healthy instance
	if err != nil {
		log.Fatal(err)
	}
	for _, instance := range snapshot.Instances {
		fmt.Println(instance.ID, instance.Addr())
	}

	defer register("cache", 6380)() // another one comes
	select {
	case <-snapshot.Changed():
		fmt.Println(len(cache.Snapshot().Instances), "instances")
	case <-ctx.Done():
		log.Fatal("nothing changed")
	}
	// Output:
	// cache-6379 127.0.0.1:6379
	// 2 instances
}

func ExampleTransport() {
	port, stop := serve("hello from web")
	defer stop()
	defer register("web", port)()

	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	resolver := api.NewResolver(client)
	defer resolver.Close()
	web := &http.Client{
		Transport: &api.Transport{Resolver: resolver, TryTimeout: 2 * time.Second},
		Timeout:   10 * time.Second, // with all tries
	}
	defer web.CloseIdleConnections()

	for _, url := range []string{"http://web.service.consul/", "fairlead://web/"} {
		res, err := web.Get(url)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		fmt.Println(res.StatusCode, string(body), err)
	}
	// Output:
	// 200 hello from web <nil>
	// 200 hello from web <nil>
}

func ExampleDialer() {
	port, stop := serve("hello")
	defer stop()
	defer register("db", port)()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	resolver := api.NewResolver(client)
	defer resolver.Close()
	dialer := &api.Dialer{Resolver: resolver}

	// Give dialer.DialContext to a driver, or use it:
	conn, err := dialer.DialContext(ctx, "tcp", "db.service.consul:5432") // the port is the registry's
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(conn.RemoteAddr().(*net.TCPAddr).Port == port)
	// Output: true
}

func ExampleClient_PutKV() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}

	if _, err := client.PutKV(ctx, api.KV{Key: "web/config/limit", Value: []byte("10")}, nil); err != nil {
		log.Fatal(err)
	}
	limit, err := client.KV(ctx, "web/config/limit")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", limit.Value)

	// Only if nobody has changed it since:
	limit.Value = []byte("20")
	for range 2 {
		written, err := client.PutKV(ctx, limit, &limit.ModifyIndex)
		fmt.Println(written, err)
	}

	all, err := client.KVTree(ctx, "web/config/")
	fmt.Println(len(all), err)

	if err := client.DeleteKVTree(ctx, "web/config/"); err != nil {
		log.Fatal(err)
	}
	_, err = client.KV(ctx, "web/config/limit")
	fmt.Println(api.IsNotFound(err))
	// Output:
	// 10
	// true <nil>
	// false <nil>
	// 1 <nil>
	// true
}

func ExampleClient_FollowKV() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}

	colours := []string{"red", "blue"}
	for entries := range client.FollowKV(ctx, "app/colour") { // what is there, then every change
		for _, kv := range entries {
			fmt.Printf("the colour is %s\n", kv.Value)
		}
		if len(colours) == 0 {
			break
		}
		if _, err := client.PutKV(ctx, api.KV{Key: "app/colour", Value: []byte(colours[0])}, nil); err != nil {
			log.Fatal(err)
		}
		colours = colours[1:]
	}
	// Output:
	// the colour is red
	// the colour is blue
}

func ExampleClient_Lock() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}

	lock, err := client.Lock(ctx, "jobs/backup", api.LockOptions{Value: []byte("host-1")})
	if err != nil {
		log.Fatal(err)
	}
	work, stop := lock.Context(ctx) // ends when the lock is lost
	defer stop()
	fmt.Println("backing up", work.Err())
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	<-lock.Lost()
	fmt.Println("done", lock.Err())
	// Output:
	// backing up <nil>
	// done <nil>
}

func ExampleElection() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}

	election := client.NewElection("web/leader", "host-1", api.LockOptions{})
	term, err := election.Campaign(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for leader := range election.Observe(ctx) {
		if leader.Session == "" {
			fmt.Println("nobody leads")
			break
		}
		fmt.Println(leader.Candidate, "leads")
		select {
		case <-term.Lost():
			log.Fatal("no longer the leader: ", term.Err())
		default:
		}
		if err := term.Resign(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// host-1 leads
	// nobody leads
}

func ExampleElection_Lead() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}

	election := client.NewElection("web/janitor", "host-1", api.LockOptions{})
	err = election.Lead(ctx, func(ctx context.Context, term *api.Term) error {
		fmt.Println("leading", term.Fence() > 0, ctx.Err()) // ctx ends when another may lead
		return nil
	})
	fmt.Println(err)
	// Output:
	// leading true <nil>
	// <nil>
}
