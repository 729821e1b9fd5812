package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/registryapi/mesh"
)

// errGap is between the questions of a wait whose node does not answer, if the
// node did not say when to come again.
const errGap = 500 * time.Millisecond

func newWhereCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "where IMAGE",
		Short: "Show which sites hold an image",
		Long: `Show which sites hold an image: PROJECT/NAME:TAG or PROJECT/NAME@sha256:…

Each site is asked for what it durably holds of it: the manifest, what it refers
to, and what is known to refer to it.`,
		Args: args("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			w, err := c.Where(cmd.Context(), args[0], nil)
			if err != nil {
				return err
			}
			return a.show(w, func(out io.Writer) { showWhere(out, w) })
		},
	})
}

func showWhere(w io.Writer, where mesh.Where) {
	fields(w, [2]string{"image", where.Image}, [2]string{"digest", where.Digest.String()})
	fmt.Fprintln(w)
	var rows [][]string
	for _, p := range where.Sites {
		rows = append(rows, []string{p.Site, condition(where, p), held(p), missing(p), tagAt(where, p), why(p)})
	}
	table(w, []string{"SITE", "STATE", "HELD", "MISSING", "TAG", "NOTE"}, rows)
}

// condition is a site's in one word.
func condition(w mesh.Where, p mesh.Presence) string {
	switch {
	case p.Keeps():
		return "complete"
	case p.Complete:
		return "cached"
	case !p.Reachable:
		return "unreachable"
	case p.Total > 0 && len(p.Missing) < p.Total:
		return "partial"
	case w.Tag != "" && p.TagDigest != "" && p.TagDigest != w.Digest:
		return "other"
	default:
		return "absent"
	}
}

func held(p mesh.Presence) string {
	if !p.Reachable {
		return "?"
	}
	return fmt.Sprintf("%d/%d", max(p.Total-len(p.Missing), 0), p.Total)
}

func missing(p mesh.Presence) string {
	if !p.Reachable {
		return "?"
	}
	return fmt.Sprint(len(p.Missing))
}

func tagAt(w mesh.Where, p mesh.Presence) string {
	switch {
	case w.Tag == "":
		return "-"
	case !p.Reachable:
		return "?"
	case p.TagDigest == "":
		return "unknown"
	case p.TagDigest == w.Digest:
		return "same"
	default:
		return short(p.TagDigest.String())
	}
}

func why(p mesh.Presence) string {
	switch {
	case p.Error != "":
		return strings.Join(strings.Fields(p.Error), " ") // one line of the table, whatever it is
	case p.Complete && p.Evictable:
		return "pulled here; may go when room is needed"
	case p.Evictable && !p.Covered:
		return "what is here was pulled, and may go when room is needed; no rule brings the rest"
	case p.Spare && !p.Complete:
		return "a rule has its copies at other sites"
	case !p.Covered && !p.Complete:
		return "no rule brings it here"
	case !p.Complete:
		return p.Reason
	}
	return ""
}

