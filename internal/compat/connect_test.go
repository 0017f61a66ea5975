package compat

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// awaitRoots returns the site's roots once the server has made the first.
func awaitRoots(t *testing.T, c *api.Client) (roots *api.CARootList) {
	t.Helper()
	eventually(t, func() error {
		var err error
		if roots, _, err = c.Connect().CARoots(nil); err == nil && roots.ActiveRootID == "" {
			err = errors.New("no root yet")
		}
		return err
	})
	return roots
}

func TestConnectCA(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	roots := awaitRoots(t, c)
	if len(roots.Roots) != 1 || !roots.Roots[0].Active || roots.Roots[0].ID != roots.ActiveRootID || !strings.HasSuffix(roots.TrustDomain, ".consul") {
		t.Fatalf("roots: %+v", roots)
	}
	own, meta, err := c.Agent().ConnectCARoots(nil)
	if err != nil || own.ActiveRootID != roots.ActiveRootID || meta.LastIndex == 0 {
		t.Errorf("the agent's roots: %+v, %v", own, err)
	}
	status, chain, h := a.call(http.MethodGet, "/v1/agent/connect/ca/roots?pem=true", "")
	if status != 200 || strings.TrimSpace(chain) != strings.TrimSpace(roots.Roots[0].RootCertPEM) || h.Get("Content-Type") != "application/pem-certificate-chain" {
		t.Errorf("as PEM: %d %s %q", status, h.Get("Content-Type"), chain)
	}
	var raw struct {
		Roots []struct {
			SerialNumber      uint64
			SigningKeyID      string
			NotAfter          time.Time
			IntermediateCerts []string
			PrivateKeyType    string
			PrivateKeyBits    int
			SigningKey        string
			SigningCert       string
		}
	}
	if _, body, _ := a.call(http.MethodGet, "/v1/connect/ca/roots", ""); json.Unmarshal([]byte(body), &raw) != nil || strings.Contains(body, "PRIVATE KEY") {
		t.Errorf("roots as they are: %s", body)
	}
	if r := raw.Roots[0]; r.SerialNumber == 0 || r.SigningKeyID == "" || r.PrivateKeyType != "ec" || r.PrivateKeyBits != 256 || r.IntermediateCerts == nil || time.Until(r.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("root: %+v", r)
	}

	leaf, meta, err := c.Agent().ConnectCALeaf("web", nil)
	if err != nil || leaf.Service != "web" || leaf.ServiceURI != "spiffe://"+roots.TrustDomain+"/ns/default/dc/dc1/svc/web" || meta.LastIndex == 0 {
		t.Fatalf("leaf: %+v, %v", leaf, err)
	}
	if life := time.Until(leaf.ValidBefore); life < 71*time.Hour || life > 72*time.Hour || leaf.ModifyIndex != meta.LastIndex {
		t.Errorf("it lives for %v at %d", life, leaf.ModifyIndex)
	}
	// Nothing new within the wait: the same leaf.
	same, again, err := c.Agent().ConnectCALeaf("web", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 20 * time.Millisecond})
	if err != nil || same.SerialNumber != leaf.SerialNumber || again.LastIndex != meta.LastIndex {
		t.Errorf("after a wait: %+v, %v", same, err)
	}
	callOver(t, c, roots, "web", "api")
}

// callOver makes a request from one service to another over mutual TLS: both ends
// verify the other's leaf against the roots, and its name.
func callOver(t *testing.T, c *api.Client, roots *api.CARootList, server, client string) {
	t.Helper()
	pool := x509.NewCertPool()
	for _, r := range roots.Roots {
		pool.AppendCertsFromPEM([]byte(r.RootCertPEM))
	}
	l := listenLoopback(t)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello %s", r.TLS.PeerCertificates[0].URIs[0])
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{keyPair(t, c, server)}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		ReadHeaderTimeout: settleLimit,
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	defer srv.Close()
	name := func(service string) string {
		return "spiffe://" + roots.TrustDomain + "/ns/default/dc/dc1/svc/" + service
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{keyPair(t, c, client)}, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the name is a URI: verified here
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer := cs.PeerCertificates[0]
			if _, err := peer.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
				return err
			}
			if peer.URIs[0].String() != name(server) {
				return fmt.Errorf("the server is %s", peer.URIs[0])
			}
			return nil
		},
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: settleLimit}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "hello "+name(client) {
		t.Errorf("the server says %q", b)
	}
}

func keyPair(t *testing.T, c *api.Client, service string) tls.Certificate {
	t.Helper()
	leaf, _, err := c.Agent().ConnectCALeaf(service, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestConnectAuthorize(t *testing.T) {
	c := startAgent(t).client()
	params := &api.AgentAuthorizeParams{Target: "db", ClientCertURI: "spiffe://x.consul/ns/default/dc/dc1/svc/web", ClientCertSerial: "0a"}
	if got, err := c.Agent().ConnectAuthorize(params); err != nil || !got.Authorized || got.Reason != "ACLs disabled, access is allowed by default" {
		t.Errorf("%+v, %v", got, err)
	}
	params.ClientCertURI = "web"
	if _, err := c.Agent().ConnectAuthorize(params); err == nil || !strings.Contains(err.Error(), "400 (ClientCertURI not a valid Connect identifier)") {
		t.Errorf("a name that is none: %v", err)
	}
}

func TestConnectCAConfiguration(t *testing.T) {
	c := startAgent(t).client()
	conf, _, err := c.Connect().CAGetConfig(nil)
	if err != nil || conf.Provider != "consul" {
		t.Fatalf("%+v, %v", conf, err)
	}
	parsed, err := api.ParseConsulCAConfig(conf.Config)
	if err != nil || parsed.LeafCertTTL != 72*time.Hour || parsed.IntermediateCertTTL != 365*24*time.Hour {
		t.Errorf("%+v, %v", parsed, err)
	}
	conf.Config["LeafCertTTL"] = "2h"
	if _, err := c.Connect().CASetConfig(conf, nil); err != nil {
		t.Fatal(err)
	}
	set, _, err := c.Connect().CAGetConfig(nil)
	if err != nil || set.Config["LeafCertTTL"] != "2h" || set.ModifyIndex == 0 {
		t.Errorf("%+v, %v", set, err)
	}
	awaitRoots(t, c)
	leaf, _, err := c.Agent().ConnectCALeaf("new", nil)
	if err != nil || time.Until(leaf.ValidBefore) > 2*time.Hour {
		t.Errorf("a leaf after that: until %v, %v", leaf.ValidBefore, err)
	}
	conf.Provider = "vault"
	if _, err := c.Connect().CASetConfig(conf, nil); err == nil || !strings.Contains(err.Error(), `"vault" is not supported`) {
		t.Errorf("another provider: %v", err)
	}
}

// The root, and with it every leaf's issuer, is the same after a restart.
func TestTheRootOutlivesARestart(t *testing.T) {
	a := startAgent(t, "dev=false")
	before := awaitRoots(t, a.client())
	a = a.restart()
	after := awaitRoots(t, a.client())
	if after.ActiveRootID != before.ActiveRootID || after.Roots[0].RootCertPEM != before.Roots[0].RootCertPEM {
		t.Errorf("root %s, before %s", after.ActiveRootID, before.ActiveRootID)
	}
	if _, _, err := a.client().Agent().ConnectCALeaf("web", nil); err != nil {
		t.Error(err)
	}
}
