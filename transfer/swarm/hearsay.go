package swarm

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

const (
	// maxWatched bounds the peers that one flight watches: the receivers that it is
	// told of, and as many holders.
	maxWatched = 2 * maxReceivers
	// groupEvery lies between two times that the receivers of a blob are put
	// together anew: all units get owners then, and anybody can be the cause.
	groupEvery = 200 * time.Millisecond
)

// watch asks a peer to tell what it has of the blob and who else receives it, on
// behalf of a project. One peer is watched for one project: what it told for the
// last one is forgotten.
func (f *flight) watch(node identity.NodeID, pid identity.ProjectID) {
	if f.pass || node == f.s.cfg.Host.ID() || !f.several() {
		return
	}
	f.mu.Lock()
	last, known := f.watches[node]
	same := known && last == pid
	full := !known && len(f.watches) >= maxWatched
	f.mu.Unlock()
	if same || full {
		return
	}
	if known {
		f.unwatch(node)
	}
	f.mu.Lock()
	f.watches[node] = pid
	f.mu.Unlock()
	f.s.watching.begin(node, f, pid)
}

// unwatch ends the watch of a peer, and forgets what it told.
func (f *flight) unwatch(node identity.NodeID) {
	f.s.watching.stop(node, f)
	f.mu.Lock()
	delete(f.watches, node)
	f.mu.Unlock()
	f.unheard(node)
}

// heard takes what a watched peer says. An error: no honest one says it.
func (f *flight) heard(node identity.NodeID, h *Have) error {
	err := f.note(node, h)
	if err != nil {
		f.mu.Lock()
		f.strikes[node] = maxStrikes
		f.sched.leave(node)
		delete(f.told, node)
		f.rumour = true
		f.mu.Unlock()
		f.s.suspects.add(node, f.digest, "word of what it has that no honest node says")
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
		if _, ok := f.watches[node]; ok { // not any more, if the message crossed the end
			f.told[node] = told
			f.rumour = true
		}
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

// said is a receiver, and the project on whose behalf this node may watch it:
// the one for which it was told of.
type said struct {
	receiver
	pid  identity.ProjectID
	rank int  // how good the word is; the lowest first
	ours bool // it watches this node: its right was asked then
}

// regroup brings together who receives the blob: whom watched peers name, and
// who watches it here. It watches those, and no longer those that went. The
// channel tells when to call it again, nil: when something changed.
func (f *flight) regroup() <-chan time.Time {
	f.mu.Lock()
	if f.sched == nil || !f.rumour {
		f.mu.Unlock()
		return nil
	}
	if wait := groupEvery - time.Since(f.grouped); wait > 0 {
		f.mu.Unlock()
		return time.After(wait)
	}
	f.rumour, f.grouped = false, time.Now()
	group := map[identity.NodeID]said{}
	for teller, rs := range f.told {
		pid := f.watches[teller]
		for _, r := range rs {
			group[r.node] = group[r.node].or(said{receiver: r, pid: pid})
		}
	}
	self := f.sched.self.node
	f.mu.Unlock()
	for _, r := range f.s.crowds.receivers(f.digest, f.pid) {
		group[r.node] = group[r.node].or(said{receiver: r, pid: f.pid, ours: true})
	}
	delete(group, self)
	for node, r := range group {
		// A watch tells that the project holds the blob: only who may have it is
		// told, whoever named it. Who is no member may have nothing. Invariant T13.
		if !r.ours && !f.s.cfg.Access(f.ctx, node, f.digest, r.pid) {
			delete(group, node)
		}
	}
	f.mu.Lock()
	var all []said
	for node, r := range group {
		if f.strikes[node] >= maxStrikes {
			continue
		}
		// Who was heard of comes after those that were heard themselves: names cost
		// nothing.
		if p := f.sched.peers[node]; !r.ours && (p == nil || p.whole) {
			r.rank = 1
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b said) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), bytes.Compare(a.node[:], b.node[:]))
	})
	all = all[:min(len(all), maxReceivers)]
	others := make([]receiver, len(all))
	for i, r := range all {
		others[i] = r.receiver
	}
	f.sched.receivers(others)
	var fresh []said
	for _, r := range all {
		if _, ok := f.watches[r.node]; !ok {
			fresh = append(fresh, r)
		}
	}
	var gone []identity.NodeID
	for node := range f.watches {
		idle := f.lanes[node] == nil && f.asked[node] == 0
		// Holders that sent nothing may name receivers, if there is room for them.
		spare := !slices.Contains(f.known, node) || len(f.watches) > maxWatched-maxReceivers/2
		if idle && spare && !f.receives(node) {
			gone = append(gone, node)
		}
	}
	f.mu.Unlock()
	for _, node := range gone {
		f.unwatch(node)
	}
	for _, r := range fresh {
		f.watch(r.node, r.pid)
	}
	return nil
}

// or joins what two say of one receiver: the smaller share that is known, and
// the first of the projects, so that all go by the same whatever order they hear
// it in.
func (r said) or(o said) said {
	if r.node == (identity.NodeID{}) {
		return o
	}
	if r.share == 0 || o.share != 0 && o.share < r.share {
		r.share = o.share
	}
	if o.ours != r.ours { // who watches this node does so for a project of both
		if o.ours {
			r.pid = o.pid
		}
	} else if bytes.Compare(o.pid[:], r.pid[:]) < 0 {
		r.pid = o.pid
	}
	r.ours = r.ours || o.ours
	return r
}

// unheard: a peer can't be watched (any more). What it said is forgotten.
func (f *flight) unheard(node identity.NodeID) {
	f.mu.Lock()
	delete(f.told, node)
	f.rumour = true
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

// Suspect is a peer that sent what is not a blob's: a liar, or one with a bad disk.
type Suspect struct {
	Node   identity.NodeID
	Blobs  int           // so often
	Digest digest.Digest // the last one
	Since  time.Time     // of the first
	At     time.Time     // of the last
	Why    string        // what it sent the last time
	forged bool          // it signed a list that was proven to be false
}

// suspects are the peers that sent what is not a blob's since the start.
type suspects struct {
	mu sync.Mutex
	m  map[identity.NodeID]Suspect
}

func (s *suspects) add(node identity.NodeID, d digest.Digest, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(node, d, why)
}

// note is add; mu is held.
func (s *suspects) note(node identity.NodeID, d digest.Digest, why string) (x Suspect, noted bool) {
	if s.m == nil {
		s.m = map[identity.NodeID]Suspect{}
	}
	x, known := s.m[node]
	if !known && len(s.m) >= maxSuspects {
		return x, false
	}
	x.Node, x.Digest, x.At, x.Why = node, d, time.Now(), why
	x.Blobs++
	if !known {
		x.Since = x.At
	}
	s.m[node] = x
	return x, true
}

// signedFalsely adds who signed a list that is not the blob's.
func (s *suspects) signedFalsely(node identity.NodeID, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, noted := s.note(node, d, "a signature on a unit list that is not the blob's"); noted {
		x.forged = true
		s.m[node] = x
	}
}

// forges says whether a node signed a false list before.
func (s *suspects) forges(node identity.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[node].forged
}

// Suspects lists the peers that sent what is not a blob's, the last first.
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
