package sync

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

const (
	// maxExpected bounds the memory for homes of blobs that are about to be
	// fetched, until their feed entries are here.
	maxExpected = 1 << 15
	// askAllWithin bounds the question to everybody when nothing hints at a
	// holder: a client may be waiting, and is to be told within a second.
	askAllWithin = 400 * time.Millisecond
)

// expectations are sites that should have a blob by computation: the home of a
// manifest that names it.
type expectations struct {
	c *lru.Cache[digest.Digest, string]
}

func newExpectations() *expectations {
	c, err := lru.New[digest.Digest, string](maxExpected)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &expectations{c}
}

type sharedAsks struct{ g singleflight.Group }

// Expect says that a site should have a blob, because it is the home of a
// manifest that names it: it is asked first while its feed says nothing yet.
func (s *Sync) Expect(d digest.Digest, site string) {
	if site != s.cfg.Site {
		s.expected.c.Add(d, site)
	}
}

// Holders gives the nodes to ask for a blob of a project, best first: those that
// feeds or the manifest's home hint at, connected ones and near ones first. When
// nothing that is in reach is hinted at, all peers are asked once, together, for
// at most 400 ms; peers that do not answer then stand at the end, so that who
// tries them learns that the blob is out of reach rather than not there.
func (s *Sync) Holders(ctx context.Context, d digest.Digest, pid identity.ProjectID, _ int64) []identity.NodeID {
	view := s.cfg.State.View()
	var out []identity.NodeID
	hinted := func(id identity.NodeID) {
		if id != s.cfg.Self && !slices.Contains(out, id) && s.shared(view, pid, id) == nil {
			out = append(out, id)
		}
	}
	stores, err := s.cat.Holders(d)
	if err != nil {
		s.log.Warn("hints about a blob's holders can't be read: asking all peers", "digest", d, "error", err)
	}
	for _, id := range stores {
		if n, ok := view.NodeOfStore(id); ok {
			hinted(n.ID)
		}
	}
	if site, ok := s.expected.c.Get(d); ok {
		for _, n := range view.NodesOf(site) {
			hinted(n.ID)
		}
	}
	if s.sortByNearness(out) {
		return out
	}
	found, silent := s.whoHas(ctx, view, d, pid)
	out = append(found, out...)
	for _, id := range silent {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

type whoHas struct{ found, silent []identity.NodeID }

// whoHas asks all peers that may hold the project. Callers at the same time
// share one question.
func (s *Sync) whoHas(ctx context.Context, view *state.View, d digest.Digest, pid identity.ProjectID) (found, silent []identity.NodeID) {
	v, _, _ := s.asking.g.Do(pid.String()+d.String(), func() (any, error) {
		// One caller that leaves must not spoil the answer for the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAllWithin)
		defer cancel()
		var (
			mu sync.Mutex
			wg sync.WaitGroup
			w  whoHas
		)
		for _, l := range s.allLinks() {
			if s.shared(view, pid, l.node) != nil {
				continue
			}
			wg.Go(func() {
				a, err := s.Has(ctx, l.node, Question{PID: pid, Blobs: []digest.Digest{d}})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					w.silent = append(w.silent, l.node)
				case a.Blobs[0] != Absent:
					w.found = append(w.found, l.node)
				}
			})
		}
		wg.Wait()
		s.sortByNearness(w.found)
		return w, nil
	})
	w := v.(whoHas)
	return slices.Clone(w.found), slices.Clone(w.silent)
}

// outOfReach is the nearness of a node that neither gossip nor a connection
// shows to be there.
const outOfReach = time.Hour

// drainsBehind puts nodes of sites that drain behind all others that are in
// reach.
const drainsBehind = outOfReach / 2

// nearness orders peers: by round trip, a connection being worth as much as
// opening one costs.
func (s *Sync) nearness(id identity.NodeID) time.Duration {
	connected := s.cfg.Host.Connected(id)
	rtt, known := time.Duration(0), false
	if s.cfg.Announcer != nil {
		rtt, known = s.cfg.Announcer.RTT(id)
	}
	if l := s.link(id); l != nil {
		st := l.state()
		if st.err != nil {
			return outOfReach
		}
		if !known && !st.contactAt.IsZero() {
			rtt, known = st.rtt, true
		}
	}
	switch {
	case connected && known:
		return rtt
	case connected:
		return 100 * time.Millisecond // a guess: nothing was measured yet
	case s.cfg.Announcer != nil && s.cfg.Announcer.Alive(id):
		return 3*rtt + time.Millisecond
	}
	return outOfReach
}

// sortByNearness says whether one of them is in reach.
func (s *Sync) sortByNearness(ids []identity.NodeID) (reachable bool) {
	near := make([]nearNode, len(ids))
	view := s.cfg.State.View()
	for i, id := range ids {
		near[i] = nearNode{id, s.nearness(id)}
		if near[i].far < outOfReach {
			reachable = true
			if view.Draining(id) {
				near[i].far += drainsBehind
			}
		}
	}
	slices.SortStableFunc(near, func(a, b nearNode) int {
		return cmp.Or(cmp.Compare(a.far, b.far), slices.Compare(a.id[:], b.id[:]))
	})
	for i, n := range near {
		ids[i] = n.id
	}
	return reachable
}

type nearNode struct {
	id  identity.NodeID
	far time.Duration
}

// Access says whether a peer may have a blob on behalf of a project: the project
// may rest at both sites, and a repository of it names the blob here. That what is
// here is the project's is asked of the store besides.
func (s *Sync) Access(_ context.Context, from identity.NodeID, d digest.Digest, pid identity.ProjectID) bool {
	if s.takes(s.cfg.State.View(), pid, from) != nil {
		return false
	}
	_, _, linked, err := s.cat.LinkedIn(pid, d)
	if err != nil {
		s.log.Error("a peer's right to a blob can't be read: refusing it", "node", from, "digest", d, "error", err)
	}
	return err == nil && linked
}
