package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/mesh"
)

// switchPoll is how often a switch of tags is looked at while the command waits.
const switchPoll = 500 * time.Millisecond

// guaranteeFields are the lines about a project's pushes.
func guaranteeFields(g mesh.Guarantees) [][2]string {
	tags := g.Tags
	if s := g.Switch; s != nil {
		tags += ", switching to " + s.To
		if w := waiting(*s); w != "" {
			tags += ": waiting for " + w
		}
	}
	out := [][2]string{{"tags", tags}}
	if g.Tags == "strong" {
		out = append(out, [2]string{"strong tags", strconv.Itoa(g.StrongTags)})
	}
	durability := strconv.Itoa(max(1, g.Durability))
	if g.Copies > g.Durability && g.Copies > 1 {
		durability = fmt.Sprintf("%d, because its tags are strong", g.Copies)
	}
	out = append(out, [2]string{"durability", durability})
	if len(g.Late) > 0 {
		out = append(out, [2]string{"not waited for", strings.Join(g.Late, ", ")})
	}
	if g.Note != "" {
		out = append(out, [2]string{"last switch", "called off: " + g.Note})
	}
	return out
}

// waiting names the sites that a switch waits for.
func waiting(s mesh.TagSwitch) string {
	var parts []string
	for _, w := range s.Waiting {
		parts = append(parts, w.Site+" ("+w.Reason+")")
	}
	return strings.Join(parts, ", ")
}

// nameAnd wants a project and perhaps what it shall have.
func nameAnd(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) == 1 {
			return nil
		}
		return args("NAME", what)(cmd, got)
	}
}

func newProjectTagsCommand(a *app) *cobra.Command {
	var force, wait bool
	cmd := a.withJSON(&cobra.Command{
		Use:   "tags NAME [strong|eventual]",
		Short: "Show or change who decides what a project's tags say",
		Long: `Show or change who decides what a project's tags say.

eventual (the default): every site sets tags for itself, whatever the links do,
and all sites merge; of two that set one tag at the same time one wins everywhere.

strong: the mesh decides. Nobody overwrites a tag that he has not seen, a tag that
was set is set everywhere, and a manifest that a tag names is not deleted. Without
a majority of the voting sites tags are neither set nor deleted; pulls go on. Each
push is at two sites before it is answered, where two may hold the project.

The mode is switched once all sites that hold the project have done their part;
until then its tags stay as they are. Naming the mode of before calls it off.`,
		Args: nameAnd("strong|eventual"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if len(args) == 1 {
				g, err := c.Guarantees(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(g, func(w io.Writer) { fields(w, guaranteeFields(g)...) })
			}
			if _, err := state.ParseTagMode(args[1]); err != nil {
				return err
			}
			g, err := c.SetGuarantees(ctx, args[0], mesh.GuaranteesRequest{Tags: args[1], Force: force})
			if err != nil {
				return err
			}
			said := ""
			for wait && g.Switch != nil {
				if w := waiting(*g.Switch); w != said && w != "" {
					a.say("waiting for %s", w)
					said = w
				}
				select {
				case <-time.After(switchPoll):
				case <-ctx.Done():
					return ctx.Err()
				}
				if g, err = c.Guarantees(ctx, args[0]); err != nil {
					return err
				}
			}
			switch {
			case g.Switch != nil:
				a.say("the tags of project %s are switching to %s: see how far with: portolan project tags %s", args[0], g.Switch.To, args[0])
			case g.Tags != args[1] && g.Note != "":
				return fmt.Errorf("the switch was called off: %s", g.Note)
			default:
				a.say("the tags of project %s are %s", args[0], g.Tags)
			}
			return a.show(g, func(io.Writer) {})
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for sites that do not answer: what they wrote unseen loses when it is heard of, and is kept for 30 days by its digest")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when the switch is done")
	return cmd
}

func newProjectDurabilityCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "durability NAME [SITES]",
		Short: "Show or change how many sites must have a push before it is answered",
		Long: `Show or change how many sites must have all of a push before it is answered: 1 (the
default) to 5. With fewer sites in reach a push is answered 503 and names those that
are away; pushing again goes on where it was. Afterwards the project's content is
kept at as many sites, as by a rule.`,
		Args: nameAnd("SITES"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				g, err := c.Guarantees(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(g, func(w io.Writer) { fields(w, guaranteeFields(g)...) })
			}
			n, err := strconv.Atoi(args[1])
			if err != nil || n < 1 || n > 5 {
				return fmt.Errorf("%q is not a number of sites: use 1 to 5", args[1])
			}
			g, err := c.SetGuarantees(cmd.Context(), args[0], mesh.GuaranteesRequest{Durability: &n})
			if err != nil {
				return err
			}
			a.say("a push to project %s is answered when %d sites have it", args[0], g.Copies)
			return a.show(g, func(io.Writer) {})
		},
	})
}
