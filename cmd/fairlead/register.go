package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// registerFlags are the flags of service register as they were given.
type registerFlags struct {
	file                string
	id, address         string
	port                uint16
	tags, meta          []string
	http                string
	ports               [len(portChecks)]string // as portChecks
	script              string
	ttl                 time.Duration
	interval, timeout   time.Duration
	deregister          time.Duration
	intervalSet, deregd bool
}

// serviceBody and checkBody are the part of Consul's registration that there are
// flags for. Durations are text, such as "10s".
type serviceBody struct {
	Name    string            `json:"Name"`
	ID      string            `json:"ID,omitempty"`
	Address string            `json:"Address,omitempty"`
	Port    uint16            `json:"Port,omitempty"`
	Tags    []string          `json:"Tags,omitempty"`
	Meta    map[string]string `json:"Meta,omitempty"`
	Check   *checkBody        `json:"Check,omitempty"`
}

type checkBody struct {
	HTTP                           string   `json:"HTTP,omitempty"`
	TCP                            string   `json:"TCP,omitempty"`
	UDP                            string   `json:"UDP,omitempty"`
	GRPC                           string   `json:"GRPC,omitempty"`
	H2PING                         string   `json:"H2PING,omitempty"`
	Args                           []string `json:"Args,omitempty"`
	TTL                            string   `json:"TTL,omitempty"`
	Interval                       string   `json:"Interval,omitempty"`
	Timeout                        string   `json:"Timeout,omitempty"`
	DeregisterCriticalServiceAfter string   `json:"DeregisterCriticalServiceAfter,omitempty"`
}

// portChecks are the checks that ask a port and need nothing else.
var portChecks = [...]struct {
	flag, help, want string
	field            func(*checkBody) *string
}{
	{"check-tcp", "HOST:PORT that accepts connections while it is healthy", "HOST:PORT", func(b *checkBody) *string { return &b.TCP }},
	{"check-udp", "HOST:PORT that does not refuse datagrams while it is healthy", "HOST:PORT", func(b *checkBody) *string { return &b.UDP }},
	{"check-grpc", "HOST:PORT or HOST:PORT/SERVICE that says so with gRPC's health protocol", "HOST:PORT or HOST:PORT/SERVICE", func(b *checkBody) *string { return &b.GRPC }},
	{"check-h2ping", "HOST:PORT that answers an HTTP/2 ping over TLS while it is healthy", "HOST:PORT", func(b *checkBody) *string { return &b.H2PING }},
}

func serviceRegister(o *options) *cobra.Command {
	f := &registerFlags{}
	c := &cobra.Command{
		Use:   "register {NAME --port PORT | -f FILE} [flags]",
		Short: "Register an instance of a service at this node",
		Long: `Puts an instance into the catalogue, in place of the one with the same id. The
agent keeps it in a file, runs its check, and puts it back if it is missing.

A file holds the JSON that Consul's PUT /v1/agent/service/register takes. An
instance in a network of Fairlead's registers itself: see 'fairlead run --service'.`,
		Example: `  fairlead service register web --port 8080 --check-http http://127.0.0.1:8080/healthz
  fairlead service register db --port 5432 --address 192.0.2.7 --check-tcp 192.0.2.7:5432
  fairlead service register api --port 9000 --check-grpc 127.0.0.1:9000/users
  fairlead service register batch --port 1 --check-ttl 30s
  fairlead service register -f web.json`,
		Args: between(0, 1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			f.intervalSet = c.Flags().Changed("check-interval") || c.Flags().Changed("check-timeout")
			f.deregd = c.Flags().Changed("deregister-after")
			body, err := f.body(c, args)
			if err != nil {
				return err
			}
			return register(c, o, body)
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "file with the registration, - for the standard input")
	fl.StringVar(&f.id, "id", "", "id of the instance (default: the service's name)")
	fl.StringVar(&f.address, "address", "", "where it answers (default: the node's address)")
	fl.Uint16Var(&f.port, "port", 0, "port at which it answers")
	fl.StringArrayVar(&f.tags, "tag", nil, "tag of the instance")
	fl.StringArrayVar(&f.meta, "meta", nil, "metadata, KEY=VALUE")
	fl.StringVar(&f.http, "check-http", "", "URL that answers 2xx while it is healthy")
	for i, k := range portChecks {
		fl.StringVar(&f.ports[i], k.flag, "", k.help)
	}
	fl.StringVar(&f.script, "check-script", "", "shell command: exit code 0 is healthy, 1 a warning (see --script-checks of the agent)")
	fl.DurationVar(&f.ttl, "check-ttl", 0, "time within which the service must say that it is healthy")
	fl.DurationVar(&f.interval, "check-interval", 10*time.Second, "time between checks")
	fl.DurationVar(&f.timeout, "check-timeout", 2*time.Second, "time after which a check has failed")
	fl.DurationVar(&f.deregister, "deregister-after", 0, "take it out of the catalogue after it was critical for so long (at least 1m)")
	return c
}

func register(c *cobra.Command, o *options, body []byte) error {
	var what struct{ ID, Name string }
	// The agent says what is wrong with a body that this does not fit.
	_ = json.Unmarshal(body, &what)
	what.ID = cmp.Or(what.ID, what.Name)
	cl, err := o.client()
	if err != nil {
		return err
	}
	warnings, err := cl.RegisterService(c.Context(), body)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		warn(c, w)
	}
	return o.show(c.OutOrStdout(), map[string]string{"name": what.Name, "id": what.ID}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: registered with the id %s\n", plain(what.Name), plain(what.ID))
		return err
	})
}

