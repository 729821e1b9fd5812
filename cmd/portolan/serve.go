package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/node"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/telemetry"
)

// parentFD is the end of a pipe whose other end `portolan dev` holds: it closes
// when dev ends, however it ends.
const parentFD = 3

func newServeCommand() *cobra.Command {
	var withParent bool
	var profile string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run this site's node",
		Long: `Run this site's node.

On an empty data directory "portolan serve --site NAME --data DIR" makes a new
mesh of one site and its first user, admin: the password is taken from
PORTOLAN_ADMIN_PASSWORD, or made, printed once and kept in DIR/admin-password.
To add a site to a mesh use "portolan join" instead. Both save their settings in
DIR: "portolan serve --data DIR" alone starts the node again. A node whose blobs
are in a bucket is told so at every start (--store-driver, --store-parameters):
they hold secrets and are never saved.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if withParent {
				var end context.CancelFunc
				ctx, end = context.WithCancel(ctx)
				go func() {
					// Nobody writes: the read ends when the last writer is gone.
					_, _ = io.Copy(io.Discard, os.NewFile(parentFD, "parent"))
					end()
				}()
			}
			cfg, log, err := settings(cmd)
			if err != nil {
				return err
			}
			return serve(ctx, cmd, cfg, log, profile)
		},
	}
	config.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&profile, "profile", "", "raft timings of a new mesh, by the round trips between its sites: lan (up to 50 ms, if not given), wan (150 ms) or far (250 ms and more); later: portolan mesh profile set")
	cmd.Flags().BoolVar(&withParent, "exit-with-parent", false, "stop when file descriptor 3 closes")
	_ = cmd.Flags().MarkHidden("exit-with-parent")
	return cmd
}

// settings brings a node's options together and makes its logger.
func settings(cmd *cobra.Command) (config.Config, *slog.Logger, error) {
	cfg, warnings, err := config.Load(cmd.Flags(), os.Environ())
	if err != nil {
		return config.Config{}, nil, err
	}
	log, err := telemetry.NewLogger(cmd.ErrOrStderr(), cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return config.Config{}, nil, err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	return cfg, log, nil
}

func serve(ctx context.Context, cmd *cobra.Command, cfg config.Config, log *slog.Logger, profile string) error {
	return node.Run(ctx, node.Config{
		Settings:      cfg,
		Logger:        log,
		Version:       version,
		Profile:       profile,
		AdminPassword: os.Getenv(node.AdminPasswordEnv),
		Notice:        cmd.OutOrStdout(),
	})
}
