package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newVotersCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "voters [3|5]",
		Short: "Show or change how many sites vote",
		Long: `Show or change how many sites vote on edits of users, projects and rules.

Three outlive the loss of one of them, five of two; five make each edit wait for
two other sites. The mesh chooses which sites vote, at most one node of each:
those that are nearest to one another ("portolan status" shows how far they are).`,
		Args: maybe("3|5"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				v, err := c.Voters(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(v, func(w io.Writer) {
					fields(w, [2]string{"voters", strconv.Itoa(v.Voters)}, [2]string{"voting now", strings.Join(v.Sites, ", ")})
				})
			}
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("%q is not a number of voters: use 3 or 5", args[0])
			}
			v, err := c.SetVoters(cmd.Context(), n)
			if err != nil {
				return err
			}
			a.say("%d sites vote, where there are as many: votes are given and taken in the next seconds", v.Voters)
			return a.show(v, func(io.Writer) {})
		},
	})
}

// showRoundTrips writes the table of round trips, from the sites at the left to
// those above.
func showRoundTrips(w io.Writer, s mesh.Status) {
	known := make(map[[2]string]float64, len(s.RoundTrips))
	for _, t := range s.RoundTrips {
		known[[2]string{t.From, t.To}] = t.RTT
	}
	if len(known) == 0 {
		return
	}
	head := []string{"RTT"}
	var rows [][]string
	for _, from := range s.Sites {
		head = append(head, from.Name)
		row := []string{from.Name}
		for _, to := range s.Sites {
			cell := "-"
			if d, ok := known[[2]string{from.Name, to.Name}]; ok {
				cell = fmt.Sprintf("%.1fms", d)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	fmt.Fprintln(w)
	table(w, head, rows)
}
