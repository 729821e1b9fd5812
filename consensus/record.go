package consensus

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// Record fills in what a node's record says of its key and its binary; where the
// node is and which store it has is the caller's to say.
func Record(id *identity.Identity, n *command.Node) *command.Node {
	n = proto.Clone(n).(*command.Node)
	box, sig := id.BoxKey()
	n.Id, n.BoxKey, n.BoxSignature, n.Level = id.ID[:], box[:], sig, command.Level
	return n
}

// keepRecord proposes this node's record when the mesh has another one.
func (n *Node) keepRecord(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-n.ready:
	}
	want := n.cfg.Self
	env, err := command.New("node:"+n.cfg.Identity.ID.String(), n.cfg.Now(), &command.NodeUpdate{Node: want})
	if err != nil {
		n.log.Error("this node's record cannot be encoded", "err", err)
		return
	}
	for {
		m, ok := n.state.View().Node(n.cfg.Identity.ID)
		if !ok || proto.Equal(m.Command(), want) {
			return
		}
		err := n.proposeRecord(ctx, env)
		var refusal *command.Error
		switch {
		case err == nil:
			n.log.Info("this node's record in the mesh was brought up to date", "host", want.GetHost(), "version", want.GetVersion())
			return
		case errors.As(err, &refusal):
			n.log.Error("the mesh refuses this node's new record", "err", err)
			return
		}
		n.log.Debug("this node's record is not up to date yet", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.cfg.Profile.Election):
		}
	}
}

// proposeRecord brings the record to the leader. A node that has moved may know
// none: the leader looks for it where it was. It then asks the others who leads
// and turns there itself; all tries have one request id.
func (n *Node) proposeRecord(ctx context.Context, env *command.Envelope) error {
	if _, leader := n.raft.LeaderWithID(); leader != "" {
		_, err := n.propose(ctx, env)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election)
	defer cancel()
	last := error(&notLeader{})
	for _, m := range n.state.View().Nodes() {
		if m.ID == n.cfg.Identity.ID {
			continue
		}
		rep, err := n.ping(ctx, m.ID)
		if err != nil {
			last = err
			continue
		}
		leader, err := identity.NodeIDFromBytes(rep.GetLeaderId())
		if err != nil || leader == n.cfg.Identity.ID {
			continue // it knows none either
		}
		c, err := n.peers.connected(ctx, leader)
		if err == nil {
			_, err = c.Propose(ctx, &ProposeRequest{Envelope: env})
		}
		if err == nil {
			return nil
		}
		if last = fromStatus(err); errors.As(last, new(*command.Error)) {
			return last
		}
	}
	return last
}
