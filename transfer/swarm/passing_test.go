package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// fullFor makes the disk full for one blob alone.
func (n *node) fullFor(w Want) {
	n.swarm.keep = func(ctx context.Context, rec units.Record, list *units.List) (*store.Partial, error) {
		if rec.Digest == w.Digest {
			return nil, store.ErrNoSpace
		}
		return n.store.BeginFetch(ctx, rec, list)
	}
}

// restsAt says that all that was asked of a holder came, so many units in all, and that
// no stream to it is in use.
func (n *node) restsAt(holder *node, units int) {
	t := n.lab.t
	t.Helper()
	eventually(t, itoa(units)+" units came, and nothing else is on its way", func() bool {
		s := n.swarm.sessions
		s.mu.Lock()
		slots := &s.of(holder.id.ID).inUse
		s.mu.Unlock()
		return n.got() >= units && n.swarm.pipes.flying() == 0 && slots.unused()
	})
	if n.got() != units || holder.sent() != units {
		t.Fatalf("%d units came and %d were sent, want %d", n.got(), holder.sent(), units)
	}
}

// A client of a full disk that does not read on holds up nobody else who takes from its
// holder: nothing is asked for that its window has no room for, and no silence of the
// holder is counted. When it reads on, from wherever, it has what is there.
func TestOpenBlob_ASlowClientOfAFullDiskHoldsUpNobody(t *testing.T) {
	const (
		window = passWindow / mib
		other  = 12 // units of what others take meanwhile
	)
	for name, take := range map[string]func(*node, Want) error{
		"a rule": func(n *node, w Want) error { return n.swarm.Fetch(n.lab.t.Context(), w) },
		"another client": func(n *node, w Want) error {
			r, err := n.swarm.OpenBlob(n.lab.t.Context(), w)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachPlane(t, func(t *testing.T, l *lab) {
				a, b := l.start(), l.start()
				l.held(a)
				data := content(odd * 3)
				slow, next := a.put(data), a.put(content(other*mib-9))
				b.fullFor(slow)
				r, err := b.swarm.OpenBlob(t.Context(), slow)
				l.check(err)
				defer r.Close()
				reads := func(from, n int) {
					t.Helper()
					_, err := r.Seek(int64(from), io.SeekStart)
					l.check(err)
					got := make([]byte, n)
					if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[from:from+n]) {
						t.Fatalf("%d bytes from %d on: %v", n, from, err)
					}
				}
				reads(0, 1)
				b.restsAt(a, window)
				f := r.(*reader).f
				f.mu.Lock()
				asked := len(f.asked)
				f.mu.Unlock()
				if asked > 0 {
					t.Error("its holder is waited for")
				}
				l.check(take(b, next))
				b.restsAt(a, window+other)
				reads(mib+5, 2*mib) // there is room for 3 more
				b.restsAt(a, window+other+3)
				reads(15*mib, 1)
				b.restsAt(a, window+other+3+window)
				reads(0, len(data))
			})
		})
	}
}

