package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/node"
	"github.com/portolan/portolan/node/config"
)

// stdio stands for stdin or stdout where a file is named.
const stdio = "-"

func newBackupCommand(a *app) *cobra.Command {
	var file, check, keyFile string
	var local bool
	cmd := &cobra.Command{
		Use:   "backup -o FILE",
		Short: "Save the control state, sealed to the recovery key",
		Long: `Save the control state (users, projects, roles, rules, settings and sealed
secrets; not images, nodes and join tokens), sealed to the recovery key. Any node
makes it. FILE is replaced when all of the backup is there; - is stdout. The
SHA-256 of the file goes to stderr: keep it apart, it tells whether somebody has
exchanged the file.

--check FILE reads a backup to its end, says what is in it, and changes nothing.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case check != "" && file != "":
				return errors.New("give -o or --check, not both")
			case check != "":
				return a.checkBackup(check, keyFile)
			case file == "":
				return fmt.Errorf("-o is missing: %s", cmd.UseLine())
			case keyFile != "":
				return errors.New("--recovery-key belongs to --check: a backup is made without it")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			sum := sha256.New()
			if file == stdio {
				err = c.Backup(cmd.Context(), io.MultiWriter(a.out, sum), local)
			} else {
				err = replaceFile(file, func(w io.Writer) error { return c.Backup(cmd.Context(), io.MultiWriter(w, sum), local) })
			}
			if err != nil {
				return err
			}
			a.say("sha256:%s  %s", hex.EncodeToString(sum.Sum(nil)), file)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write, or - for stdout")
	cmd.Flags().BoolVar(&local, "local", false, "take what the node has, without asking the voting sites for what it may lack")
	cmd.Flags().StringVar(&check, "check", "", "read this backup instead and say what is in it; needs --recovery-key")
	cmd.Flags().StringVar(&keyFile, "recovery-key", "", "file with the recovery key, or - for stdin; with --check")
	return cmd
}

func (a *app) checkBackup(file, keyFile string) error {
	b, sum, err := a.openBackup(file, keyFile)
	if err != nil {
		return err
	}
	n := b.Counts()
	fields(a.out, [2]string{"mesh", b.Mesh.String()}, [2]string{"made", when(b.Made) + " at site " + b.Site + " by version " + b.Version},
		[2]string{"state", fmt.Sprintf("raft index %d, command level %d", b.Index, b.Level)}, [2]string{"sites", strings.Join(b.Sites(), ", ")},
		[2]string{"has", fmt.Sprintf("%d users, %d projects, %d roles, %d rules, %d secrets", n.Users, n.Projects, n.Members, n.Rules, n.Secrets)},
		[2]string{"sha256", sum})
	return nil
}

// openBackup reads all of a backup.
func (a *app) openBackup(file, keyFile string) (*node.BackupFile, string, error) {
	if keyFile == "" {
		return nil, "", errors.New("--recovery-key is missing: name the file with the recovery key, or - for stdin")
	}
	key, err := a.readKey(keyFile)
	if err != nil {
		return nil, "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, "", fmt.Errorf("the backup cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	sum := &hashed{r: f, sum: sha256.New()}
	b, err := node.ReadBackup(sum, key)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	return b, hex.EncodeToString(sum.sum.Sum(nil)), nil
}

// hashed hashes what is read through it.
type hashed struct {
	r   io.Reader
	sum hash.Hash
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	_, _ = h.sum.Write(p[:n]) // hashes never fail
	return n, err
}

func (a *app) readKey(file string) (string, error) {
	if file == stdio {
		return node.ReadRecoveryKey(a.in)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("the recovery key cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	return node.ReadRecoveryKey(f)
}

// replaceFile makes path what write writes, or leaves it as it is.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*") // 0600
	if err != nil {
		return fmt.Errorf("the file cannot be written: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err = write(f); err != nil {
		return err
	}
	// Promise: the name shows a whole file, before and after a power cut.
	if err = f.Sync(); err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("the file cannot be written: %w", err)
	}
	return syncDir(path)
}

// syncDir makes the name of a new file last.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func newRestoreCommand(a *app) *cobra.Command {
	var noServe bool
	var keyFile string
	cmd := &cobra.Command{
		Use:   "restore FILE --recovery-key KEY --site NAME",
		Short: "Make a new mesh of a backup, and serve",
		Long: `Make a new mesh of a backup, with this machine as its first site, and serve.

It is for the day when no node of the old mesh is left, or none shall be used any
more: users, projects, roles, rules and secrets are as they were, with their ids
and passwords; the mesh, its keys and its nodes are new. Nodes of the old mesh are
not members and cannot come back; other sites join again, by new tokens. All of
the backup is read before anything is written, and the data directory must belong
to no mesh.`,
		Args: args("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			cfg, log, err := settings(cmd)
			if err != nil {
				return err
			}
			b, _, err := a.openBackup(args[0], keyFile)
			if err != nil {
				return err
			}
			if cfg, err = a.restore(ctx, cfg, b); err != nil {
				return err
			}
			if noServe {
				a.say("start the node with: portolan serve --data %s", cfg.Data)
				return nil
			}
			return serve(ctx, cmd, cfg, log, "")
		},
	}
	config.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&keyFile, "recovery-key", "", "file with the recovery key, or - for stdin")
	cmd.Flags().BoolVar(&noServe, "no-serve", false, "only restore; start the node later with \"portolan serve\"")
	return cmd
}

func (a *app) restore(ctx context.Context, cfg config.Config, b *node.BackupFile) (config.Config, error) {
	return node.Restore(ctx, node.RestoreConfig{Settings: cfg, Backup: b, Version: version, Say: func(line string) { a.say("%s", line) }})
}
