package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/fairlead-net/fairlead/internal/node"
)

//go:generate sh -c "go run . docs settings > ../../docs/reference/agent.md"

// docsCommand writes the reference, for packagers and for this repository.
func docsCommand() *cobra.Command {
	c := &cobra.Command{Use: "docs", Short: "Write the reference pages", Hidden: true}
	c.AddCommand(
		docsTree("man", "Write a man page for each command", func(root *cobra.Command, dir string) error {
			return doc.GenManTree(root, &doc.GenManHeader{
				Section: "1", Source: "Fairlead " + version, Manual: "Fairlead Manual",
			}, dir)
		}),
		docsTree("md", "Write a Markdown page for each command", doc.GenMarkdownTree),
		&cobra.Command{
			Use: "settings", Short: "Print the reference of the agent's settings", Args: exactly(0),
			RunE: func(c *cobra.Command, _ []string) error { return writeSettings(c.OutOrStdout()) },
		},
	)
	return c
}

func docsTree(name, short string, write func(root *cobra.Command, dir string) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " DIR", Short: short, Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return write(c.Root(), args[0])
		},
	}
}

// writeSettings prints docs/reference/agent.md.
func writeSettings(w io.Writer) error {
	p := &printer{w: w}
	p.line("# Settings of the agent")
	p.line("")
	p.line("<!-- Made by `go generate ./cmd/fairlead` from the settings themselves; changes here are lost. -->")
	p.line("")
	p.line("Each setting can be given as a flag of `fairlead agent`, as an environment variable or as a key of the YAML file")
	p.line("that `--config` or `FAIRLEAD_CONFIG` names. A flag wins over a variable, a variable over the file. What is unknown or")
	p.line("wrong is refused before anything is started; `fairlead agent --check` only says what is wrong. `fairlead down` takes")
	p.line("the same settings: give it those that the agent had.")
	p.line("")
	p.line("| Flag | Variable | Key | Default | What it is |")
	p.line("| --- | --- | --- | --- | --- |")
	for _, s := range node.Settings() {
		value := s.Default
		if s.Bool {
			value = "false"
		}
		if value != "" {
			value = "`" + value + "`"
		}
		p.line("| `--%s` | `%s` | `%s` | %s | %s |", s.Name, s.Env, s.Key, value, cell(s.Doc))
	}
	p.line("")
	p.line("A file with every default that does not depend on the host:")
	p.line("")
	p.line("```yaml")
	for _, s := range node.Settings() {
		if s.Default != "" {
			p.line("%s: %s", s.Key, s.Default)
		}
	}
	p.line("```")
	return p.err
}

// cell is a text inside a table of Markdown.
func cell(s string) string {
	return strings.ReplaceAll(fmt.Sprint(strings.ToUpper(s[:1]), s[1:]), "|", `\|`)
}
