package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// HaveProtocol is the name of the protocol by which nodes tell what they have of
// blobs that they are receiving.
const HaveProtocol = "/portolan/have/1"

const (
	// haveEvery lies between two messages on one stream: a unit takes longer to
	// pass on than to be heard of, on links below 160 Mbit/s, and a message tells
	// of all blobs.
	haveEvery = 50 * time.Millisecond
	// maxHaves bounds a message of Haves: the bitmap of the largest blob has
	// 16 KiB. A message is closed when it has aimHaves.
	maxHaves = 64 << 10
	aimHaves = 16 << 10
	// maxDelta is the most units that are told one by one; more are a bitmap.
	maxDelta = 1024
	// maxWatches bounds the blobs that one node watches here: as many as it may
	// have under way.
	maxWatches = maxFlights
	// accessEvery is how long a watcher's right is good for: a stream lives for long,
	// and projects are taken away from sites.
	accessEvery = time.Second
	// aimRefusals bounds the refusals in one message: 12 bytes each.
	aimRefusals = 512
	// haveRetry lies between two tries to watch a peer, haveIdle is how long the
	// stream is kept when nothing is watched.
	haveRetry = time.Second
	haveIdle  = 2 * time.Minute
	// watchFor is the lifetime of a stream: the asking side opens a new one.
	watchFor = 24 * time.Hour
)

// haveStream is a peer's stream of watches, at the side that is watched.
type haveStream struct {
	s    *Swarm
	from identity.NodeID
	st   plane.Stream
	wake chan struct{}
	done chan struct{} // closed when its watches are gone

	// Guarded by crowds.mu.
	due     []*watched
	refused []*Have
}

// tell puts a watch among those to be told; crowds.mu is held.
func (h *haveStream) tell(w *watched) {
	if h == nil || w.dirty {
		return
	}
	w.dirty = true
	h.due = append(h.due, w)
	wake(h.wake)
}

// forget takes a watch that ends from those to be told; crowds.mu is held.
func (h *haveStream) forget(w *watched) {
	if h == nil || !w.dirty {
		return
	}
	if i := slices.Index(h.due, w); i >= 0 {
		h.due = slices.Delete(h.due, i, i+1)
	}
}

// serveHave serves one stream of watches until its other end closes it, or opens
// another: a node has one.
func (s *Swarm) serveHave(ctx context.Context, from identity.NodeID, st plane.Stream) {
	ctx, cancel := context.WithCancel(ctx)
	h := &haveStream{s: s, from: from, st: st, wake: make(chan struct{}, 1), done: make(chan struct{})}
	defer close(h.done)
	if old := s.crowds.enter(h); old != nil {
		_ = old.st.Reset()
		<-old.done // its reads and writes end at once
	}
	defer s.crowds.exit(h)
	st.SetIdle(sendIdle)
	_ = st.SetReadDeadline(time.Now().Add(cmp.Or(s.cfg.watchFor, watchFor))) // a watch may be silent for long
	var telling sync.WaitGroup
	telling.Go(func() {
		if err := h.run(ctx, st); err != nil {
			_ = st.Reset()
		}
	})
	watches := map[uint64]*watched{}
	err := h.read(ctx, st, watches)
	for _, w := range watches {
		h.leave(w)
	}
	cancel()
	_ = st.Reset() // a write may be under way
	telling.Wait()
	s.log.Debug("have stream ended", "node", from, "error", err)
}

func (h *haveStream) read(ctx context.Context, st io.Reader, watches map[uint64]*watched) error {
	for {
		var m Watch
		if err := peer.ReadMsg(st, &m, maxMessage); err != nil {
			return err
		}
		if old := watches[m.Id]; old != nil {
			h.leave(old)
			delete(watches, m.Id)
		}
		if m.Stop {
			continue
		}
		d := digest.Digest(m.Digest)
		pid, err := identity.ProjectIDFromBytes(m.Project)
		if err == nil {
			err = units.CheckDigest(d)
		}
		if err != nil || len(watches) >= maxWatches {
			return fmt.Errorf("malformed watch, or one of more than %d: %w", maxWatches, err)
		}
		// Access before existence, and before who else receives the blob.
		if !h.s.cfg.Access(ctx, h.from, d, pid) {
			if !h.refuse(m.Id) {
				return errors.New("refusals are not read")
			}
			continue
		}
		w := &watched{d: d, pid: pid, node: h.from, share: min(m.Share, maxShare), stream: h, id: m.Id, allowed: time.Now()}
		watches[m.Id] = w
		h.s.crowds.join(w)
		h.s.joined(d)
	}
}

func (h *haveStream) leave(w *watched) {
	h.s.crowds.leave(w)
	h.s.joined(w.d)
}

