package mirror

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/wire"
)

// The file is a stream of package wire with everything, and the CRC-32C of that
// (4 bytes, big endian).

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// keep writes the copy while it changes, and at the end.
func (m *Mirror) keep(ctx context.Context) {
	if m.cfg.File == "" {
		return
	}
	saved := m.cfg.State.Snapshot().Index()
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		}
		snap := m.cfg.State.Snapshot()
		if snap.Index() == saved || !m.synced() {
			continue
		}
		if err := save(m.cfg.File, snap); err != nil {
			m.cfg.Log.Warn("keep the catalogue", "file", m.cfg.File, "error", err)
			continue
		}
		saved = snap.Index()
	}
}

func save(file string, snap *state.Snapshot) error {
	b, err := wire.Everything(snap, "")
	if err != nil {
		return err
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	if err == nil {
		err = out.Sync()
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// load shows what the file has, as long as nothing better is there.
func (m *Mirror) load() error {
	b, err := os.ReadFile(m.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	records, at, err := parse(b)
	if err == nil {
		m.cfg.State.Preload(at, records)
	}
	return err
}

var errTorn = errors.New("it is torn or was changed")

func parse(b []byte) (records []state.Change, at model.Index, err error) {
	if len(b) < 4 {
		return nil, 0, errTorn
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, 0, errTorn
	}
	in := wire.NewReader(bytes.NewReader(b))
	for {
		f, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && at > 0:
			return records, at, nil
		case err != nil:
			return nil, 0, fmt.Errorf("read it: %w", err)
		case f.Kind == wire.Commit:
			at = f.Index
		}
		records = append(records, f.Changes...)
	}
}
