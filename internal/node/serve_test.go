package node

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/health"
	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/workload"
)

// sentinel is an exported error and its status. unreachable says why it never
// comes through the native API; the status is then 500, which is logged.
type sentinel struct {
	err         error
	status      int
	unreachable string
}

const internal = http.StatusInternalServerError

// sentinels are all exported errors of the boxes behind the native API.
var sentinels = map[string]sentinel{
	"endpoint.ErrNoNetwork":   {endpoint.ErrNoNetwork, 404, ""},
	"endpoint.ErrOtherNode":   {endpoint.ErrOtherNode, 409, ""},
	"endpoint.ErrDriver":      {endpoint.ErrDriver, 400, ""},
	"endpoint.ErrName":        {endpoint.ErrName, 400, ""},
	"endpoint.ErrPort":        {endpoint.ErrPort, 400, ""},
	"endpoint.ErrPortTaken":   {endpoint.ErrPortTaken, 409, ""},
	"endpoint.ErrNoEndpoint":  {endpoint.ErrNoEndpoint, 404, ""},
	"endpoint.ErrNotThisNode": {endpoint.ErrNotThisNode, 409, ""},
	"endpoint.ErrAttached":    {endpoint.ErrAttached, 409, ""},
	"endpoint.ErrNetworkName": {endpoint.ErrNetworkName, 400, ""},
	"endpoint.ErrBadNetwork":  {endpoint.ErrBadNetwork, 400, ""},

	"workload.ErrNoWorkload":   {workload.ErrNoWorkload, 404, ""},
	"workload.ErrSpec":         {workload.ErrSpec, 400, ""},
	"workload.ErrServiceTaken": {workload.ErrServiceTaken, 409, ""},

	"registry.ErrInvalid":         {registry.ErrInvalid, 400, ""},
	"registry.ErrValueTooLarge":   {registry.ErrValueTooLarge, internal, "only keys and values are that large, and they are the Consul API's"},
	"registry.ErrConflict":        {registry.ErrConflict, 409, ""},
	"registry.ErrOwner":           {registry.ErrOwner, 409, ""},
	"registry.ErrUnknownNode":     {registry.ErrUnknownNode, 404, ""},
	"registry.ErrJoinRefused":     {registry.ErrJoinRefused, internal, "hosts join by another way"},
	"registry.ErrRevokedNode":     {registry.ErrRevokedNode, internal, "hosts join by another way"},
	"registry.ErrNodeNameTaken":   {registry.ErrNodeNameTaken, internal, "the node registers itself before it serves"},
	"registry.ErrUnknownService":  {registry.ErrUnknownService, internal, "local deregisters, and takes it as done"},
	"registry.ErrUnknownNetwork":  {registry.ErrUnknownNetwork, 404, ""},
	"registry.ErrUnknownEndpoint": {registry.ErrUnknownEndpoint, 404, ""},
	"registry.ErrExists":          {registry.ErrExists, 409, ""},
	"registry.ErrInUse":           {registry.ErrInUse, 409, ""},
	"registry.ErrNameTaken":       {registry.ErrNameTaken, 409, ""},
	"registry.ErrOtherBlock":      {registry.ErrOtherBlock, 409, ""},
	"registry.ErrVNIsExhausted":   {registry.ErrVNIsExhausted, 409, ""},
	"registry.ErrPortTaken":       {registry.ErrPortTaken, 409, ""},
	"registry.ErrVIPsExhausted":   {registry.ErrVIPsExhausted, 409, ""},

	"ipam.ErrBadPrefix": {ipam.ErrBadPrefix, 400, ""},
	"ipam.ErrTooWide":   {ipam.ErrTooWide, 400, ""},
	"ipam.ErrTooSmall":  {ipam.ErrTooSmall, 400, ""},
	"ipam.ErrOutside":   {ipam.ErrOutside, 400, ""},
	"ipam.ErrReserved":  {ipam.ErrReserved, 400, ""},
	"ipam.ErrTaken":     {ipam.ErrTaken, 409, ""},
	"ipam.ErrExhausted": {ipam.ErrExhausted, 409, ""},
	"ipam.ErrNoDefault": {ipam.ErrNoDefault, 409, ""},

	"netdrv.ErrNoNetwork":     {netdrv.ErrNoNetwork, internal, "the endpoints' box makes the bridge first"},
	"netdrv.ErrNoNamespace":   {netdrv.ErrNoNamespace, 400, ""},
	"netdrv.ErrNotNamespace":  {netdrv.ErrNotNamespace, 400, ""},
	"netdrv.ErrHostNamespace": {netdrv.ErrHostNamespace, 400, ""},
	"netdrv.ErrNoIPv6":        {netdrv.ErrNoIPv6, 400, ""},
	"netdrv.ErrNameClash":     {netdrv.ErrNameClash, 409, ""},
	"netdrv.ErrPortTaken":     {netdrv.ErrPortTaken, 409, ""},
	"netdrv.ErrPortClash":     {netdrv.ErrPortClash, 409, ""},
	"netdrv.ErrRouteClash":    {netdrv.ErrRouteClash, 409, ""},
	"netdrv.ErrUnreachable":   {netdrv.ErrUnreachable, 409, ""},

	"registry.ErrUnknownSession": {registry.ErrUnknownSession, internal, "sessions are the Consul API's"},
	"model.ErrUnknownSession":    {model.ErrUnknownSession, internal, "sessions are the Consul API's"},

	"store.ErrNoLease":        {store.ErrNoLease, internal, "leases are the sessions'"},
	"store.ErrRestoring":      {store.ErrRestoring, 503, ""},
	"store.ErrUnknownOutcome": {store.ErrUnknownOutcome, 503, ""},
	"store.ErrNoLeader":       {store.ErrNoLeader, 503, ""},
	"store.ErrTooLarge":       {store.ErrTooLarge, 413, ""},
	"store.ErrInvalidTxn":     {store.ErrInvalidTxn, internal, "a mistake of ours"},
	"store.ErrNoSpace":        {store.ErrNoSpace, 507, ""},
	"store.ErrClosed":         {store.ErrClosed, 503, ""},
	"store.ErrLocked":         {store.ErrLocked, internal, "it ends the start"},
	"store.ErrDir":            {store.ErrDir, internal, "it ends the start"},
	"store.ErrUnknownServer":  {store.ErrUnknownServer, 404, ""},
	"store.ErrLastServer":     {store.ErrLastServer, 409, ""},
	"store.ErrLearner":        {store.ErrLearner, 409, ""},
	"store.ErrQuorum":         {store.ErrQuorum, 409, ""},
	"store.ErrNotLeader":      {store.ErrNotLeader, 503, ""},
	"store.ErrRemoved":        {store.ErrRemoved, internal, "it ends the agent"},

	"local.ErrInvalid":        {local.ErrInvalid, 400, ""},
	"local.ErrScripts":        {local.ErrScripts, internal, "workloads have no script checks"},
	"local.ErrUnknownService": {local.ErrUnknownService, internal, "workload takes it as done"},
	"local.ErrUnknownCheck":   {local.ErrUnknownCheck, internal, "heartbeats are the Consul API's"},
	"local.ErrNotTTL":         {local.ErrNotTTL, internal, "heartbeats are the Consul API's"},
	"local.ErrFile":           {local.ErrFile, internal, ""},

	"datapath.ErrInvalid":     {datapath.ErrInvalid, internal, "a mistake of ours"},
	"datapath.ErrInUse":       {datapath.ErrInUse, internal, "it ends the start"},
	"datapath.ErrFull":        {datapath.ErrFull, 507, ""},
	"datapath.ErrUnsupported": {datapath.ErrUnsupported, internal, "it ends the start"},

	"health.ErrUnknownCheck": {health.ErrUnknownCheck, internal, "heartbeats are the Consul API's"},
	"health.ErrNotTTL":       {health.ErrNotTTL, internal, "heartbeats are the Consul API's"},

	"model.ErrInvalid": {model.ErrInvalid, 400, ""},
}