func newWaitCommand(a *app) *cobra.Command {
	var sites string
	var timeout time.Duration
	cmd := a.withJSON(&cobra.Command{
		Use:   "wait IMAGE",
		Short: "Wait until sites hold an image",
		Long: `Wait until sites hold an image: PROJECT/NAME:TAG or PROJECT/NAME@sha256:…

The tag is resolved once, by the node that is asked; from then on it is that
digest that is waited for. A site has it when its tag gives the digest and its
store durably holds all that belongs to it; a copy that is there only because
somebody pulled it may go, and does not count. "all" are the sites that hold
content and where the project may rest; "wanted" those of them where a rule wants
it, or where it was pushed: where rules want a number of copies, the sites that
were chosen for them.

The exit code is 0 when all of them have it, and 1 at the timeout, or at once
when no rule brings the image to a site; then stderr says what lacks where.`,
		Args: args("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return fmt.Errorf("--timeout %s: give the longest time to wait, as 60s or 5m", timeout)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.wait(cmd.Context(), c, args[0], split(sites), timeout)
		},
	})
	cmd.Flags().StringVar(&sites, "sites", "all", "names of sites, separated by commas, or all, or wanted: where rules want it")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

func (a *app) wait(ctx context.Context, c *client.Client, image string, sites []string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	var last mesh.Wait
	for asked := false; ; asked = true {
		left := time.Until(deadline)
		if left <= 0 && asked {
			return a.lacks(last, fmt.Sprintf("after %s", timeout))
		}
		w, err := a.waitSlice(ctx, c, image, sites, left, last.Image != "")
		if err != nil && ctx.Err() == nil && last.Image != "" && time.Until(deadline) <= 0 {
			return a.lacks(last, fmt.Sprintf("after %s", timeout))
		}
		if gap, ok := client.Retryable(err); ok && last.Image != "" && left > 0 {
			// The node went away while we waited: it may come back in time.
			a.say("%s", err)
			if err := pause(ctx, min(max(gap, errGap), left)); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		last, image = w, w.Image // with its digest: it is held from now on
		switch {
		case w.Done:
			return a.show(w, func(out io.Writer) {
				fmt.Fprintf(out, "%s is at %s\n", w.Image, strings.Join(names(w.Sites, nil), ", "))
			})
		case len(w.Uncovered) > 0:
			return a.lacks(w, "and no rule will bring it to "+strings.Join(w.Uncovered, ", "))
		}
	}
}

// answerGrace is what an answer may take beyond the time that was asked for.
const answerGrace = time.Second

// waitSlice asks once. With an answer in hand it is not waited for the next one
// much longer than for what is waited for.
func (a *app) waitSlice(ctx context.Context, c *client.Client, image string, sites []string, left time.Duration, bounded bool) (mesh.Wait, error) {
	left = max(left, 0)
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left+answerGrace)
		defer cancel()
	}
	return c.Wait(ctx, image, sites, min(left, mesh.MaxSlice))
}

// lacks says what is missing where, and fails.
func (a *app) lacks(w mesh.Wait, reason string) error {
	if a.json {
		if err := a.show(w, nil); err != nil {
			return err
		}
	} else {
		showWhere(a.err, w.Where)
		showMissing(a.err, w.Where)
	}
	lacking := names(w.Sites, func(p mesh.Presence) bool { return !p.Keeps() })
	msg := fmt.Sprintf("%s is not at %s, %s", w.Image, strings.Join(lacking, ", "), reason)
	spare := names(w.Sites, func(p mesh.Presence) bool { return p.Spare && slices.Contains(w.Uncovered, p.Site) })
	switch {
	case len(w.Sites) == 0:
		msg = fmt.Sprintf("no rule wants %s anywhere, and no site that can be asked accepted all of it: make a rule with: portolan rule create NAME --projects %s --sites all", w.Image, project(w.Repository))
	case len(w.Uncovered) > 0 && len(spare) == len(w.Uncovered):
		msg += ": a rule has its copies at other sites: wait for those with --sites wanted, or let it want more with: portolan rule update NAME --copies all"
	case len(w.Uncovered) > 0:
		msg += ": make one with: portolan rule create NAME --projects " + project(w.Repository) + " --sites " + strings.Join(w.Uncovered, ",")
	default:
		msg += ": wait again, or see what is away with: portolan status"
	}
	return errors.New(msg)
}

// maxListed bounds the digests that are listed for a site; --json has them all.
const maxListed = 10

// showMissing lists what lacks where.
func showMissing(w io.Writer, where mesh.Where) {
	for _, p := range where.Sites {
		for i, d := range p.Missing {
			if i == 0 {
				fmt.Fprintf(w, "\n%s lacks\n", p.Site)
			}
			if i == maxListed {
				fmt.Fprintf(w, "  and %d more: see them all with --json\n", len(p.Missing)-i)
				break
			}
			fmt.Fprintf(w, "  %s\n", d)
		}
	}
}

func names(ps []mesh.Presence, which func(mesh.Presence) bool) []string {
	var out []string
	for _, p := range ps {
		if which == nil || which(p) {
			out = append(out, p.Site)
		}
	}
	return out
}

func project(repository string) string {
	p, _, _ := strings.Cut(repository, "/")
	return p
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
