package consulapi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-bexpr/grammar"
)

// spread rewrites selectors that reach through the list of checks, such as
// Checks.Status == "critical", to the form that this version of bexpr knows:
// (any Checks as c { c.Status == "critical" }). Consul's filters have always
// meant "for any element" by the first. What cannot be parsed or written is
// returned as it was.
func spread(expr string) string {
	if !strings.Contains(expr, "Checks.") {
		return expr
	}
	ast, err := grammar.Parse("", []byte(expr), grammar.MaxExpressions(200_000))
	if err != nil {
		return expr
	}
	var b strings.Builder
	if e, ok := ast.(grammar.Expression); !ok || !writeExpr(&b, e) {
		return expr
	}
	return b.String()
}

// operators that take a value behind them, and those that take none.
var (
	binaryOps = map[grammar.MatchOperator]string{
		grammar.MatchEqual: "==", grammar.MatchNotEqual: "!=",
		grammar.MatchContains: "contains", grammar.MatchNotContains: "not contains",
		grammar.MatchMatches: "matches", grammar.MatchNotMatches: "not matches",
		// "x in S" and "S contains x" are the same operation.
		grammar.MatchIn: "contains", grammar.MatchNotIn: "not contains",
	}
	unaryOps = map[grammar.MatchOperator]string{
		grammar.MatchIsEmpty: "is empty", grammar.MatchIsNotEmpty: "is not empty",
		grammar.MatchIsNil: "is nil", grammar.MatchIsNotNil: "is not nil",
	}
)

func writeExpr(b *strings.Builder, e grammar.Expression) bool {
	switch e := e.(type) {
	case *grammar.UnaryExpression:
		b.WriteString("(not ")
		ok := writeExpr(b, e.Operand)
		b.WriteString(")")
		return ok
	case *grammar.BinaryExpression:
		op := " and "
		if e.Operator == grammar.BinaryOpOr {
			op = " or "
		}
		b.WriteString("(")
		ok := writeExpr(b, e.Left)
		b.WriteString(op)
		ok = ok && writeExpr(b, e.Right)
		b.WriteString(")")
		return ok
	case *grammar.MatchExpression:
		return writeMatch(b, e)
	}
	return false
}

func writeMatch(b *strings.Builder, e *grammar.MatchExpression) bool {
	path, end := e.Selector.Path, ""
	if len(path) == 0 {
		return false
	}
	if len(path) > 1 && path[0] == "Checks" {
		b.WriteString("(any Checks as c { ")
		path, end = append([]string{"c"}, path[1:]...), " })"
	}
	b.WriteString(path[0])
	for _, p := range path[1:] {
		q, ok := quote(p)
		if !ok {
			return false
		}
		b.WriteString("[" + q + "]")
	}
	if op, ok := unaryOps[e.Operator]; ok {
		b.WriteString(" " + op + end)
		return true
	}
	op, ok := binaryOps[e.Operator]
	if !ok || e.Value == nil {
		return false
	}
	q, ok := quote(e.Value.Raw)
	b.WriteString(" " + op + " " + q + end)
	return ok
}

// quote writes a string literal; the grammar has no way to write one that needs
// both kinds of quotes, or that an escape made something else than text.
func quote(s string) (string, bool) {
	switch {
	case !utf8.ValidString(s):
		return "", false
	case !strings.ContainsAny(s, "\"\\") && !strings.ContainsFunc(s, unicode.IsControl):
		return `"` + s + `"`, true
	case !strings.ContainsAny(s, "`\r"):
		return "`" + s + "`", true
	}
	return "", false
}
