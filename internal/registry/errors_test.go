package registry_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/fairlead-net/fairlead/internal/registry"
)

// The agent that owns a record stops insisting on it only when the registry says
// that it will never be taken as it is.
func TestOnlyLastingRefusalsSaySo(t *testing.T) {
	for err, want := range map[error]bool{
		registry.ErrOwner: true, registry.ErrNodeNameTaken: true,
		&registry.FieldError{Field: "port", Problem: "is 70000"}: true,
		registry.ErrConflict: false, registry.ErrUnknownNode: false,
	} {
		var r interface{ Refused() bool }
		wrapped := fmt.Errorf("register: %w", err)
		if got := errors.As(wrapped, &r) && r.Refused(); got != want {
			t.Errorf("%v: refused %t, want %t", err, got, want)
		}
	}
}
