package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
)

func newTokenCommand(a *app) *cobra.Command {
	return noun("token", "Join tokens: invitations to add a site",
		newTokenCreateCommand(a),
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the join tokens",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				tokens, err := c.Tokens(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(tokens, func(w io.Writer) {
					var rows [][]string
					for _, t := range tokens {
						rows = append(rows, []string{strconv.FormatInt(t.ID, 10), t.Site, t.State, when(t.ExpiresAt), t.CreatedBy})
					}
					table(w, []string{"ID", "SITE", "STATE", "EXPIRES", "MADE BY"}, rows)
				})
			},
		}),
		a.withJSON(&cobra.Command{
			Use:   "show ID",
			Short: "Show a join token, without its text",
			Args:  args("ID"),
			RunE: func(cmd *cobra.Command, args []string) error {
				id, err := tokenID(args[0])
				if err != nil {
					return err
				}
				c, err := a.client()
				if err != nil {
					return err
				}
				t, err := c.Token(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.show(t, func(w io.Writer) {
					fields(w, [2]string{"id", strconv.FormatInt(t.ID, 10)}, [2]string{"site", t.Site}, [2]string{"state", t.State},
						[2]string{"expires", when(t.ExpiresAt)}, [2]string{"made", when(t.CreatedAt) + " by " + t.CreatedBy})
					if t.RevokedBy != "" {
						fields(w, [2]string{"revoked", when(t.RevokedAt) + " by " + t.RevokedBy})
					}
					if t.UsedBy != "" {
						fields(w, [2]string{"used", when(t.UsedAt) + " by " + t.UsedBy})
					}
				})
			},
		}),
		tokenEdit(a, "revoke ID", "Take a join token back; it stays in the list, and whoever comes with it is told", "revoked the token %d",
			func(ctx context.Context, c *client.Client, id int64) error { return c.RevokeToken(ctx, id) }),
		tokenEdit(a, "delete ID", "Delete a join token: it lets nobody in, and is listed no more", "deleted the token %d",
			func(ctx context.Context, c *client.Client, id int64) error { return c.DeleteToken(ctx, id) }))
}

// tokenEdit makes a verb that does something to one token.
func tokenEdit(a *app, use, short, done string, edit func(context.Context, *client.Client, int64) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := tokenID(args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := edit(cmd.Context(), c, id); err != nil {
				return err
			}
			a.say(done, id)
			return nil
		},
	}
}

func tokenID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 {
		return 0, fmt.Errorf("%q is not a token's id: see the ids with: portolan token list", s)
	}
	return id, nil
}

func newTokenCreateCommand(a *app) *cobra.Command {
	var r client.TokenRequest
	cmd := a.withJSON(&cobra.Command{
		Use:   "create --site NAME",
		Short: "Make a join token: it adds one site of this name",
		Long: `Make a join token: it adds one site of this name. Its text goes to stdout, this
once; use it on the new machine with: portolan join TOKEN --data DIR`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Site == "" {
				return errors.New("--site is missing: name the site that shall join")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := c.CreateToken(cmd.Context(), r)
			if err != nil {
				return err
			}
			a.say("on the new machine, before %s: portolan join TOKEN --data DIR", when(t.ExpiresAt))
			return a.show(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		},
	})
	cmd.Flags().StringVar(&r.Site, "site", "", "name of the site that shall join")
	cmd.Flags().DurationVar(&r.ExpiresIn, "expires-in", 24*time.Hour, "how long it may be used")
	return cmd
}
