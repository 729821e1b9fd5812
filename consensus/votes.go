package consensus

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Several things change raft's configuration: who votes is chosen, votes move,
// nodes are removed, come back and join. Each judges the configuration first, by
// questions that take a round trip or more, and must not be made on top of
// another change: two removals would each count on the voter that the other one
// takes. raft's own way for that (prevIndex) cannot be used: in v1.7.3 the Index
// of a configuration that was asked for is always 0, which means "any".

// votes counts the changes of raft's configuration that this node has made. Only
// a leader makes any, so within a term all of them are counted.
type votes struct {
	mu      sync.Mutex // held while a change is made
	changes atomic.Uint64
}

// seen is when a configuration was looked at.
type seen struct{ changes, term uint64 }

// errVotesChanged means that nothing was changed.
var errVotesChanged = errors.New("votes were given or taken meanwhile")

func (n *Node) votesNow() seen { return seen{n.votes.changes.Load(), n.raft.CurrentTerm()} }

// configuration gives raft's latest configuration, and what change needs to be
// made on top of it.
func (n *Node) configuration() ([]raft.Server, seen, error) {
	at := n.votesNow() // before the configuration: it may only be older
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, at, err
	}
	return f.Configuration().Servers, at, nil
}

// change makes a change on top of the configuration that was looked at, or not
// at all (errVotesChanged). It returns when it is committed or has failed, and
// gives what the next one needs to be made on top of it.
func (n *Node) change(at seen, do func() raft.IndexFuture) (seen, error) {
	n.votes.mu.Lock()
	defer n.votes.mu.Unlock()
	if n.votesNow() != at {
		return at, errVotesChanged
	}
	err := do().Error()
	n.votes.changes.Add(1) // after an error, too: it may have been made
	return n.votesNow(), err
}
