package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Directory is the servers that a node knows, kept in a file: after a restart
// without any server it knows where to look for them. It may be used by many
// goroutines.
type Directory struct {
	file string // empty: in memory only
	tell func(Peer)

	mu      sync.Mutex // guards following, and the file
	peers   map[string]Peer
	hints   []netip.AddrPort
	changed chan struct{}
}

// OpenDirectory reads the file, if there is one. hints are addresses to try
// beside those of known servers. tell, which may be nil, hears of each server
// whose address is new.
func OpenDirectory(file string, hints []netip.AddrPort, tell func(Peer)) (*Directory, error) {
	d := &Directory{file: file, tell: tell, peers: map[string]Peer{}, hints: hints, changed: make(chan struct{})}
	if file == "" {
		return d, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	var list []Peer
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of servers in %s: %w; remove the file and give --servers", file, err)
	}
	for _, p := range list {
		d.peers[p.ID] = p
		if tell != nil {
			tell(p)
		}
	}
	return d, nil
}

// Learn takes servers into the directory, each in the place of what was known of
// it. What cannot be one is left out.
func (d *Directory) Learn(list ...Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	news := false
	for _, p := range list {
		if p.ID == "" || !p.Addr.IsValid() || d.peers[p.ID] == p {
			continue
		}
		d.peers[p.ID] = p
		news = true
		if d.tell != nil {
			d.tell(p)
		}
	}
	return d.save(news)
}

// Forget takes a server out.
func (d *Directory) Forget(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, known := d.peers[id]
	delete(d.peers, id)
	return d.save(known)
}

// save writes the file and tells who waits; mu is held.
func (d *Directory) save(news bool) error {
	if !news {
		return nil
	}
	close(d.changed)
	d.changed = make(chan struct{})
	if d.file == "" {
		return nil
	}
	text, err := json.Marshal(d.list())
	if err != nil {
		return err
	}
	tmp := d.file + ".new"
	if err = os.MkdirAll(filepath.Dir(d.file), 0o700); err == nil {
		err = os.WriteFile(tmp, text, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, d.file)
	}
	if err != nil {
		return fmt.Errorf("keep the list of servers: %w", err)
	}
	return nil
}

func (d *Directory) list() []Peer {
	list := make([]Peer, 0, len(d.peers))
	for _, p := range d.peers {
		list = append(list, p)
	}
	return sortPeers(list)
}

// Peers lists the known servers, and closes the channel when there are others.
func (d *Directory) Peers() ([]Peer, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list(), d.changed
}

// Addrs are all addresses worth a try, known servers first, each once.
func (d *Directory) Addrs() []netip.AddrPort {
	list, _ := d.Peers()
	var all []netip.AddrPort
	for _, p := range list {
		all = append(all, p.Addr)
	}
	for _, a := range d.hints {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}
