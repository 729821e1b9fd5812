package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
)

// flightOf is a flight that does not fly.
func (n *node) flightOf(size int64, pids ...identity.ProjectID) *flight {
	if len(pids) == 0 {
		pids = []identity.ProjectID{project}
	}
	f := newFlight(n.swarm, Want{Digest: digest.FromString(n.lab.t.Name()), Size: size, PID: pids[0], Class: catalog.Placed})
	n.lab.t.Cleanup(func() { f.cancel(); n.swarm.watching.end(f) })
	n.swarm.mu.Lock()
	for _, pid := range pids {
		f.joined(Want{Digest: f.digest, Size: size, PID: pid, Class: catalog.Placed}, false)
	}
	n.swarm.mu.Unlock()
	f.setSize(size)
	return f
}

// regroupNow is regroup, however long ago the last one was.
func (f *flight) regroupNow() {
	f.grouped = time.Time{}
	f.regroup()
}

// watchHolder watches one that hints name.
func (f *flight) watchHolder(node identity.NodeID, pid identity.ProjectID) {
	f.mu.Lock()
	f.known = append(f.known, node)
	f.mu.Unlock()
	f.watch(node, pid)
}

func (f *flight) watched() map[identity.NodeID]identity.ProjectID {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[identity.NodeID]identity.ProjectID{}
	for node, pid := range f.watches {
		out[node] = pid
	}
	return out
}

func naming(nodes ...identity.NodeID) *Have {
	h := &Have{ReceiversChanged: true}
	for _, n := range nodes {
		h.Receivers = append(h.Receivers, &Receiver{Node: n[:]})
	}
	return h
}

// One that names nodes that there are not, or always others, costs nothing that
// grows.
// mute is a member that takes watches and says nothing on them, so that they last.
func (l *lab) mute() identity.NodeID {
	h := l.bare()
	h.Handle(HaveProtocol, func(ctx context.Context, _ identity.NodeID, _ *peer.Stream) { <-ctx.Done() })
	return h.ID()
}

func TestHave_InventedReceiversAreNotWatched(t *testing.T) {
	l := newLab(t)
	a := l.start()
	f := a.flightOf(3 * mib)
	liar := l.mute()
	f.watchHolder(liar, project)
	name := func(round int, real bool) {
		var nodes []identity.NodeID
		for i := range maxReceivers {
			id := identity.NodeID{0, byte(round), byte(i), 1}
			nodes = append(nodes, id)
			if real { // members, whose port is closed
				l.mu.Lock()
				l.members[id] = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
				l.mu.Unlock()
			}
		}
		if err := f.heard(liar, naming(nodes...)); err != nil {
			t.Fatal(err)
		}
		f.regroupNow()
	}
	for round := range 20 {
		name(round, false)
	}
	if w := f.watched(); len(w) != 1 || len(f.sched.others) > 0 {
		t.Errorf("%d nodes are watched, %d receive the blob", len(w), len(f.sched.others))
	}
	for round := range 20 {
		name(round, true)
		if w := f.watched(); len(w) > maxWatched || len(f.sched.others) > maxReceivers {
			t.Fatalf("%d nodes are watched, %d receive the blob", len(w), len(f.sched.others))
		}
	}
	if w := f.watched(); len(w) != 1+maxReceivers {
		t.Errorf("%d nodes are watched, of %d that are named now", len(w), maxReceivers)
	}
	// Names do not push out those that tell themselves what they have.
	honest := l.mute()
	f.watchHolder(honest, project)
	if err := f.heard(honest, &Have{Size: 3 * mib, Bitmap: []byte{1}}); err != nil {
		t.Fatal(err)
	}
	teller := l.mute()
	f.watchHolder(teller, project)
	if err := f.heard(teller, naming(honest)); err != nil {
		t.Fatal(err)
	}
	f.regroupNow()
	if f.mu.Lock(); !f.receives(honest) {
		t.Error("a receiver was pushed out by names")
	}
	f.mu.Unlock()
}

