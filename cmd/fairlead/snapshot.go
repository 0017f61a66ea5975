package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
)

func snapshotCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Short: "Save, look at and restore everything the registry holds",
		Long: `Saves everything the registry holds as one file, and restores it while the agents
run. A snapshot holds the secrets of the ACL tokens and the keys of the CA: keep it
like a password.`,
	}
	c.AddCommand(snapshotSave(o), snapshotRestore(o), snapshotInspect(o))
	return c
}

func snapshotSave(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "save FILE", Short: "Save everything the registry holds", Args: exactly(1),
		Long: `Saves everything the registry holds, as of one moment, without holding up anybody.
The file is verified before it gets its name; one that has the name already is
replaced. FILE - is the standard output.`,
		Example: "  fairlead snapshot save backup.snap\n  fairlead snapshot save - | ssh backup 'cat > fairlead.snap'",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			fetch := func(w io.Writer) error { return cl.SaveSnapshot(c.Context(), w) }
			if args[0] == "-" {
				_, err := verified(c.OutOrStdout(), fetch)
				return err
			}
			m, err := saveFile(args[0], fetch)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), m, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %s as of index %d\n", args[0], counted(m.Records, "record"), m.Index)
				return err
			})
		},
	}
}

// verified writes what fetch brings to w, and verifies it on the way.
func verified(w io.Writer, fetch func(io.Writer) error) (model.SnapshotMeta, error) {
	pr, pw := io.Pipe()
	fetched := make(chan error, 1)
	go func() {
		err := fetch(io.MultiWriter(w, pw))
		pw.CloseWithError(err) // nil ends it in good order
		fetched <- err
	}()
	m, err := archive.Read(pr, 0, nil)
	if err != nil {
		// What is left has to be taken, or fetch would wait for ever.
		_, _ = io.Copy(io.Discard, pr)
	}
	// Why it could not be fetched says more than what is wrong with the piece.
	if ferr := <-fetched; ferr != nil {
		return m, ferr
	}
	return m, err
}

// saveFile fetches a snapshot into a file of that name: verified, on disk and
// whole, or not at all.
func saveFile(name string, fetch func(io.Writer) error) (model.SnapshotMeta, error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*.tmp") // for its owner only
	if err != nil {
		return model.SnapshotMeta{}, err
	}
	m, err := fill(f, fetch)
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return m, errors.Join(err, os.Remove(f.Name()))
	}
	return m, syncDir(filepath.Dir(name))
}

// fill fetches a snapshot into an open file, puts it on disk and closes it.
func fill(f *os.File, fetch func(io.Writer) error) (model.SnapshotMeta, error) {
	out := bufio.NewWriterSize(f, 256<<10)
	m, err := verified(out, fetch)
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	return m, errors.Join(err, f.Close())
}

// syncDir puts a new name on disk.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("%s: the snapshot is saved, but its name may not survive a loss of power: %w", name, err)
	}
	return nil
}

func snapshotRestore(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Replace everything the registry holds", Args: exactly(1),
		Long: `Replaces everything the registry holds by a snapshot, while the agents run: keys,
locks, sessions (with their full TTL), ACLs, queries, the CA and the services of
external nodes. What was written since the snapshot is gone. What agents have
registered and what workloads are attached to stays as it is now.

The snapshot is verified first. Until it is restored as a whole, the registry stays
as it was. FILE - is the standard input.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if args[0] == "-" {
				return cl.RestoreSnapshot(c.Context(), c.InOrStdin())
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			m, err := inspect(args[0], f)
			if err != nil {
				return err
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if err := cl.RestoreSnapshot(c.Context(), f); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), m, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "restored %s, saved at %s\n", counted(m.Records, "record"), m.Time.Format(time.RFC3339))
				return err
			})
		},
	}
}

func snapshotInspect(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Verify a snapshot and show what it holds", Args: exactly(1),
		Long: "Verifies a snapshot and shows what it holds. It asks no agent. FILE - is the\nstandard input.",
		RunE: func(c *cobra.Command, args []string) error {
			in := c.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			m, err := inspect(args[0], in)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), m, func(w io.Writer) error { return describeSnapshot(w, m) })
		},
	}
}

func inspect(name string, in io.Reader) (model.SnapshotMeta, error) {
	m, err := archive.Read(in, 0, nil)
	if err != nil {
		if name == "-" {
			name = "standard input"
		}
		return m, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func describeSnapshot(w io.Writer, m model.SnapshotMeta) error {
	t := &table{}
	t.add("Index", strconv.FormatUint(uint64(m.Index), 10))
	t.add("Saved", m.Time.Format(time.RFC3339))
	t.add("By", fmt.Sprintf("server %s of site %s, version %s", m.Node, orDash(m.Site), orDash(m.Software)))
	t.add("Format", strconv.Itoa(m.Version))
	t.add("Size", fmt.Sprintf("%d bytes in %s", m.Bytes, counted(m.Records, "record")))
	if err := t.write(w); err != nil || len(m.Tables) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	list := &table{head: []string{"TABLE", "RECORDS"}}
	for _, name := range slices.Sorted(maps.Keys(m.Tables)) {
		list.add(name, strconv.Itoa(m.Tables[name]))
	}
	return list.write(w)
}
