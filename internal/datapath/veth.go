package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Counters are totals since the maps were created.
type Counters struct {
	Redirected uint64 // packets handed straight to another endpoint
	Spoofed    uint64 // packets dropped because their source is not the sender's own
	Malformed  uint64 // packets dropped because they are too short for their headers
	Bridged    uint64 // packets left to the bridge
}

// Counters reads the counters of all veths.
func (k *Kernel) Counters() (Counters, error) {
	var c Counters
	for i, p := range []*uint64{&c.Redirected, &c.Spoofed, &c.Malformed, &c.Bridged} { // enum counter
		var perCPU []uint64
		if err := k.maps[vethMapCounters].Lookup(uint32(i), &perCPU); err != nil {
			return c, fmt.Errorf("read counters: %w", err)
		}
		for _, n := range perCPU {
			*p += n
		}
	}
	return c, nil
}

// AttachVeth puts the program on the host's side of an endpoint's veth, in the network namespace that the caller is in. From then on
// the endpoint's packets are checked and those to other endpoints of its network redirected. Repeating it, with other addresses too,
// leaves no gap.
func (k *Kernel) AttachVeth(v Veth) error {
	v, err := v.check()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.putVeth(v); err != nil {
		return fmt.Errorf("put veth %d: %w", v.IfIndex, err)
	}
	if err := attachFilter(v.IfIndex, k.veth); err != nil {
		return fmt.Errorf("attach to veth %d: %w", v.IfIndex, err)
	}
	return nil
}

// putVeth writes the veth's entry, and the way to its MAC address.
func (k *Kernel) putVeth(v Veth) error {
	index := uint32(v.IfIndex)
	var old vethVethEntry
	if err := k.maps[vethMapVeths].Lookup(index, &old); err == nil && (old.Mac != v.MAC || old.Network != v.Network) {
		if err := k.deleteMAC(index, old); err != nil {
			return err
		}
	}
	key, val := v.encode()
	if err := k.maps[vethMapMacs].Put(&key, index); err != nil {
		return err
	}
	return k.maps[vethMapVeths].Put(index, &val)
}

// deleteMAC deletes the way to a veth's MAC address unless another veth has it by now.
func (k *Kernel) deleteMAC(index uint32, v vethVethEntry) error {
	key := vethMacKey{Network: v.Network, Mac: v.Mac}
	var at uint32
	if err := k.maps[vethMapMacs].Lookup(&key, &at); err != nil || at != index {
		return nil
	}
	return k.maps[vethMapMacs].Delete(&key)
}

// DetachVeth undoes AttachVeth. The link may be gone already.
func (k *Kernel) DetachVeth(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := detachFilter(ifindex); err != nil {
		return fmt.Errorf("detach from veth %d: %w", ifindex, err)
	}
	var old vethVethEntry
	err := k.maps[vethMapVeths].Lookup(uint32(ifindex), &old)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil {
		err = k.deleteMAC(uint32(ifindex), old)
	}
	if err == nil {
		err = k.maps[vethMapVeths].Delete(uint32(ifindex))
	}
	if err != nil {
		return fmt.Errorf("delete veth %d: %w", ifindex, err)
	}
	return nil
}

// Veths returns what AttachVeth was told, by an earlier process too, in order of index.
func (k *Kernel) Veths() ([]Veth, error) {
	var out []Veth
	err := readAll(k.maps[vethMapVeths], func(index uint32, v vethVethEntry) { out = append(out, decodeVeth(index, v)) })
	slices.SortFunc(out, Veth.compare)
	return out, err
}

// replaceFilters brings the veths that carry our program to this binary's. A link without it is not touched: its index may have become
// another link's.
func (k *Kernel) replaceFilters() error {
	veths, err := k.Veths()
	if err != nil {
		return err
	}
	for _, v := range veths {
		if ours, _, err := filters(v.IfIndex); err != nil || !ours {
			continue
		}
		if err := attachFilter(v.IfIndex, k.veth); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("attach to veth %d: %w", v.IfIndex, err)
		}
	}
	return nil
}

func (v Veth) encode() (vethMacKey, vethVethEntry) {
	val := vethVethEntry{Network: v.Network, Mac: v.MAC}
	for _, a := range v.Addrs {
		if a.Is4() {
			val.Own4[val.N4] = words(a)[3]
			val.N4++
		} else {
			val.Own6[val.N6].W = words(a)
			val.N6++
		}
	}
	return vethMacKey{Network: v.Network, Mac: v.MAC}, val
}

func decodeVeth(index uint32, e vethVethEntry) Veth {
	v := Veth{IfIndex: int(index), Network: e.Network, MAC: e.Mac}
	mapped := words(unspecified4)
	for _, w := range e.Own4[:e.N4] {
		mapped[3] = w
		v.Addrs = append(v.Addrs, fromWords(mapped))
	}
	for _, a := range e.Own6[:e.N6] {
		v.Addrs = append(v.Addrs, fromWords(a.W))
	}
	return v
}

// filter is ours on any link: direct action in clsact. (TCX would wait 8 ms for an RCU grace period on each attach.)
func filter(ifindex int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Handle:    1,
			Protocol:  unix.ETH_P_ALL,
			Priority:  1,
		},
		Name:         vethProgFlVeth,
		DirectAction: true,
	}
}

func clsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func attachFilter(ifindex int, prog *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsact(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	f := filter(ifindex)
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

// filters reports whether a link carries our filter, and how many others it has. A link that is gone has none.
func filters(ifindex int) (ours bool, others int, err error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			err = nil
		}
		return false, 0, err
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		list, err := netlink.FilterList(l, parent)
		if err != nil {
			continue // no clsact
		}
		for _, f := range list {
			if b, ok := f.(*netlink.BpfFilter); ok && parent == netlink.HANDLE_MIN_INGRESS && b.Priority == 1 && b.Handle == 1 && b.Name == vethProgFlVeth {
				ours = true
			} else {
				others++
			}
		}
	}
	return ours, others, nil
}

// detachFilter takes our filter off a link, and clsact if nothing else uses it.
func detachFilter(ifindex int) error {
	ours, others, err := filters(ifindex)
	if err != nil {
		return err
	}
	if !ours {
		return nil
	}
	if others == 0 {
		err = netlink.QdiscDel(clsact(ifindex))
	} else {
		err = netlink.FilterDel(filter(ifindex))
	}
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// purgeFilters takes our filters off the veths in a pinned map.
func purgeFilters(path string) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return fmt.Errorf("purge %s: %w", path, err)
	}
	defer m.Close()
	var errs []error
	var index uint32
	var val []byte
	for it := m.Iterate(); it.Next(&index, &val); {
		if err := detachFilter(int(index)); err != nil {
			errs = append(errs, fmt.Errorf("purge veth %d: %w", index, err))
		}
	}
	return errors.Join(errs...)
}
