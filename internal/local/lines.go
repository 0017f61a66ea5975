package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
)

// fileVersion is the version of the file's format. Versions 1 and 2 were one JSON
// object, written anew for each change. Since version 3 a line {"version":3} is
// followed by lines of eight hexadecimal digits (the CRC-32C of the rest), a blank
// and a JSON array of records; later records overtake earlier ones of their id.
//
// Fields are only ever added together with a new version: a program that does not
// know one must refuse the file rather than forget it at the next write.
const fileVersion = 3

var header = fmt.Appendf(nil, "{\"version\":%d}\n", fileVersion)

// record is what the file says of one id: a service, or the node's checks.
type record struct {
	// Put is a service that came by the API.
	Put *model.Registration `json:"put,omitempty"`
	// ID, without Put, is a service that has nothing here but Checks (which were
	// added to one that comes from definition files), and without those nothing at
	// all. The empty one stands for the checks of the whole node.
	ID     model.ServiceID   `json:"id,omitempty"`
	Checks []model.CheckSpec `json:"checks,omitempty"`
}

func (r record) encode() ([]byte, error) { return json.Marshal(r) }

// lasting is what the file has to hold of a registration: all but what the
// definition files say again at the next start. Without anything it is nil.
func lasting(id model.ServiceID, r *model.Registration) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	declared := func(c model.CheckSpec) bool { return c.Declared }
	checks := r.Checks
	if slices.ContainsFunc(checks, declared) {
		checks = slices.DeleteFunc(slices.Clone(checks), declared)
	}
	if id != nodeEntry && !r.Declared {
		kept := *r
		kept.Checks = checks
		return record{Put: &kept}.encode()
	}
	if len(checks) == 0 {
		return nil, nil
	}
	return record{ID: id, Checks: checks}.encode()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line is a batch as it is written.
func line(records [][]byte) []byte {
	size := 12
	for _, r := range records {
		size += len(r) + 1
	}
	b := append(make([]byte, 0, size), "00000000 ["...)
	for i, r := range records {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, r...)
	}
	b = append(b, ']')
	copy(b, fmt.Sprintf("%08x", crc32.Checksum(b[9:], castagnoli)))
	return append(b, '\n')
}

// fresh is a whole file, one record a line.
func fresh(records [][]byte) []byte {
	b := slices.Clone(header)
	for _, r := range records {
		b = append(b, line([][]byte{r})...)
	}
	return b
}

// contents is what the file holds, and its form in versions 1 and 2.
type contents struct {
	Version       int                  `json:"version"`
	Registrations []model.Registration `json:"registrations"`
	// Checks (since version 2) are those of the whole node, and those that were
	// added to services which come from definition files.
	Checks []model.CheckSpec `json:"checks,omitempty"`
}

// decode reads a whole file of any version. It is not whole if it has to be
// replaced before something is appended to it.
func decode(data []byte, me model.NodeName) (c contents, whole bool, err error) {
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	if bytes.Equal(append(first[:len(first):len(first)], '\n'), header) {
		c, whole, err = decodeLines(rest)
	} else {
		c, err = decodeObject(data)
	}
	if err == nil {
		err = c.complete(me)
	}
	return c, whole, err
}

// decodeObject reads a file of version 1 or 2.
func decodeObject(data []byte) (contents, error) {
	var version struct{ Version int }
	// Of a later version nothing is known but that it says so first.
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&version); err != nil || version.Version < fileVersion {
		if err := json.Unmarshal(data, &version); err != nil {
			return contents{}, fmt.Errorf("damaged: %w", err)
		}
	}
	switch {
	case version.Version == fileVersion:
		return contents{}, fmt.Errorf("damaged: the first line is not %s", bytes.TrimSpace(header))
	case version.Version < 1 || version.Version > fileVersion:
		return contents{}, fmt.Errorf("format version %d, this program knows versions 1 to %d", version.Version, fileVersion)
	}
	var c contents
	if err := strict(data, &c); err != nil {
		return contents{}, fmt.Errorf("damaged: %w", err)
	}
	return c, nil
}

// strict decodes one JSON value that has no unknown fields.
func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

// decodeLines reads what follows the header. A torn last line is left out.
func decodeLines(data []byte) (c contents, whole bool, err error) {
	regs := map[model.ServiceID]model.Registration{}
	checks := map[model.ServiceID][]model.CheckSpec{}
	for n := 2; len(data) > 0; n++ {
		text, rest, ended := bytes.Cut(data, []byte("\n"))
		records, err := decodeLine(text)
		switch {
		case err == nil && ended:
		case len(rest) == 0 && (!ended || bytes.IndexByte(text, 0) >= 0):
			return lines(regs, checks), false, nil
		case err != nil:
			return contents{}, false, fmt.Errorf("line %d is damaged: %w", n, err)
		}
		data = rest
		for _, r := range records {
			id := r.ID
			if r.Put != nil {
				id = r.Put.Instance.ID
			}
			delete(regs, id)
			delete(checks, id)
			if r.Put != nil {
				regs[id] = *r.Put
			} else if len(r.Checks) > 0 {
				checks[id] = r.Checks
			}
		}
	}
	return lines(regs, checks), true, nil
}

func lines(regs map[model.ServiceID]model.Registration, checks map[model.ServiceID][]model.CheckSpec) contents {
	c := contents{Version: fileVersion}
	for _, id := range slices.Sorted(maps.Keys(regs)) {
		c.Registrations = append(c.Registrations, regs[id])
	}
	for _, id := range slices.Sorted(maps.Keys(checks)) {
		c.Checks = append(c.Checks, checks[id]...)
	}
	return c
}

func decodeLine(text []byte) ([]record, error) {
	var sum uint32
	if len(text) < 10 || text[8] != ' ' {
		return nil, errors.New("no checksum")
	}
	if _, err := fmt.Sscanf(string(text[:8]), "%08x", &sum); err != nil || sum != crc32.Checksum(text[9:], castagnoli) {
		return nil, errors.New("the checksum does not match")
	}
	var records []record
	if err := strict(text[9:], &records); err != nil {
		return nil, err
	}
	return records, nil
}

// complete completes and checks what was read.
func (c *contents) complete(me model.NodeName) error {
	services, checks := map[model.ServiceID]bool{}, map[model.CheckID]bool{}
	claim := func(spec model.CheckSpec) error {
		if checks[spec.ID] {
			return fmt.Errorf("check %q is there twice", spec.ID)
		}
		checks[spec.ID] = true
		return nil
	}
	for i, r := range c.Registrations {
		r, err := normalize(r, me)
		if err != nil {
			return fmt.Errorf("registration %d: %w", i+1, err)
		}
		if services[r.Instance.ID] {
			return fmt.Errorf("service %q is there twice", r.Instance.ID)
		}
		services[r.Instance.ID] = true
		for _, spec := range r.Checks {
			if err := claim(spec); err != nil {
				return err
			}
		}
		c.Registrations[i] = r
	}
	for i, spec := range c.Checks {
		spec, err := normalizeCheck(spec)
		if err == nil {
			err = claim(spec)
		}
		if err != nil {
			return fmt.Errorf("check %d: %w", i+1, err)
		}
		c.Checks[i] = spec
	}
	return nil
}
