package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func kvCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "kv", Short: "Read, write and watch the key/value store"}
	c.AddCommand(kvGet(o), kvPut(o), kvDelete(o), kvList(o), kvWatch(o))
	return c
}

// entry is a key and its value as -o json and -o yaml show it. A value that is
// no UTF-8 text is in ValueBase64.
type entry struct {
	Key         string  `json:"key"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 *string `json:"value_base64,omitempty"`
	Flags       uint64  `json:"flags"`
	CreateIndex uint64  `json:"create_index"`
	ModifyIndex uint64  `json:"modify_index"`
	LockIndex   uint64  `json:"lock_index,omitempty"`
	Session     string  `json:"session,omitempty"` // which holds its lock
}

func shownKV(kv api.KV) entry {
	e := entry{Key: kv.Key, Flags: kv.Flags, CreateIndex: kv.CreateIndex, ModifyIndex: kv.ModifyIndex, LockIndex: kv.LockIndex, Session: kv.Session}
	if text := string(kv.Value); utf8.ValidString(text) {
		e.Value = &text
	} else {
		b := base64.StdEncoding.EncodeToString(kv.Value)
		e.ValueBase64 = &b
	}
	return e
}

func kvGet(o *options) *cobra.Command {
	var recurse, raw bool
	c := &cobra.Command{
		Use: "get KEY", Short: "Show a value", Args: exactly(1), ValidArgsFunction: o.keys,
		Long: `Prints the value of a key, its bytes as they are and nothing else. With -o json
or -o yaml its flags and indexes are shown too, and with --recurse every key that
begins with KEY.`,
		RunE: func(c *cobra.Command, args []string) error {
			if raw && (recurse || o.output != "table") {
				return usagef("--raw prints one value and nothing else: leave out --recurse and --output")
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			if recurse {
				return getTree(c, o, cl, args[0])
			}
			if err := notEmpty(args[0]); err != nil {
				return err
			}
			kv, err := cl.KV(c.Context(), args[0])
			if api.IsNotFound(err) {
				return fmt.Errorf("%w; 'fairlead kv ls' lists the keys there are", err)
			}
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), shownKV(kv), func(w io.Writer) error {
				_, err := w.Write(kv.Value)
				return err
			})
		},
	}
	c.Flags().BoolVar(&recurse, "recurse", false, "show every key that begins with KEY")
	c.Flags().BoolVar(&raw, "raw", false, "print the bytes of the value and nothing else (the default)")
	return c
}

func getTree(c *cobra.Command, o *options, cl *api.Client, prefix string) error {
	all, err := cl.KVTree(c.Context(), prefix)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("key %q: no key begins with it; 'fairlead kv ls' lists the keys there are", prefix)
	}
	return o.show(c.OutOrStdout(), mapped(all, shownKV), func(w io.Writer) error {
		t := &table{head: []string{"KEY", "INDEX", "FLAGS", "VALUE"}}
		for _, kv := range all {
			t.add(legible([]byte(kv.Key)), strconv.FormatUint(kv.ModifyIndex, 10), strconv.FormatUint(kv.Flags, 10), legible(kv.Value))
		}
		return t.write(w)
	})
}

// legible is a value on one line: as it is if that is possible, else quoted.
func legible(b []byte) string {
	s := string(b)
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return strconv.Quote(s)
	}
	return s
}

func notEmpty(key string) error {
	if key == "" {
		return usagef("the key is empty; name one")
	}
	return nil
}

// casFlag is --cas; the result is nil without it.
func casFlag(c *cobra.Command) (cas func() *uint64) {
	var index uint64
	c.Flags().Uint64Var(&index, "cas", 0, "only if the key's modify_index is this one; 0: only if there is no such key")
	return func() *uint64 {
		if !c.Flags().Changed("cas") {
			return nil
		}
		return &index
	}
}

// casRefused says what a comparison found.
func casRefused(verb, key string, cas uint64) error {
	if cas == 0 && verb == "written" {
		return fmt.Errorf("key %q: not %s: it exists already; 'fairlead kv get -o yaml' shows its modify_index", key, verb)
	}
	return fmt.Errorf("key %q: not %s: its modify_index is not %d, since somebody changed it or it is not there; 'fairlead kv get -o yaml' shows it", key, verb, cas)
}

func kvPut(o *options) *cobra.Command {
	var flags uint64
	var acquire, release string
	c := &cobra.Command{
		Use: "put KEY VALUE", Short: "Write a value", Args: exactly(2), ValidArgsFunction: o.keys,
		Long: `Writes a value of up to 512 KiB. The value - is read from the standard input; one
that begins with - goes behind --.`,
		Example: `  fairlead kv put web/greeting hello
  fairlead kv put web/config - < config.json
  fairlead kv put --cas 0 web/owner me
  fairlead kv put --acquire SESSION web/leader me`,
	}
	c.Flags().Uint64Var(&flags, "flags", 0, "number that is kept with the value, for the caller's own use")
	c.Flags().StringVar(&acquire, "acquire", "", "take the key's lock, too, for the session with this id; only if no other holds it")
	c.Flags().StringVar(&release, "release", "", "release the key's lock, too; only if the session with this id holds it")
	cas := casFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := notEmpty(args[0]); err != nil {
			return err
		}
		if given := givenOf(c, "cas", "acquire", "release"); len(given) > 1 {
			return usagef("%s: choose one", strings.Join(given, " and "))
		}
		kv := api.KV{Key: args[0], Value: []byte(args[1]), Flags: flags}
		if args[1] == "-" {
			var err error
			if kv.Value, err = io.ReadAll(c.InOrStdin()); err != nil {
				return fmt.Errorf("read the value from the standard input: %w", err)
			}
		}
		cl, err := o.client()
		if err != nil {
			return err
		}
		var ok bool
		switch {
		case c.Flags().Changed("acquire"):
			kv.Session = acquire
			if ok, err = cl.AcquireKV(c.Context(), kv); err == nil && !ok {
				err = fmt.Errorf("key %q: not written: another session holds its lock, or held it a moment ago; 'fairlead kv get -o yaml' shows its session", args[0])
			}
		case c.Flags().Changed("release"):
			kv.Session = release
			if ok, err = cl.ReleaseKV(c.Context(), kv); err == nil && !ok {
				err = fmt.Errorf("key %q: not written: that session does not hold its lock; 'fairlead kv get -o yaml' shows its session", args[0])
			}
		default:
			if ok, err = cl.PutKV(c.Context(), kv, cas()); err == nil && !ok {
				err = refusedWrite(args[0], "written", cas())
			}
		}
		return err
	}
	return c
}

// givenOf returns which of the flags were given.
func givenOf(c *cobra.Command, flags ...string) []string {
	var given []string
	for _, f := range flags {
		if c.Flags().Changed(f) {
			given = append(given, "--"+f)
		}
	}
	return given
}

// refusedWrite is what false means: a comparison failed if there was one.
func refusedWrite(key, verb string, cas *uint64) error {
	if cas == nil {
		return fmt.Errorf("key %q: not %s: the agent refused; its log says why", key, verb)
	}
	return casRefused(verb, key, *cas)
}

func kvDelete(o *options) *cobra.Command {
	var recurse bool
	c := &cobra.Command{
		Use: "delete KEY", Aliases: []string{"rm"}, Short: "Remove a key", Args: exactly(1), ValidArgsFunction: o.keys,
		Long: "Removes a key, or with --recurse every key that begins with KEY. What is not\nthere is removed already: that succeeds.",
	}
	c.Flags().BoolVar(&recurse, "recurse", false, "remove every key that begins with KEY")
	cas := casFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case recurse && cas() != nil:
			return usagef("--recurse and --cas: choose one; an index belongs to one key")
		case recurse && args[0] == "":
			return usagef("an empty prefix would remove every key; name what they begin with")
		}
		if err := notEmpty(args[0]); err != nil {
			return err
		}
		cl, err := o.client()
		if err != nil {
			return err
		}
		if recurse {
			return cl.DeleteKVTree(c.Context(), args[0])
		}
		ok, err := cl.DeleteKV(c.Context(), args[0], cas())
		if err == nil && !ok {
			err = refusedWrite(args[0], "removed", cas())
		}
		return err
	}
	return c
}

func kvList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls [PREFIX]", Aliases: []string{"list"}, Short: "List keys", Args: between(0, 1), ValidArgsFunction: o.keys,
		RunE: func(c *cobra.Command, args []string) error {
			prefix := strings.Join(args, "")
			cl, err := o.client()
			if err != nil {
				return err
			}
			keys, err := cl.KVKeys(c.Context(), prefix, "")
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), keys, func(w io.Writer) error {
				p := &printer{w: w}
				for _, k := range keys {
					p.line("%s", legible([]byte(k)))
				}
				return p.err
			})
		},
	}
}

// change is one line of kv watch.
type change struct {
	Event string `json:"event"` // "set" or "delete"
	entry
}

// print writes one change: a line of text or of JSON, or a YAML document.
func (ch change) print(w io.Writer, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(ch)
	case "yaml":
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
		return writeYAML(w, ch)
	}
	line := fmt.Sprintf("%d %s %s", ch.ModifyIndex, ch.Event, legible([]byte(ch.Key)))
	switch {
	case ch.Event == "delete":
	case ch.Value != nil:
		line += " " + legible([]byte(*ch.Value))
	case ch.ValueBase64 != nil:
		line += " base64:" + *ch.ValueBase64
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
