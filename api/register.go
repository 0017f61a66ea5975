package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// What a Registration leaves open.
const (
	DefaultTTL       = 15 * time.Second
	DefaultDrainTime = 5 * time.Second
)

// How a registration is kept up.
const (
	lookEvery     = 5 * time.Second  // for registrations whose check the agent runs
	patientAgent  = 10 * time.Second // how long the first registration, or the last, waits for an agent
	beatTimeout   = 5 * time.Second  // for one call
	probeTimeout  = 5 * time.Second
	drainReason   = "draining: the program is about to end"
	maintenanceOf = "_service_maintenance:" // and the service's id: the check that maintenance is
)

// Registration is what a program says about an instance of a service: itself.
type Registration struct {
	Name string
	// ID tells the instances of a node apart; empty is "NAME-PORT", or the name.
	ID string
	// Address is where the instance is reached; empty is the node's address.
	Address string
	Port    int
	Tags    []string
	Meta    map[string]string
	// Weight is the instance's share beside the others'; 0 is 1.
	Weight int
	Check  HealthCheck
	// DrainTime is how long the instance stays after it was taken out of what is
	// found, so that callers hear of it; 0 is DefaultDrainTime, negative is none.
	DrainTime time.Duration
	// Log takes what goes wrong in the background; nil drops it.
	Log *slog.Logger
}

// HealthCheck is how an instance's health is found out: by the agent, with one of
// HTTP, TCP and GRPC, or by the program's own heartbeat, if all of them are empty.
type HealthCheck struct {
	HTTP string // a URL that answers 2xx
	TCP  string // "host:port" that accepts connections
	GRPC string // "host:port[/service]" that speaks gRPC's health protocol
	// Interval and Timeout are those of the agent's checks; 0 is 5 s and 2 s.
	Interval, Timeout time.Duration

	// TTL is the time without a heartbeat after which the instance is critical; 0 is
	// DefaultTTL. A heartbeat is sent three times in it.
	TTL time.Duration
	// Probe is asked before each heartbeat, with a deadline; an error makes the
	// instance critical, its text is shown. It may be nil.
	Probe func(context.Context) error

	// DeregisterAfter removes an instance that was critical for so long, at least 1m;
	// 0 never does.
	DeregisterAfter time.Duration
}

// heartbeat reports whether the program itself tells of its health.
func (h HealthCheck) heartbeat() bool { return h.HTTP == "" && h.TCP == "" && h.GRPC == "" }

// Registered is an instance that is kept registered until it is closed.
type Registered struct {
	c    *Client
	reg  Registration
	stop context.CancelFunc
	done chan struct{}
	err  error // of the removal; written before done is closed
}

// Register registers an instance and keeps it registered: it sends the heartbeats,
// and registers it again when the agent has lost it. An agent that is away is waited
// for, at first for 10 s, later for as long as it takes.
//
// When ctx ends, or Close is called, the instance is drained: put into maintenance, so
// that nobody picks it any more, kept for the drain time, in which the program should
// go on serving, and removed.
func (c *Client) Register(ctx context.Context, reg Registration) (*Registered, error) {
	if reg.Name == "" {
		return nil, errors.New("register: the service has no name")
	}
	if reg.ID == "" {
		reg.ID = reg.Name
		if reg.Port != 0 {
			reg.ID += "-" + strconv.Itoa(reg.Port)
		}
	}
	if reg.Log == nil {
		reg.Log = slog.New(slog.DiscardHandler)
	}
	reg.Check.TTL = cmp.Or(reg.Check.TTL, DefaultTTL)
	reg.DrainTime = max(cmp.Or(reg.DrainTime, DefaultDrainTime), 0)
	r := &Registered{c: c, reg: reg, done: make(chan struct{})}
	if err := r.begin(ctx); err != nil {
		return nil, fmt.Errorf("register %s: %w", reg.ID, err)
	}
	var life context.Context
	life, r.stop = context.WithCancel(ctx)
	go func() {
		defer close(r.done)
		r.keep(life)
		r.err = r.drain(context.WithoutCancel(ctx))
	}()
	return r, nil
}

// ID is the instance's id.
func (r *Registered) ID() string { return r.reg.ID }

// Done is closed when the instance has been drained and removed.
func (r *Registered) Done() <-chan struct{} { return r.done }

// Close drains the instance and removes it. It returns when that is done, after the
// drain time at the earliest. An error means that the agent could not be told; the
// instance then turns critical by itself.
func (r *Registered) Close() error {
	r.stop()
	<-r.done
	return r.err
}

// begin registers for the first time.
func (r *Registered) begin(ctx context.Context) error {
	status, output := r.probe(ctx)
	return persist(ctx, func(ctx context.Context) error {
		if err := r.put(ctx, status, output); err != nil {
			return err
		}
		return r.endOldDrain(ctx)
	})
}

// persist tries something for as long as the agent is away, but not for ever.
func persist(ctx context.Context, try func(context.Context) error) error {
	until := time.Now().Add(patientAgent)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := once(ctx, try)
		if err == nil || refused4xx(err) || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		sleep(ctx, jittered(pause))
	}
}