func (h *haveStream) refuse(id uint64) bool {
	c := h.s.crowds
	c.mu.Lock()
	defer c.mu.Unlock()
	h.refused = append(h.refused, &Have{Id: id, Status: Status_STATUS_DENIED})
	wake(h.wake)
	return len(h.refused) <= maxWatches
}

// run tells what changed, at most every haveEvery.
func (h *haveStream) run(ctx context.Context, st io.Writer) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-h.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		pause.Reset(haveEvery)
		c := h.s.crowds
		c.mu.Lock()
		due, refused := h.due, h.refused
		h.due, h.refused = nil, nil
		c.mu.Unlock()
		for part := range slices.Chunk(refused, aimRefusals) {
			if err := peer.WriteMsg(st, &Haves{Haves: part}, maxHaves); err != nil {
				return err
			}
		}
		var haves []*Have
		size := 0
		for _, w := range due {
			have, err := h.s.news(ctx, w)
			if err != nil {
				return err
			}
			if have == nil {
				continue
			}
			haves = append(haves, have)
			if size += len(have.Bitmap) + 3*len(have.Units) + 48*len(have.Receivers) + 32; size >= aimHaves {
				if err := peer.WriteMsg(st, &Haves{Haves: haves}, maxHaves); err != nil {
					return err
				}
				haves, size = nil, 0
			}
		}
		if len(haves) > 0 {
			if err := peer.WriteMsg(st, &Haves{Haves: haves}, maxHaves); err != nil {
				return err
			}
		}
	}
}

// news is what a watcher was not told yet; nil: nothing. Only its stream's
// goroutine calls it.
func (s *Swarm) news(ctx context.Context, w *watched) (*Have, error) {
	if now := time.Now(); now.Sub(w.allowed) >= accessEvery {
		if !s.cfg.Access(ctx, w.node, w.d, w.pid) {
			w.stream.leave(w)
			return &Have{Id: w.id, Status: Status_STATUS_DENIED}, nil
		}
		w.allowed = now
	}
	m := &Have{Id: w.id}
	c := s.crowds
	c.mu.Lock()
	w.dirty = false // what changes from now on is told later
	if w.members {
		w.members = false
		m.ReceiversChanged = true
		if cr := c.m[w.d][w.pid]; cr != nil {
			for _, r := range cr.receivers(w.node) {
				m.Receivers = append(m.Receivers, &Receiver{Node: r.node[:], Share: r.share})
			}
		}
	}
	c.mu.Unlock()
	s.mu.Lock()
	f := s.flights[w.d]
	s.mu.Unlock()
	switch {
	case f != nil && f.pid == w.pid:
		f.tell(w, m) // if it keeps units yet
	case !w.whole: // else nothing changes that was told, until it is asked for and not found
		size, err := s.statIn(w.d, w.pid)
		switch {
		case err == nil:
			w.whole, w.some, w.flight = true, true, nil
			m.Whole, m.Size = true, size
		case !errors.Is(err, store.ErrNotFound):
			return nil, err
		case w.some:
			// What was here is gone: a flight was given up.
			n := layoutOf(w.size).units()
			m.Size, m.Bitmap = w.size, newBitmap(n).marshal(n)
			w.some, w.flight = false, nil
		}
	}
	if !m.ReceiversChanged && !m.Whole && m.Bitmap == nil && len(m.Units) == 0 {
		return nil, nil
	}
	return m, nil
}

// tell adds to m what the flight has and w does not know of.
func (f *flight) tell(w *watched, m *Have) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.partial == nil || f.over || f.poisoned || f.foreign || f.pid != w.pid {
		return // it keeps no units that others could have
	}
	if w.flight != f || len(f.log)-w.told > maxDelta {
		n := f.layout.units()
		m.Size, m.Bitmap = f.layout.size, f.sched.have.marshal(n)
	} else {
		m.Units = f.log[w.told:len(f.log):len(f.log)]
	}
	w.flight, w.told, w.size = f, len(f.log), f.layout.size
	w.some, w.whole = true, false
}

// joined tells a flight that somebody watches its blob here, and so receives it,
// or does no longer.
func (s *Swarm) joined(d digest.Digest) {
	s.mu.Lock()
	f := s.flights[d]
	s.mu.Unlock()
	if f != nil {
		f.mu.Lock()
		f.rumour = true
		f.mu.Unlock()
		f.stir()
	}
}

// watching is what this node watches at others.
type watching struct {
	s     *Swarm
	mu    sync.Mutex
	peers map[identity.NodeID]*watchPeer
}

// watchPeer is a peer whose blobs are watched. Guarded by watching.mu.
type watchPeer struct {
	node  identity.NodeID
	up    bool // there is a stream: changes are said on it
	last  uint64
	wants map[uint64]*want
	of    map[*flight]uint64
	queue []*Watch
	wake  chan struct{}
}

type want struct {
	f   *flight
	pid identity.ProjectID
}

