package swarm

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// with gives the lines that have all of some words.
func (l *lines) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
next:
	for line := range strings.Lines(l.b.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

// logged has the lab's nodes, from now on, write a log that the test reads.
func (l *lab) logged() *lines {
	out := &lines{}
	l.log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return out
}

// forges makes a node serve wrong bytes in place of a blob, and a list made from them
// that it signs itself: every link holds, but the last.
func (n *node) forges(w Want, wrong []byte, read func(ctx context.Context, off int64, p []byte) error) [32]byte {
	n.lab.t.Helper()
	h := units.NewHasher(w.Digest.Algorithm())
	_, _ = h.Write(wrong)
	other, err := h.List()
	n.lab.check(err)
	forged := *other
	forged.Digest = w.Digest
	rec, err := units.Sign(&forged, n.id.ID, n.id)
	n.lab.check(err)
	n.bend(&faulty{
		record: func(units.Record, *units.List) (units.Record, *units.List, error) { return rec, &forged, nil },
		read: func(ctx context.Context, off int64, p []byte) error {
			copy(p, wrong[off:])
			if read != nil {
				return read(ctx, off, p)
			}
			return nil
		},
	})
	return rec.Root
}

// otherBytes differs from b in every unit.
func otherBytes(b []byte) []byte {
	out := bytes.Clone(b)
	for i := 0; i < len(out); i += 1000 {
		out[i] ^= 1
	}
	return out
}

// convicts says that a node names one other, and nobody else, in all places.
func (n *node) convicts(log *lines, liar *node, others ...*node) {
	t := n.lab.t
	t.Helper()
	if s := n.swarm.Suspects(); len(s) != 1 || s[0].Node != liar.id.ID {
		t.Errorf("suspects %+v, want the liar %s", s, liar.id.ID.Short())
	}
	if n.blamed(liar)+n.blamedList(liar) == 0 {
		t.Error("no metric counts what the liar did")
	}
	if len(log.with("level=WARN", liar.id.ID.String()))+len(log.with("level=ERROR", liar.id.ID.String())) == 0 {
		t.Error("the log does not name the liar")
	}
	for _, o := range others {
		if n.blamed(o) != 0 || n.blamedList(o) != 0 {
			t.Errorf("an honest node is blamed for %d units and %d lists", n.blamed(o), n.blamedList(o))
		}
		for _, level := range []string{"level=WARN", "level=ERROR"} {
			for _, line := range log.with(level, o.id.ID.String()) {
				if !strings.Contains(line, "two signed records of one blob") { // which says that one of both is wrong
					t.Errorf("the log names an honest node: %s", line)
				}
			}
		}
		if bad := log.with(o.id.ID.String(), errBad.Error()); len(bad) > 0 {
			t.Errorf("the log says of an honest node: %s", bad)
		}
	}
}

// A member's false list is in use: whoever is honest does not fit it, one or many.
// The blob comes by the list of the honest, and then it is proven who lied.
func TestBlame_FalseListInUse(t *testing.T) {
	for name, many := range map[string]int{"one honest holder": 1, "two": 2, "four": 4} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			told := l.logged()
			liar := l.start()
			holders := []*node{liar}
			data := content(odd)
			for range many {
				holders = append(holders, l.start())
			}
			honest := holders[1:]
			log := l.logged()
			c := l.start()
			var w Want
			for _, n := range holders {
				w = n.put(data)
			}
			root := liar.forges(w, otherBytes(data), nil)
			l.held(holders...)
			if err := c.swarm.Fetch(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			c.has(data)
			c.convicts(log, liar, honest...)
			if c.blamedList(liar) != 1 {
				t.Errorf("the signer of the false list is named %d times", c.blamedList(liar))
			}
			if !c.swarm.isBadRoot(root) {
				t.Error("the list is not known to be false")
			}
			if again := told.with("the blob is read again", c.id.ID.String()); len(again) > 0 {
				t.Errorf("an honest node was told that its disk is doubted: %s", again)
			}
			d := c.swarm.Disputes()
			if len(d) < 1 || d[len(d)-1].Digest != w.Digest || testutil.ToFloat64(c.swarm.metrics.disputes) != float64(len(d)) ||
				len(log.with("level=ERROR", "two signed records of one blob")) != len(d) {
				t.Fatalf("disputes %+v", d)
			}
			for _, x := range d {
				for _, r := range x.Roots {
					if r.False != (r.Signer == liar.id.ID) {
						t.Errorf("dispute %+v", x)
					}
				}
			}
		})
	}
}

