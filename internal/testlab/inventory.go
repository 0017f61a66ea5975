package testlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// What can be told about a host's network in text, one fact a line, without counters and ages.
var inventoryCommands = [][]string{
	{"ip", "-d", "-o", "link"},
	{"ip", "-o", "addr"},
	{"ip", "-4", "rule"},
	{"ip", "-6", "rule"},
	{"ip", "-4", "route", "show", "table", "all"},
	{"ip", "-6", "route", "show", "table", "all"},
	{"tc", "qdisc"},
	{"nft", "--stateless", "list", "ruleset"},
}

var ages = regexp.MustCompile(`\b(valid_lft|preferred_lft|expires|age|[a-z_]+_timer) +[0-9][0-9a-z.]*`)

// sysctls are the settings of a device, or of "all" and "default", that the project may touch.
var sysctls = []string{"forwarding", "force_forwarding", "accept_ra", "autoconf", "rp_filter", "route_localnet", "proxy_arp",
	"proxy_ndp", "arp_ignore", "arp_announce", "disable_ipv6", "accept_dad", "addr_gen_mode", "send_redirects", "accept_local"}

// cgroupHooks are the places in a control group where the project's programs attach.
var cgroupHooks = []ebpf.AttachType{
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername,
	ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupSockOps,
}

// Inventory lists what makes up the host at this moment, one fact a line and sorted by kind: links, addresses, rules,
// routes, queueing disciplines, packet filter, sysctls, mounts, control groups with their programs, pinned BPF objects and
// processes. Of two inventories with work done and undone between them Diff finds nothing.
func (h *Host) Inventory() []string {
	h.lab.tb.Helper()
	facts, err := h.inventory()
	if err != nil {
		h.lab.tb.Fatalf("testlab: inventory of host %s: %v", h.name, err)
	}
	return facts
}

func (h *Host) inventory() ([]string, error) {
	facts, err := networkFacts(func(args []string) (string, error) { return h.Try(args...) })
	if err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		points, err := mountPoints("/proc/thread-self/mountinfo")
		for _, point := range points {
			if !h.lab.foreign(point) {
				facts = append(facts, "mount "+point)
			}
		}
		return errors.Join(err, sysctlFacts(&facts))
	})
	if err != nil {
		return nil, err
	}
	facts = append(facts, cgroupFacts(h.cgroup)...)
	for _, pin := range h.pins() {
		facts = append(facts, "pin "+pin)
	}
	for _, pid := range cgroupProcs(h.cgroup) {
		facts = append(facts, describe(pid))
	}
	return facts, nil
}

// foreign says whether a mount point belongs to another lab. A host sees those that were there when it was made, until their lab
// ends.
func (l *Lab) foreign(point string) bool {
	return strings.Contains(point, "/fl-") && !strings.Contains(point, "/fl-"+l.id)
}

// Snapshot is Inventory for the machine itself: its own network namespace, its mounts, the control groups that bear the
// project's name and the programs on the root group. It leaves out what belongs to labs that are alive.
func Snapshot() ([]string, error) {
	root, err := findCgroupRoot("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	facts, err := networkFacts(func(args []string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		return string(out), err
	})
	if err != nil {
		return nil, err
	}
	if err := sysctlFacts(&facts); err != nil {
		return nil, err
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if m, ok := parseMount(line); ok {
			facts = append(facts, fmt.Sprintf("mount %s %s %s %s", m.point, m.fs, m.source, m.root))
			if m.fs == "bpf" {
				facts = append(facts, pinFacts(m.point)...)
			}
		}
	}
	facts = append(facts, programFacts(root)...)
	for _, pattern := range []string{root + "/fl-*", root + "/fairlead*", netnsDir + "/*", labDir("*")} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		facts = append(facts, paths...)
	}
	facts = append(facts, agents()...)
	living := livingLabs()
	return slices.DeleteFunc(facts, func(fact string) bool {
		return slices.ContainsFunc(living, func(name string) bool { return strings.Contains(fact, name) })
	}), nil
}

// Diff lists what is only in before ("- fact") and only in after ("+ fact").
func Diff(before, after []string) []string {
	count := map[string]int{}
	for _, f := range before {
		count[f]--
	}
	for _, f := range after {
		count[f]++
	}
	var diff []string
	for f, n := range count {
		for ; n < 0; n++ {
			diff = append(diff, "- "+f)
		}
		for ; n > 0; n-- {
			diff = append(diff, "+ "+f)
		}
	}
	slices.Sort(diff)
	return diff
}

func networkFacts(run func([]string) (string, error)) ([]string, error) {
	var facts []string
	for _, args := range inventoryCommands {
		out, err := run(args)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
		if args[0] == "nft" {
			out = flattenRuleset(out)
		}
		for line := range strings.Lines(out) {
			line = strings.ReplaceAll(ages.ReplaceAllString(line, "$1 *"), " tentative ", " ") // of IPv6 addresses: soon over
			if line = strings.TrimSpace(line); line != "" {
				facts = append(facts, args[0]+" "+line)
			}
		}
	}
	return facts, nil
}

// flattenRuleset puts the table and chain (or set, or map) of each rule of an nft listing before it.
func flattenRuleset(out string) string {
	var flat []string
	var around []string
	for line := range strings.Lines(out) {
		depth := len(line) - len(strings.TrimLeft(line, "\t"))
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line == "}":
		case depth < 2 && strings.HasSuffix(line, "{"):
			around = append(around[:min(depth, len(around))], strings.TrimSuffix(line, " {"))
			flat = append(flat, strings.Join(around, " "))
		default:
			flat = append(flat, strings.Join(append(slices.Clone(around[:min(depth, len(around))]), line), " "))
		}
	}
	return strings.Join(flat, "\n")
}

// sysctlFacts reads, in the network namespace of the calling thread, the settings that the project may change.
func sysctlFacts(facts *[]string) error {
	const base = "/proc/sys/net/"
	for _, root := range []string{"ipv4/ip_forward", "ipv4/conf", "ipv6/conf"} {
		err := filepath.WalkDir(base+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() != "ip_forward" && !slices.Contains(sysctls, d.Name()) {
				return nil // a device that goes away meanwhile takes its settings along
			}
			value, err := os.ReadFile(path)
			if err == nil {
				*facts = append(*facts, "sysctl "+strings.TrimPrefix(path, base)+" = "+strings.TrimSpace(string(value)))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func cgroupFacts(dir string) []string {
	var facts []string
	for _, d := range cgroupTree(dir) {
		facts = append(append(facts, "cgroup "+d), programFacts(d)...)
	}
	return facts
}

// programFacts counts the BPF programs attached to a control group; a kernel without a hook has none there.
func programFacts(dir string) []string {
	group, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer func() { _ = group.Close() }()
	var facts []string
	for _, hook := range cgroupHooks {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(group.Fd()), Attach: hook})
		if err == nil && len(found.Programs) > 0 {
			facts = append(facts, fmt.Sprintf("cgroup %s: %d programs at %v", dir, len(found.Programs), hook))
		}
	}
	return facts
}

func pinFacts(dir string) []string {
	var facts []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			facts = append(facts, "pin "+path)
		}
		return nil
	})
	return facts
}

// agents lists the processes of the project's program.
func agents() []string {
	var facts []string
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(comm)) == "fairlead" {
			facts = append(facts, "process "+strings.Split(name, "/")[2]+" fairlead")
		}
	}
	return facts
}