func newWatching(s *Swarm) *watching {
	return &watching{s: s, peers: map[identity.NodeID]*watchPeer{}}
}

// begin watches a flight's blob at a node, on behalf of a project. The flight
// hears what comes. It ends with end.
func (ws *watching) begin(node identity.NodeID, f *flight, pid identity.ProjectID) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	p := ws.peers[node]
	if p == nil {
		p = &watchPeer{node: node, wants: map[uint64]*want{}, of: map[*flight]uint64{}, wake: make(chan struct{}, 1)}
		ws.peers[node] = p
		// The caller is a flight, which Run waits for: it is not too late.
		ws.s.wg.Go(func() { ws.run(p) })
	}
	if _, ok := p.of[f]; ok {
		return
	}
	p.last++
	p.of[f] = p.last
	p.wants[p.last] = &want{f, pid}
	p.say(ws.message(p.last, p.wants[p.last]))
}

// say queues a message; without a stream the next one begins with all wants.
func (p *watchPeer) say(m *Watch) {
	if p.up {
		p.queue = append(p.queue, m)
		wake(p.wake)
	}
}

func (ws *watching) message(id uint64, w *want) *Watch {
	return &Watch{Id: id, Digest: w.f.digest.String(), Project: w.pid[:], Share: w.f.uplink}
}

// end ends all watches of a flight.
func (ws *watching) end(f *flight) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, p := range ws.peers {
		p.end(f)
	}
}

// stop ends the watch of a flight's blob at one node.
func (ws *watching) stop(node identity.NodeID, f *flight) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if p := ws.peers[node]; p != nil {
		p.end(f)
	}
}

// end ends a flight's watch; watching.mu is held.
func (p *watchPeer) end(f *flight) {
	id, ok := p.of[f]
	if !ok {
		return
	}
	delete(p.of, f)
	delete(p.wants, id)
	p.say(&Watch{Id: id, Stop: true})
}

// run keeps a stream to a peer as long as something is watched there.
func (ws *watching) run(p *watchPeer) {
	ctx := ws.s.ctx
	for {
		err := ws.stream(ctx, p)
		if ctx.Err() != nil {
			return
		}
		ws.mu.Lock()
		if len(p.wants) == 0 {
			delete(ws.peers, p.node)
			ws.mu.Unlock()
			return
		}
		var fs []*flight
		for _, w := range p.wants {
			fs = append(fs, w.f)
		}
		ws.mu.Unlock()
		ws.s.log.Debug("a peer's blobs can't be watched", "node", p.node, "error", err)
		for _, f := range fs {
			f.unheard(p.node)
		}
		select {
		case <-time.After(haveRetry):
		case <-ctx.Done():
			return
		}
	}
}

// stream opens one stream, says all that is watched, and reads until it ends.
func (ws *watching) stream(ctx context.Context, p *watchPeer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := ws.s.cfg.Host.Open(ctx, p.node, HaveProtocol)
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	st.SetIdle(sendIdle)
	_ = st.SetReadDeadline(time.Now().Add(watchFor)) // nothing may happen there for long
	ws.mu.Lock()
	p.up, p.queue = true, nil
	for id, w := range p.wants {
		p.say(ws.message(id, w))
	}
	ws.mu.Unlock()
	defer func() {
		ws.mu.Lock()
		p.up, p.queue = false, nil
		ws.mu.Unlock()
	}()
	ended := make(chan error, 1)
	go func() { ended <- ws.read(st, p) }()
	idle := time.NewTimer(haveIdle)
	defer idle.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-p.wake:
			idle.Reset(haveIdle)
		case <-idle.C:
			ws.mu.Lock()
			unused := len(p.wants) == 0
			ws.mu.Unlock()
			idle.Reset(haveIdle)
			if unused {
				_ = st.Reset()
				return <-ended
			}
		}
		ws.mu.Lock()
		out := p.queue
		p.queue = nil
		ws.mu.Unlock()
		for _, m := range out {
			if err := peer.WriteMsg(st, m, maxMessage); err != nil {
				_ = st.Reset()
				return errors.Join(err, <-ended)
			}
		}
	}
}

func (ws *watching) read(st io.Reader, p *watchPeer) error {
	for {
		var m Haves
		if err := peer.ReadMsg(st, &m, maxHaves); err != nil {
			return err
		}
		for _, h := range m.Haves {
			ws.mu.Lock()
			w := p.wants[h.Id]
			ws.mu.Unlock()
			if w == nil {
				continue // the watch ended meanwhile
			}
			if err := w.f.heard(p.node, h); err != nil {
				ws.s.metrics.badHaves.WithLabelValues(p.node.String()).Inc()
				ws.s.log.Warn("peer tells of units that a blob has not", "digest", w.f.digest, "node", p.node, "site", ws.s.site(p.node), "error", err)
				return err
			}
		}
	}
}