// once gives one call its time.
func once(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	return try(ctx)
}

// refused4xx reports whether asking again is of no use.
func refused4xx(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests
}

// keep keeps the registration up until ctx ends.
func (r *Registered) keep(ctx context.Context) {
	every := lookEvery
	if r.reg.Check.heartbeat() {
		every = r.reg.Check.TTL / 3
	}
	pause := time.Duration(0)
	for {
		sleep(ctx, cmp.Or(pause, jittered(every)))
		if ctx.Err() != nil {
			return
		}
		err := r.beat(ctx)
		switch {
		case err == nil:
			pause = 0
			continue
		case ctx.Err() != nil:
			return
		}
		r.reg.Log.Warn("registration not confirmed", "service", r.reg.Name, "instance", r.reg.ID, "error", err)
		// Sooner than the next beat: the agent may be back before the time runs out.
		pause = jittered(min(max(2*pause, firstPause), every, longestPause))
	}
}

// beat says that the instance is alive, or looks whether it is still registered, and
// registers it again if it is not.
func (r *Registered) beat(ctx context.Context) error {
	status, output := r.probe(ctx)
	err := once(ctx, func(ctx context.Context) error {
		if !r.reg.Check.heartbeat() {
			_, err := r.c.Do(ctx, http.MethodGet, "/v1/agent/service/"+url.PathEscape(r.reg.ID), nil)
			return err
		}
		body, err := json.Marshal(map[string]string{"Status": status, "Output": output})
		if err == nil {
			_, err = r.c.Do(ctx, http.MethodPut, "/v1/agent/check/update/"+url.PathEscape(r.checkID()), body)
		}
		return err
	})
	if !IsNotFound(err) {
		return err
	}
	r.reg.Log.Info("register again what the agent has lost", "service", r.reg.Name, "instance", r.reg.ID)
	return once(ctx, func(ctx context.Context) error { return r.put(ctx, status, output) })
}

func (r *Registered) checkID() string { return "service:" + r.reg.ID }

// probe asks the program how it is.
func (r *Registered) probe(ctx context.Context) (status, output string) {
	if r.reg.Check.Probe == nil || !r.reg.Check.heartbeat() {
		return "passing", ""
	}
	ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, r.reg.Check.TTL/3))
	defer cancel()
	if err := r.reg.Check.Probe(ctx); err != nil {
		return "critical", err.Error()
	}
	return "passing", ""
}

// put registers the instance.
func (r *Registered) put(ctx context.Context, status, output string) error {
	g, k := r.reg, r.reg.Check
	check := map[string]any{"CheckID": r.checkID(), "Name": "Service '" + g.Name + "' check"}
	if k.heartbeat() {
		check["TTL"], check["Status"], check["Notes"] = k.TTL.String(), status, output
	} else {
		for field, value := range map[string]string{"HTTP": k.HTTP, "TCP": k.TCP, "GRPC": k.GRPC} {
			if value != "" {
				check[field] = value
			}
		}
		check["Interval"] = cmp.Or(k.Interval, 5*time.Second).String()
		check["Timeout"] = cmp.Or(k.Timeout, 2*time.Second).String()
	}
	if k.DeregisterAfter > 0 {
		check["DeregisterCriticalServiceAfter"] = k.DeregisterAfter.String()
	}
	weight := max(g.Weight, 1)
	body, err := json.Marshal(map[string]any{
		"ID": g.ID, "Name": g.Name, "Address": g.Address, "Port": g.Port, "Tags": g.Tags, "Meta": g.Meta, "Check": check,
		"Weights": map[string]int{"Passing": weight, "Warning": max(weight/2, 1)},
	})
	if err != nil {
		return err
	}
	warnings, err := r.c.RegisterService(ctx, body)
	for _, w := range warnings {
		r.reg.Log.Warn("registered with a warning", "service", g.Name, "instance", g.ID, "warning", w)
	}
	return err
}

// endOldDrain ends the maintenance that a program left behind which died in its drain
// time. Maintenance that a person began stays.
func (r *Registered) endOldDrain(ctx context.Context) error {
	q := url.Values{"filter": {"ServiceID==" + strconv.Quote(r.reg.ID)}}
	checks, err := get[map[string]struct{ Notes string }](ctx, r.c, "/v1/agent/checks?"+q.Encode())
	if err != nil || checks[maintenanceOf+r.reg.ID].Notes != drainReason {
		return err
	}
	return r.c.EndMaintenance(ctx, r.reg.ID)
}

// drain takes the instance out of what is found, waits and removes it.
func (r *Registered) drain(ctx context.Context) error {
	err := persist(ctx, func(ctx context.Context) error { return r.c.BeginMaintenance(ctx, r.reg.ID, drainReason) })
	if err == nil {
		sleep(ctx, r.reg.DrainTime)
	}
	if err == nil || IsNotFound(err) {
		err = persist(ctx, func(ctx context.Context) error { return r.c.Deregister(ctx, r.reg.ID) })
	}
	if err != nil && !IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", r.reg.ID, err)
	}
	return nil
}
