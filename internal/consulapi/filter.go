package consulapi

import (
	"net/http"

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
	if err := checkNesting(expr); err != nil {
		return nil, err
	}
	eval, err := bexpr.CreateEvaluator(spread(expr), bexpr.WithMaxExpressions(200_000))
	if err == nil {
		_, err = eval.Evaluate(sample)
	}
	if err != nil {
		return nil, fail(http.StatusInternalServerError, "Failed to create boolean expression evaluator: %v", err)
	}
	return &filter[T]{eval}, nil
}

// checkNesting refuses what costs much more than it says: each any or all within
// another multiplies the work by the length of a list, and each parenthesis
// within another multiplies the parser's. The parser itself gives up at fewer
// parentheses than these.
func checkNesting(expr string) error {
	const most = 64
	var quote rune
	lists, groups := 0, 0
	for _, r := range expr {
		switch {
		case quote != 0:
			if r == quote {
				quote = 0
			}
		case r == '"' || r == '`':
			quote = r
		case r == '{':
			lists++
		case r == '}':
			lists--
		case r == '(':
			groups++
		case r == ')':
			groups--
		}
		if lists > 1 {
			return fail(http.StatusInternalServerError, "Failed to create boolean expression evaluator: any and all cannot be nested")
		}
		if groups > most {
			return fail(http.StatusInternalServerError, "Failed to create boolean expression evaluator: more than %d nested parentheses", most)
		}
	}
	return nil
}

func (f *filter[T]) match(v T) (bool, error) {
	if f == nil {
		return true, nil
	}
	ok, err := f.eval.Evaluate(v)
	if err != nil {
		return false, fail(http.StatusInternalServerError, "Failed to evaluate filter: %v", err)
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
