package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newSiteCheckCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "check SITE",
		Short: "Try the path to a site and back",
		Long: `Try the path between the site of the node that is asked (see --server) and
another, as replication uses it: each port in both directions, keys, clocks, round
trip, throughput, room on the disk, and whether the site's store keeps what is
written to it. A few seconds of bytes flow each way, in the class of replication:
budgets hold, and clients go first. A direction that nobody could try counts as
failed, and so does a pause of either site (portolan transfer pause): rules move
nothing there until it is resumed. It takes up to a minute.`,
		Example: "  portolan site check sgp --server fra.example.com",
		Args:    args("SITE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.CheckSite(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.show(r, func(w io.Writer) { showSiteCheck(w, r) }); err != nil || r.Passed {
				return err
			}
			return notPassed(r)
		},
	})
}

// notPassed is the last line: of a path that is well but for a pause it says so.
func notPassed(r mesh.SiteCheck) error {
	bad := 0
	var paused []string
	for _, t := range r.Tests {
		if t.Result == "failed" || t.Result == "unknown" {
			bad++
			if t.Test == "pause" {
				paused = append(paused, t.To)
			}
		}
	}
	if bad > 0 && len(paused) == bad {
		slices.Sort(paused) // a site has the line once for each node that was checked
		paused = slices.Compact(paused)
		rest := "it is paused (portolan transfer resume " + paused[0] + ")"
		if len(paused) > 1 {
			rest = "they are paused (portolan transfer resume " + strings.Join(paused, "; portolan transfer resume ") + ")"
		}
		return fmt.Errorf("the path between %s and %s is well, but nothing that rules bring moves to %s: %s", r.From, r.To, strings.Join(paused, " and "), rest)
	}
	return fmt.Errorf("%d of %d tests of the path between %s and %s did not pass", bad, len(r.Tests), r.From, r.To)
}

func showSiteCheck(w io.Writer, r mesh.SiteCheck) {
	var rows [][]string
	for _, t := range r.Tests {
		detail := t.Detail
		if t.Unit != "" {
			detail = fmt.Sprintf("%.4g %s: %s", t.Value, t.Unit, detail)
		}
		rows = append(rows, []string{t.Test, t.From + " -> " + t.To, strings.ToUpper(t.Result), detail})
	}
	table(w, []string{"TEST", "DIRECTION", "RESULT", "DETAIL"}, rows)
	todo := false
	for _, t := range r.Tests {
		if t.Advice == "" {
			continue
		}
		if !todo {
			todo = true
			fmt.Fprintln(w, "\nto do:")
		}
		fmt.Fprintf(w, "  %s, %s -> %s: %s\n", t.Test, t.From, t.To, t.Advice)
	}
}
