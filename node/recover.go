package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/node/identity"
)

// Survey is what a node that does not run has of the control state, and Recovered
// what a recovery made: package consensus says all of it.
type (
	Survey    = consensus.Survey
	Recovered = consensus.Recovered
)

// RecoverConfig is what [Recover] needs.
type RecoverConfig struct {
	// Data is the absolute path of the data directory.
	Data string
	// Lost are the sites that are lost for ever.
	Lost []string
	// Stopped: the operator has stopped all nodes that are not lost.
	Stopped bool
	// Say is told what is being done, in words for people.
	Say func(string)
}

// Recover makes the node of a data directory the only voter of its mesh: the way
// back when the majority of the voters is lost for ever. It refuses while the
// node runs, and whatever does not look like such a loss.
func Recover(ctx context.Context, cfg RecoverConfig) (*Recovered, error) {
	var out *Recovered
	err := offline(cfg.Data, func(raft string, id *identity.Identity, f config.Format) (err error) {
		out, err = consensus.Recover(ctx, consensus.RecoverConfig{Dir: raft, Identity: id, Mesh: f.Mesh, Lost: cfg.Lost, Stopped: cfg.Stopped, Progress: cfg.Say})
		return err
	})
	return out, err
}

// Inspect says what the node of a data directory, which does not run, has of the
// control state.
func Inspect(data string) (*Survey, error) {
	var out *Survey
	err := offline(data, func(raft string, id *identity.Identity, _ config.Format) (err error) {
		out, err = consensus.Inspect(raft, id.ID)
		return err
	})
	return out, err
}

// Follow has the node of a data directory, which does not run, take its control
// state from another site when it starts.
func Follow(data, site string) error {
	return offline(data, func(raft string, id *identity.Identity, _ config.Format) error {
		return consensus.Follow(raft, id.ID, site)
	})
}

// offline holds a data directory that belongs to a mesh while its node does not
// run. It makes nothing that is not there.
func offline(data string, do func(raft string, id *identity.Identity, f config.Format) error) error {
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no data directory %s", data)
	} else if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := config.Lock(data)
	if err != nil {
		return err
	}
	defer lock.Close()
	format, made, err := config.ReadFormat(data)
	if err != nil {
		return err
	}
	if !made {
		return fmt.Errorf("the data directory %s belongs to no mesh: there is nothing to recover", data)
	}
	id, _, err := identity.LoadOrCreate(data)
	if err != nil {
		return err
	}
	if err := format.CheckNode(data, id.ID); err != nil {
		return err
	}
	return do(filepath.Join(data, raftDir), id, format)
}
