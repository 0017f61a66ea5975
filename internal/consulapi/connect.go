package consulapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Leaves issues certificates to the services of this node.
type Leaves interface {
	// Leaf returns the leaf of a service; with the index of the present one it
	// waits for the next.
	Leaf(ctx context.Context, service string, index model.Index, wait time.Duration) (*identity.Leaf, error)
}

var connectRoutes = []route{
	get("/v1/connect/ca/roots", (*handler).caRoots),
	{path: "/v1/connect/ca/configuration", methods: map[string]endpoint{http.MethodGet: (*handler).caGet, http.MethodPut: (*handler).caPut}},
	get("/v1/agent/connect/ca/roots", (*handler).caRoots),
	get("/v1/agent/connect/ca/leaf/", (*handler).caLeaf),
	{path: "/v1/agent/connect/authorize", methods: map[string]endpoint{http.MethodPost: (*handler).connectAuthorize}},
}

// rootShape is a root without its key.
type rootShape struct {
	ID                  string
	Name                string
	SerialNumber        uint64
	SigningKeyID        string
	ExternalTrustDomain string
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string
	IntermediateCerts   []string
	Active              bool
	PrivateKeyType      string
	PrivateKeyBits      int
	CreateIndex         uint64
	ModifyIndex         uint64
}

type rootsShape struct {
	ActiveRootID string
	TrustDomain  string
	Roots        []rootShape
}

// caRoots answers everybody, as Consul does: roots are what others are to trust.
func (h *handler) caRoots(c *call) (answer, error) {
	asPEM := false
	if s := c.params.Get("pem"); s != "" {
		var err error
		if asPEM, err = strconv.ParseBool(s); err != nil {
			return answer{}, badRequest("The 'pem' query parameter must be a boolean value")
		}
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		roots, mark := s.CARoots()
		return shapeRoots(roots), marks(mark), nil
	})
	if err != nil || !asPEM {
		return value(v), err
	}
	var b strings.Builder
	if list, ok := v.(rootsShape); ok {
		for _, r := range list.Roots {
			b.WriteString(r.RootCert + strings.Join(r.IntermediateCerts, ""))
		}
	}
	return answer{status: http.StatusOK, body: []byte(b.String()), ctype: "application/pem-certificate-chain"}, nil
}

func shapeRoots(roots []*model.CARoot) rootsShape {
	out := rootsShape{Roots: []rootShape{}}
	for _, r := range roots {
		if r.Active {
			out.ActiveRootID, out.TrustDomain = r.ID, r.TrustDomain
		}
		out.Roots = append(out.Roots, rootShape{
			ID: r.ID, Name: r.Name, SerialNumber: r.Serial, SigningKeyID: identity.SigningKeyID(r), NotBefore: r.NotBefore, NotAfter: r.NotAfter,
			RootCert: r.RootCert, IntermediateCerts: list(r.Intermediates), Active: r.Active, PrivateKeyType: "ec", PrivateKeyBits: 256,
			CreateIndex: uint64(r.CreateIndex), ModifyIndex: uint64(r.ModifyIndex),
		})
	}
	return out
}

func noCA() error {
	return fail(http.StatusNotImplemented, "Connect certificates are not available on this agent")
}

// leafShape is a leaf with its own private key.
type leafShape struct {
	SerialNumber  string
	CertPEM       string
	PrivateKeyPEM string
	Service       string
	ServiceURI    string
	ValidAfter    time.Time
	ValidBefore   time.Time
	CreateIndex   uint64
	ModifyIndex   uint64
}

func (h *handler) caLeaf(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service name")
	}
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	o, err := parseOptions(c)
	if err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Service, c.rest, acl.Write); err != nil {
		return answer{}, err
	}
	if h.Leaves == nil {
		return answer{}, noCA()
	}
	leaf, err := h.Leaves.Leaf(c.r.Context(), c.rest, o.index, o.wait+rand.N(o.wait/jitterPart+1))
	if errors.Is(err, identity.ErrNoRoot) {
		return answer{}, fail(http.StatusServiceUnavailable, "%v", err)
	}
	if err != nil {
		return answer{}, err
	}
	// The wait may have been a long one.
	c.lookAgain()
	if err := c.require(acl.Service, c.rest, acl.Write); err != nil {
		return answer{}, err
	}
	h.setMeta(c.h, o, leaf.Index)
	return value(leafShape{
		SerialNumber: leaf.Serial, CertPEM: leaf.Cert, PrivateKeyPEM: leaf.Key, Service: c.rest, ServiceURI: leaf.URI,
		ValidAfter: leaf.ValidAfter, ValidBefore: leaf.ValidBefore, CreateIndex: uint64(leaf.Index), ModifyIndex: uint64(leaf.Index),
	}), nil
}

