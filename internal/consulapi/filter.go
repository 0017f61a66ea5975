package consulapi

import (
	"fmt"

	"github.com/hashicorp/go-bexpr"
)

// maxFilter bounds a filter's length in bytes: parsing costs much more memory
// than the text takes.
const maxFilter = 8 << 10

// filter is a boolean expression over answers of type T; nil lets everything
// pass.
type filter[T any] struct{ eval *bexpr.Evaluator }

// newFilter parses ?filter. It is tried on the sample at once, so that a selector
// which does not exist is an error even while there is nothing to select from.
func newFilter[T any](c *call, sample T) (*filter[T], error) {
	expr := c.params.Get("filter")
	if expr == "" {
		return nil, nil
	}
	if len(expr) > maxFilter {
		return nil, badRequest("Filter too long(%d bytes), max size: %d bytes.", len(expr), maxFilter)
	}
	eval, err := bexpr.CreateEvaluator(spread(expr), bexpr.WithMaxExpressions(200_000))
	if err == nil {
		_, err = eval.Evaluate(sample)
	}
	if err != nil {
		return nil, fmt.Errorf("Failed to create boolean expression evaluator: %w", err) //nolint:staticcheck // clients know the text
	}
	return &filter[T]{eval}, nil
}

func (f *filter[T]) match(v T) (bool, error) {
	if f == nil {
		return true, nil
	}
	ok, err := f.eval.Evaluate(v)
	if err != nil {
		return false, fmt.Errorf("Failed to evaluate filter: %w", err) //nolint:staticcheck // as above
	}
	return ok, nil
}

// slice returns what passes, in order; never nil.
func (f *filter[T]) slice(in []T) ([]T, error) {
	out := make([]T, 0, len(in))
	for _, v := range in {
		ok, err := f.match(v)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, v)
		}
	}
	return out, nil
}
