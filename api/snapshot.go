package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

const snapshotPath = "/v1/snapshot"

// SaveSnapshot writes an archive of everything that the registry holds to w. It
// holds secrets: the tokens' and the CA's keys. The call takes as long as ctx
// allows.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) error {
	res, err := c.open(ctx, http.MethodGet, snapshotPath, http.NoBody)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := refused(res, http.MethodGet); err != nil {
		return err
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

// RestoreSnapshot replaces everything that the registry holds by an archive's
// content. The call takes as long as ctx allows.
func (c *Client) RestoreSnapshot(ctx context.Context, r io.Reader) error {
	res, err := c.open(ctx, http.MethodPut, snapshotPath, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return refused(res, http.MethodPut)
}

// refused reads why an answer refuses, if it does.
func refused(res *http.Response, method string) error {
	if res.StatusCode < 300 {
		return nil
	}
	const enough = 64 << 10
	b, err := io.ReadAll(io.LimitReader(res.Body, enough))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, snapshotPath, err)
	}
	return refusal(method, snapshotPath, res, b)
}