// body is the registration, from a file or from flags.
func (f *registerFlags) body(c *cobra.Command, args []string) ([]byte, error) {
	if f.file != "" {
		if len(args) > 0 {
			return nil, usagef("a name and --file: choose one; the file names the service")
		}
		var extra []string
		c.Flags().Visit(func(g *pflag.Flag) {
			if g.Name != "file" && c.InheritedFlags().Lookup(g.Name) == nil {
				extra = append(extra, "--"+g.Name)
			}
		})
		if len(extra) > 0 {
			return nil, usagef("%s and --file: choose one; the file says everything", strings.Join(extra, ", "))
		}
		return readRegistration(f.file, c.InOrStdin())
	}
	if len(args) == 0 || args[0] == "" {
		return nil, usagef("name the service, or give its registration with --file: %s", c.UseLine())
	}
	if f.port == 0 {
		return nil, usagef("service %s: say with --port at which port it answers", args[0])
	}
	meta, err := parsePairs("--meta", f.meta)
	if err != nil {
		return nil, err
	}
	check, err := f.check()
	if err != nil {
		return nil, err
	}
	return json.Marshal(serviceBody{
		Name: args[0], ID: f.id, Address: f.address, Port: f.port, Tags: f.tags, Meta: meta, Check: check,
	})
}

// check is the check that the flags describe, nil without one.
func (f *registerFlags) check() (*checkBody, error) {
	kinds := f.kinds()
	switch {
	case len(kinds) > 1:
		return nil, usagef("%s: choose one", strings.Join(kinds, " and "))
	case len(kinds) == 0 && (f.intervalSet || f.deregd):
		return nil, usagef("--check-interval, --check-timeout and --deregister-after belong to a check: add --check-http, --check-tcp or another")
	case len(kinds) == 0:
		return nil, nil
	case f.ttl != 0 && f.intervalSet:
		return nil, usagef("--check-ttl waits for the service: leave out --check-interval and --check-timeout")
	}
	for name, d := range map[string]time.Duration{"--check-ttl": f.ttl, "--check-interval": f.interval - 1, "--check-timeout": f.timeout - 1, "--deregister-after": f.deregister} {
		if d < 0 {
			return nil, usagef("%s: want a time above zero, such as 10s", name)
		}
	}
	b := &checkBody{HTTP: f.http}
	if f.deregister > 0 {
		b.DeregisterCriticalServiceAfter = f.deregister.String()
	}
	if f.ttl > 0 {
		b.TTL = f.ttl.String()
		return b, nil
	}
	b.Interval, b.Timeout = f.interval.String(), f.timeout.String()
	if f.script != "" {
		b.Args = []string{"/bin/sh", "-c", f.script}
	}
	return b, f.target(b)
}

// kinds are the flags that were given of which a check takes one.
func (f *registerFlags) kinds() []string {
	var kinds []string
	add := func(flag string, set bool) {
		if set {
			kinds = append(kinds, "--"+flag)
		}
	}
	add("check-http", f.http != "")
	for i, k := range portChecks {
		add(k.flag, f.ports[i] != "")
	}
	add("check-script", f.script != "")
	add("check-ttl", f.ttl != 0)
	return kinds
}

// target looks at what is to be asked, and puts it into the check.
func (f *registerFlags) target(b *checkBody) error {
	if f.http != "" {
		u, err := url.Parse(f.http)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return usagef("--check-http %q: want a URL, such as http://127.0.0.1:%d/healthz", f.http, f.port)
		}
	}
	for i, k := range portChecks {
		if f.ports[i] == "" {
			continue
		}
		address := f.ports[i]
		if k.flag == "check-grpc" {
			address, _, _ = strings.Cut(address, "/")
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return usagef("--%s %q: want %s, such as 127.0.0.1:%d", k.flag, f.ports[i], k.want, f.port)
		}
		*k.field(b) = f.ports[i]
	}
	return nil
}

// readRegistration reads a file and says where it is no JSON, before the agent
// would only say that it is none.
func readRegistration(file string, stdin io.Reader) ([]byte, error) {
	var b []byte
	var err error
	if file == "-" {
		file = "standard input"
		b, err = io.ReadAll(stdin)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("registration: %w", err)
	}
	var object map[string]any
	err = json.Unmarshal(b, &object)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line := 1 + strings.Count(string(b[:syntax.Offset]), "\n")
		return nil, fmt.Errorf("registration in %s, line %d: %w", file, line, err)
	case err != nil || object == nil:
		return nil, fmt.Errorf("registration in %s: want one JSON object, such as {\"Name\": \"web\", \"Port\": 8080}", file)
	}
	return b, nil
}

func parsePairs(flag string, all []string) (map[string]string, error) {
	var out map[string]string
	for _, s := range all {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef("%s %q: want KEY=VALUE", flag, s)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out, nil
}

func pairs(m map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, k+"="+m[k])
	}
	return strings.Join(all, ", ")
}
