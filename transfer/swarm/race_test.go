package swarm

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/node/store"
)

// soon is far more than a second on a busy machine, and far less than the lab's
// stall time and patience of a minute.
const soon = 20 * time.Second

func (n *node) read(w Want) ([]byte, error) {
	r, err := n.swarm.OpenBlob(n.lab.t.Context(), w)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestOpenBlob_ClientIsToldOfASilentHolder(t *testing.T) {
	for _, connected := range []bool{true, false} {
		t.Run(map[bool]string{true: "connected", false: "not connected"}[connected], func(t *testing.T) {
			l := newLab(t)
			a, b := l.start(), l.start()
			r := l.front(a)
			l.held(a)
			if connected {
				if err := b.swarm.Fetch(t.Context(), a.put(content(3*mib))); err != nil {
					t.Fatal(err)
				}
			}
			r.Freeze()
			w := a.put(content(odd))
			at := time.Now()
			var u *store.Unreachable
			if _, err := b.read(w); !errors.As(err, &u) || strings.Join(u.Sites, " ") != "site-"+a.id.ID.Short() {
				t.Fatalf("got %v", err)
			}
			if d := time.Since(at); d > soon {
				t.Fatalf("the client was told after %s", d)
			}
			if b.blamed(a)+b.blamedList(a) > 0 {
				t.Fatal("a silent holder is no liar")
			}
			eventually(t, "the flight is dropped", func() bool { return len(b.swarm.Progress()) == 0 })
			// Back, it is asked again.
			r.Thaw()
			eventually(t, "the blob comes", func() bool {
				got, err := b.read(w)
				return err == nil && bytes.Equal(got, content(odd))
			})
		})
	}
}

func TestOpenBlob_SilentHoldersAreHedged(t *testing.T) {
	l := newLab(t)
	dead, dead2, alive, b := l.start(), l.start(), l.start(), l.start()
	r, r2 := l.front(dead), l.front(dead2)
	l.held(dead, dead2)
	small := content(2 * mib)
	if err := b.swarm.Fetch(t.Context(), dead.put(small)); err != nil {
		t.Fatal(err)
	}
	l.held(dead, dead2, alive)
	r.Freeze()
	r2.Freeze()
	data := content(odd)
	w := alive.put(data)
	at := time.Now()
	got, err := b.read(w)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if d := time.Since(at); d > soon {
		t.Fatalf("it took %s", d)
	}
	if alive.sent() != unitsOf(odd) {
		t.Fatalf("%d units sent", alive.sent())
	}
	if b.failovers("silent") != 2 || b.blamed(dead)+b.blamedList(dead)+b.blamed(dead2)+b.blamedList(dead2) > 0 {
		t.Fatalf("%d holders called silent", b.failovers("silent"))
	}
}

func TestOpenBlob_ABusyHolderIsWaitedFor(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	g := newGate(0) // its disk takes its time
	a.bend(&faulty{read: g.read})
	opened := time.AfterFunc(2*(lookAfter+lifeWithin), func() { g.open(odd) })
	defer opened.Stop()
	got, err := b.read(w)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestFetch_HolderThatGoesQuietMidwayIsReplaced(t *testing.T) {
	for name, stall := range map[string]time.Duration{"another holder is known": time.Minute, "the stall time is over": time.Second} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.stall = stall
			a, b, c := l.start(), l.start(), l.start()
			data := content(odd)
			w := a.put(data)
			b.put(data)
			l.held(a, b)
			a.bend(&faulty{read: newGate(3 * mib).read})
			at := time.Now()
			if err := c.swarm.Fetch(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			c.has(data)
			if d := time.Since(at); d > soon {
				t.Fatalf("it took %s", d)
			}
			if c.blamed(a) != 0 {
				t.Fatal("a slow holder is no liar")
			}
			if n := unitsOf(odd); a.sent()+b.sent() > n+1 {
				t.Fatalf("%d+%d units sent for a blob of %d", a.sent(), b.sent(), n)
			}
		})
	}
}

func TestFetch_HolderThatIsFoundWhileTheOnlyOneIsQuiet(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	g := newGate(3 * mib)
	a.bend(&faulty{read: g.read})
	done := make(chan error, 1)
	at := time.Now()
	go func() { done <- c.swarm.Fetch(t.Context(), w) }()
	<-g.reached
	b.put(data)
	l.held(a, b)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := time.Since(at); d > soon {
		t.Fatalf("it took %s", d)
	}
	c.has(data)
}

func TestOpenBlob_ARefusalDoesNotWinTheRace(t *testing.T) {
	l := newLab(t)
	without, with, b := l.start(), l.start(), l.start()
	data := content(odd)
	w := with.put(data)
	g := newGate(0)
	with.bend(&faulty{read: g.read})
	l.held(with, without)
	read := make(chan error, 1)
	go func() {
		got, err := b.read(w)
		if err == nil && !bytes.Equal(got, data) {
			err = errors.New("other bytes")
		}
		read <- err
	}()
	<-g.reached
	g.open(odd)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
}
