package consulapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/fairlead-net/fairlead/internal/definition"
)

// duration reads "10s" as well as a number of nanoseconds.
type duration = definition.Duration

// decodeFields decodes an object whose keys may be in CamelCase or snake_case;
// see definition.Decode.
func decodeFields(b []byte, out any) error { return definition.Decode(b, out) }

// decodeBody reads a JSON body of at most MaxBodySize.
func (h *handler) decodeBody(c *call, out any) error {
	b, err := h.readBody(c)
	if err != nil {
		return err
	}
	// A decoder, because its errors for bodies that end too early (EOF,
	// unexpected EOF) are the ones that Consul answers with.
	dec := json.NewDecoder(bytes.NewReader(b))
	err = dec.Decode(out)
	if _, more := dec.Token(); err == nil && !errors.Is(more, io.EOF) {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return badRequest("Request decode failed: %v", err)
	}
	return nil
}

// readBody reads a body of at most MaxBodySize.
func (h *handler) readBody(c *call) ([]byte, error) {
	limit := h.cfg.MaxBodySize
	if c.r.ContentLength > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "%s", tooLarge(c.r.ContentLength, limit, ""))
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	var big *http.MaxBytesError
	if err != nil && !errors.As(err, &big) {
		return nil, badRequest("Request decode failed: %v", err)
	}
	return b, err
}

// unread is why a body could not be read: it is too large, or did not arrive.
func unread(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return err
	}
	return badRequest("Failed to read the request's body: %v", err)
}

// definitionError turns the error of a definition into Consul's answer.
func definitionError(err error) error {
	var d *definition.DecodeError
	if errors.As(err, &d) {
		return badRequest("Request decode failed: %v", err)
	}
	return badRequest("%v", err)
}
