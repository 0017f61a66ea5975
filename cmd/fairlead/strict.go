package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// near is the greatest edit distance of a word that may have been meant.
const near = 2

// strict makes c and every command below it refuse what it does not know, with
// the exit code of a wrong command line: cobra would print help and succeed
// where a command only groups others.
func strict(c *cobra.Command) {
	c.SuggestionsMinimumDistance = near
	for _, sub := range c.Commands() {
		strict(sub)
	}
	if c.HasSubCommands() && !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownCommand(c, args[0])
		}
		return
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var usage *usageError
			if err == nil || errors.As(err, &usage) {
				return err
			}
			return usagef("%w; see '%s --help'", err, c.CommandPath())
		}
	}
}

func unknownCommand(c *cobra.Command, name string) error {
	return usagef("unknown command %q for %q%s '%s --help'", name, c.CommandPath(), didYouMean(c, name, ""), c.CommandPath())
}

// didYouMean suggests the commands of c that are like name, and goes on to where
// all are listed.
func didYouMean(c *cobra.Command, name, prefix string) string {
	var all []string
	for _, s := range c.SuggestionsFor(name) {
		all = append(all, fmt.Sprintf("%q", prefix+s))
	}
	if len(all) == 0 {
		return "; see"
	}
	return "; did you mean " + strings.Join(all, " or ") + "? See"
}

// flagError adds to a refused flag what may have been meant and where to look.
func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	hint := "; see"
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		// Commands are what cobra compares words with.
		words := &cobra.Command{SuggestionsMinimumDistance: near}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			words.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		})
		hint = didYouMean(words, unknown.GetSpecifiedName(), "--")
	}
	return usagef("%w%s '%s --help'", err, hint, c.CommandPath())
}

// helpCommand is cobra's, which succeeds for commands that do not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "Show what a command does and takes",
		Args:  cobra.ArbitraryArgs,
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			of, _, err := c.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, sub := range of.Commands() {
				if sub.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			of, rest, err := c.Root().Find(args)
			if err != nil {
				return &usageError{err}
			}
			if len(rest) > 0 {
				return unknownCommand(of, rest[0])
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// exactly is cobra.ExactArgs with an error that says how to call it.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

// between is cobra.RangeArgs with an error that says how to call it.
func between(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		want := fmt.Sprint(least)
		if most > least {
			want = fmt.Sprintf("%d to %d", least, most)
		}
		if len(args) < least || len(args) > most {
			return usagef("got %s, want %s: %s", counted(len(args), "argument"), want, c.UseLine())
		}
		return nil
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
