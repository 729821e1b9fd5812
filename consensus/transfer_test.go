package consensus

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

func ended(n *Node) error {
	select {
	case err := <-n.fatal:
		return err
	default:
		return nil
	}
}

// TestRaft696_HandoverHangs_StopsTheNode: a leader whose handover hangs refuses
// each edit for as long as it leads. It ends after three election timeouts of
// nothing but that, and not for refusals that lie between edits that were made.
func TestRaft696_HandoverHangs_StopsTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{cfg: Config{Profile: LAN}, fatal: make(chan error, 1)}
		refused := func(after time.Duration) {
			<-time.After(after)
			if err := n.watchTransfer(raft.ErrLeadershipTransferInProgress); !errors.As(err, new(*notLeader)) {
				t.Fatalf("a refusal is taken for %v", err)
			}
		}
		for range 10 { // an edit is made now and then
			refused(0)
			refused(2 * LAN.Election)
			refused(LAN.Election)
			if err := n.watchTransfer(nil); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
		}
		if err := ended(n); err != nil {
			t.Fatalf("too early: %v", err)
		}
		if n.transferStuck.Load() != 0 {
			t.Fatal("a success does not end the wait")
		}
		refused(0)
		refused(3 * LAN.Election)
		if err := ended(n); err != nil {
			t.Fatalf("at three election timeouts: %v", err)
		}
		refused(time.Millisecond)
		if err := ended(n); err == nil || !strings.Contains(err.Error(), "raft#696") {
			t.Fatalf("after three election timeouts: %v", err)
		}
	})
}

// TestRaft696_EarlierTerm_IsForgotten: what was refused when this node led before
// does not count when it leads again.
func TestRaft696_EarlierTerm_IsForgotten(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	n := leader.node
	n.transferStuck.Store(1) // long ago
	await(t, "leadership goes", func() bool { return n.transfer(others[0].id.ID) == nil })
	await(t, "and comes back", func() bool {
		for _, s := range others {
			if s.node.raft.State() == raft.Leader {
				_ = s.node.transfer(leader.id.ID)
			}
		}
		return n.raft.State() == raft.Leader
	})
	await(t, "the new term begins", func() bool { return n.transferStuck.Load() == 0 })
	others[0].insist("goes-on")
}

// TestTransfer_OneAtATime: a second handover while one is under way is what
// makes raft hang (raft#696).
func TestTransfer_OneAtATime(t *testing.T) {
	n := &Node{cfg: Config{Profile: LAN}}
	n.transferring.Store(true)
	if err := n.transfer(identity.NodeID{1}); !errors.Is(err, errTransferring) {
		t.Fatalf("a second handover: %v", err)
	}
}
