package netdrv

import (
	"fmt"
	"os"
	"strings"
)

// InNamespace runs fn on a thread that is in the network namespace at path; an
// empty path means the Host's own. fn must not start goroutines that need it.
func (h *Host) InNamespace(path string, fn func() error) error {
	if path == "" {
		return h.inHost(fn)
	}
	ns, err := h.openNamespace(path)
	if err != nil {
		return err
	}
	defer closeQuietly(ns)
	return inNamespace(ns, fn)
}

// Cookie is the number of the network namespace at path, or of the Host's own:
// what bpf_get_netns_cookie gives (SO_NETNS_COOKIE, Linux 5.14).
func (h *Host) Cookie(path string) (cookie uint64, err error) {
	err = h.InNamespace(path, func() (err error) {
		cookie, err = namespaceCookie()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cookie of network namespace %q: %w", path, err)
	}
	return cookie, nil
}

// Identity names the network namespace at path for good. A path can come to lead
// to another namespace (process numbers are used again, and after a reboot all
// are), a cookie within one boot cannot.
func (h *Host) Identity(path string) (string, error) {
	cookie, err := h.Cookie(path)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot: %w", err)
	}
	return fmt.Sprintf("%s/%d", strings.TrimSpace(string(boot)), cookie), nil
}