// Messages that cross others are no lies.
func TestHave_WordOfUnknownPeersIsNoLie(t *testing.T) {
	l := newLab(t)
	f := l.start().flightOf(3 * mib)
	honest := nodeOf(1)
	// The manifest that this node goes by may be wrong about the size.
	for _, h := range []*Have{{Size: 2 * mib, Bitmap: []byte{1}}, {Units: []uint32{1}}} {
		if err := f.heard(honest, h); err != nil || f.struckOut(honest) {
			t.Fatalf("it is blamed: %v", err)
		}
	}
	if f.heard(honest, &Have{Units: []uint32{3}}) == nil {
		t.Error("a unit that the blob has not is believed")
	}
	// A lane to a receiver that was taken for a holder ends: what it has stays known.
	receiver := nodeOf(2)
	if err := f.heard(receiver, &Have{Size: 3 * mib, Bitmap: []byte{1}}); err != nil {
		t.Fatal(err)
	}
	f.forsake(receiver)
	if err := f.heard(receiver, &Have{Units: []uint32{1}}); err != nil || f.sched.peers[receiver] == nil || !f.sched.peers[receiver].has.has(1) {
		t.Errorf("what it has was forgotten: %v", err)
	}
	f.sched.holder(nodeOf(4))
	if f.forsake(nodeOf(4)); f.sched.peers[nodeOf(4)] != nil {
		t.Error("a holder that failed is still counted on")
	}
}

// Whom one project's receivers name is watched for that project alone.
func TestHave_ReceiversAreWatchedForTheirProject(t *testing.T) {
	l := newLab(t)
	a := l.start()
	other := identity.NewProjectID()
	member := l.bare().ID() // of the other project, not of the first
	outsider := l.bare().ID()
	a.swarm.cfg.Access = func(_ context.Context, from identity.NodeID, _ digest.Digest, pid identity.ProjectID) bool {
		return from != outsider && (from != member || pid == other)
	}
	f := a.flightOf(3*mib, project, other)
	first, second := l.bare().ID(), l.bare().ID()
	f.watchHolder(first, project)
	f.watchHolder(second, other)
	for _, err := range []error{f.heard(first, naming(outsider)), f.heard(second, naming(member, outsider))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.regroupNow()
	w := f.watched()
	if pid, ok := w[member]; !ok || pid != other {
		t.Errorf("it is watched for %s, want %s", pid, other)
	}
	if _, ok := w[outsider]; ok {
		t.Error("a node that may not have the blob is told of it")
	}
}

// However often a member speaks, units get owners anew a few times a second; and
// two that tell different shares of one receiver are joined the same way always.
func TestHave_ReceiversAreGroupedSeldom(t *testing.T) {
	l := newLab(t)
	a := l.start()
	f := a.flightOf(3 * mib)
	r, one, two := l.bare().ID(), l.bare().ID(), l.bare().ID()
	f.watchHolder(one, project)
	f.watchHolder(two, project)
	say := func(teller identity.NodeID, share uint32) {
		if err := f.heard(teller, &Have{ReceiversChanged: true, Receivers: []*Receiver{{Node: r[:], Share: share}}}); err != nil {
			t.Fatal(err)
		}
	}
	share := func() uint32 {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.sched.others) != 1 {
			return 0
		}
		return f.sched.others[0].share
	}
	say(one, 100)
	f.regroupNow()
	say(one, 200)
	f.grouped = time.Now().Add(time.Hour) // just now
	if again := f.regroup(); again == nil || share() != 100 {
		t.Errorf("grouped again at once: share %d", share())
	}
	for range 20 {
		say(one, 0)
		say(two, 50)
		say(one, 200)
		f.regroupNow()
		if share() != 50 {
			t.Fatalf("share %d of 200 and 50", share())
		}
	}
}

