package swarm

import (
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

const (
	// circleFor is how long after its last request a node counts as one that takes
	// small blobs of a project: receivers ask several times a second.
	circleFor = 5 * time.Second
	// maxCircles bounds the projects of which circles are known.
	maxCircles = 1024
	// givenFor is how long it is remembered to whom a small blob was given: longer than
	// receivers of one rule are apart, as far as they wait for one another.
	givenFor = 30 * time.Second
	// maxGiven bounds what is remembered of that, some 5 MB: what a link of 3 Gbit/s
	// carries of blobs of 10 KB in a second, and what one of 10 Mbit/s does in givenFor.
	maxGiven = 1 << 16
)

// circles are the nodes that take small blobs from this node at the same time, by
// project, and to whom each blob was given. It is how a holder sends each once, and
// how the receivers learn of one another: a crowd for each small blob would cost
// more than the blob. Invariant T17.
type circles struct {
	seed maphash.Seed // random, so that nobody can make blobs that collide

	mu sync.Mutex
	m  map[identity.ProjectID]*circle
	// given has what was given lately, older what was before that; turned is when
	// they last changed places.
	given, older map[uint64]gift
	turned       time.Time
}

// circle is those that take small blobs of one project.
type circle struct {
	members map[identity.NodeID]taker
	gen     uint64 // grows when members change, or what they can send
}

// taker is one of them.
type taker struct {
	share uint32 // see receiver
	seen  time.Time
}

func newCircles() *circles {
	return &circles{seed: maphash.MakeSeed(), m: map[identity.ProjectID]*circle{}, given: map[uint64]gift{}, older: map[uint64]gift{}}
}

// enter takes a node in, for a while, and gives the number of the circle as it is
// now; 0: there is none.
func (cs *circles) enter(pid identity.ProjectID, node identity.NodeID, share uint32, now time.Time) (gen uint64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.m[pid]
	if c == nil {
		if len(cs.m) >= maxCircles {
			for p, o := range cs.m {
				if o.prune(now); len(o.members) == 0 {
					delete(cs.m, p)
				}
			}
		}
		if len(cs.m) >= maxCircles {
			return 0
		}
		// A number that no circle before it had, so that who knows that one is told.
		c = &circle{members: map[identity.NodeID]taker{}, gen: uint64(now.UnixNano())}
		cs.m[pid] = c
	}
	c.prune(now)
	share = min(share, maxShare)
	if before, ok := c.members[node]; !ok && len(c.members) >= maxReceivers {
		return c.gen // it is told of them; they are not told of it
	} else if !ok || before.share != share {
		c.gen++
	}
	c.members[node] = taker{share, now}
	return c.gen
}

// prune lets those go that ask no more.
func (c *circle) prune(now time.Time) {
	for node, t := range c.members {
		if now.Sub(t.seen) > circleFor {
			delete(c.members, node)
			c.gen++
		}
	}
}

// members are those of a project's circle but one.
func (cs *circles) members(pid identity.ProjectID, but identity.NodeID) (out []receiver) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.m[pid]; c != nil {
		for node, t := range c.members {
			if node != but {
				out = append(out, receiver{node, t.share})
			}
		}
	}
	sortReceivers(out)
	return out
}

// claim gives a blob to a node, unless another was given it within so long: that
// one.
func (cs *circles) claim(pid identity.ProjectID, d digest.Digest, node identity.NodeID, within time.Duration, now time.Time) (by identity.NodeID, taken bool) {
	key := cs.key(pid, d)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.given) >= maxGiven/2 || now.Sub(cs.turned) > givenFor {
		cs.given, cs.older, cs.turned = map[uint64]gift{}, cs.given, now
	}
	g, ok := cs.given[key]
	if !ok {
		g, ok = cs.older[key]
	}
	// Of two requests at a time the later one may be here first: then its gift lies in
	// the future of the other's now, which is less than no time ago.
	if ok && g.to != node && within > 0 && now.Sub(g.at) < within {
		return g.to, true
	}
	cs.given[key] = gift{node, now}
	return identity.NodeID{}, false
}

func (cs *circles) key(pid identity.ProjectID, d digest.Digest) uint64 {
	var h maphash.Hash
	h.SetSeed(cs.seed)
	_, _ = h.Write(pid[:])
	_, _ = h.WriteString(string(d))
	return h.Sum64()
}

// toldCircles is which circles a stream's other end was told of.
type toldCircles map[identity.ProjectID]uint64

// tell adds the circle of a project to an answer, if the other end does not know
// it as it is.
func (cs *circles) tell(told *toldCircles, a *Answer, pid identity.ProjectID, to identity.NodeID, gen uint64) {
	if gen == 0 || (*told)[pid] == gen {
		return
	}
	if *told == nil || len(*told) >= maxCircles {
		*told = toldCircles{}
	}
	(*told)[pid] = gen
	a.ReceiversChanged = true
	for _, r := range cs.members(pid, to) {
		a.Receivers = append(a.Receivers, &Receiver{Node: slices.Clone(r.node[:]), Share: r.share})
	}
}

// ownerOf says which of the receivers takes a small blob from its holder: by
// weighted rendezvous, as units have their owners, but each blob for itself. all has
// this node too, in the same order everywhere.
func ownerOf(d digest.Digest, all []receiver) (owner identity.NodeID) {
	best := -1.0
	for i, w := range shares(all) {
		// The draw of each is in (0, 1): w / -ln(x), the largest wins.
		x := (float64(seed(d, all[i].node)>>11) + 0.5) / (1 << 53)
		if s := float64(w) / -math.Log(x); s > best {
			best, owner = s, all[i].node
		}
	}
	return owner
}
