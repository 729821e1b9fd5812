package swarm

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// Blobs by sha512 of all the ways in which they travel: empty, in a row, whole,
// in units, with and without a known size.
func TestSHA512_BlobsOfAllSizes(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	for _, size := range []int{0, 100, store.InlineMax + 1, mib, mib + 1, odd} {
		t.Run(itoa(size), func(t *testing.T) {
			data := content(size)
			w := a.putAs(digest.SHA512, data)
			if size%2 == 0 {
				w.Size = 0 // not known
			}
			if err := b.swarm.Fetch(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			b.hasAs(digest.SHA512, data)
			if _, err := b.store.Stat(t.Context(), digest.FromBytes(data)); !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("it is there under another digest, too: %v", err)
			}
		})
	}
}

// A fetch that a restart cuts short goes on with the units that came, and one
// holder after another dies or lies before the blob is whole.
func TestSHA512_ResumesAfterARestart_FromAnotherHolder(t *testing.T) {
	l := newLab(t)
	a, liar, b := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.putAs(digest.SHA512, data)
	liar.putAs(digest.SHA512, data)
	l.held(a)
	g := newGate(6 * mib)
	a.bend(&faulty{read: g.read})
	done := b.fetching(w)
	<-g.reached
	eventually(t, "six units are here", func() bool { return b.got() == 6 })
	b.stop()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	g.open(odd)
	liar.bend(&faulty{read: flipAt(0)})
	l.held(liar, a)
	b = l.startIn(b.dir)
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	b.hasAs(digest.SHA512, data)
	if n := b.got(); n != unitsOf(odd)-6 {
		t.Fatalf("%d units received again, want %d", n, unitsOf(odd)-6)
	}
	if b.blamed(a) != 0 {
		t.Fatalf("the honest holder is blamed %d times", b.blamed(a))
	}
}

func TestSHA512_LyingHolderIsReplacedAndNamed(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.putAs(digest.SHA512, data)
	b.putAs(digest.SHA512, data)
	l.held(a, b)
	a.bend(&faulty{read: flipAt(2 * mib)})
	r, err := c.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if c.blamed(a) != maxStrikes || c.blamed(b) != 0 {
		t.Fatalf("blamed: liar %d, other %d", c.blamed(a), c.blamed(b))
	}
}

// Small blobs come whole: their digest is the check.
func TestSHA512_OnlyLiars(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	for _, size := range []int{1000, odd} {
		w := a.putAs(digest.SHA512, content(size))
		l.held(a)
		a.bend(&faulty{read: flipAt(0)})
		if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, ErrBadHolders) {
			t.Fatalf("got %v", err)
		}
		if _, err := b.store.Stat(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("stored: %v", err)
		}
	}
}

// A member that sends the other algorithm's record or states, signed or not,
// gets nothing in: the blob comes from the honest holder.
func TestOtherAlgorithmsStates_AreRefused(t *testing.T) {
	type pair struct {
		rec  units.Record
		list *units.List
	}
	for name, bend := range map[string]func(own, other pair) pair{
		"record and states of the other digest":      func(_, other pair) pair { return other },
		"states of the other digest":                 func(own, other pair) pair { return pair{own.rec, other.list} },
		"record of the other digest, states of ours": func(own, other pair) pair { return pair{other.rec, own.list} },
	} {
		for _, alg := range units.Algorithms() {
			t.Run(name+" for "+alg.String(), func(t *testing.T) {
				l := newLab(t)
				a, b, c := l.start(), l.start(), l.start()
				data := content(odd)
				w := a.putAs(alg, data)
				b.putAs(alg, data)
				l.held(a, b)
				other := digest.SHA256
				if alg == other {
					other = digest.SHA512
				}
				h := units.NewHasher(other)
				_, _ = h.Write(data)
				list, err := h.List()
				l.check(err)
				rec, err := units.Sign(list, a.id.ID, a.id)
				l.check(err)
				f := &faulty{record: func(r units.Record, li *units.List) (units.Record, *units.List, error) {
					p := bend(pair{r, li}, pair{rec, list})
					return p.rec, p.list, nil
				}}
				f.source = supply{a.swarm}
				cfg := a.config(a.swarm.log)
				cfg.KnownSigner = func(identity.NodeID) bool { return true } // does not sign anew
				a.host.Handle(Protocol, newServer(cfg, f, a.swarm.metrics).serve)
				if err := c.swarm.Fetch(t.Context(), w); err != nil {
					t.Fatal(err)
				}
				c.hasAs(alg, data)
				if a.sent()+b.sent() > unitsOf(odd)+maxRun || b.sent() == 0 {
					t.Fatalf("%d units from the liar and %d from the other", a.sent(), b.sent())
				}
				if _, err := c.store.Stat(t.Context(), other.FromBytes(data)); !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("it is there under the other digest: %v", err)
				}
			})
		}
	}
}
