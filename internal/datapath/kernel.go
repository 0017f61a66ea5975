package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Config says where the data path is attached and kept.
type Config struct {
	// Cgroup is the directory of a cgroup v2. The processes in it and below it can connect to VIPs.
	Cgroup string
	// PinDir is a directory on a bpf file system that belongs to this agent alone; it is made if missing. What is pinned in it
	// keeps working while no agent runs.
	PinDir string
}

// Kernel is the data path in the running kernel. It is made by Load.
type Kernel struct {
	cfg  Config
	dir  string // of the maps: PinDir/v<layout>
	maps map[string]*ebpf.Map
	veth *ebpf.Program

	mu        sync.Mutex // guards following
	frontends map[Frontend]stored
	sets      map[setKey]*backendSet
	nextSet   uint32
	room      *ranges                  // of the slots array
	waiting   map[string]*ebpf.Program // programs that Activate will switch to; nil after
}

var _ Maps = (*Kernel)(nil)

// hooks are the attach points of the programs in bpf/connect.c, by program name.
var hooks = []struct {
	name   string
	attach ebpf.AttachType
}{
	// What translates back comes first, so that nothing is sent to a backend whose replies are not understood.
	{connectProgFlRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
	{connectProgFlRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
	{connectProgFlGetpeername4, ebpf.AttachCgroupInet4GetPeername},
	{connectProgFlGetpeername6, ebpf.AttachCgroupInet6GetPeername},
	{connectProgFlSockRelease, ebpf.AttachCgroupInetSockRelease},
	{connectProgFlSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{connectProgFlSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	{connectProgFlConnect4, ebpf.AttachCGroupInet4Connect},
	{connectProgFlConnect6, ebpf.AttachCGroupInet6Connect},
}

// Load adopts what is pinned in cfg.PinDir, or creates it, and switches to the programs of this binary; no connection meets a moment
// without one. Maps of an earlier layout are not read: Load then leaves the earlier programs and maps at work until Activate, which
// the caller calls after it filled the new maps.
//
// It returns ErrInUse if the cgroup carries another agent's programs, and ErrUnsupported naming what the kernel lacks.
func Load(cfg Config) (*Kernel, error) {
	if err := checkPinDir(cfg.PinDir); err != nil {
		return nil, err
	}
	if err := checkCgroup(cfg); err != nil {
		return nil, err
	}
	// Fails where limits cannot be raised. Kernels since 5.11 account maps to the memory cgroup and do not need it; on an older one
	// the first map fails with EPERM, which says the same.
	_ = rlimit.RemoveMemlock()
	specs, err := specs()
	if err != nil {
		return nil, err
	}
	k := &Kernel{
		cfg:       cfg,
		dir:       filepath.Join(cfg.PinDir, layout(specs)),
		maps:      map[string]*ebpf.Map{},
		frontends: map[Frontend]stored{},
		sets:      map[setKey]*backendSet{},
		room:      newRanges(specs[0].Maps[connectMapSlots].MaxEntries),
		waiting:   map[string]*ebpf.Program{},
		// What a UDP socket got before an upgrade names a set too; starting anywhere makes it unlikely that a new set has its number.
		nextSet: rand.Uint32() >> 1,
	}
	if err := k.load(specs); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Kernel) load(specs []*ebpf.CollectionSpec) error {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	for _, spec := range specs {
		if err := k.inherit(spec); err != nil {
			return err
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.dir}})
		if err != nil {
			return explain(fmt.Errorf("load eBPF programs: %w", err))
		}
		for name, m := range coll.Maps {
			if spec.Maps[name].Pinning == ebpf.PinNone {
				m.Close() // constants, held by the programs
				continue
			}
			k.maps[name] = m
		}
		for name, p := range coll.Programs {
			k.waiting[name] = p
		}
	}
	k.veth = k.waiting[vethProgFlVeth]
	delete(k.waiting, vethProgFlVeth)
	if err := k.adopt(); err != nil {
		return err
	}
	if old, err := otherLayouts(k.dir); err != nil || len(old) > 0 && pinnedLinks(k.cfg.PinDir) {
		return err
	}
	return k.Activate()
}

// inherit takes over from an earlier layout what sockets hold, where it looks the same, so that connections of before an upgrade are
// still known after it.
func (k *Kernel) inherit(spec *ebpf.CollectionSpec) error {
	old, err := otherLayouts(k.dir)
	if err != nil {
		return err
	}
	for _, dir := range old {
		for _, name := range []string{connectMapPicks, connectMapMorePicks, connectMapSticky, connectMapReverse} {
			want := spec.Maps[name]
			if want == nil {
				continue
			}
			m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
			if err != nil {
				continue
			}
			if want.Compatible(m) == nil {
				err = pinTwice(m, filepath.Join(k.dir, name))
			}
			m.Close()
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("inherit map %s: %w", name, err)
			}
		}
	}
	return nil
}

// pinTwice pins a map that is pinned elsewhere already, and stays so.
func pinTwice(m *ebpf.Map, path string) error {
	c, err := m.Clone() // which forgets the other place
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Pin(path)
}

// Activate switches to the programs of this binary if Load has left those of an earlier layout in place, and removes the earlier maps.
// It is to be called when everything that the earlier maps held has been set, and does nothing if there were none. It acts on the veths
// of the network namespace it is called in.
func (k *Kernel) Activate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting == nil {
		return nil
	}
	if err := k.attachPrograms(); err != nil {
		return err
	}
	if err := k.replaceFilters(); err != nil {
		return err
	}
	old, err := otherLayouts(k.dir)
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove maps of an earlier layout: %w", err)
		}
	}
	closeAll(k.waiting)
	k.waiting = nil
	return nil
}

