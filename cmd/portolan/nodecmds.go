package main

import "github.com/spf13/cobra"

// nodeCommands are the verbs that run nodes.
func nodeCommands(a *app) []*cobra.Command {
	commands := []*cobra.Command{newServeCommand(), newJoinCommand(), newDevCommand(), newRestoreCommand(a)}
	for _, c := range commands {
		c.Annotations = map[string]string{askNobody: "true"}
	}
	return commands
}
