package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
)

const sub = int(units.SubUnit)

// tap lets each of a holder's streams carry so many bytes, until it is opened: all
// of them, whatever they are.
type tap struct {
	below  int
	opened chan struct{}
	dry    chan struct{} // closed when somebody waits
	once   sync.Once
	open   func()
}

func newTap(t testing.TB, below int) *tap {
	tp := &tap{below: below, opened: make(chan struct{}), dry: make(chan struct{})}
	tp.open = sync.OnceFunc(func() { close(tp.opened) })
	t.Cleanup(tp.open)
	return tp
}

type tapped struct {
	stream
	tap  *tap
	ctx  context.Context
	left int
}

func (s *tapped) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	if n > 0 {
		got, err := s.stream.Write(p[:n])
		s.left -= got
		if err != nil || got == len(p) {
			return got, err
		}
	}
	s.tap.once.Do(func() { close(s.tap.dry) })
	select {
	case <-s.tap.opened:
		s.left = 1 << 62
	case <-s.ctx.Done():
		return n, s.ctx.Err()
	}
	rest, err := s.stream.Write(p[n:])
	return n + rest, err
}

// splitsAs is how a test has a holder make sub-states.
type splitsAs func(d digest.Digest, unit int) []byte

// turn makes a node serve from a bent source, through a tap, with sub-states made as
// a test says; nil: as the node has it. none: it knows of no sub-states.
func (n *node) turn(f *faulty, tp *tap, as splitsAs) {
	f.source = supply{n.swarm}
	n.serve(f, tp, as)
}

func (n *node) serve(src source, tp *tap, as splitsAs) {
	srv := newServer(n.config(slog.New(slog.DiscardHandler)), src, n.swarm.metrics)
	srv.crowds = n.swarm.crowds
	if as != nil {
		srv.split = func(_ context.Context, d digest.Digest, _ store.Blob, unit int) []byte { return as(d, unit) }
	}
	n.host.Handle(Protocol, func(ctx context.Context, from identity.NodeID, st *peer.Stream) {
		if tp == nil {
			srv.handle(ctx, from, st)
			return
		}
		srv.handle(ctx, from, &tapped{stream: st, tap: tp, ctx: ctx, left: tp.below})
	})
}

func none(digest.Digest, int) []byte { return nil }

// splitsOf makes the true sub-states of a blob's units.
func splitsOf(t testing.TB, alg digest.Algorithm, data []byte) splitsAs {
	h := units.NewHasher(alg)
	_, _ = h.Write(data)
	list, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	return func(_ digest.Digest, unit int) []byte {
		off, n := list.Span(unit)
		subs, err := list.SubStates(unit, bytes.NewReader(data[off:off+n]))
		if err != nil {
			t.Error(err)
		}
		return subs
	}
}

// eager opens a blob and reads its bytes as early as they can be had.
func (n *node) eager(ctx context.Context, w Want) *reader {
	n.lab.t.Helper()
	b, err := n.swarm.OpenBlob(ctx, w)
	n.lab.check(err)
	r, ok := b.(*reader)
	if !ok {
		n.lab.t.Fatal("it is here already")
	}
	n.lab.t.Cleanup(func() { _ = r.Close() })
	r.Early()
	return r
}

// takes reads exactly these bytes.
func (r *reader) takes(t testing.TB, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("%d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("other bytes")
	}
}