// attachPrograms points every pinned link at this binary's program, and makes the links that are missing.
func (k *Kernel) attachPrograms() error {
	dir := filepath.Join(k.cfg.PinDir, "links")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	id, err := cgroupID(k.cfg.Cgroup)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if err := attachProgram(k.cfg.Cgroup, id, filepath.Join(dir, h.name), h.attach, k.waiting[h.name]); err != nil {
			return explain(fmt.Errorf("attach %s to cgroup %s: %w", h.name, k.cfg.Cgroup, err))
		}
	}
	return nil
}

func attachProgram(cgroup string, id uint64, pin string, attach ebpf.AttachType, prog *ebpf.Program) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		if at, err := linkCgroup(old); err == nil && at == id {
			return old.Update(prog)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The cgroup was removed and made anew, or the configuration names another one.
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: prog})
	if err != nil {
		return err
	}
	defer l.Close() // the pin keeps it
	if old != nil {
		if err := old.Unpin(); err != nil {
			return err
		}
	}
	return l.Pin(pin)
}

// linkCgroup returns the id of the cgroup that a link is attached to, zero if that is gone.
func linkCgroup(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if c := info.Cgroup(); c != nil {
		return c.CgroupId, nil
	}
	return 0, nil
}

// cgroupID returns a cgroup's id, which is the inode number of its directory.
func cgroupID(dir string) (uint64, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return 0, fmt.Errorf("cgroup: %w", err)
	}
	return st.Sys().(*syscall.Stat_t).Ino, nil
}

// Close frees what this process holds. The data path goes on working.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.maps {
		m.Close()
	}
	closeAll(k.waiting)
	if k.veth != nil {
		k.veth.Close()
	}
	return nil
}

func closeAll(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// explain adds to a kernel's refusal which feature it lacks, if that is the reason.
func explain(err error) error {
	for _, f := range []struct {
		name  string
		probe func() error
	}{
		{"eBPF programs on cgroups' connect() (CONFIG_CGROUP_BPF)", func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
		{"eBPF programs in tc (CONFIG_NET_CLS_BPF)", func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
		{"eBPF LRU maps", func() error { return features.HaveMapType(ebpf.LRUHash) }},
		{"eBPF instruction set v3 (Linux 5.12)", features.HaveV3ISA},
		{"the eBPF helper bpf_get_netns_cookie (Linux 5.7)", haveHelper(ebpf.CGroupSockAddr, fnGetNetnsCookie)},
		{"the eBPF helper bpf_redirect_peer (Linux 5.10)", haveHelper(ebpf.SchedCLS, fnRedirectPeer)},
	} {
		if errors.Is(f.probe(), ebpf.ErrNotSupported) {
			return fmt.Errorf("%w: %s: %w", ErrUnsupported, f.name, err)
		}
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (root, or CAP_BPF with CAP_NET_ADMIN, is needed)", err)
	}
	return err
}

func otherLayouts(dir string) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "v*"))
	if err != nil {
		return nil, fmt.Errorf("look for maps of an earlier layout: %w", err)
	}
	var out []string
	for _, d := range all {
		if d != dir {
			out = append(out, d)
		}
	}
	return out, nil
}

func pinnedLinks(pinDir string) bool {
	found, _ := filepath.Glob(filepath.Join(pinDir, "links", "*"))
	return len(found) > 0
}

// checkCgroup returns ErrInUse if the cgroup carries programs of Fairlead that are not pinned in our directory.
func checkCgroup(cfg Config) error {
	dir, err := os.Open(cfg.Cgroup)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer dir.Close()
	ours := map[ebpf.ProgramID]bool{}
	for _, h := range hooks {
		l, err := link.LoadPinnedLink(filepath.Join(cfg.PinDir, "links", h.name), nil)
		if err != nil {
			continue
		}
		if info, err := l.Info(); err == nil {
			ours[info.Program] = true
		}
		l.Close()
	}
	for _, h := range hooks {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach})
		if err != nil {
			return explain(fmt.Errorf("cgroup %s: %w", cfg.Cgroup, err))
		}
		for _, p := range res.Programs {
			if name := programName(p.ID); !ours[p.ID] && strings.HasPrefix(name, "fl_") {
				return fmt.Errorf("%w: %s carries its program %s; stop that agent and let it purge, or give this one another cgroup", ErrInUse, cfg.Cgroup, name)
			}
		}
	}
	return nil
}

// programName returns the empty string for a program that has just gone.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
