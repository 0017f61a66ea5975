package datapath

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	fnGetNetnsCookie = asm.FnGetNetnsCookie
	fnRedirectPeer   = asm.FnRedirectPeer
)

// meaning is raised when the meaning of a map's bytes changes while their sizes do not.
const meaning = 1

func haveHelper(t ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(t, fn) }
}

// specs returns the programs and maps to load into this kernel.
func specs() ([]*ebpf.CollectionSpec, error) {
	c, err := loadConnect()
	if err != nil {
		return nil, fmt.Errorf("read eBPF programs: %w", err)
	}
	v, err := loadVeth()
	if err != nil {
		return nil, fmt.Errorf("read eBPF programs: %w", err)
	}
	if errors.Is(features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval), ebpf.ErrNotSupported) {
		if err := c.Variables[connectVarHaveSetRetval].Set(uint8(0)); err != nil {
			return nil, fmt.Errorf("prepare eBPF programs: %w", err)
		}
	}
	return []*ebpf.CollectionSpec{c, v}, nil
}

// layout names a directory of pinned maps so that programs never meet maps that they would misread.
func layout(specs []*ebpf.CollectionSpec) string {
	var lines []string
	for _, s := range specs {
		for _, m := range s.Maps {
			if m.Pinning != ebpf.PinNone {
				lines = append(lines, fmt.Sprintln(m.Name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags))
			}
		}
	}
	slices.Sort(lines)
	return fmt.Sprintf("v%d-%.4x", meaning, sha256.Sum256([]byte(strings.Join(lines, ""))))
}

// checkPinDir refuses a directory whose nearest existing parent is not on a bpf file system.
func checkPinDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%w: pin directory %q is not an absolute path", ErrInvalid, dir)
	}
	for d := dir; ; d = filepath.Dir(d) {
		var st unix.Statfs_t
		err := unix.Statfs(d, &st)
		if errors.Is(err, os.ErrNotExist) && d != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("pin directory %s: %w", dir, err)
		}
		if uint32(st.Type) != unix.BPF_FS_MAGIC {
			return fmt.Errorf("%w: pin directory %s is not on a bpf file system (mount one: mount -t bpf bpf %s)", ErrInvalid, dir, d)
		}
		return nil
	}
}

// Purge takes everything away that Load and AttachVeth ever made for this configuration: programs, links, maps, pins, and the filters
// on veths of the network namespace it is called in. It goes on after an error and returns them all. The Kernel must be closed.
func Purge(cfg Config) error {
	var errs []error
	links, _ := filepath.Glob(filepath.Join(cfg.PinDir, "links", "*"))
	for _, path := range links {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("purge %s: %w", path, err))
			continue
		}
		// Removing the pin detaches the program as well, but only once nobody holds the link.
		if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			errs = append(errs, fmt.Errorf("purge %s: %w", path, err))
		}
		l.Close()
	}
	veths, _ := filepath.Glob(filepath.Join(cfg.PinDir, "v*", vethMapVeths))
	for _, path := range veths {
		if err := purgeFilters(path); err != nil {
			errs = append(errs, err)
		}
	}
	if err := os.RemoveAll(cfg.PinDir); err != nil {
		errs = append(errs, fmt.Errorf("purge: %w", err))
	}
	return errors.Join(errs...)
}
