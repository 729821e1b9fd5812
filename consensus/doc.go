// Package consensus keeps the control plane's state the same on every node of
// the mesh: raft, who votes, edits from any node, and joining.
//
// A [Node] runs one raft server. [Node.Propose] may be called on any node: it
// brings the command to the leader in at most one hop, and answers when this
// node has applied it, so its caller reads its own writes here. Reads go to
// [Node.State], need nobody else, and go on when the node is cut off, also after
// a restart.
//
// Without a majority an edit is held for one election timeout at most; once the
// majority has been out of reach that long, edits are refused at once with a
// *command.Unavailable that names the sites that cannot be reached.
//
// What it does not do: it decides no rights (its callers do), keeps no secrets
// in the clear beyond password hashes and gossip keys, and never removes a
// member because it is silent.
//
// [Open] starts raft's goroutines; [Node.Run] does everything that a member does
// and ends them. All methods may be called by any number of goroutines.
// DESIGN.md has the invariants, the failure table and the upstream bugs.
package consensus
