package consulapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Snapshots are archives of everything that the registry holds.
type Snapshots interface {
	// Save writes an archive; stale allows what this server has without asking
	// the others. begun learns the index before the first byte.
	Save(ctx context.Context, w io.Writer, stale bool, begun func(model.Index)) (model.SnapshotMeta, error)
	// Restore replaces everything by an archive's content, at the index that it
	// returns.
	Restore(ctx context.Context, r io.Reader) (model.SnapshotMeta, model.Index, error)
}

const snapshotPath = "/v1/snapshot"

var snapshotRoutes = []route{
	{path: snapshotPath, methods: map[string]endpoint{http.MethodGet: (*handler).snapshotSave, http.MethodPut: (*handler).snapshotRestore}},
}

// snapshotsHere refuses what this agent cannot do or the token must not: an
// archive holds the tokens' secrets and the CA's keys.
func (h *handler) snapshotsHere(c *call) error {
	if err := h.checkDatacenter(c); err != nil {
		return err
	}
	if err := c.require(acl.ACL, "", acl.Write); err != nil {
		return err
	}
	if h.Snapshots == nil {
		return fail(http.StatusNotImplemented, "Snapshots are not available on this agent")
	}
	return nil
}

func (h *handler) snapshotSave(c *call) (answer, error) {
	if err := h.snapshotsHere(c); err != nil {
		return answer{}, err
	}
	o, err := parseOptions(c)
	if err != nil {
		return answer{}, err
	}
	if h.Cluster.Leader() == "" && !o.stale {
		return answer{}, fail(http.StatusInternalServerError, noLeader)
	}
	begun := false
	_, err = h.Snapshots.Save(c.r.Context(), c.w, o.stale, func(index model.Index) {
		begun = true
		h.setMeta(c.h, o, index)
		c.h.Set("Content-Type", "application/x-gzip")
	})
	switch {
	case err == nil:
		return answer{status: http.StatusOK, written: true}, nil
	case !begun:
		return answer{}, fmt.Errorf("save snapshot: %w", err)
	}
	h.log.Warn("a snapshot was not saved", "error", err)
	// The client has the beginning already; that the connection breaks tells it
	// that the end is missing.
	panic(http.ErrAbortHandler)
}

func (h *handler) snapshotRestore(c *call) (answer, error) {
	if err := h.snapshotsHere(c); err != nil {
		return answer{}, err
	}
	meta, index, err := h.Snapshots.Restore(c.r.Context(), c.r.Body)
	if err != nil {
		return answer{}, fmt.Errorf("restore snapshot: %w", err)
	}
	// Who restored reads what was restored.
	if _, err := h.Reader.Wait(c.r.Context(), index); err != nil {
		return answer{}, errors.Join(errors.New("the snapshot is restored, but this node does not show it yet"), err)
	}
	h.log.Info("a snapshot was restored over HTTP", "index", index, "saved", meta.Time, "from", c.r.RemoteAddr)
	return empty(), nil
}
