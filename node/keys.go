package node

import (
	"context"
	"crypto/rand"
	"io"
	"time"
)

// removedLook is how often a node that waits for keys looks whether it is a
// member still: somebody waits for its registry.
const removedLook = 100 * time.Millisecond

// gossipKeys waits until this node can open the gossip keys: its box is in the
// control state from its join on, so there is nothing to wait for but a rotation
// that came at the very moment of the join.
func (n *node) gossipKeys(ctx context.Context) ([][]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := time.AfterFunc(stateLog, func() { n.log.Info("waiting for the gossip key from the other sites") })
	defer said.Stop()
	watch := make(chan struct{})
	var ended error
	removed := false
	go func() {
		defer close(watch)
		tick := time.NewTicker(removedLook)
		defer tick.Stop()
		for {
			select {
			case ended = <-n.stages.ended:
				cancel()
				return
			case <-tick.C:
				// Its boxes went with it: it would wait for ever.
				if removed = n.closed() != ""; removed {
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	keys, err := n.raft.AwaitGossipKeys(ctx)
	cancel()
	<-watch
	if ended != nil {
		return nil, ended
	}
	if err != nil && removed {
		own := make([]byte, 32)
		_, err = rand.Read(own) // nobody else has it: a removed node leaves the others alone
		return [][]byte{own}, err
	}
	return keys, err
}

// followGossipKeys takes each step of a rotation as soon as the control state
// has it.
func (n *node) followGossipKeys(ctx context.Context) error {
	return n.raft.FollowGossipKeys(ctx, n.gossip.SetKeys)
}

// backup implements mesh.Config.Backup.
func (n *node) backup(ctx context.Context, w io.Writer) error {
	return n.raft.Backup(ctx, w, n.cfg.Settings.Site, n.cfg.Version)
}
