package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// table is a list as a person reads it.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, mapped(cells, plain)) }

func (t *table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	rows := t.rows
	if t.head != nil {
		rows = append([][]string{t.head}, rows...)
	}
	for _, row := range rows {
		if _, err := fmt.Fprintln(tw, strings.TrimRight(strings.Join(row, "\t"), "\t ")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// plain keeps what services and strangers say from moving the cursor, and from
// leaving its row: control characters become blanks, once each run of them.
func plain(s string) string {
	if !strings.ContainsFunc(s, unicode.IsControl) {
		return s
	}
	return strings.Join(strings.FieldsFunc(s, unicode.IsControl), " ")
}

// outputs are the values of --output.
var outputs = []string{"table", "json", "yaml"}

// show prints v as the -o flag says: what human makes of it, JSON or YAML.
func (o *options) show(w io.Writer, v any, human func(io.Writer) error) error {
	switch o.output {
	case "table":
		return human(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		return writeYAML(w, v)
	}
	return usagef("output %q: want table, json or yaml", o.output)
}

// writeYAML has the keys of the JSON form, so that both can be read alike.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return err
	}
	plainStyle(&n)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return err
	}
	return e.Close()
}

// plainStyle drops the braces and quotes that came with the JSON.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
