package swarm

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
)

// A receiver of before: it does not ask, and is not told.
func TestEarly_WhoDoesNotAskIsSentNone(t *testing.T) {
	o, _ := newOneBlob(t, 3*mib+1)
	for _, wanted := range []bool{false, true} {
		srv := o.server()
		srv.split = newSplitter(srv).of
		var in []byte
		for i := range uint32(3) {
			in = append(in, frame(t, &Request{
				Id: uint64(i) + 1, Digest: o.rec.Digest.String(), Project: project[:], WantRecord: i == 0,
				FirstUnit: i, Units: 2, WantSubStates: wanted,
			})...)
		}
		st := &script{in: bytes.NewReader(in)}
		srv.handle(t.Context(), identity.NodeID{}, st)
		for first := range uint32(3) {
			for unit := first; unit < first+2; {
				var a Answer
				if err := peer.ReadMsg(&st.out, &a, maxMessage); err != nil || a.Status != Status_STATUS_OK {
					t.Fatal(&a, err)
				}
				want := uint32(0)
				if wanted && a.HasUnit && unit == first {
					_, n := o.list.Span(int(unit))
					want = uint32(units.SubStatesBytes(digest.SHA256, n))
				}
				if a.SubBytes != want || wanted && a.ListBytes > 0 && a.HasUnit {
					t.Fatalf("wanted %v, unit %d of a run from %d: %v", wanted, unit, first, &a)
				}
				st.out.Next(int(a.ListBytes + a.SubBytes + a.UnitBytes))
				if a.HasUnit {
					unit++
				}
			}
		}
		if st.out.Len() > 0 {
			t.Fatalf("%d bytes more", st.out.Len())
		}
	}
}

func TestEarly_OnlyWhereItIsWorthIt(t *testing.T) {
	l := newLab(t)
	b := l.start()
	f := b.flightOf(odd)
	node := nodeOf(1)
	quick := func(rate float64) {
		b.swarm.pipes.mu.Lock()
		defer b.swarm.pipes.mu.Unlock()
		p := b.swarm.pipes.of(node)
		p.rate, p.delay = rate, 80e6
	}
	ask := func(first, n int) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.worthSplitting(node, order{first: first, n: n})
	}
	if ask(0, 4) {
		t.Fatal("nobody reads")
	}
	f.reading.Store(1)
	if !ask(0, 4) || ask(1, 4) || ask(0, 0) {
		t.Fatal("somebody waits for the blob to be opened")
	}
	r := &reader{f: f}
	f.mu.Lock()
	f.positions[r] = 3
	f.sched.got(3, node)
	f.sched.got(4, node)
	f.mu.Unlock()
	if !ask(5, 2) || ask(6, 1) {
		t.Fatal("the first unit that is missing is the one that it will wait for")
	}
	f.mu.Lock()
	f.positions[r] = 7
	f.mu.Unlock()
	if !ask(7, 2) || ask(8, 1) {
		t.Fatal("the last unit waits for the chain")
	}
	for rate, want := range map[float64]bool{0: true, 1e6: true, mib / 0.09: true, mib / 0.07: false, 1e9: false} {
		if quick(rate); ask(7, 1) != want {
			t.Errorf("at %g bytes/s and 80 ms: %v", rate, !want)
		}
	}
}

// Of two peers that send the same unit, the one that is ahead is read from, and the
// other one when that ends.
func TestEarly_TheOneThatIsAheadIsReadFrom(t *testing.T) {
	b := newLab(t).start()
	f := b.flightOf(odd)
	one, two := &early{from: nodeOf(1)}, &early{from: nodeOf(2)}
	shown := func(want *early) {
		t.Helper()
		if f.early[0] != want {
			t.Fatal("another one is shown")
		}
	}
	f.shows(one, 0) // nothing that could be read
	shown(nil)
	f.shows(one, 3*int64(sub))
	shown(one)
	f.shows(two, 2*int64(sub))
	shown(one)
	f.shows(two, 4*int64(sub))
	shown(two)
	(&lane{f: f, early: two}).unsplit()
	shown(nil)
	f.shows(one, 5*int64(sub))
	shown(one)
	f.mu.Lock()
	f.proves(0, two.from)
	if one.proven {
		t.Fatal("proven by another's unit")
	}
	f.proves(0, one.from)
	f.mu.Unlock()
	if !one.proven {
		t.Fatal("not proven by its own unit")
	}
	(&lane{f: f, early: one}).unsplit()
	shown(nil)
}

// A holder makes the sub-states of a few units at a time, and waits for none long.
func TestSplitter_IsBounded(t *testing.T) {
	o, _ := newOneBlob(t, 3*mib+1)
	srv := o.server()
	p := newSplitter(srv)
	b, err := o.Open(t.Context(), o.rec.Digest, project)
	if err != nil {
		t.Fatal(err)
	}
	for range maxSplitting {
		p.turns <- struct{}{}
	}
	if p.of(t.Context(), o.rec.Digest, b, 0) != nil {
		t.Fatal("made beyond the bound")
	}
	<-p.turns
	subs := p.of(t.Context(), o.rec.Digest, b, 0)
	if len(subs) != 15*32 {
		t.Fatalf("%d bytes of sub-states", len(subs))
	}
	p.turns <- struct{}{}
	if got := p.of(t.Context(), o.rec.Digest, b, 0); !bytes.Equal(got, subs) {
		t.Fatal("they are not remembered")
	}
	if p.of(t.Context(), o.rec.Digest, b, 3) != nil {
		t.Fatal("of a unit of one byte")
	}
	for range maxSplitting {
		<-p.turns
	}
	// Of what arrives they are not remembered: its list may turn out to be false.
	o.arriving = true
	if len(p.of(t.Context(), o.rec.Digest, b, 1)) == 0 || p.known.Len() != 1 {
		t.Fatal("sub-states of a blob that arrives")
	}
	// What is rotten here has none.
	o.data[2*mib+9] ^= 1
	if p.of(t.Context(), o.rec.Digest, b, 2) != nil || p.known.Len() != 1 {
		t.Fatal("sub-states of rotten bytes")
	}
	if len(p.turns) != 0 {
		t.Fatal("a turn was not given back")
	}
}
