package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/node"
	"github.com/portolan/portolan/node/config"
)

func newJoinCommand() *cobra.Command {
	var noServe bool
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this machine a site of a mesh, and serve",
		Long: `Make this machine a site of a mesh, and serve.

The token comes from "portolan token create --site NAME" at any node of the mesh.
Nothing is restarted or configured elsewhere. On a directory that has joined
already the node is just started; after an error the same command may be run
again. --advertise is what the other sites dial: it must reach this machine.

With --witness the machine votes and holds no content: the third voter of a mesh
of two datacenters, at a third place. It needs no data port and little disk.`,
		Args: args("TOKEN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			cfg, log, err := settings(cmd)
			if err != nil {
				return err
			}
			say := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			cfg, err = node.Join(ctx, node.JoinConfig{Settings: cfg, Token: args[0], Version: version, Say: say})
			if err != nil {
				return err
			}
			if noServe {
				say("start the node with: portolan serve --data " + cfg.Data)
				return nil
			}
			return serve(ctx, cmd, cfg, log, "")
		},
	}
	config.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&noServe, "no-serve", false, "only join; start the node later with \"portolan serve\"")
	return cmd
}