type authorizeBody struct {
	Target           string
	ClientCertURI    string
	ClientCertSerial string
	Namespace        string
	Partition        string
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *authorizeBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// connectAuthorize says whether a client may connect to a service. Without
// intentions the default decides.
func (h *handler) connectAuthorize(c *call) (answer, error) {
	var b authorizeBody
	if err := h.decodeBody(c, &b); err != nil {
		return answer{}, err
	}
	if err := onlyDefault(b.Namespace, b.Partition); err != nil {
		return answer{}, badRequest("%v", err)
	}
	if b.Target == "" {
		return answer{}, badRequest("Target service must be specified")
	}
	name, ok := identity.ParseURI(b.ClientCertURI)
	switch {
	case !ok:
		return answer{}, badRequest("ClientCertURI not a valid Connect identifier")
	case name.Service == "":
		return answer{}, badRequest("ClientCertURI not a valid Service identifier")
	}
	if err := c.require(acl.Service, b.Target, acl.Write); err != nil {
		return answer{}, err
	}
	out := struct {
		Authorized bool
		Reason     string
	}{true, "ACLs disabled, access is allowed by default"}
	if !h.aclsOff() {
		out.Authorized, out.Reason = h.cfg.DefaultACLPolicy == "allow", "Default behavior configured by ACLs"
	}
	return value(out), nil
}

// caConfigShape is the configuration of the certificate authority.
type caConfigShape struct {
	Provider                 string
	Config                   map[string]any
	State                    map[string]string
	ForceWithoutCrossSigning bool
	CreateIndex              uint64
	ModifyIndex              uint64
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *caConfigShape) UnmarshalJSON(data []byte) error { return decodeFields(data, s) }

const caProvider = "consul"

func (h *handler) caGet(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Operator, "", acl.Read); err != nil {
		return answer{}, err
	}
	out := caConfigShape{Provider: caProvider, Config: map[string]any{
		"LeafCertTTL": "72h", "IntermediateCertTTL": "8760h", "RootCertTTL": "87600h",
	}}
	if set, _ := h.Reader.Snapshot().Setting(identity.Setting); set != nil {
		if err := json.Unmarshal([]byte(set.Value), &out.Config); err != nil {
			return answer{}, err
		}
		out.CreateIndex, out.ModifyIndex = uint64(set.CreateIndex), uint64(set.ModifyIndex)
	}
	return value(out), nil
}

func (h *handler) caPut(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Operator, "", acl.Write); err != nil {
		return answer{}, err
	}
	if h.Settings == nil {
		return answer{}, fail(http.StatusNotImplemented, "Settings are not available on this agent")
	}
	var cas *model.Index
	if s := c.params.Get("cas"); s != "" {
		index, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return answer{}, badRequest("Request decode failed: %v", err)
		}
		cas = new(model.Index(index))
	}
	var b caConfigShape
	if err := h.decodeBody(c, &b); err != nil {
		return answer{}, err
	}
	if p := cmp.Or(b.Provider, caProvider); p != caProvider {
		return answer{}, badRequest("CA provider %q is not supported; the site's own is %q", p, caProvider)
	}
	if len(b.State) > 0 {
		return answer{}, badRequest("Provider State is read-only. It must be omitted or identical to the current value")
	}
	text, err := json.Marshal(canonical(b.Config))
	if err != nil {
		return answer{}, err
	}
	if _, err := identity.ParseConfig(string(text)); err != nil {
		return answer{}, badRequest("%v", err)
	}
	ok, _, err := h.Settings.PutSetting(c.r.Context(), identity.Setting, string(text), cas)
	if err != nil {
		return answer{}, err
	}
	if !ok {
		return answer{}, unfit("the CA configuration was changed meanwhile: its ModifyIndex is not %d", *cas)
	}
	return empty(), nil
}

// canonical spells the known keys of a configuration in one way, so that what is
// set takes the place of the default where both are shown.
func canonical(config map[string]any) map[string]any {
	out := make(map[string]any, len(config))
	for name, v := range config {
		for _, known := range []string{
			"LeafCertTTL", "RotationPeriod", "IntermediateCertTTL", "RootCertTTL", "CSRMaxPerSecond", "CSRMaxConcurrent",
			"PrivateKeyType", "PrivateKeyBits", "SkipValidate",
		} {
			if strings.EqualFold(strings.ReplaceAll(name, "_", ""), known) {
				name = known
			}
		}
		out[name] = v
	}
	return out
}
