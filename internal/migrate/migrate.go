// Package migrate turns the configuration and the data of a Consul into ours.
//
// FromConsul translates an agent's configuration files, Definitions reads the
// service and check definitions that our own agent is given, and Import copies
// the content of a running Consul through its HTTP API. Nothing here keeps state
// or goroutines beyond a call.
package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFileSize bounds a file, in bytes. Real ones have a few kilobytes.
const maxFileSize = 4 << 20

// Pos is a place in a file.
type Pos struct {
	File string
	Line int // from 1
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// files lists what paths name in the order of reading: a file itself, of a
// directory its files with one of the endings by name, and nothing below it.
func files(paths []string, endings ...string) ([]string, error) {
	var all []string
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			all = append(all, p)
			continue
		}
		entries, err := os.ReadDir(p) // sorted
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			// A link to a file counts, as it does for Consul: Kubernetes and Nix make them.
			name := filepath.Join(p, e.Name())
			if !slices.Contains(endings, filepath.Ext(name)) {
				continue
			}
			if st, err := os.Stat(name); err != nil {
				return nil, err
			} else if st.IsDir() {
				continue
			}
			all = append(all, name)
		}
	}
	return all, nil
}

// readFile reads and parses one file.
func readFile(name string) (*value, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxFileSize {
		return nil, fmt.Errorf("%s: %d bytes; a file may have %d", name, st.Size(), maxFileSize)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return parse(name, b)
}

// Suggestion names the known word that is nearest to key, as the end of an error's
// text; empty if none is near.
func Suggestion(key string, known []string) string {
	best, distance := "", min((len(key)+2)/3, 3)+1 // as far as this it is a different word
	for _, k := range known {
		if d := editDistance(key, k); d < distance || (d == distance && k < best) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// fold makes the spellings of a key alike: check_id, CheckID and checkid.
func fold(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "")) }

// joined is errors.Join with the errors in the order of their texts, which begin
// with a file's name.
func joined(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	return errors.Join(errs...)
}
