package node

import (
	"context"
	"io"
	"time"
)

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
	go func() {
		defer close(watch)
		select {
		case ended = <-n.stages.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	keys, err := n.raft.AwaitGossipKeys(ctx)
	cancel()
	<-watch
	if ended != nil {
		return nil, ended
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
