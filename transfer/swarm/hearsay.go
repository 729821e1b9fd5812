package swarm

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// watch asks a peer to tell what it has of the blob and who else receives it.
// Of the flight's goroutine alone.
func (f *flight) watch(node identity.NodeID, pid identity.ProjectID) {
	if f.pass || f.watches[node] || node == f.s.cfg.Host.ID() {
		return
	}
	if !f.several() {
		return
	}
	f.watches[node] = true
	f.s.watching.begin(node, f, pid)
}

// heard takes what a watched peer says. An error: no honest one says it.
func (f *flight) heard(node identity.NodeID, h *Have) error {
	err := f.note(node, h)
	if err != nil {
		f.mu.Lock()
		f.strikes[node] = maxStrikes
		f.sched.leave(node)
		delete(f.told, node)
		f.mu.Unlock()
		f.s.suspects.add(node, f.digest)
	}
	f.stir()
	if h.ReceiversChanged {
		f.wakeLanes(nil)
	} else {
		f.wakeLanes(&node)
	}
	return err
}

func (f *flight) note(node identity.NodeID, h *Have) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sched == nil || f.over || f.strikes[node] >= maxStrikes {
		return nil
	}
	p := f.sched.peers[node]
	if h.Status != Status_STATUS_OK {
		if p != nil && !p.whole {
			f.sched.leave(node)
		}
		return nil
	}
	if h.ReceiversChanged {
		if len(h.Receivers) > maxReceivers {
			return fmt.Errorf("%d receivers of one blob", len(h.Receivers))
		}
		told := make([]receiver, 0, len(h.Receivers))
		for _, r := range h.Receivers {
			id, err := identity.NodeIDFromBytes(r.Node)
			if err != nil {
				return fmt.Errorf("receiver of a blob: %w", err)
			}
			told = append(told, receiver{id, min(r.Share, maxShare)})
		}
		f.told[node] = told
		f.regroup()
	}
	if (h.Whole || h.Bitmap != nil) && h.Size != f.layout.size {
		return nil // the manifest may be wrong as well; it has nothing for us
	}
	switch {
	case h.Whole && (p != nil && !p.whole || f.receives(node)):
		// It was a receiver a moment ago: its part is to pass on, not to send each
		// unit once.
		all := newBitmap(f.sched.n)
		for i := range f.sched.n {
			all.set(i)
		}
		f.sched.partial(node, all)
	case h.Whole:
		f.sched.holder(node)
	case h.Bitmap != nil:
		has, ok := parseBitmap(h.Bitmap, f.sched.n)
		if !ok {
			return fmt.Errorf("bitmap of %d bytes for %d units", len(h.Bitmap), f.sched.n)
		}
		f.sched.partial(node, has)
	}
	if len(h.Units) > 0 && !f.sched.gained(node, h.Units) {
		return fmt.Errorf("%d units of %d", len(h.Units), f.sched.n)
	}
	return nil
}

// receives says whether a node is known to receive the blob; mu is held.
func (f *flight) receives(node identity.NodeID) bool {
	return slices.ContainsFunc(f.sched.others, func(r receiver) bool { return r.node == node })
}

// regroup brings together who receives the blob: whom watched peers name, and
// who watches it here. mu is held.
func (f *flight) regroup() {
	group := map[identity.NodeID]uint32{}
	for _, rs := range f.told {
		for _, r := range rs {
			group[r.node] = r.share
		}
	}
	for _, r := range f.s.crowds.receivers(f.digest, f.pid) {
		group[r.node] = r.share
	}
	all := make([]receiver, 0, len(group))
	for node, share := range group {
		if node != f.sched.self.node && f.strikes[node] < maxStrikes {
			all = append(all, receiver{node, share})
		}
	}
	sortReceivers(all)
	f.sched.receivers(all[:min(len(all), maxReceivers)])
}

// unheard: a peer can't be watched (any more). What it said is forgotten.
func (f *flight) unheard(node identity.NodeID) {
	f.mu.Lock()
	delete(f.told, node)
	if f.sched != nil {
		if p := f.sched.peers[node]; p != nil && !p.whole {
			f.sched.leave(node)
		}
	}
	f.mu.Unlock()
	f.stir()
	f.wakeLanes(nil)
}

// maxSuspects bounds the peers that are remembered to have sent what is wrong.
const maxSuspects = 256

// Suspect is a peer that was dropped for blobs because it sent what is wrong.
type Suspect struct {
	Node   identity.NodeID
	Blobs  int           // so often
	Digest digest.Digest // the last one
	At     time.Time
}

// suspects are the peers that were dropped for a blob since the start.
type suspects struct {
	mu sync.Mutex
	m  map[identity.NodeID]Suspect
}

func (s *suspects) add(node identity.NodeID, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[identity.NodeID]Suspect{}
	}
	x, known := s.m[node]
	if !known && len(s.m) >= maxSuspects {
		return
	}
	s.m[node] = Suspect{Node: node, Blobs: x.Blobs + 1, Digest: d, At: time.Now()}
}

// Suspects lists the peers that were dropped for blobs, the last first.
func (s *Swarm) Suspects() []Suspect {
	s.suspects.mu.Lock()
	defer s.suspects.mu.Unlock()
	out := make([]Suspect, 0, len(s.suspects.m))
	for _, x := range s.suspects.m {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Suspect) int { return b.At.Compare(a.At) })
	return out
}
