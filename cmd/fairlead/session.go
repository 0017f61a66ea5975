package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func sessionCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "session", Short: "List, create and destroy sessions, which hold locks"}
	c.AddCommand(sessionList(o), sessionCreate(o), sessionDestroy(o))
	return c
}

// shownSession is a session as -o json and -o yaml show it.
type shownSession struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Node        string   `json:"node"`
	TTL         string   `json:"ttl"`
	Behavior    string   `json:"behavior"`
	LockDelay   string   `json:"lock_delay"`
	Checks      []string `json:"checks"`
	CreateIndex uint64   `json:"create_index"`
}

func showSession(s api.Session) shownSession {
	return shownSession{
		ID: s.ID, Name: s.Name, Node: s.Node, TTL: s.TTL, Behavior: s.Behavior,
		LockDelay: s.LockDelay.String(), Checks: append([]string{}, s.NodeChecks...), CreateIndex: s.CreateIndex,
	}
}

func sessionList(o *options) *cobra.Command {
	var node string
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List sessions", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Sessions(c.Context(), node)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), mapped(all, showSession), func(w io.Writer) error {
				t := &table{head: []string{"ID", "NAME", "NODE", "TTL", "BEHAVIOR", "LOCK DELAY"}}
				for _, s := range all {
					t.add(s.ID, orDash(s.Name), s.Node, orDash(s.TTL), s.Behavior, s.LockDelay.String())
				}
				return t.write(w)
			})
		},
	}
	c.Flags().StringVar(&node, "node", "", "only those of this node")
	return c
}

func sessionCreate(o *options) *cobra.Command {
	var spec api.SessionSpec
	var delay time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Begin a session at this node and print its id", Args: exactly(0),
		Long: `Begins a session. It ends when it is destroyed, when this node dies or, with --ttl,
when it is not renewed in time; its locks end with it.`,
	}
	c.Flags().StringVar(&spec.Name, "name", "", "name, for people")
	c.Flags().DurationVar(&spec.TTL, "ttl", 0, "time within which it has to be renewed (10s to 24h; default: none)")
	c.Flags().StringVar(&spec.Behavior, "behavior", "", "what becomes of locked keys at its end: release or delete (default release)")
	c.Flags().DurationVar(&delay, "lock-delay", 15*time.Second, "how long nobody can take a lock that its end took away (at most 1m)")
	completeFlag(c, "behavior", "release", "delete")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if c.Flags().Changed("lock-delay") {
			spec.LockDelay = &delay
		}
		cl, err := o.client()
		if err != nil {
			return err
		}
		id, err := cl.CreateSession(c.Context(), spec)
		if err != nil {
			return err
		}
		return o.show(c.OutOrStdout(), map[string]string{"id": id}, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, id)
			return err
		})
	}
	return c
}

func sessionDestroy(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "destroy ID", Aliases: []string{"rm"}, Short: "End a session and its locks", Args: exactly(1),
		Long:              "Ends a session. One that has ended already is no error.",
		ValidArgsFunction: o.names(1, sessionIDs),
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] == "" {
				return usagef("the id is empty; 'fairlead session ls' shows ids")
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.DestroySession(c.Context(), args[0])
		},
	}
}

func eventCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "event", Short: "Fire events and list them"}
	c.AddCommand(eventFire(o), eventList(o))
	return c
}

// shownEvent is an event as -o json and -o yaml show it.
type shownEvent struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Payload       []byte `json:"payload_base64,omitempty"`
	NodeFilter    string `json:"node,omitempty"`
	ServiceFilter string `json:"service,omitempty"`
	TagFilter     string `json:"tag,omitempty"`
	LTime         uint64 `json:"ltime"`
}

func eventFire(o *options) *cobra.Command {
	var e api.Event
	c := &cobra.Command{
		Use: "fire NAME [PAYLOAD]", Short: "Send an event and print its id", Args: between(1, 2), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Sends an event to all nodes, or to those that the filters match. Name and payload
together have at most 512 bytes. The payload - is read from the standard input. An
event is not kept: who does not listen misses it.`,
		Example: `  fairlead event fire deploy 1.2.3
  fairlead event fire deploy --service '^web$'`,
		RunE: func(c *cobra.Command, args []string) error {
			if e.TagFilter != "" && e.ServiceFilter == "" {
				return usagef("--tag: name the service, too, with --service")
			}
			e.Name, e.Payload = args[0], []byte(strings.Join(args[1:], ""))
			if len(args) > 1 && args[1] == "-" {
				var err error
				if e.Payload, err = io.ReadAll(c.InOrStdin()); err != nil {
					return fmt.Errorf("read the payload from the standard input: %w", err)
				}
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			id, err := cl.FireEvent(c.Context(), e)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), map[string]string{"id": id}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, id)
				return err
			})
		},
	}
	c.Flags().StringVar(&e.NodeFilter, "node", "", "regular expression: only nodes whose name matches")
	c.Flags().StringVar(&e.ServiceFilter, "service", "", "regular expression: only nodes with a service whose name matches")
	c.Flags().StringVar(&e.TagFilter, "tag", "", "regular expression: only where the service has a tag that matches")
	return c
}

func eventList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls [NAME]", Aliases: []string{"list"}, Short: "List the newest events that reached this node", Args: between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Events(c.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			shown := mapped(all, func(e api.Event) shownEvent { return shownEvent(e) })
			return o.show(c.OutOrStdout(), shown, func(w io.Writer) error {
				t := &table{head: []string{"NAME", "ID", "PAYLOAD"}}
				for _, e := range all {
					t.add(e.Name, e.ID, legible(e.Payload))
				}
				return t.write(w)
			})
		},
	}
}
