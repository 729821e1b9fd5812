package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/node/store/units"
)

func newTagCommand(a *app) *cobra.Command {
	return noun("tag", "Tags of a repository",
		a.withJSON(&cobra.Command{
			Use:   "list PROJECT/NAME",
			Short: "List a repository's tags",
			Args:  args("PROJECT/NAME"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				tags, err := c.Tags(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(tags, func(w io.Writer) {
					var rows [][]string
					for _, t := range tags {
						note := ""
						if len(t.Conflicts) > 0 {
							note = "other sites pushed something else at the same time"
						}
						rows = append(rows, []string{t.Name, short(t.Digest.String()), when(t.PushedAt), t.Actor, note})
					}
					table(w, []string{"TAG", "DIGEST", "PUSHED", "BY", "NOTE"}, rows)
				})
			},
		}),
		newConflictsCommand(a),
		newTagDeleteCommand(a))
}

func newTagDeleteCommand(a *app) *cobra.Command {
	var says string
	cmd := &cobra.Command{
		Use:   "delete PROJECT/NAME:TAG",
		Short: "Delete a tag; what it names stays",
		Long: `Delete a tag; what it names stays. With --digest the tag is deleted only if it
still says what you saw, of two who set or delete it at once one is refused: the
project's tags have to be strong (portolan project tags).`,
		Args: args("PROJECT/NAME:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("digest") {
				if _, err := units.ParseDigest(says); err != nil {
					return fmt.Errorf("%q is not a digest: write it in full, as \"portolan tag list --json\" shows it", says)
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.DeleteTag(cmd.Context(), args[0], says); err != nil {
				return err
			}
			a.say("deleted %s", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&says, "digest", "", "only if the tag says this digest (default: whatever it says)")
	return cmd
}

func newConflictsCommand(a *app) *cobra.Command {
	n := 100
	cmd := a.withJSON(&cobra.Command{
		Use:   "conflicts [PROJECT]",
		Short: "List pushes that lost to one that another site took at the same time",
		Long: `List writes of tags made at the site of the node that is asked (see --server) that
lost to one which another site took at the same time, the last found first. Each
site tells its own. What lost can be pulled by its digest: push its tag again to
make it win.`,
		Args: maybe("PROJECT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			project := ""
			if len(args) > 0 {
				project = args[0]
			}
			found, err := c.Conflicts(cmd.Context(), project, n)
			if err != nil {
				return err
			}
			return a.show(found, func(w io.Writer) {
				var rows [][]string
				for _, x := range found {
					rows = append(rows, []string{x.Repository + ":" + x.Tag, x.Loser.String(), cmp.Or(short(x.Winner.String()), "-"), cmp.Or(x.Actor, "-"), when(x.FoundAt)})
				}
				table(w, []string{"TAG", "LOST", "TO", "BY", "FOUND"}, rows)
			})
		},
	})
	cmd.Flags().IntVar(&n, "limit", n, "how many to show, 1000 at most")
	return cmd
}

// when shows a time to people.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// short shows a digest to people.
func short(digest string) string {
	const shown = len("sha256:") + 12
	if len(digest) <= shown {
		return digest
	}
	return digest[:shown]
}
