package definition

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestSpellings(t *testing.T) {
	want := model.CheckSpec{
		ID: "c", Name: "Service 'web' check", ServiceID: "web", HTTP: "https://x/", Method: "POST", Header: map[string][]string{"A_b": {"c"}},
		TLSSkipVerify: true, TLSServerName: "y", NoRedirects: true, Interval: 2 * time.Second, Timeout: time.Second,
		DeregisterAfter: time.Hour, SuccessBeforePassing: 1, FailuresBeforeWarning: 2, FailuresBeforeCritical: 3, OutputMaxSize: 5,
	}
	for _, body := range []string{
		`{"Name":"web","Check":{"CheckID":"c","HTTP":"https://x/","Method":"POST","Header":{"A_b":["c"]},"TLSSkipVerify":true,"TLSServerName":"y",
		 "DisableRedirects":true,"Interval":"2s","Timeout":"1s","DeregisterCriticalServiceAfter":"1h","SuccessBeforePassing":1,
		 "FailuresBeforeWarning":2,"FailuresBeforeCritical":3,"OutputMaxSize":5}}`,
		`{"name":"web","checks":[{"check_id":"c","http":"https://x/","method":"POST","header":{"A_b":["c"]},"tls_skip_verify":true,"tls_server_name":"y",
		 "disable_redirects":true,"interval":2000000000,"timeout":1e9,"deregister_critical_service_after":"60m","success_before_passing":1,
		 "failures_before_warning":2,"failures_before_critical":3,"output_max_size":5}]}`,
		// Said twice: the spelling without underscores wins.
		`{"name":"web","check":{"id":"c","tls_server_name":"n","TLSServerName":"y","http":"https://x/","method":"POST","header":{"A_b":["c"]},"tls_skip_verify":true,
		 "disable_redirects":true,"interval":"2s","timeout":"1s","deregistercriticalserviceafter":"1h","success_before_passing":1,
		 "failures_before_warning":2,"failures_before_critical":3,"output_max_size":5}}`,
		// As HCL's blocks come: lists of one.
		`{"name":"web","check":[{"id":"c","http":"https://x/","method":"POST","header":[{"A_b":["c"]}],"tls_skip_verify":true,"tls_server_name":"y",
		 "disable_redirects":true,"interval":"2s","timeout":"1s","deregister_critical_service_after":"1h","success_before_passing":1,
		 "failures_before_warning":2,"failures_before_critical":3,"output_max_size":5}]}`,
	} {
		r, warnings, err := Service([]byte(body))
		if err != nil || len(warnings) > 0 || len(r.Checks) != 1 {
			t.Errorf("%v, %v, %d checks of %s", err, warnings, len(r.Checks), body)
			continue
		}
		if got := r.Checks[0]; !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestKindsOfChecks(t *testing.T) {
	tests := []struct {
		body string
		kind string
		want model.CheckSpec
	}{
		{`{"tcp":"x:1","tcp_use_tls":true,"interval":"1s"}`, "tcp", model.CheckSpec{TCP: "x:1", TCPUseTLS: true, Interval: time.Second}},
		{`{"UDP":"x:1","Interval":"1s"}`, "udp", model.CheckSpec{UDP: "x:1", Interval: time.Second}},
		{`{"grpc":"x:1/svc","grpc_use_tls":true,"interval":"1s"}`, "grpc", model.CheckSpec{GRPC: "x:1/svc", GRPCUseTLS: true, Interval: time.Second}},
		{`{"H2PING":"x:1","Interval":"1s"}`, "h2ping", model.CheckSpec{H2Ping: "x:1", Interval: time.Second}},
		{`{"h2ping":"x:1","h2ping_use_tls":false,"interval":"1s"}`, "h2ping", model.CheckSpec{H2Ping: "x:1", H2PingNoTLS: true, Interval: time.Second}},
		{`{"Args":["a","b"],"Interval":"1s"}`, "script", model.CheckSpec{Args: []string{"a", "b"}, Interval: time.Second}},
		{`{"script_args":["a"],"interval":"1s"}`, "script", model.CheckSpec{Args: []string{"a"}, Interval: time.Second}},
		{`{"script":"a b","interval":"1s"}`, "script", model.CheckSpec{Args: []string{"/bin/sh", "-c", "a b"}, Interval: time.Second}},
		{`{"script":"a","shell":"/bin/bash","docker_container_id":"d","interval":"1s"}`, "docker", model.CheckSpec{Args: []string{"/bin/bash", "-c", "a"}, Docker: "d", Interval: time.Second}},
		{`{"DockerContainerID":"d","Shell":"/bin/sh","Args":["a"],"Interval":"1s"}`, "docker", model.CheckSpec{Args: []string{"a"}, Docker: "d", Interval: time.Second}},
		{`{"os_service":"nginx","interval":"1s"}`, "os_service", model.CheckSpec{OSService: "nginx", Interval: time.Second}},
		{`{"alias_service":"web"}`, "alias", model.CheckSpec{AliasService: "web"}},
		{`{"AliasNode":"n2","AliasService":"web"}`, "alias", model.CheckSpec{AliasNode: "n2", AliasService: "web"}},
		{`{"ttl":"1h","status":"passing"}`, "ttl", model.CheckSpec{TTL: time.Hour, Status: model.Passing}},
	}
	for _, tt := range tests {
		body := `{"name":"n","service_id":"s","notes":"o","token":"t",` + tt.body[1:]
		got, warnings, err := Check([]byte(body))
		want := tt.want
		want.ID, want.Name, want.ServiceID, want.Notes, want.Token = "n", "n", "s", "o", "t"
		if err != nil || len(warnings) > 0 || !reflect.DeepEqual(got, want) || got.Type() != tt.kind {
			t.Errorf("%s: %s, %v, %v\ngot  %+v\nwant %+v", tt.body, got.Type(), warnings, err, got, want)
		}
	}
}

func TestWhatAServiceSays(t *testing.T) {
	r, _, err := Service([]byte(`{
		"id": "p1", "name": "p", "kind": "connect-proxy", "socket_path": "/run/p", "enable_tag_override": true, "token": "t",
		"tagged_addresses": {"virtual": {"address": "v", "port": 1}}, "meta": {"a": "b"}, "tags": ["x"], "weights": {"passing": 2, "warning": 0},
		"proxy": {"destination_service_name": "web", "destination_service_id": "w1", "local_service_address": "l", "local_service_port": 2,
		"upstreams": [], "config": {}},
		"locality": {"region": "r", "zone": "z"}, "connect": {}}`))
	want := model.Registration{Token: "t", Instance: model.Instance{
		ID: "p1", Service: "p", Kind: model.KindConnectProxy, SocketPath: "/run/p", EnableTagOverride: true, Tags: []string{"x"},
		TaggedAddresses: map[string]model.ServiceAddress{"virtual": {Address: "v", Port: 1}}, Meta: map[string]string{"a": "b"},
		Weights: model.Weights{Passing: 2}, Locality: model.Locality{Region: "r", Zone: "z"},
		Proxy: model.Proxy{Service: "web", ID: "w1", LocalAddress: "l", LocalPort: 2},
	}}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, r, want)
	}
	r, _, err = Service([]byte(`{"Name":"web","Kind":"typical","Connect":{"Native":true},"Proxy":null}`))
	if i := r.Instance; err != nil || !i.Native || i.Kind != "" || i.Weights != model.DefaultWeights {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestServicesThatAreRefused(t *testing.T) {
	many := map[string]string{}
	for i := range 65 {
		many[strings.Repeat("k", i+1)] = "v"
	}
	tooMuchMeta, _ := json.Marshal(many)
	tests := []struct{ body, want string }{
		{``, "EOF"},
		{`{"Name":`, "unexpected EOF"},
		{`{} {}`, "more than one JSON value"},
		{`[]`, "json: cannot unmarshal array into an object"},
		{`{"Name":"w","Bogus":1}`, `json: unknown field "Bogus"`},
		{`{"Name":"w","Check":{"Bogus":1}}`, `Check: json: unknown field "Bogus"`},
		{`{"Name":"w","namespace":"x"}`, `json: unknown field "namespace" - Namespaces are a Consul Enterprise feature`},
		{`{"Name":"w","Partition":"x"}`, `json: unknown field "Partition" - Partitions are a Consul Enterprise feature`},
		{`{"Name":"w","Meta":[{"a":"b"},{"c":"d"}]}`, "Meta: json: cannot unmarshal array into Go value of type map[string]string"},
		{`{}`, "Missing service name"},
		{`{"Name":"w","Address":"::"}`, "Invalid service address"},
		{`{"Name":"w","Weights":{"Passing":1,"Warning":-1}}`, "Invalid Weights: Warning must be greater or equal than 0"},
		{`{"Name":"w","Weights":{"Passing":65536,"Warning":1}}`, "Invalid Weights: DNS Weight must be between 0 and 65535"},
		{`{"Name":"w","Meta":` + string(tooMuchMeta) + `}`, "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs"},
		{`{"Name":"w","Meta":{"":"v"}}`, "Invalid Service Meta: Couldn't load metadata pair ('', 'v'): Key cannot be blank"},
		{`{"Name":"w","TaggedAddresses":{"lan":{"Port":-1}}}`, "Validation failed: port -1 is not between 0 and 65535"},
		{`{"Name":"w","Kind":"mesh-gateway"}`, `Validation failed: services of kind "mesh-gateway" are not supported; leave Kind out, or register a "connect-proxy"`},
		{`{"Name":"w","Kind":"connect-proxy","Proxy":{"DestinationServiceName":"x"}}`, "Validation failed: Port or SocketPath must be set for a connect-proxy"},
		{`{"Name":"w","Kind":"connect-proxy","Port":1}`, "Validation failed: Proxy.DestinationServiceName must be non-empty for Connect proxy services"},
		{`{"Name":"w","Kind":"connect-proxy","Port":1,"Proxy":{"DestinationServiceName":"*"}}`, "Validation failed: Proxy.DestinationServiceName must not be a wildcard for Connect proxy services"},
		{
			`{"Name":"w","Kind":"connect-proxy","Port":1,"Proxy":{"DestinationServiceName":"x","Upstreams":[{}]}}`,
			"Validation failed: Proxy.Upstreams is not supported: Fairlead configures no proxies; leave it out",
		},
		{
			`{"Name":"w","Kind":"connect-proxy","Port":1,"Proxy":{"DestinationServiceName":"x"},"Connect":{"Native":true}}`,
			"Validation failed: A Proxy cannot also be Connect Native, only typical services",
		},
		{`{"Name":"w","Proxy":{"DestinationServiceName":"x"}}`, `Validation failed: Proxy is for services of kind "connect-proxy" only`},
		{`{"Name":"w","Connect":{"SidecarService":{"Port":1}}}`, `Validation failed: Connect.SidecarService is not supported; register the proxy as a service of kind "connect-proxy"`},
	}
	for _, tt := range tests {
		if _, _, err := Service([]byte(tt.body)); err == nil || err.Error() != tt.want || !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%.80s: %v\nwant %s", tt.body, err, tt.want)
		}
	}
}

func TestChecksThatAreRefused(t *testing.T) {
	const bad = "Invalid check: "
	tests := []struct{ body, want string }{
		{`{"TTL":"1h"}`, "Missing check name"},
		{`{"Name":"c","TTL":"1h","Status":"maintenance"}`, "Bad check status"},
		{`{"Name":"c","TTL":"1h","Interval":"1s"}`, bad + "Interval and TTL cannot both be specified"},
		{`{"Name":"c","UDP":"x:1"}`, bad + "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"},
		{`{"Name":"c"}`, bad + "TTL must be > 0 for TTL checks"},
		{`{"Name":"c","TCP":"x:1","HTTP":"http://x/","Interval":"1s"}`, bad + "it can only be of one kind, not HTTP and TCP; write one check for each"},
		{`{"Name":"c","TCP":"x:1","AliasService":"x","Interval":"1s"}`, bad + "Interval cannot be set for Alias checks"},
		{`{"Name":"c","AliasNode":"x","TTL":"1s"}`, bad + "TTL must be not be set for Alias checks"},
		{`{"Name":"c","DockerContainerID":"x","Interval":"1s"}`, bad + "DockerContainerID needs Args: the program to run in the container, and its arguments"},
		{`{"Name":"c","TTL":"1s","OutputMaxSize":-1}`, bad + "MaxOutputMaxSize must be positive"},
		{`{"Name":"c","TTL":"1s","Timeout":-1}`, bad + "durations must not be negative"},
		{`{"Name":"c","TTL":"1s","SuccessBeforePassing":-1}`, bad + "thresholds must not be negative"},
		{`{"Name":"c","GRPC":"/svc","Interval":"1s"}`, bad + "GRPC must be host:port: missing port in address"},
		{`{"Name":"c","H2PING":"x","Interval":"1s"}`, bad + "H2PING must be host:port: address x: missing port in address"},
		{`{"Name":"c","HTTP":"http://[","Interval":"1s"}`, bad + `parse "http://[": missing ']' in host`},
		{`{"Name":"c","CheckID":"serfHealth","TTL":"1s"}`, bad + `the id "serfHealth" is reserved`},
		{`{"Name":"c","TTL":9e99}`, "TTL: duration 9e+99 out of range"},
	}
	for _, tt := range tests {
		if _, _, err := Check([]byte(tt.body)); err == nil || err.Error() != tt.want || !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: %v\nwant %s", tt.body, err, tt.want)
		}
	}
}

