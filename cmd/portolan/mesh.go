package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newMeshCommand(a *app) *cobra.Command {
	profile := a.withJSON(&cobra.Command{
		Use:   "profile",
		Short: "Show the mesh's raft timings",
		Long: `Show the mesh's raft timings: lan, wan or far, by the round trips between the
sites that vote. Ask the leading site ("portolan status" names it) for the round
trip that is measured, and the profile that fits it.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.Profile(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(p, func(w io.Writer) { showProfile(w, p) })
		},
	})
	set := a.withJSON(&cobra.Command{
		Use:   "set lan|wan|far",
		Short: "Change the mesh's raft timings",
		Long: `Change the mesh's raft timings. Each node takes them at its next start: restart
the nodes one after the other, the leading site's last.`,
		Args: args("lan|wan|far"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.SetProfile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			a.say("the mesh's timings are %s: restart the nodes one after the other, the leading site's last", p.Name)
			return a.show(p, func(io.Writer) {})
		},
	})
	profile.AddCommand(set)
	return noun("mesh", "What holds for all sites together", profile, newVotersCommand(a))
}

func showProfile(w io.Writer, p mesh.Profile) {
	trip, fits := "not known at this node: ask the leading site", "-"
	if p.RoundTrip > 0 {
		trip, fits = fmt.Sprintf("%.1fms between the leader and the farthest voter", p.RoundTrip), p.Suggested
	}
	fields(w, [2]string{"profile", p.Name}, [2]string{"in use", p.InUse}, [2]string{"round trip", trip}, [2]string{"fits", fits})
}
