package registry

import (
	"errors"
	"fmt"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Errors of this package. They come wrapped with what was being done and with
// whom it concerns; compare with errors.Is. Errors of the store (unknown
// outcome, no leader, ...) and of ipam pass through, wrapped.
var (
	// ErrInvalid: a field has a value that it cannot have. It is always a
	// *FieldError.
	ErrInvalid = model.ErrInvalid
	// ErrValueTooLarge: a KV value exceeds MaxValue.
	ErrValueTooLarge = errors.New("value is too large")
	// ErrConflict: others changed the same records again and again meanwhile.
	// Nothing was written; trying again is fine.
	ErrConflict = errors.New("conflicting writes")
	// ErrOwner: the record belongs to somebody else.
	ErrOwner error = refusal("belongs to another owner")
	// ErrNodeNameTaken: a node with another id has the name and is alive.
	ErrNodeNameTaken error = refusal("node name is taken")
	// ErrUnknownNode: no such node in the catalogue.
	ErrUnknownNode = errors.New("unknown node")
	// ErrUnknownService: no such instance on the node.
	ErrUnknownService = errors.New("unknown service instance")
	// ErrUnknownSession: no such session, or it has ended.
	ErrUnknownSession = model.ErrUnknownSession
	// ErrUnknownNetwork: no such network.
	ErrUnknownNetwork = errors.New("unknown network")
	// ErrUnknownEndpoint: no such endpoint.
	ErrUnknownEndpoint = errors.New("unknown endpoint")
	// ErrExists: the network, or another endpoint of that id, exists already.
	ErrExists = errors.New("exists already")
	// ErrInUse: the network has endpoints.
	ErrInUse = errors.New("in use")
	// ErrNameTaken: another workload of that name is in the network.
	ErrNameTaken = errors.New("name is taken")
	// ErrPortTaken: another endpoint of the node has published the port.
	ErrPortTaken = errors.New("port is taken")
	// ErrVIPsExhausted: every address of the VIP pool is allocated.
	ErrVIPsExhausted = errors.New("no free virtual address")
)

// refusal is an error that trying again does not mend: the record itself would
// have to change, or the one that it meets.
type refusal string

func (r refusal) Error() string { return string(r) }

// Refused tells the agent that owns the record to mark it rather than to insist.
func (r refusal) Refused() bool { return true }

// FieldError says which field of a record is wrong and what would be right.
type FieldError struct {
	Field   string // "service port"
	Problem string // "is 70000; it must be from 0 to 65535"
}

// Error is field and problem in one sentence.
func (e *FieldError) Error() string { return e.Field + " " + e.Problem }

// Refused is true: a wrong field does not mend itself.
func (e *FieldError) Refused() bool { return true }

// Is makes errors.Is(err, ErrInvalid) true.
func (e *FieldError) Is(target error) bool { return target == ErrInvalid }

func invalid(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// worded is a refusal in the very words that Consul's clients match on. It is
// returned bare, not wrapped with what was being done.
type worded struct {
	text string
	is   error // what it is for errors.Is; may be nil
}

func (e *worded) Error() string { return e.text }

// Is makes the refusal one of the errors above, too.
func (e *worded) Is(target error) bool { return e.is != nil && target == e.is }

// Refused is true: a client gave something that it has to change.
func (e *worded) Refused() bool { return true }

// say is a refusal in Consul's words; is may be nil.
func say(is error, format string, args ...any) error {
	return &worded{fmt.Sprintf(format, args...), is}
}

// bare unwraps a refusal in Consul's words; other errors stay as they are.
func bare(err error) error {
	var w *worded
	if errors.As(err, &w) {
		return w
	}
	return err
}