// A blob of one unit needs no window: it is asked for once, however long its client
// takes to read it.
func TestOpenBlob_ASmallBlobOnAFullDiskComesOnce(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(mib / 2)
	w := a.put(data)
	r, err := b.swarm.passThrough(t.Context(), w)
	l.check(err)
	defer r.Close()
	<-r.(*reader).f.done
	b.restsAt(a, 1)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// far's units are of 8 MiB: a window has two of them, one to read while the next comes.
func TestWindow_WantsWhatItHasRoomFor(t *testing.T) {
	l := newLab(t)
	o := newFar(t, l.start())
	n := o.list.Units()
	w := newWindow(o.rec, o.list)
	for _, c := range []struct{ pos, from, until int }{
		{0, 0, 2}, {7, 7, 9}, {n - 3, n - 3, n - 1},
		{n - 2, 0, n}, {n - 1, 0, n}, // and those behind, for their links
		{1, 1, 3},
	} {
		if moved := w.move(c.pos); moved != (c.pos > 0) || w.move(c.pos) {
			t.Errorf("a reader that stands at %d has moved: %v", c.pos, moved)
		}
		if from, until := w.wants(); from != c.from || until != c.until {
			t.Errorf("a reader stands at %d: [%d, %d), want [%d, %d)", c.pos, from, until, c.from, c.until)
		}
	}
}

// What comes and has no room, as the reader has jumped meanwhile, waits for nobody: its
// link counts, and when the reader comes there it is fetched again.
func TestWindow_KeepsWhatItHasRoomFor(t *testing.T) {
	l := newLab(t)
	a := l.start()
	data := content(20 * mib)
	rec, list, _, err := supply{a.swarm}.Record(t.Context(), a.put(data).Digest)
	l.check(err)
	w := newWindow(rec, list)
	w.move(5)
	for i, at := range []struct{ unit, jumpsTo int }{{4, 4}, {5, 0}, {13, 13}, {12, 12}} {
		held := at.unit == 5 || at.unit == 12
		for range 2 { // two peers may send it
			l.check(w.Put(at.unit, data[at.unit*mib:(at.unit+1)*mib]))
		}
		if has := w.held[at.unit] != nil; has != held || w.Missing() != 20-i-1 {
			t.Errorf("unit %d is kept: %v, and %d links are missing", at.unit, has, w.Missing())
		}
		w.move(at.jumpsTo)
		if has := w.Has(at.unit); has != held {
			t.Errorf("the reader stands at %d: unit %d is here: %v", at.jumpsTo, at.unit, has)
		}
		w.move(5)
	}
	if err := w.Put(6, data[:mib]); !errors.Is(err, units.ErrBadUnit) {
		t.Errorf("a wrong unit: %v", err)
	}
}

// A flight goes by its window from the first request on, and wakes its lanes when there
// is room.
func TestFlight_FollowsItsWindow(t *testing.T) {
	l := newLab(t)
	b := l.start()
	o := newFar(t, b)
	f := newFlight(b.swarm, Want{Digest: o.rec.Digest, Size: o.size, PID: project})
	defer f.cancel()
	f.pass = true
	f.setSize(o.size)
	if got := f.opening(); !got.record || got.first != 0 || got.n != leastPassing {
		t.Errorf("the first request is %+v", got)
	}
	w := newWindow(o.rec, o.list)
	lane := &lane{f: f, waiter: waiter{wake: make(chan struct{}, 1)}}
	f.vessel, f.lanes[nodeOf(1)], f.positions[&reader{f: f}] = w, lane, 5
	for range 2 {
		f.follow(w, 5)
	}
	if got := f.opening(); got.first != 5 || got.n != leastPassing {
		t.Errorf("when the reader has moved the first request is %+v", got)
	}
	select {
	case <-lane.waiter.wake:
	default:
		t.Error("the reader has moved, and its lane was not woken")
	}
	// Every link is here: what the reader stands at is still to come.
	for i := range w.proved {
		w.proved[i] = true
		f.sched.got(i, identity.NodeID{})
	}
	f.complete = true
	if f.finished() {
		t.Error("it is finished, and its reader has not read it")
	}
}

// Whatever a peer is asked for, it lies within what may be asked for.
func TestSchedule_AsksForNothingBeyondTheWindow(t *testing.T) {
	const n = 150
	now := time.Unix(1000, 0)
	all := newBitmap(n)
	for i := range n {
		all.set(i)
	}
	holder, other := nodeOf(1), nodeOf(2)
	for _, span := range [][2]int{{0, n}, {0, 8}, {5, 13}, {60, 68}, {63, 64}, {64, 128}, {130, 138}, {n - 1, n}} {
		for _, who := range []identity.NodeID{holder, other} {
			s := newSchedule(digest.FromString("x"), receiver{node: nodeOf(0)}, n)
			s.holder(holder)
			s.partial(other, all)
			s.from, s.until = span[0], span[1]
			s.got(n-1, identity.NodeID{})
			asked := 0
			readers := []int{span[0]}
			for at := now; s.useful(who) && asked < n; at = at.Add(time.Millisecond) {
				o, ok := s.next(who, maxRun, at, readers)
				if !ok {
					break
				}
				for i := o.first; i < o.first+o.n; i++ {
					if i < span[0] || i >= span[1] {
						t.Fatalf("unit %d was asked for, beyond %v", i, span)
					}
					asked++
					s.got(i, who)
				}
			}
			want := span[1] - span[0]
			if span[1] == n {
				want--
			}
			if asked != want || s.useful(who) || s.fresh(who) {
				t.Errorf("%v: %d units were asked for, want %d; more of use: %v, %v", span, asked, want, s.useful(who), s.fresh(who))
			}
		}
	}
}

// What was asked for before the reader jumped is asked of nobody else as well.
func TestSchedule_NoEndgameBeyondTheWindow(t *testing.T) {
	for _, c := range []struct {
		from, until int
		again       bool
	}{{0, 8, true}, {8, 16, false}} {
		now := time.Unix(1000, 0)
		s := newSchedule(digest.FromString("x"), receiver{node: nodeOf(0)}, 20)
		s.holder(nodeOf(1))
		s.holder(nodeOf(2))
		for i := range 20 {
			if i != 3 {
				s.got(i, identity.NodeID{})
			}
		}
		if _, ok := s.next(nodeOf(1), 1, now, []int{3}); !ok {
			t.Fatal("it is not asked for")
		}
		s.from, s.until = c.from, c.until
		if _, ok := s.next(nodeOf(2), 1, now.Add(time.Hour), []int{c.from}); ok != c.again {
			t.Errorf("[%d, %d): asked for again: %v", c.from, c.until, ok)
		}
	}
}
