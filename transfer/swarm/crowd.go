package swarm

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// maxReceivers bounds the receivers of one blob that are told of one another:
// more would swap no faster, and each watches all others.
const maxReceivers = 32

// crowd is the nodes that receive one blob on behalf of one project, as far as
// they watch this node, and which units of this node they were given. It is how a
// holder sends each unit once, and how receivers learn of one another. Its owner
// locks it.
type crowd struct {
	watchers map[identity.NodeID]*watched
	given    map[int]gift
}

// gift is the receiver that a unit was last given to.
type gift struct {
	to identity.NodeID
	at time.Time
}

func newCrowd() *crowd {
	return &crowd{watchers: map[identity.NodeID]*watched{}, given: map[int]gift{}}
}

// claim says whether a receiver is to be given a unit: unless another one was
// within so long. What it is given others will not be: it passes it on. Who is
// not in the crowd, and so can't, is given what it asks for and changes nothing.
func (c *crowd) claim(unit int, to identity.NodeID, within time.Duration, now time.Time) bool {
	if c.watchers[to] == nil {
		return true
	}
	g, ok := c.given[unit]
	switch {
	case ok && g.to == to: // asking again keeps it from the others no longer
	case ok && now.Sub(g.at) < within:
		return false
	default:
		c.given[unit] = gift{to, now}
	}
	return true
}

// unclaim makes what a receiver was given free for the others: it went. Those
// that can have it from there know; who comes later does not.
func (c *crowd) unclaim(node identity.NodeID) {
	for unit, g := range c.given {
		if g.to == node {
			delete(c.given, unit)
		}
	}
}

// receivers are the members of the crowd, but one.
func (c *crowd) receivers(but identity.NodeID) []receiver {
	out := make([]receiver, 0, len(c.watchers))
	for node, w := range c.watchers {
		if node != but {
			out = append(out, receiver{node, w.share})
		}
	}
	sortReceivers(out)
	return out[:min(len(out), maxReceivers)]
}

// crowds are the blobs of this node that others receive.
type crowds struct {
	mu      sync.Mutex
	m       map[digest.Digest]map[identity.ProjectID]*crowd
	streams map[identity.NodeID]*haveStream // the last of each node
}

func newCrowds() *crowds {
	return &crowds{m: map[digest.Digest]map[identity.ProjectID]*crowd{}, streams: map[identity.NodeID]*haveStream{}}
}

// enter makes a stream the one of its node and gives the one before, if that has
// not ended.
func (c *crowds) enter(h *haveStream) *haveStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.streams[h.from]
	c.streams[h.from] = h
	return old
}

// exit lets a stream go.
func (c *crowds) exit(h *haveStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[h.from] == h {
		delete(c.streams, h.from)
	}
}

// watched is one node's watch of one blob here. Guarded by crowds.mu.
type watched struct {
	d      digest.Digest
	pid    identity.ProjectID
	node   identity.NodeID
	share  uint32
	stream *haveStream
	id     uint64
	dirty  bool // in the stream's list of those to be told

	members bool // the receivers have changed since the watcher was told
	// Of the stream's goroutine alone:
	flight *flight // whose units were told
	told   int     // so many of them, in the order in which they came
	size   int64   // of the blob, once something was told
	whole  bool
	some   bool // something is here
	// allowed is when Access was last asked.
	allowed time.Time
}

// join takes a watcher in. One node watches a blob once: a new watch takes the
// place of an old one.
func (c *crowds) join(w *watched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[w.d] == nil {
		c.m[w.d] = map[identity.ProjectID]*crowd{}
	}
	cr := c.m[w.d][w.pid]
	if cr == nil {
		cr = newCrowd()
		c.m[w.d][w.pid] = cr
	}
	cr.watchers[w.node] = w
	w.members = true
	cr.changed()
}

// changed makes that all watchers are told who is there.
func (c *crowd) changed() {
	for _, w := range c.watchers {
		w.members = true
		w.stream.tell(w)
	}
}

// leave lets a watcher go.
func (c *crowds) leave(w *watched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.stream.forget(w)
	cr := c.m[w.d][w.pid]
	if cr == nil || cr.watchers[w.node] != w {
		return // another watch took its place
	}
	delete(cr.watchers, w.node)
	cr.unclaim(w.node)
	if len(cr.watchers) > 0 {
		cr.changed()
		return
	}
	delete(c.m[w.d], w.pid)
	if len(c.m[w.d]) == 0 {
		delete(c.m, w.d)
	}
}

// news makes that all who watch a blob are told what is here.
func (c *crowds) news(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cr := range c.m[d] {
		for _, w := range cr.watchers {
			w.stream.tell(w)
		}
	}
}

// claim is crowd.claim for whoever receives the blob.
func (c *crowds) claim(d digest.Digest, pid identity.ProjectID, unit int, to identity.NodeID, within time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cr := c.m[d][pid]
	return cr == nil || cr.claim(unit, to, within, time.Now())
}

// receivers are those that watch a blob here on behalf of a project.
func (c *crowds) receivers(d digest.Digest, pid identity.ProjectID) []receiver {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cr := c.m[d][pid]; cr != nil {
		return cr.receivers(identity.NodeID{})
	}
	return nil
}
