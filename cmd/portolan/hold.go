package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/registryapi/mesh"
)

// hold is what a command of people holds back, or lets go on.
type hold struct{ site, image, rule string }

func newTransferCommand(a *app) *cobra.Command {
	verb := func(use, short, long, example string, rules bool, run func(ctx context.Context, c *client.Client, h hold) error) *cobra.Command {
		var h hold
		cmd := &cobra.Command{
			Use: use, Short: short, Long: long, Example: example, Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if h.site = ""; len(args) == 1 {
					h.site = args[0]
				}
				switch {
				case h.image != "" && h.rule != "":
					return errors.New("--image and --rule are given: one of them is possible")
				case !rules && h.image == "":
					return errors.New("--image is missing: name the artifact that shall not be brought")
				case h.site == "" && h.image == "" && h.rule == "":
					return errors.New("SITE is missing: name the site, or --image or --rule")
				}
				c, err := a.client()
				if err != nil {
					return err
				}
				return run(cmd.Context(), c, h)
			},
		}
		cmd.Flags().StringVar(&h.image, "image", "", "one artifact, as PROJECT/NAME:TAG or PROJECT/NAME@DIGEST")
		if rules {
			cmd.Flags().StringVar(&h.rule, "rule", "", "what one rule brings")
		}
		return cmd
	}
	change := func(paused bool) func(context.Context, *client.Client, hold) error {
		return func(ctx context.Context, c *client.Client, h hold) error {
			where := cmp.Or(h.site, "any site")
			var err error
			switch {
			case h.image != "" && paused:
				err = c.HoldArtifact(ctx, mesh.HoldRequest{Image: h.image, Site: h.site})
			case h.image != "":
				err = c.ResumeArtifact(ctx, h.image, h.site)
			case h.rule != "":
				err = c.PauseRule(ctx, h.rule, h.site, paused)
			default:
				err = c.PauseSite(ctx, h.site, paused)
			}
			switch {
			case err != nil:
			case h.image != "" && paused:
				a.say("rules do not bring %s to %s until: portolan transfer resume", h.image, where)
			case h.image != "":
				a.say("rules bring %s to %s again", h.image, where)
			case h.rule != "" && paused:
				a.say("rule %s brings nothing to %s until: portolan transfer resume", h.rule, where)
			case h.rule != "":
				a.say("what rule %s brings to %s goes on", h.rule, where)
			case paused:
				a.say("rules bring nothing to %s until: portolan transfer resume", h.site)
			default:
				a.say("what rules bring to %s goes on", h.site)
			}
			return err
		}
	}
	cancel := func(ctx context.Context, c *client.Client, h hold) error {
		if err := c.HoldArtifact(ctx, mesh.HoldRequest{Image: h.image, Site: h.site, Cancel: true}); err != nil {
			return err
		}
		a.say("rules do not bring %s to %s, and nobody waits for it, until: portolan transfer resume", h.image, cmp.Or(h.site, "any site"))
		return nil
	}
	return noun("transfer", "Stop what rules bring to sites, and let it go on",
		verb("pause [SITE]", "Stop what rules bring to a site; clients there go on pulling",
			`Stop what rules bring to a site, or with --image one artifact, with --rule what
one rule brings, to SITE or to all. It is the whole mesh's decision, and outlives
restarts; "portolan transfers" says who made it. Clients go on pulling.`,
			"  portolan transfer pause sgp\n  portolan transfer pause sgp --image prod/app:1.0\n  portolan transfer pause --rule nightly", true, change(true)),
		verb("resume [SITE]", "Let what rules bring to a site go on", `Take a pause or a cancel back: name what it named.`,
			"  portolan transfer resume sgp\n  portolan transfer resume sgp --image prod/app:1.0", true, change(false)),
		verb("cancel [SITE] --image IMAGE", "Do not bring one artifact, and do not wait for it",
			`Do not bring one artifact to SITE, or to any, although rules want it there. It is
in no queue until "portolan transfer resume" takes it back. A client that pulls it
gets it all the same, and so does a push that relies on it.`,
			"  portolan transfer cancel sgp --image prod/app:1.0", false, cancel))
}
