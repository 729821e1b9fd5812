package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/registryapi/mesh"
)

// everywhere stands for all sites, those to come too.
const everywhere = "all"

// residencyFields are the lines about where a project may rest.
func residencyFields(r mesh.Residency) [][2]string {
	named := everywhere
	if len(r.Sites) > 0 {
		named = strings.Join(r.Sites, ", ")
	}
	out := [][2]string{{"sites", named}}
	for _, s := range r.States {
		text := s.State
		if s.Reason != "" {
			text += ": " + s.Reason
		}
		out = append(out, [2]string{"  at " + s.Site, text})
	}
	return out
}

// under names the steps that are under way.
func under(r mesh.Residency) string {
	var parts []string
	for _, s := range r.States {
		if s.State == "leaving" || s.State == "syncing" || s.State == "out" && s.Reason != "" {
			text := s.Site + " (" + s.State
			if s.Reason != "" {
				text += ": " + s.Reason
			}
			parts = append(parts, text+")")
		}
	}
	return strings.Join(parts, ", ")
}

func newProjectSitesCommand(a *app) *cobra.Command {
	var force, wait bool
	cmd := a.withJSON(&cobra.Command{
		Use:   "sites NAME [SITE,SITE...|all]",
		Short: "Show or change the sites that a project may rest at",
		Long: `Show or change the sites that a project may rest at. Nothing of it is kept at other
sites, or sent through them.

A site that is named anew takes the project in: until it has all that others have
it answers 503 for it. One that is named no more leaves: it takes no pushes, serves
what it holds, and lets go of it once another site has seen all of its entries and
nothing of it is durably there alone. At sites outside pulls and pushes are answered
403 with the sites' names.

With --force sites that are not named let go at once. What is lost by that, as far
as is known, is listed first, of each site by itself: what only several that leave
together hold is not listed.`,
		Args: nameAnd("SITE,SITE..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			r, err := c.Residency(ctx, args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.show(r, func(w io.Writer) { fields(w, residencyFields(r)...) })
			}
			var sites []string
			if args[1] != everywhere {
				sites = strings.FieldsFunc(args[1], func(c rune) bool { return c == ',' || c == ' ' })
				if len(sites) == 0 {
					return fmt.Errorf("name sites, separated by commas, or %s", everywhere)
				}
			}
			if force {
				if err := a.sayLosses(ctx, c, r, sites); err != nil {
					return err
				}
			}
			if r, err = c.SetResidency(ctx, args[0], mesh.ResidencyRequest{Sites: append([]string{}, sites...), Force: force, IfVersion: r.Version}); err != nil {
				return err
			}
			said := ""
			for wait && under(r) != "" {
				if u := under(r); u != said {
					a.say("waiting for %s", u)
					said = u
				}
				select {
				case <-time.After(switchPoll):
				case <-ctx.Done():
					return ctx.Err()
				}
				if r, err = c.Residency(ctx, args[0]); err != nil {
					return err
				}
			}
			named := "all sites"
			if len(r.Sites) > 0 {
				named = strings.Join(r.Sites, ", ")
			}
			a.say("project %s may rest at %s", args[0], named)
			if u := under(r); u != "" {
				a.say("under way: %s; see how far with: portolan project sites %s", u, args[0])
			}
			return a.show(r, func(io.Writer) {})
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "sites that are not named let go at once, whatever only they hold")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when all sites are done")
	return cmd
}

// sayLosses lists what the sites that would leave hold alone.
func (a *app) sayLosses(ctx context.Context, c *client.Client, r mesh.Residency, sites []string) error {
	leaves := r.Leaves(sites)
	for _, site := range leaves {
		lost := mesh.Removal{Site: site}
		silent := false
		for after := ""; ; {
			part, err := c.ProjectLosses(ctx, r.Project, site, after)
			if err != nil {
				return err
			}
			lost.LastCopies = append(lost.LastCopies, part.LastCopies...)
			lost.Unseen = append(lost.Unseen, part.Unseen...)
			silent = silent || part.Silent
			if after = part.After; after == "" {
				break
			}
		}
		if silent {
			a.say("site %s does not answer: what is listed is what the others know of it", site)
		}
		showLastCopies(a.err, lost)
	}
	if len(leaves) > 1 {
		a.say("several sites leave together: what only %s hold between them is lost too", strings.Join(slices.Sorted(slices.Values(leaves)), ", "))
	}
	return nil
}

func newProjectRestoreCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore NAME",
		Short: "Take the deletion of a project back, within 7 days",
		Long: `Take the deletion of a project back. Its content is kept for 7 days after the
deletion; its members and rules are as they were. What was paused or cancelled of it
("portolan transfer") no longer is. Strong tags became eventual with
the deletion: make them strong again with "portolan project tags NAME strong".`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.RestoreProject(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.say("restored the project %s", args[0])
			return nil
		},
	}
}
