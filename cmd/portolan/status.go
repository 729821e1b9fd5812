package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func newStatusCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "status",
		Short: "Show the mesh as a node sees it",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) {
				if s.Removed != nil {
					fmt.Fprintf(w, "%s\n\n", s.Removed.Message)
				}
				leader := "none known: edits are refused until there is one"
				if !s.Leader.IsZero() {
					leader = "site " + s.LeaderSite
				}
				fields(w,
					[2]string{"mesh", s.Mesh.String()},
					[2]string{"asked", fmt.Sprintf("site %s, node %s, %s, version %s", s.Site, s.Node, s.Role, s.Version)},
					[2]string{"leader", leader},
					[2]string{"voters", fmt.Sprintf("%d of %d nodes, %d wanted", len(s.Voters), len(s.Voters)+len(s.Learners), s.VotersWanted)},
					[2]string{"index", fmt.Sprintf("%d applied of %d known, term %d", s.Applied, s.Index, s.Term)})
				fmt.Fprintln(w)
				var rows [][]string
				for _, site := range s.Sites {
					for _, n := range site.Nodes {
						state := "alive"
						switch {
						case !n.Alive:
							state = "away"
						case site.Draining:
							state = "draining"
						}
						rtt := "-"
						if n.Self {
							rtt = "self"
						} else if n.RTT > 0 {
							rtt = fmt.Sprintf("%.1fms", n.RTT)
						}
						var roles []string
						switch {
						case n.Leader:
							roles = append(roles, "leader")
						case n.Voter:
							roles = append(roles, "voter")
						default:
							roles = append(roles, "learner")
						}
						if n.Witness {
							roles = append(roles, "witness")
						}
						rows = append(rows, []string{site.Name, n.ID.Short(), state, rtt, strings.Join(roles, ","), n.Version, n.RegistryURL})
					}
				}
				table(w, []string{"SITE", "NODE", "STATE", "RTT", "ROLE", "VERSION", "REGISTRY"}, rows)
				showRoundTrips(w, s)
				showStanding(w, s.Behind, s.Suspects, s.Disputes)
			})
		},
	})
}

func newSiteCommand(a *app) *cobra.Command {
	return noun("site", "Sites of the mesh", a.withJSON(&cobra.Command{
		Use:   "list",
		Short: "List the sites",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			sites, err := c.Sites(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(sites, func(w io.Writer) {
				var rows [][]string
				for _, s := range sites {
					state := "active"
					if s.Draining {
						state = "draining"
					}
					if !s.AwayAt.IsZero() {
						state = "away"
					}
					for _, n := range s.Nodes {
						rows = append(rows, []string{s.Name, state, n.ID.Short(), n.Host, n.RegistryURL, when(n.JoinedAt), labels(s)})
					}
					if len(s.Nodes) == 0 {
						rows = append(rows, []string{s.Name, state, "-", "-", "-", "-", labels(s)})
					}
				}
				table(w, []string{"SITE", "STATE", "NODE", "HOST", "REGISTRY", "JOINED", "LABELS"}, rows)
			})
		},
	}),
		newSiteCheckCommand(a),
		newSiteLabelCommand(a),
		newSiteRemoveCommand(a),
		newSiteKeepCommand(a),
		newSiteDrainCommand(a, "drain SITE", "Ask for a site to be left in peace", `Ask for a site to be left in peace, before work on it: its node hands leadership
over, gets no vote anew, and other sites fetch from it last. It goes on serving
pulls and pushes.`, true),
		newSiteDrainCommand(a, "undrain SITE", "Take a drain back", "", false))
}