func TestWhatIsTooShortIsRaised(t *testing.T) {
	c, warnings, err := Check([]byte(`{"Name":"c","HTTP":"http://x/","Interval":"1ms","DeregisterCriticalServiceAfter":"1s"}`))
	want := []string{
		`check "c": Interval 1ms is below the minimum and was raised to 1s`,
		`check "c": DeregisterCriticalServiceAfter 1s is below the minimum and was raised to 1m0s`,
	}
	if err != nil || c.Interval != time.Second || c.DeregisterAfter != time.Minute || !reflect.DeepEqual(warnings, want) {
		t.Errorf("%+v, %q, %v", c, warnings, err)
	}
}

func TestFiles(t *testing.T) {
	services, checks, warnings, err := File([]byte(`{
		"service": [{"name": "a", "weights": [{"passing": 3}]}],
		"services": [{"id": "b1", "name": "b", "checks": [{"ttl": "1h"}]}],
		"check": {"id": "disk", "name": "disk space", "args": ["df"], "interval": "1ms"},
		"checks": null}`))
	if err != nil || len(services) != 2 || len(checks) != 1 || len(warnings) != 1 {
		t.Fatalf("%v %v %v %v", services, checks, warnings, err)
	}
	if w := services[0].Instance.Weights; w != (model.Weights{Passing: 3, Warning: 1}) {
		t.Errorf("weights %+v", w)
	}
	if !services[0].Declared || !services[1].Declared || !services[1].Checks[0].Declared || !checks[0].Declared {
		t.Error("not all are marked as declared")
	}
	for body, want := range map[string]string{
		`{"service":{"id":"x"}}`:               `service "x": Missing service name`,
		`{"services":[{"name":"a"},{}]}`:       "service number 2: Missing service name",
		`{"check":{"name":"c","ttl":"never"}}`: `check "c": ttl: time: invalid duration "never"`,
		`{"servics":{}}`:                       `json: unknown field "servics"`,
	} {
		if _, _, _, err := File([]byte(body)); err == nil || err.Error() != want || !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: %v\nwant %s", body, err, want)
		}
	}
}

