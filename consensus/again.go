package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// StartAgainError ends Run where only a new start of raft heals: the directory is
// in order, and the caller opens it again. node.Run does.
type StartAgainError struct{ Reason string }

func (e *StartAgainError) Error() string { return "consensus: raft has to start again: " + e.Reason }

// watchInstalls looks at what raft makes of a snapshot that a leader sends.
//
// raft#697: if this node had entries that the leader does not know, beyond the
// snapshot's end, raft deletes them all and goes on to believe that it has them.
// What the leader sends next never fits then, and it sends the snapshot again, for
// ever. A start reads the log and finds that it is empty.
func (g *guard) watchInstalls(rpc raft.RPC) raft.RPC {
	req, ok := rpc.Command.(*raft.InstallSnapshotRequest)
	if !ok {
		return rpc
	}
	answer := rpc.RespChan
	own := make(chan raft.RPCResponse, 1) // raft answers once
	rpc.RespChan = own
	g.node.door.Go(func() {
		select {
		case resp := <-own:
			answer <- resp // has room for it
			if r, ok := resp.Response.(*raft.InstallSnapshotResponse); ok && r.Success {
				g.lostTail(req.LastLogIndex)
			}
		case <-g.node.lifetime.Done():
		}
	})
	return rpc
}

// lostTail ends the node if raft believes in entries that are not there.
func (g *guard) lostTail(end uint64) {
	n := g.node
	believed := n.raft.LastIndex()
	if believed <= end {
		return
	}
	if last, err := n.wal.LastIndex(); err != nil || last >= believed {
		return
	}
	n.stop(&StartAgainError{fmt.Sprintf("the entries %d to %d were never committed and went with a snapshot (raft#697)", end+1, believed)})
}
