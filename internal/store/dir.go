package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dirLock is the claim of this process on a data directory: a locked file that
// holds the process's id. The kernel drops it with the process, however that
// ends. etcd's own locks make a second process wait, and do not say for whom.
type dirLock struct {
	dir  string
	file *os.File // nil for a temporary directory
}

// openDir makes the directory usable and claims it: path if there is one, else
// a temporary directory in temp that release removes. It fails with ErrLocked or ErrDir.
func openDir(path, temp string) (*dirLock, error) {
	if path == "" {
		tmp, err := os.MkdirTemp(temp, "fairlead-")
		if err != nil {
			return nil, fmt.Errorf("%w: make a temporary one: %w", ErrDir, err)
		}
		return &dirLock{dir: tmp}, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("%w: create %s: %w", ErrDir, path, err)
	}
	name := filepath.Join(path, "agent.pid")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be written: %w", ErrDir, path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: data directory %s is in use by another agent%s", ErrLocked, path, holder(f))
		}
		return nil, fmt.Errorf("%w: lock %s: %w", ErrDir, name, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err == nil {
		_, err = os.ReadDir(path)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrDir, path, err)
	}
	return &dirLock{dir: path, file: f}, nil
}

// Free says whether a data directory can be used, and by whom it is if it
// cannot: the errors are those of Run. It changes nothing but to make the
// directory.
func Free(dir string) error {
	l, err := openDir(dir, "")
	if err != nil {
		return err
	}
	return l.release()
}

// holder names the process in a lock file, " (pid 12)", as far as it has one
// yet.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid := strings.TrimSpace(string(b))
	if _, bad := strconv.Atoi(pid); err != nil || bad != nil {
		return ""
	}
	return " (pid " + pid + ")"
}

// release gives the directory up, and removes a temporary one.
func (l *dirLock) release() error {
	if l.file == nil {
		return os.RemoveAll(l.dir)
	}
	// The file stays: removing it would let two processes lock two files of the
	// same name.
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
