package main

import "github.com/spf13/cobra"

// nodeCommands are the verbs that work on this machine's node: they run it, or
// its data directory while it does not run.
func nodeCommands(a *app) []*cobra.Command {
	commands := []*cobra.Command{newServeCommand(), newJoinCommand(), newDevCommand(), newRecoverCommand(), newRestoreCommand(a)}
	for _, c := range commands {
		c.Annotations = map[string]string{askNobody: "true"}
	}
	return commands
}
