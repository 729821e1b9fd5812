package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/cmd/portolan/internal/client"
	"github.com/portolan/portolan/node"
	"github.com/portolan/portolan/registryapi/mesh"
)

// rotateLook is how often a rotation is looked at: a step takes about a second.
const rotateLook = 500 * time.Millisecond

func newKeysCommand(a *app) *cobra.Command {
	return noun("keys", "The keys that the nodes share, and the recovery key",
		a.withJSON(&cobra.Command{
			Use:   "list",
			Short: "List the keys, without the keys themselves",
			Args:  args(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				k, err := c.Keys(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(k, func(w io.Writer) { showKeys(w, k) })
			},
		}),
		newKeysRotateCommand(a), newRecoveryCommand(a))
}

func showKeys(w io.Writer, k mesh.Keys) {
	var rows [][]string
	for _, kind := range []struct {
		name string
		keys []mesh.KeyVersion
	}{{"gossip", k.Gossip}, {"mesh", k.Mesh}} {
		for _, v := range kind.keys {
			sealed := "-"
			if kind.name == "mesh" {
				sealed = strconv.Itoa(v.Sealed)
			}
			rows = append(rows, []string{kind.name, strconv.Itoa(int(v.Version)), v.State, strconv.Itoa(v.Holders), list(v.Missing, "-"), sealed, when(v.CreatedAt)})
		}
	}
	table(w, []string{"KEY", "VERSION", "STATE", "HOLDERS", "MISSING", "SEALED", "MADE"}, rows)
	recovery := "none: make one with: portolan keys recovery create"
	if r := k.Recovery; r != nil {
		recovery = fmt.Sprintf("%s, set %s by %s", r.Recipient, when(r.CreatedAt), r.CreatedBy)
	}
	fmt.Fprintln(w)
	fields(w, [2]string{"rotating", list(k.Rotating, "nothing")}, [2]string{"recovery key", recovery})
}

func newKeysRotateCommand(a *app) *cobra.Command {
	var r mesh.RotateRequest
	var timeout time.Duration
	cmd := a.withJSON(&cobra.Command{
		Use:   "rotate [--gossip] [--mesh]",
		Short: "Replace the gossip key and the mesh key",
		Long: `Replace the gossip key, the mesh key or, if neither is named, both.

A new gossip key is installed at every node first, then used, then the old one
goes; a new mesh key seals from the moment it is there, and what the old one had
sealed is sealed anew before that goes. The nodes do it by themselves, whatever
restarts meanwhile; a node that is away takes the new keys when it is back. This
command asks for it and watches; --timeout 0s only asks.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout < 0 {
				return fmt.Errorf("--timeout %s: give the longest time to watch, as 60s or 5m; 0s only asks", timeout)
			}
			if !r.Gossip && !r.Mesh {
				r.Gossip, r.Mesh = true, true
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			k, err := c.RotateKeys(cmd.Context(), r)
			if err != nil {
				return err
			}
			if timeout == 0 {
				a.say("the nodes rotate: %s; see how far they are with: portolan keys list", strings.Join(k.Rotating, ", "))
				return a.show(k, func(io.Writer) {})
			}
			return a.watchRotation(cmd.Context(), c, k, timeout)
		},
	})
	cmd.Flags().BoolVar(&r.Gossip, "gossip", false, "the gossip key")
	cmd.Flags().BoolVar(&r.Mesh, "mesh", false, "the mesh key, which seals secrets")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Minute, "how long to watch")
	return cmd
}

// watchRotation tells each step of a rotation once.
func (a *app) watchRotation(ctx context.Context, c *client.Client, k mesh.Keys, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	said := ""
	for {
		if line := stage(k); line != said {
			said = line
			a.say("%s", line)
		}
		if len(k.Rotating) == 0 {
			return a.show(k, func(w io.Writer) { showKeys(w, k) })
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("the rotation is not finished after %s: the nodes go on by themselves; see how far they are with: portolan keys list", timeout)
		}
		if err := pause(ctx, min(rotateLook, left)); err != nil {
			return err
		}
		next, err := c.Keys(ctx)
		if _, again := client.Retryable(err); again {
			continue // the node may be back in time
		} else if err != nil {
			return err
		}
		k = next
	}
}

// stage says in a line how far a rotation is.
func stage(k mesh.Keys) string {
	var parts []string
	for _, kind := range []struct {
		name string
		keys []mesh.KeyVersion
	}{{"gossip", k.Gossip}, {"mesh", k.Mesh}} {
		var versions []string
		for _, v := range kind.keys {
			versions = append(versions, fmt.Sprintf("version %d %s", v.Version, v.State))
		}
		parts = append(parts, fmt.Sprintf("%s key: %s", kind.name, cmp.Or(strings.Join(versions, ", "), "none yet")))
	}
	return strings.Join(parts, "; ")
}

func newRecoveryCommand(a *app) *cobra.Command {
	var file string
	var replace bool
	create := &cobra.Command{
		Use:   "create",
		Short: "Make the recovery key, which opens backups",
		Long: `Make the recovery key, which opens backups. It is made here: its private half is
shown this once, on stdout or in the file that -o names, and the mesh learns the
public half only. Keep it where it outlives all sites, and away from the backups:
who has both has all accounts and every secret of the mesh.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			private, public, err := node.NewRecoveryKey()
			if err != nil {
				return err
			}
			text := fmt.Sprintf("# recovery key of the mesh at %s\n# public half: %s\n%s\n", c.Server(), public, private)
			if file != "" {
				// Before the mesh seals to it: a key that could not be kept is none.
				if err := writeKeyFile(file, text); err != nil {
					return err
				}
			}
			if _, err := c.SetRecovery(cmd.Context(), mesh.RecoveryRequest{Recipient: public, Replace: replace}); err != nil {
				if file != "" {
					_ = os.Remove(file)
				}
				return err
			}
			if file == "" {
				fmt.Fprint(a.out, text)
				a.say("keep this key: it is shown this once, and no backup opens without it")
				return nil
			}
			a.say("the recovery key is in %s: keep it where it outlives all sites, no backup opens without it", file)
			return nil
		},
	}
	create.Flags().StringVarP(&file, "output", "o", "", "file for the private half; it must not be there (default: stdout)")
	create.Flags().BoolVar(&replace, "replace", false, "though there is one already; backups made so far still need that")
	return noun("recovery", "The recovery key, which opens backups", create)
}

// writeKeyFile makes a file that only its owner reads, durably; it must not be
// there.
func writeKeyFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("the recovery key cannot be kept: %w", err)
	}
	_, err = io.WriteString(f, text)
	if err == nil {
		// Promise: the key is kept before anything is sealed to it.
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = syncDir(path)
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("the recovery key cannot be kept: %w", err)
	}
	return nil
}
