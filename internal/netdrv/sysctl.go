package netdrv

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const sysctlRoot = "/proc/sys/"

// The switches whose writing makes the kernel overwrite other sysctls; they are
// put back before everything else.
const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
)

// change is one sysctl that is not as we found it. Key is its path below
// /proc/sys: names of links may contain dots.
type change struct {
	Key string `json:"key"`
	Old string `json:"old"`
}

// sysctls is the journal of changed sysctls. Its methods that read or write
// /proc/sys are called on a thread in the host's namespace.
type sysctls struct {
	dir string

	mu      sync.Mutex // guards following
	loaded  bool
	changes []change
}

// journalFile is what is kept on disk. After a reboot the sysctls are the
// system's own again, and an older journal is void.
type journalFile struct {
	BootID  string   `json:"boot_id"`
	Changes []change `json:"changes"`
}

func (s *sysctls) path() string { return filepath.Join(s.dir, "sysctl.json") }

// set writes value if key has another one, after the old value is on disk.
// affected are further sysctls that the kernel will change by itself.
func (s *sysctls) set(key, value string, affected ...string) error {
	old, err := readSysctl(key)
	if err != nil || old == value {
		return err
	}
	if err := s.record(append([]string{key}, affected...)); err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	return writeSysctl(key, value)
}

// record adds keys that are not in the journal yet, with their present values.
func (s *sysctls) record(keys []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return err
	}
	before := len(s.changes)
	for _, k := range keys {
		if slices.ContainsFunc(s.changes, func(c change) bool { return c.Key == k }) {
			continue
		}
		old, err := readSysctl(k)
		if err != nil {
			return err
		}
		s.changes = append(s.changes, change{Key: k, Old: old})
	}
	if len(s.changes) == before {
		return nil
	}
	if err := s.save(); err != nil {
		s.changes = s.changes[:before]
		return err
	}
	return nil
}

func (s *sysctls) load() error {
	if s.loaded || s.dir == "" {
		return nil
	}
	data, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		s.loaded = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("sysctl journal: %w", err)
	}
	var j journalFile
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("sysctl journal %s: %w", s.path(), err)
	}
	if j.BootID == bootID() {
		s.changes = j.Changes
	}
	s.loaded = true
	return nil
}

func (s *sysctls) save() error {
	if s.dir == "" {
		return nil
	}
	data, err := json.MarshalIndent(journalFile{BootID: bootID(), Changes: s.changes}, "", "  ")
	if err != nil {
		return fmt.Errorf("sysctl journal: %w", err)
	}
	if err := writeDurably(s.path(), append(data, '\n')); err != nil {
		return fmt.Errorf("sysctl journal: %w", err)
	}
	return nil
}

// restore puts back every journalled value and forgets it; it returns what it
// did. What could not be put back stays in the journal.
func (s *sysctls) restore() (did []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return nil, err
	}
	switches := func(c change) bool { return c.Key == forward4 || c.Key == forward6 }
	ordered := slices.Clone(s.changes)
	slices.SortStableFunc(ordered, func(a, b change) int {
		switch {
		case switches(a) == switches(b):
			return 0
		case switches(a):
			return -1
		}
		return 1
	})
	// What the switches overwrite is compared with the values before them.
	now := map[string]string{}
	for _, c := range ordered {
		now[c.Key], _ = readSysctl(c.Key)
	}
	var kept []change
	var errs []error
	for _, c := range ordered {
		current, e := readSysctl(c.Key)
		if e == nil && current != c.Old {
			e = writeSysctl(c.Key, c.Old)
		}
		switch {
		case errors.Is(e, fs.ErrNotExist): // its link is gone
		case e != nil:
			errs, kept = append(errs, e), append(kept, c)
		case now[c.Key] != c.Old:
			did = append(did, fmt.Sprintf("restored sysctl %s to %s", c.Key, c.Old))
		}
	}
	s.changes = kept
	if len(kept) == 0 && s.dir != "" {
		if e := os.Remove(s.path()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sysctl journal: %w", e))
		}
	} else if e := s.save(); e != nil {
		errs = append(errs, e)
	}
	return did, errors.Join(errs...)
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + key)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	f, err := os.OpenFile(sysctlRoot+key, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, value, err)
	}
	return nil
}

// ensureSysctl writes a sysctl of a link of our own: it goes with the link and
// is not journalled.
func ensureSysctl(key, value string) error {
	if old, err := readSysctl(key); err != nil || old == value {
		return err
	}
	return writeSysctl(key, value)
}

// perLink are the keys net/<family>/conf/<link>/<name> of everything that has
// such settings, "all" and "default" included.
func perLink(family, name string) ([]string, error) {
	dir := "net/" + family + "/conf/"
	entries, err := os.ReadDir(sysctlRoot + dir)
	if err != nil {
		return nil, fmt.Errorf("list sysctls %s: %w", dir, err)
	}
	keys := make([]string, 0, len(entries))
	for _, e := range entries {
		keys = append(keys, dir+e.Name()+"/"+name)
	}
	return keys, nil
}

// enableForwarding4 lets the host route IPv4. The kernel copies the switch to
// every link and changes accept_redirects with it.
func (s *sysctls) enableForwarding4() error {
	affected, err := perLink("ipv4", "forwarding")
	if err != nil {
		return err
	}
	return s.set(forward4, "1", append(affected, "net/ipv4/conf/all/accept_redirects")...)
}

// enableForwarding6 lets the host route IPv6. The kernel drops every default
// route learned by router advertisement at that moment, and ignores further
// ones, unless accept_ra is 2; so that comes first.
func (s *sysctls) enableForwarding6() error {
	if off, err := readSysctl("net/ipv6/conf/all/disable_ipv6"); err != nil || off != "0" {
		return ErrNoIPv6
	}
	if on, err := readSysctl(forward6); err != nil || on == "1" {
		return err
	}
	accept, err := perLink("ipv6", "accept_ra")
	if err != nil {
		return err
	}
	for _, key := range accept {
		value, err := readSysctl(key)
		if err != nil {
			return err
		}
		if value != "1" {
			continue
		}
		if err := s.set(key, "2"); err != nil {
			return err
		}
	}
	affected, err := perLink("ipv6", "forwarding")
	if err != nil {
		return err
	}
	return s.set(forward6, "1", affected...)
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // equal on every read of this machine, so that a journal stays valid
	}
	return strings.TrimSpace(string(b))
}

// writeDurably replaces path: it is either the old or the new content, also
// after a power cut.
func writeDurably(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".sysctl-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
