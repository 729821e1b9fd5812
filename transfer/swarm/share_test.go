package swarm

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"golang.org/x/time/rate"
)

// uplinkOf makes a node send at most so many bytes a second, of whole blobs and
// of those that are arriving.
func (n *node) uplinkOf(bytes int) *faulty {
	limit := rate.NewLimiter(rate.Limit(bytes), copyBuffer)
	f := &faulty{read: func(ctx context.Context, _ int64, b []byte) error { return limit.WaitN(ctx, len(b)) }}
	n.bend(f)
	return f
}

// fetchAll has all nodes fetch a blob at the same time.
func fetchAll(t *testing.T, w Want, nodes ...*node) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.swarm.Fetch(t.Context(), w); err != nil {
				t.Errorf("%s: %v", n.id.ID.Short(), err)
			}
		})
	}
	wg.Wait()
}

func TestFetch_ReceiversShareTheHoldersUplink(t *testing.T) {
	const size = 40*mib + 7
	l := newLab(t)
	source := l.start()
	receivers := []*node{l.start(), l.start(), l.start(), l.start()}
	data := content(size)
	w := source.put(data)
	l.held(source)
	source.uplinkOf(16 * mib)
	fetchAll(t, w, receivers...)
	n := unitsOf(size)
	sent := source.sent()
	swapped := 0
	for _, r := range receivers {
		r.has(data)
		swapped += r.sent()
		if r.got() < n || r.got() > n+maxDoubles+2 {
			t.Errorf("a receiver took %d units of a blob of %d", r.got(), n)
		}
		if r.blamed(source) > 0 {
			t.Error("the holder was blamed")
		}
	}
	t.Logf("the holder sent %d units of a blob of %d, the receivers %d", sent, n, swapped)
	if float64(sent) > 1.15*float64(n) {
		t.Errorf("the holder sent %d units of a blob of %d", sent, n)
	}
	if sent+swapped < len(receivers)*n {
		t.Errorf("%d units sent in all", sent+swapped)
	}
}

func TestFetch_AReceiverDiesMidway(t *testing.T) {
	const size = 32 * mib
	l := newLab(t)
	source := l.start()
	receivers := []*node{l.start(), l.start(), l.start()}
	data := content(size)
	w := source.put(data)
	l.held(source)
	source.uplinkOf(12 * mib)
	victim := receivers[0]
	var wg sync.WaitGroup
	wg.Go(func() { _ = victim.swarm.Fetch(t.Context(), w) })
	wg.Go(func() { fetchAll(t, w, receivers[1:]...) })
	eventually(t, "the victim has some units", func() bool { return victim.got() >= 5 })
	victim.stop()
	wg.Wait()
	for _, r := range receivers[1:] {
		r.has(data)
	}
	if n := unitsOf(size); source.sent() > n+n/2 {
		t.Errorf("the holder sent %d units of a blob of %d", source.sent(), n)
	}
}

func TestFetch_AReceiverLies(t *testing.T) {
	const size = 32 * mib
	l := newLab(t)
	source := l.start()
	receivers := []*node{l.start(), l.start(), l.start()}
	data := content(size)
	w := source.put(data)
	l.held(source)
	source.uplinkOf(12 * mib)
	liar := receivers[0]
	liar.bend(&faulty{read: flipAt(0)})
	fetchAll(t, w, receivers...)
	for _, r := range receivers {
		r.has(data)
	}
	blamed := 0
	for _, r := range receivers[1:] {
		if n := r.blamed(liar); n > maxStrikes {
			t.Errorf("the liar was asked on after %d bad units", n)
		}
		blamed += r.blamed(liar)
		for _, x := range r.swarm.Suspects() {
			if x.Node != liar.id.ID {
				t.Errorf("%s is a suspect", x.Node.Short())
			}
		}
	}
	if blamed < maxStrikes {
		t.Errorf("the liar was blamed %d times", blamed)
	}
}

// A receiver that hangs, with its connections open, holds nobody up.
func TestFetch_AReceiverHangs(t *testing.T) {
	const size = 24 * mib
	l := newLab(t)
	source := l.start()
	receivers := []*node{l.start(), l.start(), l.start()}
	data := content(size)
	w := source.put(data)
	l.held(source)
	source.uplinkOf(12 * mib)
	dead := newGate(0)
	receivers[0].bend(&faulty{read: dead.read})
	fetchAll(t, w, receivers...)
	for _, r := range receivers {
		r.has(data)
	}
}

// A client reads from a site that is one of several receivers: the bytes are
// right, in order, and nothing is sent twice to its site.
func TestOpenBlob_WhileOthersReceive(t *testing.T) {
	const size = 32*mib + 9
	l := newLab(t)
	source := l.start()
	receivers := []*node{l.start(), l.start(), l.start()}
	data := content(size)
	w := source.put(data)
	l.held(source)
	source.uplinkOf(16 * mib)
	var wg sync.WaitGroup
	wg.Go(func() { fetchAll(t, w, receivers[1:]...) })
	got, err := receivers[0].read(w)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	wg.Wait()
	if n := unitsOf(size); receivers[0].got() > n+maxDoubles+2 {
		t.Errorf("%d units came for a blob of %d", receivers[0].got(), n)
	}
}

// Who knows only receivers, and none that has all of it, gets what they get.
func TestFetch_FromAReceiverAlone(t *testing.T) {
	l := newLab(t)
	source, first, second := l.start(), l.start(), l.start()
	data := content(odd)
	w := source.put(data)
	l.held(source)
	g := newGate(4 * mib)
	source.bend(&faulty{read: g.read})
	done := make(chan error, 2)
	go func() { done <- first.swarm.Fetch(t.Context(), w) }()
	<-g.reached
	eventually(t, "four units are here", func() bool { return first.got() == 4 })
	l.held(first)
	go func() { done <- second.swarm.Fetch(t.Context(), w) }()
	eventually(t, "they are passed on", func() bool { return second.got() == 4 })
	g.open(odd)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	second.has(data)
	if source.sent() != unitsOf(odd) {
		t.Errorf("the holder sent %d units", source.sent())
	}
	if first.sent() != unitsOf(odd) {
		t.Errorf("the receiver passed on %d units", first.sent())
	}
}
