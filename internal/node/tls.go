package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// certificates are the files of the API's TLS, as last read.
type certificates struct {
	cfg     Config
	current atomic.Pointer[tls.Config]
}

// openCertificates reads the files; nil without https-addr.
func openCertificates(cfg Config) (*certificates, error) {
	if cfg.HTTPSAddr == "" {
		return nil, nil
	}
	c := &certificates{cfg: cfg}
	if err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// reload reads the files again. What cannot be used leaves what was read before
// in force.
func (c *certificates) reload() error {
	cert, err := tls.LoadX509KeyPair(c.cfg.TLSCertFile, c.cfg.TLSKeyFile)
	if err != nil {
		return fmt.Errorf("tls-cert-file %s with tls-key-file %s: %w", c.cfg.TLSCertFile, c.cfg.TLSKeyFile, err)
	}
	next := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if c.cfg.TLSCAFile != "" {
		pem, err := os.ReadFile(c.cfg.TLSCAFile)
		if err != nil {
			return fmt.Errorf("tls-ca-file: %w", err)
		}
		next.ClientCAs = x509.NewCertPool()
		if !next.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("tls-ca-file %s: %w", c.cfg.TLSCAFile, errors.New("no certificate in it"))
		}
		next.ClientAuth = tls.VerifyClientCertIfGiven
		if c.cfg.TLSVerifyIncoming {
			next.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	c.current.Store(next)
	return nil
}

// server is what a listener works with: each handshake uses the files as last
// read.
func (c *certificates) server() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
	}
}
