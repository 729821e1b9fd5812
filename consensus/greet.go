package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

const (
	// maxGreetingBytes is far above 32 ended generations.
	maxGreetingBytes = 4 << 10
	// greetTimeout bounds a greeting that somebody else began.
	greetTimeout = transportTimeout
)

// errGreeting ends a raft connection whose ends do not belong together. What it
// means is told by judge.
var errGreeting = errors.New("consensus: the two nodes do not belong together")

// generation is the raft generation that this node's log is of; nil: it has none
// yet.
func (n *Node) generation() []byte {
	if m := n.state.View().Mesh(); !m.ID.IsZero() {
		return m.Generation[:]
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seedGeneration
}

func (n *Node) endedGenerations() [][]byte {
	var out [][]byte
	for _, r := range n.state.View().Mesh().Recoveries {
		out = append(out, r.Ended[:])
	}
	return out
}

// greet is said on each raft connection before raft speaks: invariants C21, C22.
// Each side says what it remembers of the other before that one looks at its
// log, so a log that only grows is never taken for one that went back.
func (n *Node) greet(ctx context.Context, c net.Conn, peer identity.NodeID, dialled bool) error {
	if peer == n.cfg.Identity.ID {
		return nil // a notice on its way to this node's own raft
	}
	select {
	case <-n.opened:
	case <-ctx.Done():
		return ctx.Err()
	}
	remembered := n.remembered(peer)
	mine := &Greeting{Generation: n.generation(), Ended: n.endedGenerations(), Term: n.raft.CurrentTerm(), Remembered: remembered.proto()}
	var theirs, last Greeting
	var own position
	if dialled {
		if err := writeGreeting(c, mine); err != nil {
			return err
		}
		if err := readGreeting(c, &theirs); err != nil {
			return err
		}
		own = n.position()
		if err := writeGreeting(c, &Greeting{Last: own.proto()}); err != nil {
			return err
		}
	} else {
		if err := readGreeting(c, &theirs); err != nil {
			return err
		}
		own = n.position()
		mine.Last = own.proto()
		if err := writeGreeting(c, mine); err != nil {
			return err
		}
		if err := readGreeting(c, &last); err != nil {
			return err
		}
		theirs.Last = last.GetLast()
	}
	return n.judge(peer, &theirs, remembered, own)
}

func writeGreeting(w io.Writer, g *Greeting) error {
	b, err := proto.Marshal(g)
	if err != nil {
		return fmt.Errorf("consensus: greet: %w", err)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// readGreeting takes no byte more than the greeting has: raft's follow.
func readGreeting(r io.Reader, g *Greeting) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > maxGreetingBytes {
		return fmt.Errorf("consensus: a greeting of %d bytes", size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if err := proto.Unmarshal(b, g); err != nil {
		return fmt.Errorf("consensus: a greeting that cannot be read: %w", err)
	}
	return nil
}

// kinship is how two logs are related.
type kinship int

const (
	same kinship = iota
	older
	newer
	strange
)

func kin(own []byte, ended [][]byte, g *Greeting) kinship {
	has := func(list [][]byte, gen []byte) bool {
		return slices.ContainsFunc(list, func(b []byte) bool { return string(b) == string(gen) })
	}
	switch theirs := g.GetGeneration(); {
	case len(own) == 0 || len(theirs) == 0 || string(own) == string(theirs):
		return same // who has no log yet takes that of the mesh
	case has(g.GetEnded(), own):
		return older
	case has(ended, theirs):
		return newer
	}
	return strange
}

// judge decides whether raft may speak on the connection. remembered is what
// this node knows of the other one, own is this node's last entry.
func (n *Node) judge(peer identity.NodeID, g *Greeting, remembered, own position) error {
	site := n.siteName(peer)
	switch kin(n.generation(), n.endedGenerations(), g) {
	case older:
		n.meetsRecovered(peer, site, g)
		return errGreeting
	case newer:
		n.sayOnce("newer "+site, func() {
			n.log.Info("a node comes back whose control state ended with a recovery: it has to begin anew", "site", site, "node", peer)
		})
		return errGreeting
	case strange:
		n.sayOnce("strange "+site, func() {
			n.log.Error("the control states of two sites were recovered apart from one another and do not go together: decide for one, and run at the other one: portolan recover --follow SITE", "site", site, "node", peer)
		})
		return errGreeting
	case same:
	}
	if r := g.GetRemembered().position(); r.after(own) && !n.comingBack.Load() {
		n.isBehind(peer, site, r, own)
		return errGreeting
	}
	if last := g.GetLast().position(); remembered.after(last) {
		n.sayOnce("behind "+site, func() {
			n.log.Warn("a voter has lost edits that it had: its disk is older than what it acknowledged; it votes no more until it has begun anew", "site", site, "node", peer, "had", remembered.String(), "has", last.String())
		})
		return errGreeting
	}
	return nil
}

// meetsRecovered: the other node is of a generation that a recovery began after
// this node's had lost its majority. A voter's word is taken for it, unless the
// majority is there after all.
func (n *Node) meetsRecovered(peer identity.NodeID, site string, g *Greeting) {
	said := slices.ContainsFunc(n.electorate(), func(id []byte) bool { return string(id) == string(peer[:]) })
	switch {
	case n.comingBack.Load() && n.state.View().Mesh().ID.IsZero():
		// It has nothing to set aside. While it looks for its leader it finds this one
		// (awaitLeader); one that has found another already begins that again.
		if said && n.guard.is() == learns {
			n.stop(&StartAgainError{"the mesh was recovered once more, at site " + site + ", while this node came back"})
		}
	case n.isLed():
		n.sayOnce("apart "+site, func() {
			n.log.Error("a site was recovered as if the majority were lost, and it is not: run there: portolan recover --follow "+n.siteName(n.cfg.Identity.ID), "site", site, "node", peer)
		})
	case said:
		n.beOutdated("the mesh was recovered at site "+site+" while this node was away", g.GetGeneration())
	default:
		n.sayOnce("follow "+site, func() {
			n.log.Error("a site that did not vote was recovered; if that was meant, stop this node and run here: portolan recover --follow "+site, "site", site, "node", peer)
		})
	}
}

// isLed: a majority is there, the same generation's.
func (n *Node) isLed() bool {
	if n.guard.is() != takesPart {
		return false
	}
	if n.raft.State() == raft.Leader {
		return true
	}
	_, id := n.raft.LeaderWithID()
	return id != "" && time.Since(n.raft.LastContact()) < n.cfg.Profile.Election
}

// isBehind: this node once had more than it has. Voters know, and where there is
// only one, the learners that it sent its entries to.
func (n *Node) isBehind(peer identity.NodeID, site string, had, has position) {
	// By its own log it may not even vote yet: the image can be of before that.
	voters, _ := n.servers()
	alone := len(voters) == 1 && voters[0] == n.cfg.Identity.ID
	if !alone && !slices.Contains(voters, peer) {
		n.sayOnce("image "+site, func() {
			n.log.Error("a site that did not vote, as far as this node knows, says that this node's control state is older than what it had; if its disk was put back, stop this node and run here: portolan recover --follow "+site,
				"site", site, "node", peer, "had", had.String(), "has", has.String())
		})
		return
	}
	n.beOutdated(fmt.Sprintf("this node's control state is older than what it had (%s now, %s before, as site %s remembers): its disk was put back", has, had, site), n.generation())
}

func (n *Node) siteName(id identity.NodeID) string {
	if m, ok := n.state.View().Node(id); ok {
		return m.Site
	}
	if m, ok := n.heardOf(id); ok && m.Site != "" {
		return m.Site
	}
	for _, b := range n.returning.GetBefore() {
		if string(b.GetNodeId()) == string(id[:]) {
			return b.GetSite()
		}
	}
	return "of node " + id.Short()
}

// sayOnce keeps what raft tries again and again from filling the log.
func (n *Node) sayOnce(what string, say func()) {
	n.mu.Lock()
	_, told := n.told[what]
	if !told && len(n.told) < maxPeekedNodes {
		n.told[what] = struct{}{}
	}
	n.mu.Unlock()
	if !told {
		say()
	}
}

// greetOthers asks the other voters, and the learners of an only voter, before
// this node takes part: whoever answers may remember more of it than it has. It
// waits for them one election timeout at most; an only voter half of it, for it
// would stand then.
func (n *Node) greetOthers(ctx context.Context) {
	voters, learners := n.servers()
	self := n.cfg.Identity.ID
	if n.position() == (position{}) || !slices.Contains(voters, self) {
		return // it has promised nothing
	}
	ask, limit := voters, n.cfg.Profile.Election
	if len(voters) == 1 {
		ask, limit = learners, limit/2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range ask {
		if id == self {
			continue
		}
		wg.Go(func() {
			for ctx.Err() == nil && n.isOutdated() == nil {
				if err := n.greetOne(ctx, id); err == nil || errors.Is(err, errGreeting) {
					return // it has said what it knows
				}
				// Whoever refuses raft's connections may say by a call that this node was
				// removed.
				if _, err := n.ping(ctx, id); errors.As(fromStatus(err), new(*removedError)) {
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(pollLost):
				}
			}
		})
	}
	wg.Wait()
}

func (n *Node) greetOne(ctx context.Context, id identity.NodeID) error {
	addr, ok := n.addrOf(id)
	if !ok {
		return fmt.Errorf("no address is known of node %s", id)
	}
	c, err := n.cfg.DialRaft(ctx, addr, id)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	return n.greet(ctx, c, id, true)
}

// greeted is an accepted connection: the greeting comes with raft's first read,
// which is in a goroutine of the connection's own.
type greeted struct {
	net.Conn
	node *Node
	once sync.Once
	err  error
}

func (g *greeted) Read(b []byte) (int, error) {
	g.once.Do(func() {
		if err := g.greet(); err != nil {
			g.err = io.EOF // as if the other end had nothing to say: raft tells nobody
		}
	})
	if g.err != nil {
		return 0, g.err
	}
	return g.Conn.Read(b)
}

func (g *greeted) greet() error {
	peer, ok := g.Conn.(interface{ NodeID() identity.NodeID })
	if !ok {
		return errors.New("consensus: a raft connection without a node key")
	}
	if err := g.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	if err := g.node.greet(g.node.lifetime, g.Conn, peer.NodeID(), false); err != nil {
		return err
	}
	return g.SetDeadline(time.Time{})
}