func TestStatuses(t *testing.T) {
	for name, s := range sentinels {
		got := httpStatus(fmt.Errorf("attach web: %w", s.err))
		if got == 0 {
			got = internal
		}
		if got != s.status {
			t.Errorf("%s: %d, want %d", name, got, s.status)
		}
	}
	if got := httpStatus(fmt.Errorf("create network: %w", &ipam.OverlapError{Prefix: netip.MustParsePrefix("10.0.0.0/8")})); got != http.StatusConflict {
		t.Errorf("an overlap: %d", got)
	}
	if got := httpStatus(errors.New("what nobody foresaw")); got != 0 {
		t.Errorf("an unknown error: %d", got)
	}
}

// A new exported error has to be thought about.
func TestStatusesAreComplete(t *testing.T) {
	for _, box := range []string{"endpoint", "workload", "registry", "ipam", "netdrv", "store", "local", "datapath", "health", "model"} {
		files, err := filepath.Glob(filepath.Join("..", box, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(box, err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range exportedErrors(f) {
				if _, ok := sentinels[box+"."+name]; !ok {
					t.Errorf("%s.%s has no line in the table", box, name)
				}
			}
		}
	}
}

func exportedErrors(f *ast.File) []string {
	var all []string
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			for _, n := range s.(*ast.ValueSpec).Names {
				if strings.HasPrefix(n.Name, "Err") {
					all = append(all, n.Name)
				}
			}
		}
	}
	return all
}

// Addresses that somebody has are refused by name, all of them.
func TestAddrsFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tcp, udp := l.Addr().String(), p.LocalAddr().String()
	if err := (Config{HTTPAddr: "127.0.0.1:0", DNSAddr: "[::1]:0"}).addrsFree(); err != nil {
		t.Error(err)
	}
	err = Config{HTTPAddr: tcp, DNSAddr: udp}.addrsFree()
	for _, want := range []string{"http-addr " + tcp + " is in use", "dns-addr " + udp + " is in use", "set --http-addr", "set --dns-addr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := (Config{HTTPAddr: "198.51.100.1:80", DNSAddr: "127.0.0.1:0"}).addrsFree(); err == nil || !strings.Contains(err.Error(), "http-addr 198.51.100.1:80") {
		t.Errorf("an address that is not here: %v", err)
	}
}
