package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// defaultDockerSocket is where Docker listens.
const defaultDockerSocket = "/var/run/docker.sock"

// dockerProbe runs a program in a container, with the Docker Engine's API;
// Podman's socket answers it too. Exit codes count as those of scripts. A program
// whose time is up cannot be killed from here and goes on in its container.
func dockerProbe(spec model.CheckSpec, socket string) probe {
	if socket == "" {
		socket = defaultDockerSocket
	}
	return func(ctx context.Context) (model.Status, string) {
		most := programTime(spec)
		limited, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		d := newDocker(socket)
		defer d.client.CloseIdleConnections()
		code, output, err := d.exec(limited, spec)
		switch {
		case errors.Is(limited.Err(), context.DeadlineExceeded) && err != nil:
			return model.Critical, said(fmt.Errorf("Timed out (%s) running check", most), output) //nolint:staticcheck // Consul's text
		case err != nil:
			return model.Critical, said(err, output)
		}
		return exitStatus(code), output
	}
}

// docker is a client of the Engine API.
type docker struct{ client *http.Client }

func newDocker(socket string) docker {
	return docker{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// exec runs the check's program to its end.
func (d docker) exec(ctx context.Context, spec model.CheckSpec) (code int, output string, err error) {
	var made struct{ ID string }
	err = d.call(ctx, http.MethodPost, "/containers/"+url.PathEscape(spec.Docker)+"/exec",
		map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": spec.Args},
		func(r io.Reader) error { return json.NewDecoder(r).Decode(&made) })
	if err != nil {
		return 0, "", fmt.Errorf("prepare the program in container %q: %w", spec.Docker, err)
	}
	tail := &tail{most: outputMax(spec)}
	err = d.call(ctx, http.MethodPost, "/exec/"+url.PathEscape(made.ID)+"/start",
		map[string]any{"Detach": false, "Tty": false}, func(r io.Reader) error { return demux(tail, r) })
	if err != nil {
		return 0, tail.String(), fmt.Errorf("run the program in container %q: %w", spec.Docker, err)
	}
	var ended struct {
		Running  bool
		ExitCode *int
	}
	err = d.call(ctx, http.MethodGet, "/exec/"+url.PathEscape(made.ID)+"/json", nil,
		func(r io.Reader) error { return json.NewDecoder(r).Decode(&ended) })
	switch {
	case err != nil:
		return 0, tail.String(), fmt.Errorf("ask how the program in container %q ended: %w", spec.Docker, err)
	case ended.Running || ended.ExitCode == nil:
		return 0, tail.String(), fmt.Errorf("the program in container %q has closed its output, but goes on", spec.Docker)
	}
	return *ended.ExitCode, tail.String(), nil
}

// call makes one request and hands its answer's body to read.
func (d docker) call(ctx context.Context, method, path string, body any, read func(io.Reader) error) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return errors.Unwrap(err) // the URL means nothing to anybody
	}
	defer resp.Body.Close()
	if resp.StatusCode < 300 {
		return read(resp.Body)
	}
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	var text struct{ Message string }
	if json.Unmarshal(said, &text) == nil && text.Message != "" {
		said = []byte(text.Message)
	}
	return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(strings.ToValidUTF8(string(said), "")))
}

// demux copies the output out of a stream of frames: four bytes say which output
// it is, four how long it is.
func demux(w io.Writer, r io.Reader) error {
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := io.CopyN(w, r, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return err
		}
	}
}
