package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// liarAt is a holder whose bytes of unit 0 are wrong from an offset on, and whose
// sub-states are made from them.
func liarAt(t testing.TB, data []byte, from int) (*faulty, splitsAs) {
	bad := bytes.Clone(data)
	for i := from; i < mib; i += sub {
		bad[i] ^= 1
	}
	lies := splitsOf(t, digest.SHA256, bad)
	return &faulty{read: func(_ context.Context, off int64, b []byte) error {
		if off < mib {
			copy(b, bad[off:])
		}
		return nil
	}}, lies
}

// A liar whose sub-states fit his bytes gets some of them to a client: no more than
// of one unit, never to the end of an answer, and not to the store. Where what the
// client has is right, it goes on with another holder's.
func TestEarly_ALiarWhoseSubStatesFitHisBytes(t *testing.T) {
	const lie = 3*sub + 77
	for name, c := range map[string]struct {
		takes int  // by the client before the truth comes
		seeks bool // away from there
		wrong bool
	}{
		"what the client has is right":         {takes: 3 * sub},
		"it has more":                          {takes: 4 * sub, wrong: true},
		"it is part of a sub-unit":             {takes: lie + 1, wrong: true},
		"it has right bytes, and goes on afar": {takes: 2 * sub, seeks: true},
		"it has wrong bytes, and goes on afar": {takes: lie + 10, seeks: true, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, b, honest := l.start(), l.start(), l.start()
			data := content(odd)
			w := a.put(data)
			honest.put(data)
			l.held(a, honest)
			f, lies := liarAt(t, data, lie)
			tp := newTap(t, 6*sub)
			a.turn(f, tp, lies)
			r := b.eager(t.Context(), w)
			got := make([]byte, c.takes)
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(got, data[:c.takes]) == c.wrong {
				t.Fatal("the test does not do what it says")
			}
			if c.seeks {
				if _, err := r.Seek(5*mib+3, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				r.waits(t)
			}
			tp.open()
			if !c.wrong { // and does not take more of the liar's
				eventually(t, "the liar is out", func() bool { return b.blamed(a) == maxStrikes })
			}
			rest, err := io.ReadAll(r)
			if c.wrong {
				if !errors.Is(err, errTakenBack) || bytes.Contains(data, rest) && len(rest) > 0 && c.seeks {
					t.Fatalf("%d bytes more, %v", len(rest), err)
				}
				if len(got)+len(rest) >= mib {
					t.Fatalf("the client has %d bytes", len(got)+len(rest))
				}
				if err := r.Proven(); !errors.Is(err, errTakenBack) {
					t.Fatalf("then: %v", err)
				}
				if _, err := r.Read(got); !errors.Is(err, errTakenBack) {
					t.Fatalf("then: %v", err)
				}
			} else {
				want := data[c.takes:]
				if c.seeks {
					want = data[5*mib+3:]
				}
				if err != nil || !bytes.Equal(rest, want) {
					t.Fatalf("%d of %d bytes, %v", len(rest), len(want), err)
				}
				if err := r.Proven(); err != nil {
					t.Fatal(err)
				}
			}
			if why := b.suspects(a); len(why) != 1 || len(b.suspects(honest)) != 0 || b.blamed(a) < maxStrikes || b.blamed(honest) != 0 {
				t.Fatalf("suspects %v, blamed: liar %d, other %d", b.swarm.Suspects(), b.blamed(a), b.blamed(honest))
			}
			// Another client has all of it, and so has the store.
			if all, err := b.read(w); err != nil || !bytes.Equal(all, data) {
				t.Fatalf("%d bytes, %v", len(all), err)
			}
			eventually(t, "it is stored", func() bool { _, err := b.store.Stat(t.Context(), w.Digest); return err == nil })
			b.has(data)
		})
	}
}

// Right bytes with sub-states that are not theirs: the unit is taken, nothing is
// given out early, and the liar is out.
func TestEarly_FalseSubStatesOfRightBytes(t *testing.T) {
	l := newLab(t)
	a, b, honest := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	honest.put(data)
	l.held(a, honest)
	true_ := splitsOf(t, digest.SHA256, data)
	tp := newTap(t, 8*sub)
	a.turn(&faulty{}, tp, func(d digest.Digest, unit int) []byte {
		subs := true_(d, unit)
		subs[2*32+5] ^= 4 // the third
		return subs
	})
	r := b.eager(t.Context(), w)
	r.takes(t, data[:2*sub])
	<-tp.dry
	r.waits(t)
	tp.open()
	r.takes(t, data[2*sub:])
	if err := r.Proven(); err != nil {
		t.Fatal(err)
	}
	if why := b.suspects(a); len(why) != 1 || !strings.Contains(why[0], "sub-states") || b.blamed(a) != 1 || b.blamed(honest) != 0 {
		t.Fatalf("suspects %v, blamed: liar %d, other %d", b.swarm.Suspects(), b.blamed(a), b.blamed(honest))
	}
	eventually(t, "it is stored", func() bool { _, err := b.store.Stat(t.Context(), w.Digest); return err == nil })
	b.has(data)
}

// True sub-states, and a last sub-unit that is wrong: no client has any of it.
func TestEarly_ALiarInTheLastSubUnit(t *testing.T) {
	l := newLab(t)
	a, b, honest := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	honest.put(data)
	l.held(a, honest)
	tp := newTap(t, 15*sub+16<<10)
	a.turn(&faulty{read: func(_ context.Context, off int64, p []byte) error {
		if off >= int64(15*sub) && off < mib {
			p[0] ^= 1
		}
		return nil
	}}, tp, splitsOf(t, digest.SHA256, data))
	r := b.eager(t.Context(), w)
	r.takes(t, data[:15*sub])
	r.waits(t)
	tp.open()
	r.takes(t, data[15*sub:])
	if err := r.Proven(); err != nil {
		t.Fatal(err)
	}
	if why := b.suspects(a); len(why) != 1 || b.blamed(a) != maxStrikes || b.blamed(honest) != 0 {
		t.Fatalf("suspects %v, blamed: liar %d, other %d", b.swarm.Suspects(), b.blamed(a), b.blamed(honest))
	}
}
