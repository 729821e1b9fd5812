package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/registryapi/mesh"
)

func newSiteRemoveCommand(a *app) *cobra.Command {
	return removeCommand(a, "SITE", "remove SITE", "Remove a site from the mesh for good",
		`Remove a site from the mesh for good. The others cut its connections at once, its
registry tokens die, its key never comes back, and its name is free.

First the removal is announced and the site, which takes no pushes and deletes from
then on, is asked with all other sites for what only it holds; "portolan site keep" calls
it off, and a removal that fails does so itself. If there is
something the removal is refused and the images are listed: bring them elsewhere
by a rule ("portolan rule create", "portolan wait"), or lose them by --force.
Ask a node of the site itself if projects may not rest at the site that you ask.

A site that is gone for good is removed with --lost: then the images are listed
that, as far as is known, nobody else has, and how many pushes and deletes it told
others of that are at no site.

Its node may go on running; it says in its log and status that it was removed,
serves what it has, and takes no pushes. Stop it before its data is deleted.`,
		func(ctx context.Context, c *client.Client, name string, r mesh.RemovalRequest) (mesh.Removal, error) {
			return c.RemoveSite(ctx, name, r)
		})
}

func newSiteKeepCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use: "keep SITE", Short: "Call off the removal of a site", Args: args("SITE"),
		Long: `Call off the removal of a site that was begun and not ended: the site takes pushes
again at once. Without it the announcement of a removal ends by itself.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.KeepSite(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			a.say("the site %s stays", s.Name)
			return a.show(s, func(io.Writer) {})
		},
	})
}

func newNodeRemoveCommand(a *app) *cobra.Command {
	return removeCommand(a, "NODE", "remove NODE", "Remove a node from the mesh for good",
		`Remove a node from the mesh for good, by its id. With its last node a site is
