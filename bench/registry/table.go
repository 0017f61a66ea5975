package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
)

// number writes a figure with three significant digits and thousands separated.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		text := fmt.Sprintf("%.0f", v)
		for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
			text = text[:i] + "," + text[i:]
		}
		return text
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// perSecond writes a rate as the reference table does: 950/s, 5.7k/s, 12k/s.
func perSecond(v float64) string {
	switch {
	case v >= 99_500:
		return fmt.Sprintf("%.0fk/s", v/1000)
	case v >= 1000:
		return fmt.Sprintf("%.1fk/s", v/1000)
	default:
		return fmt.Sprintf("%.0f/s", v)
	}
}

// A grid is a Markdown table.
type grid [][]string

func (g grid) print(w io.Writer) {
	if len(g) == 0 {
		return
	}
	widths := make([]int, len(g[0]))
	for _, line := range g {
		for i, text := range line {
			widths[i] = max(widths[i], len(text))
		}
	}
	for n, line := range g {
		for i, text := range line {
			fmt.Fprintf(w, "| %-*s ", widths[i], text)
		}
		fmt.Fprintln(w, "|")
		if n > 0 {
			continue
		}
		for _, width := range widths {
			fmt.Fprintf(w, "|%s", strings.Repeat("-", width+2))
		}
		fmt.Fprintln(w, "|")
	}
	fmt.Fprintln(w)
}

const recordedName = "consul, recorded elsewhere"

// loadTable has a line for each row and target, and one for Consul as recorded when no peer was measured.
func loadTable(targets []*target, peers bool) grid {
	g := grid{{"operation", "server", "1 conn", "16 conn", "64 conn", "server CPU/op (us)"}}
	for _, r := range rows() {
		first := len(g)
		for _, t := range targets {
			line := []string{"", t.name}
			var cpu []string
			for _, conns := range connections {
				key := fmt.Sprintf("%s/%d/", r.key, conns)
				rate, measured := t.figure(key + "rate")
				if !measured {
					line, cpu = append(line, ""), append(cpu, "-")
					continue
				}
				p50, _ := t.figure(key + "p50")
				p99, _ := t.figure(key + "p99")
				used, _ := t.figure(key + "cpu")
				line = append(line, fmt.Sprintf("%s, p50 %s p99 %s ms", perSecond(rate), number(p50), number(p99)))
				cpu = append(cpu, number(used))
			}
			if strings.Trim(strings.Join(cpu, ""), "-") != "" {
				g = append(g, append(line, strings.Join(cpu, " / ")))
			}
		}
		if c, known := recordedConsul[r.key]; known && !peers && len(g) > first {
			g = append(g, []string{"", recordedName, c[0], c[1], c[2], c[3]})
		}
		if len(g) > first {
			g[first][0] = r.label
		}
	}
	return g
}

// extraTable has the figures that are not rates of load.
func extraTable(targets []*target, peers bool) grid {
	head := []string{"figure", "unit"}
	for _, t := range targets {
		head = append(head, t.name)
	}
	if !peers {
		head = append(head, recordedName)
	}
	g := grid{head}
	for _, e := range extras {
		line, measured := []string{e.label, e.unit}, false
		for _, t := range targets {
			text := ""
			if v, known := t.figure(e.key); known {
				text, measured = number(v), true
			}
			line = append(line, text)
		}
		if !peers {
			line = append(line, e.recorded)
		}
		if measured {
			g = append(g, line)
		}
	}
	return g
}

// A verdict is a goal beside what was measured.
type verdict struct {
	ours, theirs, limit float64 // theirs is 0 when unknown
	measured, met       bool
}

// judge compares the figures of ours with a goal; the peer's figures, where there is a peer, stand for the recorded ones.
func (g goal) judge(ours, peer *target) verdict {
	v := verdict{theirs: g.recorded, limit: g.limit}
	if peer != nil {
		v.theirs, _ = peer.figure(g.key)
	}
	if g.share > 0 {
		v.limit = cmp.Or(v.theirs, g.recorded) * g.share
	}
	v.ours, v.measured = ours.figure(g.key)
	v.met = v.measured && v.ours <= v.limit
	if g.atLeast {
		v.met = v.measured && v.ours >= v.limit
	}
	return v
}

// goalTable has a line for each goal whose figure was measured of ours.
func goalTable(ours, peer *target) grid {
	name := recordedName
	if peer != nil {
		name = peer.name + ", measured here"
	}
	table := grid{{"goal", "unit", ours.name, name, "ratio", "wanted", ""}}
	for _, g := range goals {
		v := g.judge(ours, peer)
		if !v.measured {
			continue
		}
		theirs, ratio := "", ""
		if v.theirs > 0 && v.ours > 0 {
			theirs, ratio = number(v.theirs), "1/"+number(v.theirs/v.ours)
			if v.ours > v.theirs {
				ratio = number(v.ours/v.theirs) + " x"
			}
		}
		sign, word := "<= ", "not met"
		if g.atLeast {
			sign = ">= "
		}
		if v.met {
			word = "met"
		}
		table = append(table, []string{g.label, g.unit, number(v.ours), theirs, ratio, sign + number(v.limit), word})
	}
	return table
}

// report prints all tables, what failed, and what to know when reading them.
func report(w io.Writer, targets []*target) {
	ours, peer := targets[0], (*target)(nil)
	for _, t := range targets[1:] {
		if peer == nil || t.name == "consul" {
			peer = t
		}
	}
	if g := loadTable(targets, peer != nil); len(g) > 1 {
		g.print(w)
	}
	if g := extraTable(targets, peer != nil); len(g) > 1 {
		g.print(w)
	}
	if ours.own != nil {
		if g := goalTable(ours, peer); len(g) > 1 {
			g.print(w)
		}
	}
	for _, t := range targets {
		if others, measured := t.figure("others"); measured && others > 0.1 {
			fmt.Fprintf(w, "%s: something else took %.0f %% of the machine during the windows: rates and times are worse than they would be.\n",
				t.name, 100*others)
		}
		for _, n := range t.notes {
			fmt.Fprintf(w, "%s: %s\n", t.name, n)
		}
	}
	if peer == nil {
		fmt.Fprintln(w, "Figures of Consul were recorded on another 2-core machine: ratios to them are rough. Measure both with --target.")
	}
}

// writeJSON writes all figures, a list with one value for each repeat.
func writeJSON(w io.Writer, targets []*target) error {
	type result struct {
		Name    string               `json:"name"`
		Figures map[string][]float64 `json:"figures"`
		Notes   []string             `json:"notes,omitempty"`
	}
	var results []result
	for _, t := range targets {
		results = append(results, result{t.name, t.figures, t.notes})
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	return encoder.Encode(results)
}
