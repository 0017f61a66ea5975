package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/fairlead-net/fairlead/internal/model"
)

// tcpProbe asks whether a port takes connections, and shakes hands with it if
// the check says so.
func tcpProbe(spec model.CheckSpec, dial dialFunc) probe {
	return func(ctx context.Context) (model.Status, string) {
		ctx, cancel := context.WithTimeout(ctx, timeout(spec))
		defer cancel()
		conn, err := dialTLS(ctx, spec, spec.TCP, dial, spec.TCPUseTLS, "")
		if err != nil {
			return model.Critical, err.Error()
		}
		_ = conn.Close()
		how := "TCP"
		if spec.TCPUseTLS {
			how = "TCP+TLS"
		}
		return model.Passing, fmt.Sprintf("%s connect %s: Success", how, spec.TCP)
	}
}

// dialTLS connects and, if secure, shakes hands; proto is the protocol to agree
// on, if one is needed.
func dialTLS(ctx context.Context, spec model.CheckSpec, address string, dial dialFunc, secure bool, proto string) (net.Conn, error) {
	conn, err := dial(ctx, "tcp", address)
	if err != nil || !secure {
		return conn, err
	}
	cfg := tlsConfig(spec)
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(address)
	}
	if proto != "" {
		cfg.NextProtos = []string{proto}
	}
	t := tls.Client(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

// udpPatience is how long a check that sets no timeout waits for a port to say
// that it is closed.
const udpPatience = time.Second

// udpProbe sends an empty datagram. Whatever comes back is good, and nothing at
// all too, for want of a protocol; only a host that refuses is critical.
func udpProbe(spec model.CheckSpec, dial dialFunc) probe {
	patience := udpPatience
	if spec.Timeout > 0 {
		patience = timeout(spec)
	}
	return func(ctx context.Context) (model.Status, string) {
		deadline := time.Now().Add(patience)
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		conn, err := dial(ctx, "udp", spec.UDP)
		if err != nil {
			return model.Critical, err.Error()
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err = conn.Write(nil); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return model.Critical, err.Error()
		}
		return model.Passing, fmt.Sprintf("UDP connect %s: Success", spec.UDP)
	}
}

// h2Probe sends a PING frame over HTTP/2.
func h2Probe(spec model.CheckSpec, dial dialFunc) probe {
	return func(ctx context.Context) (model.Status, string) {
		ctx, cancel := context.WithTimeout(ctx, timeout(spec))
		defer cancel()
		conn, err := dialTLS(ctx, spec, spec.H2Ping, dial, !spec.H2PingNoTLS, http2.NextProtoTLS)
		if err != nil {
			return model.Critical, fmt.Sprintf("Failed to dial to %s: %s", spec.H2Ping, err)
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if err := ping(conn); err != nil {
			return model.Critical, fmt.Sprintf("HTTP2 ping failed: %s", err)
		}
		return model.Passing, "HTTP2 ping was successful"
	}
}

// ping begins an HTTP/2 connection (RFC 9113, 3.4 and 6.7), sends one PING and
// reads until it is acknowledged.
func ping(conn net.Conn) error {
	const frames = 64 // more than any server has to say before it answers
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	f := http2.NewFramer(conn, conn)
	f.SetMaxReadFrameSize(1 << 14) // what a server may send to who has said nothing else
	mark := [8]byte{'f', 'a', 'i', 'r', 'l', 'e', 'a', 'd'}
	if err := errors.Join(f.WriteSettings(), f.WritePing(false, mark)); err != nil {
		return err
	}
	for range frames {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			if frame.IsAck() && frame.Data == mark {
				return nil
			}
		case *http2.GoAwayFrame:
			return fmt.Errorf("the server ends the connection: %s", frame.ErrCode)
		}
	}
	return fmt.Errorf("no answer among %d frames", frames)
}

// grpcProbe asks with gRPC's health protocol, version 1, for a service or, where
// none is named behind a slash, for the whole server.
func grpcProbe(spec model.CheckSpec, dial dialFunc) probe {
	address, service, _ := strings.Cut(spec.GRPC, "/")
	return func(ctx context.Context) (model.Status, string) {
		ctx, cancel := context.WithTimeout(ctx, timeout(spec))
		defer cancel()
		creds := insecure.NewCredentials()
		if spec.GRPCUseTLS {
			creds = credentials.NewTLS(tlsConfig(spec))
		}
		// "passthrough" leaves names to the dialer, as for every other check.
		conn, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(creds),
			grpc.WithUserAgent("Fairlead Health Check"),
			grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) { return dial(ctx, "tcp", to) }),
			grpc.WithNoProxy(),
			grpc.WithDisableServiceConfig(),
		)
		if err != nil {
			return model.Critical, err.Error()
		}
		defer conn.Close()
		answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		switch {
		case err != nil:
			return model.Critical, fmt.Sprintf("gRPC check %s: %s: %s", spec.GRPC, status.Code(err), status.Convert(err).Message())
		case answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
			return model.Critical, fmt.Sprintf("gRPC check %s: the server says %s", spec.GRPC, answer.GetStatus())
		}
		return model.Passing, fmt.Sprintf("gRPC check %s: success", spec.GRPC)
	}
}
