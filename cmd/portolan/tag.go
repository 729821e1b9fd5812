package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"
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
		&cobra.Command{
			Use:   "delete PROJECT/NAME:TAG",
			Short: "Delete a tag; what it names stays",
			Args:  args("PROJECT/NAME:TAG"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				if err := c.DeleteTag(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("deleted %s", args[0])
				return nil
			},
		})
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
