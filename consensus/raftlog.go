package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"github.com/hashicorp/raft"
)

// raftRepeats are raft's warnings and errors that come with every node that is
// down or stops, every election and every joiner, many times a second. What they
// mean is told once, in words of ours, by news and by gossip. What is not in
// this list (disks, snapshots, damaged logs) keeps its level.
var raftRepeats = map[string]bool{
	// elections
	"no known peers, aborting election":                                                                              true,
	"not part of stable configuration, aborting election":                                                            true,
	"heartbeat timeout reached, starting election":                                                                   true,
	"Election timeout reached, restarting election":                                                                  true,
	"new leader elected, stepping down":                                                                              true,
	"peer has newer term, stopping replication":                                                                      true,
	"duplicate requestVote from":                                                                                     true,
	"failed to make requestVote RPC":                                                                                 true,
	"rejecting vote request since node is not in configuration":                                                      true,
	"rejecting vote request since we have a leader":                                                                  true,
	"rejecting vote request since node is not a voter":                                                               true,
	"rejecting vote request since our last term is greater":                                                          true,
	"rejecting vote request since our last index is greater":                                                         true,
	"rejecting pre-vote request since node is not in configuration":                                                  true,
	"rejecting pre-vote request since we have a leader":                                                              true,
	"rejecting pre-vote request since node is not a voter":                                                           true,
	"rejecting pre-vote request since our last term is greater":                                                      true,
	"rejecting pre-vote request since our last index is greater":                                                     true,
	"heartbeat timeout reached, not part of a stable configuration or a non-voter, not triggering a leader election": true,
	// nodes out of reach
	"failed to contact": true,
	"failed to contact quorum of nodes, stepping down": true,
	"failed to appendEntries to":                       true,
	"failed to heartbeat to":                           true,
	"failed to send snapshot to":                       true,
	"failed to flush response":                         true,
	// catching up, after an absence or under a new leader
	"appendEntries rejected, sending older logs": true,
	"previous log term mis-match":                true,
	"clearing log suffix":                        true,
	// left by a crash, removed with the next snapshot
	"found temporary snapshot": true,
}

// repeatsRaft implements telemetry.Repeats for raft.
func repeatsRaft(msg string, args ...any) bool {
	if raftRepeats[msg] {
		return true
	}
	switch err := errorIn(args); msg {
	case "failed to decode incoming command", "failed to accept connection":
		return ofConnection(err) // what cannot be read for another reason was garbled
	case "failed to get previous log":
		return errors.Is(err, raft.ErrLogNotFound) // a follower that is behind
	case "failed to get log":
		// A leader that looks for the entries a joiner needs and finds that they are
		// in the snapshot, which it sends then: with each join to a mesh whose log
		// does not begin at 1, a restored one's among them. Where raft needs the entry
		// for itself it ends with a panic that says so.
		return errors.Is(err, raft.ErrLogNotFound)
	case "failed to install snapshot":
		return ofConnection(err)
	}
	return false
}

// repeatsAutopilot implements telemetry.Repeats for autopilot: its round does
// not end well when leadership does.
func repeatsAutopilot(_ string, args ...any) bool {
	err := errorIn(args)
	for _, end := range []error{context.Canceled, raft.ErrNotLeader, raft.ErrLeadershipLost, raft.ErrLeadershipTransferInProgress, raft.ErrRaftShutdown} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// errorIn finds the error among a line's attributes.
func errorIn(args []any) error {
	for _, a := range args {
		if err, ok := a.(error); ok {
			return err
		}
	}
	return nil
}

// ofConnection: the other end went away, or this one is closing.
func ofConnection(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, raft.ErrTransportShutdown)
}
