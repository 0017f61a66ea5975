package testlab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Each lab holds a lock on a file in its scratch directory. The kernel drops the lock when the process dies, however it
// dies: a directory whose lock is free belongs to nobody, and whoever takes the lock may remove what is named after it.

func labDir(id string) string { return filepath.Join(os.TempDir(), "fl-"+id) }

// claim picks a free identifier and takes its lock.
func (l *Lab) claim() error {
	for range 100 {
		b := make([]byte, 2)
		_, _ = rand.Read(b) // never fails
		id := hex.EncodeToString(b)
		err := os.Mkdir(labDir(id), 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		lock, err := takeLock(id)
		if err != nil {
			continue // a sweep came between
		}
		l.id, l.dir, l.lock = id, labDir(id), lock
		return nil
	}
	return errors.New("no free identifier: run scripts/leakcheck sweep")
}

func takeLock(id string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(labDir(id), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	// A sweep may have deleted the file since it was opened: then the lock means nothing.
	held, err := f.Stat()
	if err == nil {
		var named os.FileInfo
		if named, err = os.Stat(f.Name()); err == nil && !os.SameFile(held, named) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

var sweepOnce = sync.OnceFunc(func() { _, _ = Sweep() }) // what is left is reported by scripts/leakcheck

// Sweep removes the labs whose process has died without removing them, and returns their names.
func Sweep() ([]string, error) {
	root, err := findCgroupRoot("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	dirs, _ := filepath.Glob(labDir("[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"))
	for _, dir := range dirs {
		name := filepath.Base(dir)
		id := strings.TrimPrefix(name, "fl-")
		lock, err := takeLock(id)
		if err != nil {
			continue // it lives
		}
		groups, _ := filepath.Glob(filepath.Join(root, name+"-*"))
		for _, group := range groups {
			errs = append(errs, removeCgroup(group))
		}
		errs = append(errs, removeFiles(id), closeFile(lock))
		swept = append(swept, name)
	}
	return swept, errors.Join(errs...)
}

// livingLabs names the labs that a living process holds.
func livingLabs() []string {
	var names []string
	dirs, _ := filepath.Glob(labDir("[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"))
	for _, dir := range dirs {
		name := filepath.Base(dir)
		f, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		// A shared lock says whether the owner lives and disturbs no other who asks.
		if errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
			names = append(names, name)
		}
		_ = f.Close()
	}
	return names
}
