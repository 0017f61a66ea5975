package consulapi

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the fields below are those of the library that Consul uses, in so
// far as the kernel says them in a simple way.

type hostShape struct {
	Memory         memoryShape
	CPU            []cpuShape
	Host           systemShape
	Disk           diskShape
	CollectionTime int64    // nanoseconds of Unix time
	Errors         []string // null if there were none
}

type memoryShape struct {
	Total       uint64  `json:"total"`
	Available   uint64  `json:"available"`
	Used        uint64  `json:"used"`
	UsedPercent float64 `json:"usedPercent"`
	Free        uint64  `json:"free"`
	Buffers     uint64  `json:"buffers"`
	Cached      uint64  `json:"cached"`
}

type cpuShape struct {
	CPU       int     `json:"cpu"`
	VendorID  string  `json:"vendorId"`
	Family    string  `json:"family"`
	Model     string  `json:"model"`
	CoreID    string  `json:"coreId"`
	Cores     int     `json:"cores"`
	ModelName string  `json:"modelName"`
	MHz       float64 `json:"mhz"`
}

type systemShape struct {
	Hostname      string `json:"hostname"`
	Uptime        uint64 `json:"uptime"`
	BootTime      uint64 `json:"bootTime"`
	Procs         int    `json:"procs"`
	OS            string `json:"os"`
	Platform      string `json:"platform"`
	KernelVersion string `json:"kernelVersion"`
	KernelArch    string `json:"kernelArch"`
	HostID        string `json:"hostId"`
}

type diskShape struct {
	Path        string  `json:"path"`
	Total       uint64  `json:"total"`
	Free        uint64  `json:"free"`
	Used        uint64  `json:"used"`
	UsedPercent float64 `json:"usedPercent"`
	InodesTotal uint64  `json:"inodesTotal"`
	InodesFree  uint64  `json:"inodesFree"`
}

// readHost asks /proc below root. What it cannot find out is zero, and among
// Errors.
func readHost(root string) (hostShape, error) {
	now := time.Now()
	out := hostShape{CollectionTime: now.UnixNano()}
	var errs []error
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		errs = append(errs, err)
		return string(b)
	}
	out.Memory = parseMemory(read("proc/meminfo"))
	out.CPU = parseCPUs(read("proc/cpuinfo"))
	var info unix.Sysinfo_t
	var name unix.Utsname
	var disk unix.Statfs_t
	errs = append(errs, unix.Sysinfo(&info), unix.Uname(&name), unix.Statfs(root, &disk))
	out.Host = systemShape{
		Hostname: unix.ByteSliceToString(name.Nodename[:]), Procs: int(info.Procs), OS: runtime.GOOS,
		Uptime: uint64(max(info.Uptime, 0)), BootTime: uint64(max(now.Unix()-int64(info.Uptime), 0)), //nolint:unconvert // 32 bits elsewhere
		KernelVersion: unix.ByteSliceToString(name.Release[:]), KernelArch: unix.ByteSliceToString(name.Machine[:]),
		HostID: strings.TrimSpace(read("proc/sys/kernel/random/boot_id")),
	}
	if b, err := os.ReadFile(filepath.Join(root, "etc", "os-release")); err == nil {
		out.Host.Platform = fieldOf(string(b), "ID")
	}
	size := uint64(disk.Bsize) //nolint:gosec // block sizes are positive
	out.Disk = diskShape{
		Path: root, Total: disk.Blocks * size, Free: disk.Bavail * size, Used: (disk.Blocks - disk.Bfree) * size,
		InodesTotal: disk.Files, InodesFree: disk.Ffree,
	}
	out.Disk.UsedPercent = percent(out.Disk.Used, out.Disk.Used+out.Disk.Free)
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	for _, err := range errs {
		out.Errors = append(out.Errors, err.Error())
	}
	if out.Memory.Total == 0 && len(out.CPU) == 0 {
		return out, errors.Join(errs...)
	}
	return out, nil
}

// parseMemory reads /proc/meminfo, whose figures are in KiB.
func parseMemory(s string) memoryShape {
	kib := map[string]uint64{}
	for line := range strings.Lines(s) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) > 0 {
			n, _ := strconv.ParseUint(f[0], 10, 64) // what is no number is zero
			kib[name] = n << 10
		}
	}
	m := memoryShape{
		Total: kib["MemTotal"], Available: kib["MemAvailable"], Free: kib["MemFree"],
		Buffers: kib["Buffers"], Cached: kib["Cached"],
	}
	m.Used = m.Total - min(m.Total, m.Free+m.Buffers+m.Cached)
	m.UsedPercent = percent(m.Used, m.Total)
	return m
}

// parseCPUs reads /proc/cpuinfo: a paragraph for each processor.
func parseCPUs(s string) []cpuShape {
	out := []cpuShape{}
	for block := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		said := map[string]string{}
		for line := range strings.Lines(block) {
			k, v, _ := strings.Cut(line, ":")
			said[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
		n, err := strconv.Atoi(said["processor"])
		if err != nil {
			continue
		}
		mhz, _ := strconv.ParseFloat(said["cpu MHz"], 64) // not every kernel says it
		out = append(out, cpuShape{
			CPU: n, VendorID: said["vendor_id"], Family: said["cpu family"], Model: said["model"],
			CoreID: said["core id"], Cores: 1, ModelName: said["model name"], MHz: mhz,
		})
	}
	return out
}

// fieldOf reads one value of a file of NAME=value lines.
func fieldOf(s, name string) string {
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && k == name {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

func percent(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}
