package compat

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeCertificate writes a certificate of this machine that signs itself, and its key.
func writeCertificate(t *testing.T, dir string, serial int64) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "agent"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return certFile, keyFile
}

// servedSerial is the serial number of the certificate that is served to a client with the given ones of its own.
func servedSerial(addr string, own ...tls.Certificate) (int64, error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: own}} //nolint:gosec // it looks at the certificate itself
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: settleLimit}).Get("https://" + addr + "/v1/status/leader")
	if err != nil {
		return 0, err
	}
	return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), resp.Body.Close()
}

// TestHTTPS serves the API over TLS to clients with a certificate, and takes a new one at a reload.
func TestHTTPS(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCertificate(t, dir, 1)
	addr := freePort(t)
	a := startAgent(t, "https-addr="+addr, "tls-cert-file="+cert, "tls-key-file="+key, "tls-ca-file="+cert, "tls-verify-incoming=true")
	own, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	if got, err := servedSerial(addr, own); got != 1 || err != nil {
		t.Fatalf("certificate %d, %v", got, err)
	}
	if _, err := servedSerial(addr); err == nil {
		t.Error("a client without a certificate was served")
	}

	must(t, os.WriteFile(cert, []byte("nonsense"), 0o600))
	if err := a.client().Agent().Reload(); err == nil {
		t.Error("a reload of nonsense succeeded")
	}
	if got, err := servedSerial(addr, own); got != 1 || err != nil {
		t.Errorf("after a reload of nonsense: certificate %d, %v", got, err)
	}

	writeCertificate(t, dir, 2)
	must(t, a.client().Agent().Reload())
	own, err = tls.LoadX509KeyPair(cert, key)
	must(t, err)
	if got, err := servedSerial(addr, own); got != 2 || err != nil {
		t.Errorf("after a reload: certificate %d, %v", got, err)
	}
}
