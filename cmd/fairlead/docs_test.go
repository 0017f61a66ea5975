package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
	anyBlock   = regexp.MustCompile("(?ms)^```.*?^```")
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	flagWord   = regexp.MustCompile(`(?:^|\s)--([a-z][a-z0-9-]*)`)
	// ourCommand is a command line up to where the shell's own words begin.
	ourCommand = regexp.MustCompile(`\bfairlead ([^|;&)$]+)`)
)

// documents are the pages that show command lines.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"../../README.md", "../../docs/*.md", "../../docs/reference/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			pages[strings.TrimPrefix(f, "../../")] = string(b)
		}
	}
	return pages
}

// TestCommandsInDocuments reads every command line that a page shows the way the
// program would, without running it.
func TestCommandsInDocuments(t *testing.T) {
	lines := 0
	for page, text := range documents(t) {
		for _, block := range shellBlock.FindAllStringSubmatch(text, -1) {
			for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
				line, _, _ = strings.Cut(line, " #")
				for _, m := range ourCommand.FindAllStringSubmatch(line, -1) {
					lines++
					if err := readLine(m[1]); err != nil {
						t.Errorf("%s: %s: %v", page, strings.TrimSpace(line), err)
					}
				}
			}
		}
	}
	if lines < 40 {
		t.Errorf("only %d command lines found; the pages have more", lines)
	}
}

func readLine(line string) error {
	args, err := words(line)
	if err != nil {
		return err
	}
	c, rest, err := rootCommand().Find(args)
	if err != nil {
		return err
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	if !c.HasParent() || c.HasSubCommands() {
		return usagef("no command")
	}
	return c.ValidateArgs(c.Flags().Args())
}

// TestCodeInDocuments looks for commands and flags that do not exist in the
// prose, where they stand without all their arguments.
func TestCodeInDocuments(t *testing.T) {
	flags := map[string]bool{}
	var collect func(c *cobra.Command)
	collect = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		}
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	root := rootCommand()
	collect(root)
	for page, text := range documents(t) {
		if page == "docs/dependencies.md" {
			continue // it speaks of other programs
		}
		for _, code := range inlineCode.FindAllStringSubmatch(anyBlock.ReplaceAllString(text, ""), -1) {
			if args := strings.Fields(code[1]); args[0] == "fairlead" && len(args) > 1 {
				if c, _, err := root.Find(args[1:]); err != nil || c == root && !strings.HasPrefix(args[1], "-") {
					t.Errorf("%s: `%s`: no such command", page, code[1])
				}
			}
			for _, m := range flagWord.FindAllStringSubmatch(code[1], -1) {
				if !flags[m[1]] {
					t.Errorf("%s: `%s`: no command has --%s", page, code[1], m[1])
				}
			}
		}
	}
}
