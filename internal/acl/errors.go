package acl

import "fmt"

// Error is what is wrong with rules, a token, a policy or a role, in Consul's
// words, which its clients match on.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

// Errors that clients match on, by their texts.
const (
	// ErrNotFound: there is no such token, or it has expired.
	ErrNotFound Error = "ACL not found"
	// ErrNotBootstrapped is ErrNotFound on a site that has no token yet.
	ErrNotBootstrapped Error = "ACL system must be bootstrapped before making any requests that require authorization: ACL not found"
	// ErrBootstrapped begins the refusal of a second bootstrap.
	ErrBootstrapped Error = "ACL bootstrap no longer allowed"
)

// Errorf makes an Error.
func Errorf(format string, args ...any) error { return Error(fmt.Sprintf(format, args...)) }