gone; all else is as with "portolan site remove".`,
		func(ctx context.Context, c *client.Client, id string, r mesh.RemovalRequest) (mesh.Removal, error) {
			return c.RemoveNode(ctx, id, r)
		})
}

func removeCommand(a *app, arg, use, short, long string, call func(context.Context, *client.Client, string, mesh.RemovalRequest) (mesh.Removal, error)) *cobra.Command {
	var r mesh.RemovalRequest
	cmd := a.withJSON(&cobra.Command{
		Use: use, Short: short, Long: long, Args: args(arg),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.remove(cmd.Context(), r, func(ctx context.Context, r mesh.RemovalRequest) (mesh.Removal, error) {
				return call(ctx, c, args[0], r)
			})
		},
	})
	cmd.Flags().BoolVar(&r.Lost, "lost", false, "it is gone for good and cannot be asked")
	cmd.Flags().BoolVar(&r.Force, "force", false, "remove it although it holds last copies, or nobody can say")
	return cmd
}

// remove repeats the call until it is done, and tells how far it is.
func (a *app) remove(ctx context.Context, r mesh.RemovalRequest, call func(context.Context, mesh.RemovalRequest) (mesh.Removal, error)) error {
	var all mesh.Removal
	for {
		got, err := call(ctx, r)
		if err != nil {
			if len(all.LastCopies)+len(all.Unseen) > 0 {
				if a.json {
					_ = a.show(all, nil)
				} else {
					showLastCopies(a.err, all)
				}
			}
			return err
		}
		if got.Anew {
			all = mesh.Removal{}
			a.say("site %s took pushes meanwhile: looking again from the beginning", got.Site)
		}
		got.LookedAt += all.LookedAt
		got.LastCopies = append(all.LastCopies, got.LastCopies...)
		got.Unseen = append(all.Unseen, got.Unseen...)
		if got.NeverLeft == nil {
			got.NeverLeft = all.NeverLeft
		}
		pushing := got.Pushing
		got.Pushing = 0
		all = got
		if all.Done {
			break
		}
		if all.After == "" {
			return errors.New("the node's answer is neither done nor does it say where to go on: is it of another version?")
		}
		r.After = all.After
		if pushing > 0 {
			a.say("waiting for %d pushes or deletions at site %s that began before, or whose blobs other sites still fetch from it", pushing, all.Site)
			continue
		}
		a.say("looking for what only site %s holds: %d manifests so far, %d images with last copies", all.Site, all.LookedAt, len(all.LastCopies))
	}
	all.After, all.Anew = "", false
	what := "the site " + all.Site
	if !all.SiteGone {
		what = fmt.Sprintf("a node of site %s", all.Site)
	}
	a.say("removed %s", what)
	return a.show(all, func(w io.Writer) { showRemoval(w, all) })
}

// showRemoval says what a removal leaves to people.
func showRemoval(w io.Writer, r mesh.Removal) {
	showLastCopies(w, r)
	if r.NeverLeft != nil {
		showNeverLeft(w, r)
	}
	for _, part := range []struct {
		head string
		rows []string
	}{
		{"Rules that go on naming the site, and hold again for a new one of that name:", r.Rules},
		{"Projects whose residency goes on naming the site:", r.Projects},
		{"Join tokens that were revoked, since they were for its name:", texts(r.Tokens)},
		{"What it knew, and only you can change:", r.ToChange},
	} {
		if len(part.rows) == 0 {
			continue
		}
		fmt.Fprintln(w, part.head)
		for _, row := range part.rows {
			fmt.Fprintf(w, "  %s\n", row)
		}
	}
}

// showNeverLeft says what a lost site wrote and nobody has, and gives an all-clear only
// if everybody was asked and nothing is known to be missing.
func showNeverLeft(w io.Writer, r mesh.Removal) {
	n := r.NeverLeft
	switch {
	case n.Requests > 0:
		fmt.Fprintf(w, "What never left it, and is lost, by what it told %s since they were started: at most %d pushes and deletes, in %d projects.\n", strings.Join(n.Heard, ", "), n.Requests, n.Projects)
	case len(n.Heard) == 0:
		fmt.Fprintln(w, "Whether a push or delete never left it is not known: it told no site that answers of any, since those were started.")
	case n.Complete() && len(r.LastCopies)+len(r.Unseen) == 0:
		fmt.Fprintf(w, "All pushes and deletes that it told %s of, since they were started, are at other sites.\n", strings.Join(n.Heard, ", "))
	default:
		fmt.Fprintf(w, "No push or delete that it told %s of, since they were started, is missing there.\n", strings.Join(n.Heard, ", "))
	}
	if len(n.Silent) > 0 {
		fmt.Fprintf(w, "It may have told %s of more: they do not answer.\n", strings.Join(n.Silent, ", "))
	}
}

func texts(ids []int64) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = fmt.Sprint(id)
	}
	return out
}

func showLastCopies(w io.Writer, r mesh.Removal) {
	if len(r.LastCopies) > 0 {
		fmt.Fprintf(w, "What only site %s durably holds, as far as is known:\n", r.Site)
		var rows [][]string
		for _, c := range r.LastCopies {
			var notes []string
			if len(c.Cached) > 0 {
				notes = append(notes, "some of it was pulled at "+strings.Join(c.Cached, ", ")+", and may go there")
			}
			if len(c.Silent) > 0 {
				notes = append(notes, "perhaps at "+strings.Join(c.Silent, ", ")+", which did not answer")
			}
			if c.Deleted {
				notes = append(notes, "its project is deleted, and could not be restored whole")
			}
			rows = append(rows, []string{c.Repository, list(c.Tags, "-"), short(c.Digest.String()), fmt.Sprint(len(c.Content)), size(c.Bytes), strings.Join(notes, "; ")})
		}
		table(w, []string{"REPOSITORY", "TAGS", "DIGEST", "PARTS", "SIZE", "NOTE"}, rows)
	}
	for _, u := range r.Unseen {
		if len(u.Sites) == 0 {
			fmt.Fprintf(w, "Project %s may rest at site %s alone: all of it goes with the site.\n", u.Project, r.Site)
			continue
		}
		fmt.Fprintf(w, "Project %s may not rest at the site that was asked: what of it only site %s holds can be told there, or at %s.\n", u.Project, r.Site, strings.Join(u.Sites, ", "))
	}
}

// size writes bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, exp := float64(n)/unit, 0
	for v >= unit && exp < 4 {
		v /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[exp])
}

func newSiteDrainCommand(a *app, use, short, long string, drain bool) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use: use, Short: short, Long: long, Args: args("SITE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.DrainSite(cmd.Context(), args[0], drain)
			if err != nil {
				return err
			}
			if drain {
				a.say("the site %s drains: it leads nothing and gets no vote anew; take it back with: portolan site undrain %s", s.Name, s.Name)
			} else {
				a.say("the site %s drains no more", s.Name)
			}
			return a.show(s, func(io.Writer) {})
		},
	})
}

func newNodeCommand(a *app) *cobra.Command {
	return noun("node", "Nodes of the mesh", a.withJSON(&cobra.Command{
		Use:   "list",
		Short: "List the nodes",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			nodes, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(nodes, func(w io.Writer) {
				var rows [][]string
				for _, n := range nodes {
					kind := "content"
					if n.Witness {
						kind = "witness"
					}
					rows = append(rows, []string{n.ID.String(), n.Site, kind, n.Host, n.Version, when(n.JoinedAt)})
				}
				table(w, []string{"ID", "SITE", "KIND", "HOST", "VERSION", "JOINED"}, rows)
			})
		},
	}), newNodeRemoveCommand(a))
}
