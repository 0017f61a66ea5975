package fairleadgrpc_test

import (
	"context"
	"fmt"
	"log" //nolint:depguard // an example is a program of its own
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairlead-net/fairlead/api"
	fairleadgrpc "github.com/fairlead-net/fairlead/api/grpc"
)

// serve answers gRPC's health protocol as an instance of a service.
func serve(service string) (stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, grpchealth.NewServer())
	go server.Serve(l)
	client, err := api.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	r, err := client.Register(context.Background(), api.Registration{Name: service, Port: port, DrainTime: -1})
	if err != nil {
		log.Fatal(err)
	}
	return func() {
		r.Close()
		server.Stop()
	}
}

func Example() {
	defer serve("rpc")()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// The import is enough: the agent is the one that FAIRLEAD_ADDR names.
	conn, err := grpc.NewClient("fairlead:///rpc", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	fmt.Println(res.GetStatus(), err)
	// Output: SERVING <nil>
}

func ExampleNewBuilder() {
	defer serve("rpc")()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	client, err := api.FromEnv() // or api.New, WithToken
	if err != nil {
		log.Fatal(err)
	}
	builder := fairleadgrpc.NewBuilder(client, fairleadgrpc.Options{
		Idempotent: []string{"grpc.health.v1.Health/Check"}, // may be called again on another instance
	})
	conn, err := grpc.NewClient("fairlead:///rpc",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(builder))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	fmt.Println(res.GetStatus(), err)
	// Output: SERVING <nil>
}