// What is to be told stays as much as is watched, when nobody reads it.
func TestHave_WatchesThatEndAreNotTold(t *testing.T) {
	l := newLab(t)
	a := l.start()
	h := &haveStream{s: a.swarm, from: nodeOf(1), wake: make(chan struct{}, 1)}
	var m bytes.Buffer
	for range 1000 {
		if err := peer.WriteMsg(&m, &Watch{Id: 1, Digest: digest.FromString("x").String(), Project: project[:]}, maxMessage); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	l.members[nodeOf(1)] = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	l.mu.Unlock()
	watches := map[uint64]*watched{}
	if err := h.read(t.Context(), &m, watches); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if len(watches) != 1 || len(h.due) != 1 || h.due[0] != watches[1] {
		t.Errorf("%d watches, of %d it is to be told", len(watches), len(h.due))
	}
	h.leave(watches[1])
	if len(h.due) != 0 {
		t.Errorf("%d that ended are to be told of", len(h.due))
	}
}

// A node has one stream of watches: a further one takes its place.
func TestHave_OneStreamOfANode(t *testing.T) {
	l := newLab(t)
	a := l.start()
	watcher := l.bare()
	w := a.put(content(3 * mib))
	open := func() *peer.Stream {
		st, err := watcher.Open(t.Context(), a.id.ID, HaveProtocol)
		l.check(err)
		t.Cleanup(func() { _ = st.Reset() })
		l.check(peer.WriteMsg(st, &Watch{Id: 1, Digest: w.Digest.String(), Project: project[:]}, maxMessage))
		var m Haves
		l.check(peer.ReadMsg(st, &m, maxHaves))
		if len(m.Haves) != 1 || !m.Haves[0].Whole {
			t.Fatalf("told %v", &m)
		}
		return st
	}
	first := open()
	open()
	var m Haves
	l.check(first.SetReadDeadline(time.Now().Add(10 * time.Second)))
	if err := peer.ReadMsg(first, &m, maxHaves); err == nil || timedOut(err) {
		t.Errorf("the first stream goes on: %v, %v", &m, err)
	}
	if r := a.swarm.crowds.receivers(w.Digest, project); len(r) != 1 {
		t.Errorf("%d receivers", len(r))
	}
}

// A watch holds on to no flight that ended, and ends with the right to it.
func TestHave_WatchAfterTheFlight(t *testing.T) {
	l := newLab(t)
	a := l.start()
	watcher := l.bare().ID()
	w := a.put(content(3 * mib))
	h := &haveStream{s: a.swarm, from: watcher, wake: make(chan struct{}, 1)}
	watch := &watched{d: w.Digest, pid: project, node: watcher, stream: h, id: 7, flight: a.flightOf(3 * mib), allowed: time.Now()}
	a.swarm.crowds.join(watch)
	m, err := a.swarm.news(t.Context(), watch)
	if err != nil || m == nil || !m.Whole {
		t.Fatalf("told %v, %v", m, err)
	}
	h.due = nil // it was told
	if watch.flight != nil {
		t.Error("it keeps the flight in memory")
	}
	l.mu.Lock()
	l.denied[watcher] = true
	l.mu.Unlock()
	watch.allowed = watch.allowed.Add(-accessEvery)
	a.swarm.crowds.news(w.Digest)
	m, err = a.swarm.news(t.Context(), watch)
	if err != nil || m == nil || m.Status != Status_STATUS_DENIED || m.Whole || len(m.Receivers) > 0 {
		t.Errorf("told %v, %v", m, err)
	}
	if r := a.swarm.crowds.receivers(w.Digest, project); len(r) != 0 || len(h.due) != 0 {
		t.Errorf("%d receivers", len(r))
	}
}

// messages takes what a stream of watches says.
type messages struct {
	t    *testing.T
	take func(*Haves)
}

func (m messages) Write(b []byte) (int, error) {
	var hs Haves
	if err := peer.ReadMsg(bytes.NewReader(b), &hs, maxHaves); err != nil {
		m.t.Error(err)
	}
	m.take(&hs)
	return len(b), nil
}

// As many refusals as can wait, and the largest bitmap with them, fit the
// messages.
func TestHave_ManyRefusalsAtOnce(t *testing.T) {
	l := newLab(t)
	a := l.start()
	f := a.flightOf(128 << 30) // 131072 units
	f.partial = &store.Partial{}
	a.swarm.mu.Lock()
	a.swarm.flights[f.digest] = f
	a.swarm.mu.Unlock()
	h := &haveStream{s: a.swarm, from: nodeOf(1), wake: make(chan struct{}, 1)}
	for i := range maxWatches {
		if !h.refuse(1<<63 + uint64(i)) {
			t.Fatal("too many refusals")
		}
	}
	a.swarm.crowds.join(&watched{d: f.digest, pid: project, node: nodeOf(1), stream: h, id: 1, allowed: time.Now()})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	refused, bitmaps := 0, 0
	err := h.run(ctx, messages{t, func(hs *Haves) {
		for _, h := range hs.Haves {
			if h.Status == Status_STATUS_DENIED {
				refused++
			} else if len(h.Bitmap) > 0 {
				bitmaps++
			}
		}
		if refused == maxWatches && bitmaps == 1 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%d refusals and %d bitmaps were told, then: %v", refused, bitmaps, err)
	}
	a.swarm.mu.Lock()
	delete(a.swarm.flights, f.digest)
	a.swarm.mu.Unlock()
}

// Whatever a watcher writes is bounded, and ends its stream at worst.
func FuzzHave_Watches(f *testing.F) {
	seed := func(ms ...*Watch) {
		var b bytes.Buffer
		for _, m := range ms {
			if err := peer.WriteMsg(&b, m, maxMessage); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes())
	}
	d := digest.FromString("x").String()
	seed(&Watch{Id: 1, Digest: d, Project: project[:], Share: 1 << 31}, &Watch{Id: 1, Stop: true})
	seed(&Watch{Id: 1, Digest: d, Project: project[:]}, &Watch{Id: 1, Digest: d, Project: project[:]}, &Watch{Id: 2, Digest: d})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	s := newLab(f).start().swarm
	s.cfg.Access = func(_ context.Context, _ identity.NodeID, d digest.Digest, _ identity.ProjectID) bool {
		return d.Encoded()[0] < 'c' // some are refused
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := &haveStream{s: s, from: nodeOf(1), wake: make(chan struct{}, 1)}
		watches := map[uint64]*watched{}
		if err := h.read(t.Context(), bytes.NewReader(b), watches); err == nil {
			t.Fatal("it read on")
		}
		if len(watches) > maxWatches || len(h.due) > len(watches) || len(h.refused) > maxWatches+1 {
			t.Fatalf("%d watches, %d due, %d refused", len(watches), len(h.due), len(h.refused))
		}
		for _, w := range watches {
			if w.share > maxShare {
				t.Fatalf("share %d", w.share)
			}
			h.leave(w)
		}
		s.crowds.mu.Lock()
		defer s.crowds.mu.Unlock()
		if len(s.crowds.m) != 0 || len(h.due) != 0 {
			t.Fatalf("%d crowds are left", len(s.crowds.m))
		}
	})
}

// Whatever a watched peer tells is bounded, and changes nothing but whom to ask.
func FuzzHave_Haves(f *testing.F) {
	seed := func(hs ...*Have) {
		var b bytes.Buffer
		if err := peer.WriteMsg(&b, &Haves{Haves: hs}, maxHaves); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	seed(&Have{Size: 3 * mib, Bitmap: []byte{7}}, &Have{Units: []uint32{1, 2}}, naming(nodeOf(1), nodeOf(2)))
	seed(&Have{Size: 3 * mib, Whole: true}, &Have{Units: []uint32{2}}, &Have{Status: Status_STATUS_DENIED})
	seed(&Have{Units: []uint32{1 << 31}})
	l := newLab(f)
	n := l.start()
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Haves
		if peer.ReadMsg(bytes.NewReader(b), &m, maxHaves) != nil {
			return
		}
		fl := newFlight(n.swarm, Want{Digest: digest.FromString("x"), Size: 3 * mib, PID: project, Class: catalog.Placed})
		defer fl.cancel()
		fl.setSize(3 * mib)
		teller := nodeOf(9)
		fl.watches[teller] = project
		for _, h := range m.Haves {
			err := fl.heard(teller, h)
			if err != nil && (!fl.struckOut(teller) || fl.sched.peers[teller] != nil) {
				t.Fatalf("believed after %v", err)
			}
		}
		fl.regroupNow()
		if fl.have > 0 || fl.sched.left != 3 {
			t.Fatal("units came of words")
		}
		if len(fl.sched.others) > maxReceivers || len(fl.watches) > maxWatched || len(fl.told) > 1 {
			t.Fatalf("%d receivers, %d watches", len(fl.sched.others), len(fl.watches))
		}
		for i := range fl.sched.n {
			if p := fl.sched.peers[teller]; (p == nil || p.whole || !p.has.has(i)) && fl.sched.spread[i] != 0 {
				t.Fatalf("unit %d is counted at nobody", i)
			}
		}
	})
}
