package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func maintenanceCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "maintenance", Short: "Take this node or one of its instances out of use, and back",
		Long: `Maintenance makes a node, or one instance on it, critical until it is ended: DNS
and the balancer give it no traffic, whatever its checks say. It survives
restarts of the agent.`,
	}
	c.AddCommand(maintenanceEnable(o), maintenanceDisable(o))
	return c
}

func maintenanceEnable(o *options) *cobra.Command {
	var service, reason string
	c := &cobra.Command{
		Use: "enable", Short: "Begin maintenance of the agent's node, or of one instance", Args: exactly(0),
		Example: `  fairlead maintenance enable --reason 'new disks'
  fairlead maintenance enable --service web-1`,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.maintain(c, service)
			if err != nil {
				return err
			}
			return instanceHint(cl.BeginMaintenance(c.Context(), service, reason))
		},
	}
	c.Flags().StringVar(&service, "service", "", "id of an instance at this node (default: the node itself)")
	c.Flags().StringVar(&reason, "reason", "", "why, for people who look at the checks")
	return c
}

func maintenanceDisable(o *options) *cobra.Command {
	var service string
	c := &cobra.Command{
		Use: "disable", Short: "End maintenance of the agent's node, or of one instance", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.maintain(c, service)
			if err != nil {
				return err
			}
			return instanceHint(cl.EndMaintenance(c.Context(), service))
		},
	}
	c.Flags().StringVar(&service, "service", "", "id of an instance at this node (default: the node itself)")
	return c
}

// maintain is the client for what is asked for. An empty id is no node: it is
// more often a variable of a script that has no value.
func (o *options) maintain(c *cobra.Command, service string) (*api.Client, error) {
	if c.Flags().Changed("service") && service == "" {
		return nil, usagef("--service is empty; leave it out for the whole node, or see 'fairlead service inspect NAME' for ids")
	}
	return o.client()
}

// instanceHint says how to find the id of an instance that is not there.
func instanceHint(err error) error {
	if api.IsNotFound(err) {
		return fmt.Errorf("%w 'fairlead service inspect NAME' shows ids and their nodes", err)
	}
	return err
}

func reloadCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Make the agent read its definition files and certificates again", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.Reload(c.Context())
		},
	}
}
