package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newRuleCommand(a *app) *cobra.Command {
	return noun("rule", "Replication rules: what must be at which sites",
		newRuleCreateCommand(a),
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the rules",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				rules, err := c.Rules(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(rules, func(w io.Writer) {
					var rows [][]string
					for _, r := range rules {
						rows = append(rows, []string{r.Name, list(r.Projects, "-"), list(r.Repositories, "all"), list(r.Tags, "all"), list(ruleSites(r), "-"), onOff(r)})
					}
					table(w, []string{"RULE", "PROJECTS", "REPOSITORIES", "TAGS", "SITES", "STATE"}, rows)
				})
			},
		}),
		a.withJSON(&cobra.Command{
			Use:   "show NAME",
			Short: "Show a rule",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				r, err := c.Rule(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(r, func(w io.Writer) {
					fields(w, [2]string{"name", r.Name}, [2]string{"id", strconv.FormatInt(r.ID, 10)}, [2]string{"projects", list(r.Projects, "-")},
						[2]string{"repositories", list(r.Repositories, "all")}, [2]string{"tags", list(r.Tags, "all")}, [2]string{"sites", list(ruleSites(r), "-")},
						[2]string{"state", onOff(r)}, [2]string{"created", when(r.CreatedAt)})
				})
			},
		}),
		&cobra.Command{
			Use:   "delete NAME",
			Short: "Delete a rule; what it brought somewhere stays there",
			Args:  args("NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteRule(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("deleted the rule %s", args[0])
				return nil
			},
		})
}

func onOff(r mesh.Rule) string {
	if r.Disabled {
		return "disabled"
	}
	return "in force"
}

func newRuleCreateCommand(a *app) *cobra.Command {
	var projects, repositories, tags, sites string
	var disabled bool
	cmd := a.withJSON(&cobra.Command{
		Use:   "create NAME --projects PATTERNS --sites SITES",
		Short: "Make a rule: what must be at which sites",
		Long: `Make a rule: what must be at which sites. Sites bring it there and keep it there.

Projects, repositories (the path below the project) and tags are patterns,
separated by commas: * for any part of a name, ** across slashes, {a,b}, [a-z].
Sites are names, or all: then those that join later too.`,
		Example: "  portolan rule create everywhere --projects prod --sites all\n  portolan rule create asia --projects 'team-*' --tags 'v*' --sites sgp,syd",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if projects == "" {
				return errors.New("--projects is missing: name projects, or patterns of names")
			}
			if sites == "" {
				return errors.New("--sites is missing: name sites, or all")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.CreateRule(cmd.Context(), mesh.RuleRequest{Name: args[0], Projects: patterns(projects), Repositories: patterns(repositories),
				Tags: patterns(tags), Sites: split(sites), Disabled: disabled})
			if err != nil {
				return err
			}
			return a.show(r, func(w io.Writer) {
				fmt.Fprintf(w, "made the rule %s: projects %s to sites %s\n", r.Name, list(r.Projects, "-"), list(r.Sites, "-"))
			})
		},
	})
	cmd.Flags().StringVar(&projects, "projects", "", "projects, separated by commas; patterns are possible")
	cmd.Flags().StringVar(&repositories, "repositories", "", "repositories below the project, separated by commas (default: all)")
	cmd.Flags().StringVar(&tags, "tags", "", "tags, separated by commas (default: all, and what has no tag)")
	cmd.Flags().StringVar(&sites, "sites", "", "names of sites, separated by commas, or all")
	cmd.Flags().BoolVar(&disabled, "disabled", false, "make it, but do not put it in force")
	return cmd
}

// patterns splits at commas, but not inside {a,b}.
func patterns(s string) []string {
	var out []string
	depth, start := 0, 0
	for i, r := range s + "," {
		switch {
		case r == '{':
			depth++
		case r == '}':
			depth--
		case r == ',' && depth <= 0:
			if p := s[start:i]; p != "" {
				out = append(out, p)
			}
			start = i + 1
		}
	}
	if start < len(s) { // an open brace: the node says what is wrong with it
		out = append(out, s[start:])
	}
	return out
}

// ruleSites names a rule's sites, and says which are there no more.
func ruleSites(r mesh.Rule) []string {
	out := slices.Clone(r.Sites)
	for i, s := range out {
		if slices.Contains(r.Gone, s) {
			out[i] = s + " (gone)"
		}
	}
	return out
}
