package health

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairlead-net/fairlead/internal/model"
)

// outcome is what a check is expected to say; with a star the output only begins
// like that.
type outcome struct {
	spec   model.CheckSpec
	status model.Status
	output string
}

func expectAll(t *testing.T, tests []outcome) {
	t.Helper()
	for _, tt := range tests {
		status, output := ask(tt.spec)
		begin, open := strings.CutSuffix(tt.output, "*")
		if status != tt.status || (output != tt.output && !(open && strings.HasPrefix(output, begin))) {
			t.Errorf("%s check: %s %q\nwant %s %q", tt.spec.Type(), status, output, tt.status, tt.output)
		}
	}
}

// serverTLS is what a test's own servers show: the certificate of httptest, which
// is for example.com and 127.0.0.1 and which nobody trusts.
func serverTLS(t *testing.T, protos ...string) *tls.Config {
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: protos}
}

func TestTCPWithTLS(t *testing.T) {
	s := server(t, httptest.NewTLSServer)
	s.Config.ErrorLog = quiet
	address := s.Listener.Addr().String()
	expectAll(t, []outcome{
		{model.CheckSpec{TCP: address, TCPUseTLS: true, TLSSkipVerify: true}, model.Passing, "TCP+TLS connect " + address + ": Success"},
		{model.CheckSpec{TCP: address, TCPUseTLS: true}, model.Critical, "tls: failed to verify certificate*"},
		{model.CheckSpec{TCP: closedPort(t), TCPUseTLS: true}, model.Critical, "dial tcp *"},
	})
}

func TestUDP(t *testing.T) {
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 16)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(append(buf[:n], '!'), from)
		}
	}()
	defer echo.Close()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	e, s, g := echo.LocalAddr().String(), silent.LocalAddr().String(), gone.LocalAddr().String()
	begin := time.Now()
	expectAll(t, []outcome{
		{model.CheckSpec{UDP: e, Timeout: time.Minute, Interval: time.Minute}, model.Passing, "UDP connect " + e + ": Success"},
		{model.CheckSpec{UDP: g, Timeout: time.Minute, Interval: time.Minute}, model.Critical, "read udp *"},
	})
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("an answer and a refusal took %v", d)
	}
	expectAll(t, []outcome{
		{model.CheckSpec{UDP: s, Timeout: 50 * time.Millisecond}, model.Passing, "UDP connect " + s + ": Success"},
		{model.CheckSpec{UDP: "127.0.0.1"}, model.Critical, "dial udp: address 127.0.0.1: missing port in address"},
	})
}

func TestHTTP2Ping(t *testing.T) {
	serve := func(configure func(*httptest.Server), start func(*httptest.Server)) string {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = quiet
		configure(s)
		start(s)
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	h2c := func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
	}
	secure := serve(func(s *httptest.Server) { s.EnableHTTP2 = true }, (*httptest.Server).StartTLS)
	plain := serve(h2c, (*httptest.Server).Start)
	old := serve(func(*httptest.Server) {}, (*httptest.Server).Start)
	expectAll(t, []outcome{
		{model.CheckSpec{H2Ping: secure, TLSSkipVerify: true}, model.Passing, "HTTP2 ping was successful"},
		{model.CheckSpec{H2Ping: secure}, model.Critical, "Failed to dial to " + secure + ": tls: *"},
		{model.CheckSpec{H2Ping: plain, H2PingNoTLS: true}, model.Passing, "HTTP2 ping was successful"},
		{model.CheckSpec{H2Ping: old, H2PingNoTLS: true, Timeout: 200 * time.Millisecond}, model.Critical, "HTTP2 ping failed: *"},
		{model.CheckSpec{H2Ping: closedPort(t)}, model.Critical, "Failed to dial to *"},
	})
}

// TestPingOfHTTP1: what begins an answer of HTTP/1.1 reads as a frame of megabytes,
// for which nothing is allocated.
func TestPingOfHTTP1(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	go io.Copy(io.Discard, there)
	go io.WriteString(there, "HTTP/1.1 400 Bad Request\r\n\r\n")
	if err := ping(here); !errors.Is(err, http2.ErrFrameTooLarge) {
		t.Errorf("ping = %v", err)
	}
	there.Close()
}

func TestGRPC(t *testing.T) {
	serve := func(opts ...grpc.ServerOption) (string, *grpchealth.Server) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(opts...)
		h := grpchealth.NewServer()
		grpc_health_v1.RegisterHealthServer(s, h)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().String(), h
	}
	plain, h := serve()
	secure, _ := serve(grpc.Creds(credentials.NewTLS(serverTLS(t, "h2"))))
	h.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	closed := closedPort(t)
	expectAll(t, []outcome{
		{model.CheckSpec{GRPC: plain}, model.Passing, "gRPC check " + plain + ": success"},
		{model.CheckSpec{GRPC: plain + "/up"}, model.Passing, "gRPC check " + plain + "/up: success"},
		{model.CheckSpec{GRPC: plain + "/down"}, model.Critical, "gRPC check " + plain + "/down: the server says NOT_SERVING"},
		{model.CheckSpec{GRPC: plain + "/none"}, model.Critical, "gRPC check " + plain + "/none: NotFound: unknown service"},
		{model.CheckSpec{GRPC: secure, GRPCUseTLS: true, TLSSkipVerify: true}, model.Passing, "gRPC check " + secure + ": success"},
		{model.CheckSpec{GRPC: secure, GRPCUseTLS: true}, model.Critical, "gRPC check " + secure + ": Unavailable: *"},
		{model.CheckSpec{GRPC: closed}, model.Critical, "gRPC check " + closed + ": Unavailable: *"},
		{model.CheckSpec{GRPC: mute.Addr().String(), Timeout: 100 * time.Millisecond}, model.Critical, "gRPC check " + mute.Addr().String() + ": DeadlineExceeded: *"},
	})
}