// three are nodes that hold a blob, and one more, with the log, that fetches it.
func (l *lab) three() (a, b, c, fetches *node, log *lines) {
	a, b, c = l.start(), l.start(), l.start()
	log = l.logged()
	return a, b, c, l.start(), log
}

// putAt puts content at nodes that are known to hold it.
func (l *lab) putAt(data []byte, nodes ...*node) (w Want) {
	for _, n := range nodes {
		w = n.put(data)
	}
	l.held(nodes...)
	return w
}

// outlives fetches a blob from a holder that is stopped at a gate, and from the others
// from then on.
func (n *node) outlives(w Want, g *gate, first *node) {
	t := n.lab.t
	t.Helper()
	done := n.fetching(w)
	<-g.reached
	first.stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The true list is in use, and the liar shows another one that fits its bytes: the
// transfer goes on, and its end proves who lied.
func TestBlame_TrueListInUse(t *testing.T) {
	l := newLab(t)
	first, liar, honest, c, log := l.three()
	data := content(odd)
	w := l.putAt(data, first, liar, honest)
	g := newGate(4 * mib)
	first.bend(&faulty{read: g.read})
	liar.forges(w, otherBytes(data), nil)
	c.outlives(w, g, first)
	c.has(data)
	c.convicts(log, liar, first, honest)
	if n := c.got(); n != unitsOf(odd) {
		t.Errorf("%d units for a blob of %d: what came under the true list was thrown away", n, unitsOf(odd))
	}
}

// A liar that is the only holder left throws nothing away, if it was found out before:
// what came under the honest one's list waits for that one.
func TestBlame_AKnownLiarIsNoRival(t *testing.T) {
	l := newLab(t)
	l.stall = 3 * time.Second
	honest, liar := l.start(), l.start()
	c := l.start()
	first := content(odd)
	w := l.putAt(first, liar, honest)
	liar.forges(w, otherBytes(first), nil)
	if err := c.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	before := c.got()
	for _, n := range []**node{&honest, &liar} { // with new streams, which what is bent serves
		(*n).stop()
		*n = l.startIn((*n).dir)
	}
	data := content(odd + 1)
	w = l.putAt(data, honest, liar)
	g := newGate(4 * mib)
	honest.bend(&faulty{read: g.read})
	liar.forges(w, otherBytes(data), nil)
	done := c.fetching(w)
	select {
	case <-g.reached:
	case err := <-done:
		t.Fatalf("%v, before the holder was stopped", err)
	}
	honest.stop()
	var u *store.Unreachable
	if err := <-done; !errors.As(err, &u) {
		t.Fatalf("%v, want that a holder is unreachable", err)
	}
	l.startIn(honest.dir)
	eventually(t, "its holder is back", func() bool { return c.swarm.Fetch(t.Context(), w) == nil })
	c.has(data)
	if n := c.got() - before; n != unitsOf(odd+1) {
		t.Errorf("%d units for a blob of %d: what came under the true list was thrown away", n, unitsOf(odd+1))
	}
}

// Who signed a false list once may have been broken: what it signed since, and honest
// holders pass on, brings the blob though a liar that nobody knows was first.
func TestBlame_AForgersTrueListAgainstAnUnknownLiar(t *testing.T) {
	l := newLab(t)
	l.stall = 3 * time.Second
	broken, liar, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := l.putAt(data, liar, broken)
	c.swarm.suspects.signedFalsely(broken.id.ID, w.Digest)
	liar.forges(w, otherBytes(data), nil)
	eventually(t, "the true list has its turn", func() bool { return c.swarm.Fetch(t.Context(), w) == nil })
	c.has(data)
}

// A disk that rots, at a holder that is not the one whose list is in use: its own list
// is the same, so it is named, and told.
func TestBlame_RotUnderATrueList(t *testing.T) {
	l := newLab(t)
	first, rotten, honest, c, log := l.three()
	told := &lines{}
	data := content(odd)
	w := l.putAt(data, first, rotten, honest)
	g := newGate(4 * mib)
	first.bend(&faulty{read: g.read})
	rotten.bendLogged(&faulty{read: flipAt(0)}, told)
	c.outlives(w, g, first)
	c.has(data)
	c.convicts(log, rotten, first, honest)
	if len(c.swarm.Disputes()) != 0 {
		t.Errorf("disputes %+v", c.swarm.Disputes())
	}
	eventually(t, "the holder is told to read the blob again", func() bool { return len(told.with("the blob is read again", c.id.ID.String())) > 0 })
}

// bendLogged is bend, with the log of what the node serves.
func (n *node) bendLogged(f *faulty, log *lines) {
	f.source = supply{n.swarm}
	srv := newServer(n.config(slog.New(slog.NewTextHandler(log, nil))), f, n.swarm.metrics)
	srv.crowds = n.swarm.crowds
	n.host.Handle(Protocol, srv.serve)
}

// A false list can be made so that an honest holder's unit links in it, and its
// sub-states do not: they say nothing against the holder either.
func TestBlame_SubStatesThatFitTheTrueList(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second // so long others are asked when the liar is gone
	liar, honest := l.start(), l.start()
	log := l.logged()
	c := l.start()
	data := content(odd)
	w := honest.put(data)
	liar.put(data)
	wrong := bytes.Clone(data)
	wrong[0] ^= 1 // from unit 1 on the states are others, and the bytes are the same
	g := newGate(mib)
	liar.forges(w, wrong, g.read)
	l.held(liar, honest)
	r := c.eager(t.Context(), w)
	defer r.Close()
	r.takes(t, wrong[:mib])
	<-g.reached
	liar.stop()
	f := c.flight(w.Digest)
	eventually(t, "the flight is given up, or whole", f.ended)
	if f.err == nil {
		t.Fatal("the blob came whole under a false list")
	}
	if s := c.swarm.Suspects(); len(s) != 0 || c.blamed(honest) != 0 {
		t.Fatalf("suspects %+v, %d units of an honest holder blamed", s, c.blamed(honest))
	}
	if err := c.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	c.has(data)
	c.convicts(log, liar, honest)
}

// Another receiver goes by the true list, and this node by a false one: what it passes
// on does not fit, and it is honest.
func TestBlame_AReceiverWithAnotherList(t *testing.T) {
	l := newLab(t)
	source, liar, other := l.start(), l.start(), l.start()
	log := l.logged()
	c := l.start()
	data := content(odd)
	w := source.put(data)
	liar.put(data)
	l.held(source)
	g := newGate(5 * mib)
	source.bend(&faulty{read: g.read})
	passed := other.fetching(w)
	<-g.reached
	eventually(t, "some units are here", func() bool { return other.got() == 5 })
	lied := newGate(3 * mib)
	liar.forges(w, otherBytes(data), lied.read)
	l.held(liar, other)
	done := c.fetching(w)
	<-lied.reached
	eventually(t, "some wrong units are here", func() bool { return c.got() == 3 })
	liar.stop()
	eventually(t, "the receiver has shown its own list", func() bool { return len(c.swarm.Disputes()) == 1 })
	g.open(odd)
	if err := <-passed; err != nil {
		t.Fatal(err)
	}
	l.held(other)
	if err := <-done; err != nil {
		if err := c.swarm.Fetch(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	c.has(data)
	c.convicts(log, liar, source, other)
}

// A holder that does not show its own list is out, and named when the blob is whole:
// nothing else can excuse what it sent.
func TestBlame_AHolderThatShowsNoList(t *testing.T) {
	l := newLab(t)
	first, liar, honest, c, log := l.three()
	data := content(odd)
	w := l.putAt(data, first, liar, honest)
	g, later := newGate(4*mib), newGate(6*mib)
	first.bend(&faulty{read: g.read})
	honest.bend(&faulty{read: later.read})
	liar.bend(&faulty{read: flipAt(0), record: func(r units.Record, li *units.List) (units.Record, *units.List, error) {
		return r, li, units.ErrUnavailable
	}})
	done := c.fetching(w)
	<-g.reached
	first.stop()
	<-later.reached
	if s := c.swarm.Suspects(); len(s) != 0 {
		t.Errorf("named before it is certain: %+v", s)
	}
	later.open(odd)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.has(data)
	c.convicts(log, liar, first, honest)
}
