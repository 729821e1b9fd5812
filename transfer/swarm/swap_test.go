package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer"
)

func named(b byte) (id identity.NodeID) { id[0] = b; return id }

// Whom a small blob is asked of, after each thing that can be said.
func TestWays(t *testing.T) {
	const self, holder, owner, other = 1, 2, 3, 4
	refused := &refusedError{status: Status_STATUS_NOT_YET}
	taken := func(by byte) error { return &takenError{named(by)} }
	for _, c := range []struct {
		name  string
		owner byte
		unfit byte // a receiver at rest
		said  []error
		want  []string
	}{
		{"its own comes from the holder", self, 0, nil, []string{"holder unless"}},
		{"nobody else takes any", 0, 0, nil, []string{"holder unless"}},
		{"the holder is no receiver", holder, 0, nil, []string{"holder unless"}},
		{"another's is left to it", owner, 0, nil, []string{"3"}},
		{"the owner has it not: the holder", owner, 0, []error{refused}, []string{"3", "holder unless"}},
		{"who was given it is asked", self, 0, []error{taken(other)}, []string{"holder unless", "4"}},
		{"who was given it is at rest: the holder, whatever it gave", self, other, []error{taken(other)}, []string{"holder unless", "holder"}},
		{"who was given it failed: the holder, whatever it gave", self, 0, []error{taken(other), refused}, []string{"holder unless", "4", "holder"}},
		{"nobody is asked twice but the holder", owner, 0, []error{refused, taken(owner)}, []string{"3", "holder unless", "holder"}},
		{"this node itself was given it", owner, 0, []error{refused, taken(self)}, []string{"3", "holder unless", "holder"}},
		{"the longest way, and its end", owner, 0, []error{refused, taken(other), refused, refused}, []string{"3", "holder unless", "4", "holder", ""}},
	} {
		w := ways{holder: named(holder), self: named(self)}
		if c.owner != 0 {
			w.owner = named(c.owner)
		}
		fit := func(n identity.NodeID) bool { return n != named(c.unfit) }
		var got []string
		for _, said := range append([]error{nil}, c.said...) {
			way, ok := w.next(said, fit)
			switch {
			case !ok:
				got = append(got, "")
			case way.holder && way.node != named(holder):
				t.Errorf("%s: the holder is %v", c.name, way.node)
			case way.holder && way.unless > 0:
				got = append(got, "holder unless")
			case way.holder:
				got = append(got, "holder")
			default:
				got = append(got, fmt.Sprint(way.node[0]))
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// All receivers are of one mind about who takes a blob, each takes its part, and one
// with a tenth of the uplink a tenth.
func TestOwnerOf(t *testing.T) {
	all := []receiver{{named(1), 100}, {named(2), 100}, {named(3), 10}, {named(4), 0}} // 0 counts as 100
	const blobs = 20_000
	got := map[identity.NodeID]int{}
	for i := range blobs {
		got[ownerOf(digest.FromString(itoa(i)), all)]++
	}
	for i, want := range []float64{100, 100, 10, 100} {
		if share := float64(got[all[i].node]) / blobs; share < want/310*0.9 || share > want/310*1.1 {
			t.Errorf("receiver %d owns %.3f, want %.3f", i+1, share, want/310)
		}
	}
	at := circleAt{named(9), project}
	now := time.Now()
	for _, self := range all {
		sw := newSwaps()
		a := &Answer{ReceiversChanged: true}
		for _, r := range all {
			if r.node != self.node {
				a.Receivers = append(a.Receivers, &Receiver{Node: slices.Clone(r.node[:]), Share: r.share})
			}
		}
		if err := sw.note(at, a, now); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			d := digest.FromString(itoa(i))
			want := ownerOf(d, all)
			if want == self.node {
				want = identity.NodeID{}
			}
			if owner := sw.owner(at, self, d, now); owner != want {
				t.Fatalf("to %v blob %d is %v's, want %v", self.node, i, owner, want)
			}
			if owner := sw.owner(at, self, d, now.Add(circleKnownFor+time.Second)); !owner.IsZero() {
				t.Fatal("a circle of which nothing was heard for long holds")
			}
		}
	}
}

// One that let others down is left nothing for a while, longer each time, until it
// brings something.
func TestSwaps_Rest(t *testing.T) {
	sw, now := newSwaps(), time.Now()
	who, other, elsewhere := swapBetween{named(9), named(1)}, swapBetween{named(9), named(2)}, swapBetween{named(8), named(1)}
	for i, rest := range []time.Duration{swapRest, 2 * swapRest, 4 * swapRest} {
		if !sw.failed(who, now) || sw.failed(who, now.Add(rest-1)) {
			t.Fatalf("%d: it is not told from what it was left before", i)
		}
		if sw.fit(who, now.Add(rest-1)) || !sw.fit(who, now.Add(rest)) || !sw.fit(other, now) {
			t.Fatalf("%d: its rest is not %s", i, rest)
		}
		if !sw.fit(elsewhere, now) {
			t.Fatalf("%d: it is left nothing of another holder's", i)
		}
		now = now.Add(rest)
	}
	sw.brought(who)
	if sw.failed(who, now); !sw.fit(who, now.Add(swapRest)) {
		t.Error("what it brought is not held in its favour")
	}
	for i := range 5 * maxRests {
		sw.failed(swapBetween{named(byte(i)), named(byte(i >> 8))}, now)
	}
	if len(sw.rests) > 2*maxRests {
		t.Errorf("%d are remembered", len(sw.rests))
	}
}

// A blob is given to one, for as long as the others say; who asks no more is in the
// circle no more; and what is remembered is bounded.
func TestCircles(t *testing.T) {
	cs, now := newCircles(), time.Now()
	a, b, d := named(1), named(2), digest.FromString("x")
	first := cs.enter(project, a, 0, now)
	if cs.enter(project, a, 0, now) != first {
		t.Error("the circle changed, and nobody came")
	}
	if cs.enter(project, b, 5, now) == first {
		t.Error("somebody came, and the circle did not change")
	}
	if m := cs.members(project, b); len(m) != 1 || m[0].node != a {
		t.Errorf("b is told of %v", m)
	}
	if len(cs.members(identity.NewProjectID(), a)) != 0 {
		t.Error("another project's circle is told")
	}
	if _, taken := cs.claim(project, d, a, time.Minute, now); taken {
		t.Error("what nobody was given is taken")
	}
	if by, taken := cs.claim(project, d, b, time.Minute, now); !taken || by != a {
		t.Errorf("taken by %v, %v", by, taken)
	}
	if _, taken := cs.claim(project, d, a, time.Minute, now); taken {
		t.Error("it is taken from who was given it")
	}
	if _, taken := cs.claim(identity.NewProjectID(), d, b, time.Minute, now); taken {
		t.Error("it is taken for another project: invariant T15")
	}
	if _, taken := cs.claim(project, d, b, 0, now); taken {
		t.Error("who waited in vain does not get it")
	}
	if _, taken := cs.claim(project, d, a, 0, now.Add(-time.Second)); taken {
		t.Error("who waited in vain does not get what was given a moment later")
	}
	cs.claim(project, d, b, 0, now)
	if by, taken := cs.claim(project, d, a, time.Minute, now); !taken || by != b {
		t.Error("it is not the last one's")
	}
	for i := range 3 * maxGiven {
		cs.claim(project, digest.FromString(itoa(i)), a, time.Minute, now)
	}
	if n := len(cs.given) + len(cs.older); n > maxGiven {
		t.Errorf("%d blobs are remembered", n)
	}
	later := now.Add(circleFor + time.Second)
	if cs.enter(project, b, 5, later); len(cs.members(project, b)) != 0 {
		t.Error("who asks no more stays")
	}
	for i := range 2 * maxReceivers {
		cs.enter(project, named(byte(i)), 0, later)
	}
	if n := len(cs.members(project, identity.NodeID{})); n > maxReceivers {
		t.Errorf("%d in one circle", n)
	}
	for range 2 * maxCircles {
		cs.enter(identity.NewProjectID(), a, 0, later)
	}
	if len(cs.m) > maxCircles {
		t.Errorf("%d circles", len(cs.m))
	}
}

// swapLab is a holder of small blobs and receivers, all of which give small blobs as
// a node does.
func swapLab(t *testing.T, receivers, blobs int) (l *lab, from *node, to []*node, ws []Want, bodies [][]byte) {
	l = newLab(t)
	l.small = true
	from = l.start()
	for range receivers {
		to = append(to, l.start())
	}
	l.held(from)
	ws, bodies = from.littles(blobs)
	return l, from, to, ws, bodies
}

// all fetches all blobs at several nodes, some at a time, as a reconciler does.
func (l *lab) all(ctx context.Context, to []*node, ws []Want, done func(n *node, i int)) error {
	const atOnce = 100
	errs := make([]error, len(to))
	var wg sync.WaitGroup
	for k, n := range to {
		wg.Go(func() {
			var mine sync.WaitGroup
			var mu sync.Mutex
			places := make(chan struct{}, atOnce)
			for i, w := range ws {
				places <- struct{}{}
				mine.Go(func() {
					defer func() { <-places }()
					err := n.swarm.Fetch(ctx, w)
					if err == nil && done != nil {
						done(n, i)
					}
					mu.Lock()
					errs[k] = errors.Join(errs[k], err)
					mu.Unlock()
				})
			}
			mine.Wait()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func TestSwap_TheHolderSendsAboutOneCopy(t *testing.T) {
	l, from, to, ws, bodies := swapLab(t, 3, 1500)
	l.check(l.all(t.Context(), to, ws, nil))
	passed := 0
	for _, n := range to {
		for _, b := range bodies {
			n.has(b)
		}
		if n.got() != len(ws) {
			t.Errorf("%d units came, want %d: one twice?", n.got(), len(ws))
		}
		if n.sent() == 0 {
			t.Error("a receiver passed nothing on")
		}
		passed += n.sent()
	}
	if from.sent()+passed != 3*len(ws) {
		t.Errorf("%d and %d were sent", from.sent(), passed)
	}
	if most := len(ws) * 13 / 10; from.sent() > most {
		t.Errorf("the holder sent %d of %d blobs, want %d at most", from.sent(), len(ws), most)
	}
}

// One receiver is alone: nothing is asked in vain, nothing waits.
func TestSwap_OneReceiverAlone(t *testing.T) {
	l, from, to, ws, bodies := swapLab(t, 1, 200)
	l.check(l.all(t.Context(), to, ws, nil))
	for _, b := range bodies {
		to[0].has(b)
	}
	if from.sent() != len(ws) {
		t.Errorf("%d sent", from.sent())
	}
}

// A node that only takes: it was in the circle, and is given blobs, and gives none.
func TestSwap_AReceiverThatPassesNothingOnHoldsUpNobody(t *testing.T) {
	for name, serve := range map[string]func(*node){
		"it refuses all":   func(n *node) { n.serveNothing(Status_STATUS_NOT_FOUND) },
		"it never has any": func(n *node) { n.serveNothing(Status_STATUS_NOT_YET) },
		"it says nothing": func(n *node) {
			n.host.Handle(Protocol, func(ctx context.Context, _ identity.NodeID, _ *peer.Stream) { <-ctx.Done() })
		},
		"it is gone midway": nil,
	} {
		t.Run(name, func(t *testing.T) {
			l, _, to, ws, bodies := swapLab(t, 3, 600)
			bad := to[2]
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var once sync.Once
			if serve != nil {
				serve(bad)
			}
			done := make(chan error, 1)
			go func() { done <- l.all(ctx, to[2:], ws, nil) }()
			err := l.all(t.Context(), to[:2], ws, func(_ *node, i int) {
				if serve == nil && i > len(ws)/3 {
					once.Do(func() { // kill it
						cancel()
						bad.stop()
					})
				}
			})
			l.check(err)
			cancel()
			<-done
			for _, n := range to[:2] {
				for _, b := range bodies {
					n.has(b)
				}
			}
		})
	}
}

// serveNothing answers each request with a status.
func (n *node) serveNothing(status Status) {
	n.host.Handle(Protocol, func(_ context.Context, _ identity.NodeID, st *peer.Stream) {
		for {
			var req Request
			if err := peer.ReadMsg(st, &req, maxMessage); err != nil {
				_ = st.Reset()
				return
			}
			if err := peer.WriteMsg(st, &Answer{Id: req.Id, Status: status, Last: true}, maxMessage); err != nil {
				return
			}
		}
	})
}

// Who may not have the project is asked for none of its blobs, whoever names it.
func TestSwap_OneThatMayNotHaveItIsNotAsked(t *testing.T) {
	l, from, to, ws, bodies := swapLab(t, 2, 50)
	stranger := l.start()
	l.mu.Lock()
	l.denied[stranger.id.ID] = true
	l.mu.Unlock()
	asked := make(chan struct{}, 1)
	stranger.host.Handle(Protocol, func(_ context.Context, _ identity.NodeID, st *peer.Stream) {
		wake(asked)
		_ = st.Reset()
	})
	id := stranger.id.ID
	// The holder tells of it, and gave it all.
	now := time.Now()
	from.swarm.server.circles.enter(project, id, 0, now)
	for _, w := range ws {
		from.swarm.server.circles.claim(project, w.Digest, id, time.Minute, now)
	}
	l.check(l.all(t.Context(), to, ws, nil))
	for _, n := range to {
		for _, b := range bodies {
			n.has(b)
		}
	}
	if len(asked) != 0 {
		t.Error("one that may not have the project was asked for its blobs")
	}
}

// A client's and a waiting receiver's request: what is here for another project is
// not waited for, nor given.
func TestSwap_WaitsForWhatIsAllowedAlone(t *testing.T) {
	l, _, to, ws, _ := swapLab(t, 2, 1)
	a, b := to[0], to[1]
	l.check(a.swarm.Fetch(t.Context(), ws[0]))
	ask := func(pid identity.ProjectID) *Answer {
		st, err := b.host.Open(t.Context(), a.id.ID, Protocol)
		l.check(err)
		defer func() { _ = st.Reset() }()
		l.check(peer.WriteMsg(st, &Request{Id: 1, Digest: ws[0].Digest.String(), Project: pid[:], Units: 1, WaitMs: 60_000, AnyOrder: true}, maxMessage))
		var got Answer
		l.check(peer.ReadMsg(st, &got, maxMessage))
		return &got
	}
	if got := ask(project); !got.HasUnit {
		t.Errorf("what is here: %v", got)
	}
	if got := ask(identity.NewProjectID()); got.Status != Status_STATUS_DENIED {
		t.Errorf("for another project: %v", got)
	}
}