// waits says that there is nothing to read now.
func (r *reader) waits(t testing.TB) {
	t.Helper()
	if n, wait, err := r.read(make([]byte, 1)); n > 0 || wait == nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func (n *node) suspects(o *node) []string {
	var why []string
	for _, s := range n.swarm.Suspects() {
		if s.Node == o.id.ID {
			why = append(why, s.Why)
		}
	}
	return why
}

// A holder that has sent the first 64 KiB of a unit and no more: the client has
// them. Nothing is stored, and who takes no word for it has nothing.
func TestEarly_FirstBytesAfter64KiB(t *testing.T) {
	for _, alg := range units.Algorithms() {
		t.Run(alg.String(), func(t *testing.T) {
			l := newLab(t)
			a, b := l.start(), l.start()
			l.held(a)
			data := content(odd)
			w := a.putAs(alg, data)
			tp := newTap(t, sub+16<<10)
			a.turn(&faulty{}, tp, nil)
			r := b.eager(t.Context(), w)
			r.takes(t, data[:sub])
			r.waits(t)
			other, err := b.swarm.OpenBlob(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			other.(*reader).waits(t)
			if p := b.swarm.Progress(); len(p) != 1 || p[0].Done != 0 || b.got() != 0 {
				t.Fatalf("%d units, progress %+v", b.got(), p)
			}
			tp.open()
			r.takes(t, data[sub:])
			if err := r.Proven(); err != nil {
				t.Fatal(err)
			}
			other.(*reader).takes(t, data)
			if b.blamed(a) != 0 || a.sent() != unitsOf(odd) {
				t.Fatalf("blamed %d times, %d units sent", b.blamed(a), a.sent())
			}
			eventually(t, "it is stored", func() bool { _, err := b.store.Stat(t.Context(), w.Digest); return err == nil })
			b.hasAs(alg, data)
		})
	}
}

// far is a blob so large that its units have 8 MiB, of which there is but the first.
type far struct {
	data  []byte
	size  int64
	rec   units.Record
	list  *units.List
	ended <-chan struct{}
}

func newFar(t testing.TB, by *node) *far {
	o := &far{data: content(8 * mib), size: 9 << 30, ended: t.Context().Done()}
	h := units.NewHasher(digest.SHA256)
	_, _ = h.Write(o.data)
	// The rest of the chain is nothing that any bytes give.
	states := append(slices.Clone(h.States()), content(int(o.size/mib-8)*32)...)
	h, err := units.ResumeHasher(digest.SHA256, states)
	if err != nil {
		t.Fatal(err)
	}
	if o.list, err = h.List(); err != nil {
		t.Fatal(err)
	}
	if o.rec, err = units.Sign(o.list, by.id.ID, by.id); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *far) Open(_ context.Context, d digest.Digest, _ identity.ProjectID) (store.Blob, error) {
	if d != o.rec.Digest {
		return nil, store.ErrNotFound
	}
	return &farBlob{far: o, r: bytes.NewReader(o.data)}, nil
}

func (*far) Damaged() uint64 { return 0 }

func (*far) Doubt(digest.Digest) bool { return false }

func (o *far) Record(context.Context, digest.Digest) (units.Record, *units.List, bool, error) {
	return o.rec, o.list, true, nil
}

// farBlob gives its first unit; what is behind it never comes.
type farBlob struct {
	*far
	r *bytes.Reader
}

func (b *farBlob) Size() int64                                 { return b.size }
func (b *farBlob) Close() error                                { return nil }
func (b *farBlob) File() *os.File                              { return nil }
func (b *farBlob) Seek(off int64, whence int) (int64, error)   { return b.r.Seek(off, whence) }
func (b *farBlob) ReadAt(p []byte, off int64) (n int, e error) { return b.r.ReadAt(p, off) }
func (b *farBlob) Read(p []byte) (int, error) {
	if b.r.Len() == 0 {
		<-b.ended
	}
	return b.r.Read(p)
}

func TestEarly_OfAUnitOf8MiB_PassingThrough(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	o := newFar(t, a)
	b.swarm.keep = fullDisk // 9 GiB
	list := units.ListBytes(digest.SHA256, o.size)
	tp := newTap(t, list+units.SubStatesBytes(digest.SHA256, 8*mib)+sub+4<<10)
	a.serve(o, tp, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := b.eager(ctx, Want{Digest: o.rec.Digest, Size: o.size, PID: project})
	r.takes(t, o.data[:sub])
	r.waits(t)
	tp.open()
	r.takes(t, o.data[sub:])
	if err := r.Proven(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// A holder of before: it sends units alone, and all goes as it did.
func TestEarly_AHolderThatKnowsOfNone(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	tp := newTap(t, 8*sub)
	a.turn(&faulty{}, tp, none)
	type answer struct {
		Blob
		error
	}
	opened := make(chan answer, 1)
	go func() { r, err := b.swarm.OpenBlob(t.Context(), w); opened <- answer{r, err} }()
	<-tp.dry
	eventually(t, "the flight has the list", func() bool {
		f := b.flight(w.Digest)
		return f != nil && f.listed()
	})
	select {
	case <-b.flight(w.Digest).opened:
		t.Fatal("there is something to read")
	default:
	}
	tp.open()
	got := <-opened
	l.check(got.error)
	defer got.Close()
	r := got.Blob.(*reader)
	r.Early()
	r.takes(t, data)
	l.check(r.Proven())
}

// The holder dies in the middle of a unit that a client has some of: the next one
// sends it from the start, and the client goes on where it was.
func TestEarly_HolderDiesInTheMiddleOfAUnit(t *testing.T) {
	l := newLab(t)
	a, b, next := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	next.put(data)
	l.held(a, next)
	a.turn(&faulty{}, newTap(t, 5*sub+16<<10), nil)
	tp := newTap(t, 7*sub+16<<10)
	next.turn(&faulty{}, tp, nil)
	r := b.eager(t.Context(), w)
	r.takes(t, data[:5*sub])
	a.stop()
	// Of the other one's unit, too, before all of it is here.
	r.takes(t, data[5*sub:7*sub])
	r.waits(t)
	tp.open()
	r.takes(t, data[7*sub:])
	if err := r.Proven(); err != nil {
		t.Fatal(err)
	}
	if len(b.swarm.Suspects()) > 0 {
		t.Fatalf("suspects %v", b.swarm.Suspects())
	}
}

// Two clients at different places, one of them behind the second sub-unit of its
// unit: both have bytes before their units are here.
func TestEarly_TwoReadersAtDifferentPlaces(t *testing.T) {
	const big, place = 30*mib + 5, 20 * mib
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(big)
	w := a.put(data)
	b.swarm.pipes.splitWorth = 0 // loopback is quick
	tp := newTap(t, sub+16<<10)
	hole := newGate(place + 2*int64(sub))
	a.turn(&faulty{read: func(ctx context.Context, off int64, p []byte) error {
		if off/mib == place/mib {
			return hole.read(ctx, off, p)
		}
		return nil
	}}, tp, splitsOf(t, digest.SHA256, data))
	one := b.eager(t.Context(), w)
	two := b.eager(t.Context(), w)
	if _, err := two.Seek(place+70_000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	two.waits(t)
	one.takes(t, data[:sub])
	tp.open()
	two.takes(t, data[place+70_000:place+2*sub])
	two.waits(t)
	f := b.flight(w.Digest)
	if f.vessel.Has(place / mib) {
		t.Fatal("the unit is here")
	}
	hole.open(big)
	var wg sync.WaitGroup
	for r, from := range map[*reader]int{one: sub, two: place + 2*sub} {
		wg.Go(func() {
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(rest, data[from:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(rest), err)
			}
			if err := r.Proven(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if b.blamed(a) != 0 {
		t.Fatal("blamed")
	}
}

// A client that goes in the middle of a unit: what waits for proof waits no more,
// nothing is left behind, and the next client has the blob.
func TestEarly_CancelInTheMiddle(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	tp := newTap(t, 3*sub+16<<10)
	a.turn(&faulty{}, tp, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r := b.eager(ctx, w)
	r.takes(t, data[:3*sub])
	f := b.flight(w.Digest)
	proven := make(chan error, 1)
	go func() { proven <- r.Proven() }()
	eventually(t, "the unit is being read", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.early[0] != nil })
	cancel()
	if err := <-proven; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Proven(); !errors.Is(err, errReaderClosed) {
		t.Fatal(err)
	}
	eventually(t, "the flight ends", func() bool { return len(b.swarm.Progress()) == 0 })
	f.mu.Lock()
	if len(f.early) > 0 {
		t.Fatal("a unit is still shown")
	}
	f.mu.Unlock()
	tp.open()
	if got, err := b.read(w); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// Who receives a blob itself gives first bytes of what it has.
func TestEarly_FromAReceiver(t *testing.T) {
	l := newLab(t)
	a, mid, b := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	hole := newGate(5 * mib)
	a.bend(&faulty{read: hole.read})
	fetched := make(chan error, 1)
	go func() { fetched <- mid.swarm.Fetch(t.Context(), w) }()
	eventually(t, "half of it is here", func() bool { return mid.got() == 5 })
	tp := newTap(t, sub+16<<10)
	mid.turn(&faulty{}, tp, nil)
	l.held(mid)
	r := b.eager(t.Context(), w)
	r.takes(t, data[:sub])
	r.waits(t)
	l.held(a)
	tp.open()
	hole.open(odd)
	r.takes(t, data[sub:])
	if err := <-fetched; err != nil {
		t.Fatal(err)
	}
}