// FuzzService: whatever the body, reading it ends with a writer's error or with a
// registration that can be kept.
func FuzzService(f *testing.F) {
	for _, s := range []string{
		`{"Name":"web","Port":80,"Check":{"HTTP":"http://x/","Interval":"10s"}}`,
		`{"name":"web","checks":[{"ttl":"10s"},null,{"tcp":"x:1","interval":1e10}]}`,
		`{"Name":"w","Weights":{"Passing":1},"Meta":{"a":"b"},"TaggedAddresses":{"lan":{"Address":"::1","Port":1}},"Address":"::1"}`,
		`{"Name":"w","Connect":{"sidecar_service":{}},"Proxy":{},"Check":{"Timeout":-1,"TTL":"1h"}}`,
		`{"Name":"w","Kind":"connect-proxy","Port":1,"Proxy":[{"DestinationServiceName":"x"}],"Check":[{"Args":["a"],"DockerContainerID":"d","Interval":1}]}`,
		`{"NA_ME":"w","name":"v","Check":{"TTL":9e99}}`, `[]`, `null`, `{}`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := Service(body)
		if err != nil {
			if !errors.Is(err, model.ErrInvalid) || err.Error() == "" {
				t.Fatalf("not a writer's error: %v", err)
			}
			return
		}
		if r.Instance.Service == "" || r.Instance.ID == "" || r.Instance.Port < 0 || r.Instance.Weights.Passing < 1 {
			t.Fatalf("invalid instance %+v", r.Instance)
		}
		ids := map[model.CheckID]bool{}
		for _, c := range r.Checks {
			if c.ID == "" || c.Name == "" || c.ServiceID != r.Instance.ID || ids[c.ID] {
				t.Fatalf("invalid check %+v", c)
			}
			sound(t, c)
			ids[c.ID] = true
		}
		again, _, err := Service(body)
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("read again: %+v, %v", again, err)
		}
	})
}

// FuzzFile: as FuzzService, of whole files.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"service":{"name":"a","weights":{}},"checks":[{"name":"c","script":"x","interval":"10s"}]}`))
	f.Add([]byte(`{"services":[{"name":"a"},{"name":"b"}],"check":[{"name":"c","alias_node":"n"}]}`))
	f.Add([]byte(`{"service":[[]],"check":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		services, checks, _, err := File(body)
		if err != nil {
			if !errors.Is(err, model.ErrInvalid) {
				t.Fatalf("not a writer's error: %v", err)
			}
			return
		}
		for _, r := range services {
			checks = append(checks, r.Checks...)
		}
		for _, c := range checks {
			sound(t, c)
		}
	})
}

// sound fails for a check that no agent could run.
func sound(t *testing.T, c model.CheckSpec) {
	t.Helper()
	asks := c.Type() != "ttl" && c.Type() != "alias"
	if c.ID == "" || c.Type() == "" || c.Type() == "maintenance" || (asks && c.Interval < minInterval) {
		t.Fatalf("no agent could run %+v", c)
	}
}
