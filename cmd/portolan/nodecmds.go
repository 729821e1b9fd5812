package main

import "github.com/spf13/cobra"

// nodeCommands are the verbs that run nodes.
func nodeCommands() []*cobra.Command {
	return []*cobra.Command{newServeCommand(), newJoinCommand(), newDevCommand()}
}
