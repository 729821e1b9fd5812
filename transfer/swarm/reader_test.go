package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

func TestOpenBlob_ColdReadThrough(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	for _, size := range []int{5, store.InlineMax + 7, mib, odd} {
		data := content(size)
		w := a.put(data)
		r, err := b.swarm.OpenBlob(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		if r.Size() != int64(size) {
			t.Fatalf("size %d", r.Size())
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is stored", func() bool { _, err := b.store.Stat(t.Context(), w.Digest); return err == nil })
		b.has(data)
	}
}

func TestOpenBlob_HundredClientsCostOneCopy(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	const clients = 100
	start := make(chan struct{})
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	for range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			<-start
			r, err := b.swarm.OpenBlob(t.Context(), w)
			if err != nil {
				errs <- err
				return
			}
			defer r.Close()
			// Not kept: a hundred copies would be most of the test's memory.
			sum := w.Digest.Algorithm().Digester()
			_, err = io.Copy(sum.Hash(), r)
			if err == nil && sum.Digest() != w.Digest {
				err = errors.New("other bytes")
			}
			if err != nil {
				errs <- err
			}
		}()
	}
	close(start)
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	if a.sent() != unitsOf(odd) {
		t.Fatalf("%d units crossed the WAN for a blob of %d", a.sent(), unitsOf(odd))
	}
}

func TestOpenBlob_BytesFlowBeforeTheEndButNotTheLastUnit(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	g := newGate(2 * mib)
	a.bend(&faulty{read: g.read})
	r, err := b.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, odd)
	if _, err := io.ReadFull(r, got[:2*mib]); err != nil {
		t.Fatal(err)
	}
	p := b.swarm.Progress()
	if len(p) != 1 || p[0].Total != odd || p[0].Done != 2*mib || p[0].Readers != 1 || p[0].From != a.id.ID {
		t.Fatalf("progress %+v", p)
	}
	g.open(8 * mib) // all but the last unit
	if _, err := io.ReadFull(r, got[2*mib:8*mib]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	last, err := b.swarm.OpenBlob(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if _, err := last.Seek(-10, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, err := last.Read(make([]byte, 10)); read <- err }()
	select {
	case err := <-read:
		t.Fatalf("the last unit was given out: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel() // a client that goes away is not kept
	if err := <-read; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	g.open(odd)
	if _, err := io.ReadFull(r, got[8*mib:]); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("after the end: %d, %v", n, err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("other bytes")
	}
}

// The last unit is here, but one before it is missing: it is held back.
func TestOpenBlob_LastUnitWaitsForTheChain(t *testing.T) {
	const big = 30*mib + 5 // more than is asked ahead, so that the reader's unit overtakes
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(big)
	w := a.put(data)
	start, hole := newGate(mib), newGate(0)
	a.bend(&faulty{read: func(ctx context.Context, off int64, p []byte) error {
		if off/mib == 20 {
			return hole.read(ctx, off, p)
		}
		return start.read(ctx, off, p)
	}})
	r, err := b.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Seek(30*mib, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	f := r.(*reader).f
	read := make(chan error, 1)
	got := make([]byte, 5)
	go func() { _, err := io.ReadFull(r, got); read <- err }()
	eventually(t, "the reader waits at the end", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.positions[r.(*reader)] == 30
	})
	start.open(big)
	<-hole.reached
	eventually(t, "the last unit is here", func() bool { return f.vessel.Has(30) })
	select {
	case err := <-read:
		t.Fatalf("the last unit was given out before the chain held: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	hole.open(big)
	if err := <-read; err != nil || !bytes.Equal(got, data[30*mib:]) {
		t.Fatalf("last unit: %v", err)
	}
}

func TestOpenBlob_RangesOfAnArrivingBlobOverHTTP(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	g := newGate(mib)
	a.bend(&faulty{read: g.read})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		r, err := b.swarm.OpenBlob(req.Context(), w)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadGateway)
			return
		}
		defer r.Close()
		http.ServeContent(rw, req, "", time.Time{}, r)
	}))
	defer srv.Close()
	client := srv.Client()
	var wg sync.WaitGroup
	for _, rg := range []struct {
		header   string
		from, to int
	}{{"bytes=0-99", 0, 100}, {"bytes=5000000-7000000", 5000000, 7000001}, {"bytes=8388600-", 8388600, odd}, {"bytes=-5", odd - 5, odd}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
			req.Header.Set("Range", rg.header)
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, data[rg.from:rg.to]) {
				t.Errorf("%s: %d, %d bytes, %v", rg.header, resp.StatusCode, len(got), err)
			}
		}()
	}
	<-g.reached
	g.open(odd)
	wg.Wait()
	client.CloseIdleConnections()
}

func TestOpenBlob_FailsWhenNobodyGoesOn(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second
	a, b := l.start(), l.start()
	l.held(a)
	w := a.put(content(odd))
	g := newGate(3 * mib)
	a.bend(&faulty{read: g.read})
	r, err := b.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, "three units are here", func() bool { return b.got() == 3 })
	got := make([]byte, 3*mib)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	a.stop()
	n, err := r.Read(got)
	var u *store.Unreachable
	if !errors.As(err, &u) || n != 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestOpenBlob_ClientThatLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		below  int64
		wanted bool
		stored bool
	}{
		"early: what came is dropped":           {below: 2 * mib},
		"early, but a rule wants the blob":      {below: 2 * mib, wanted: true, stored: true},
		"with a third here: it is brought home": {below: 3 * mib, stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, b := l.start(), l.start()
			l.held(a)
			w := a.put(content(odd))
			g := newGate(c.below)
			a.bend(&faulty{read: g.read})
			r, err := b.swarm.OpenBlob(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			fetched := make(chan error, 1)
			if c.wanted {
				placed := w
				placed.Class = catalog.Placed
				go func() { fetched <- b.swarm.Fetch(t.Context(), placed) }()
				eventually(t, "the rule's fetch joined", func() bool {
					b.swarm.mu.Lock()
					defer b.swarm.mu.Unlock()
					return b.swarm.flights[w.Digest].fetchers == 1
				})
			}
			<-g.reached
			eventually(t, "what was let through is here", func() bool { return b.got() == int(c.below/mib) })
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if c.stored {
				g.open(odd)
			}
			eventually(t, "the flight ends", func() bool { return len(b.swarm.Progress()) == 0 })
			if _, err := b.store.Stat(t.Context(), w.Digest); (err == nil) != c.stored {
				t.Fatalf("stored: %v", err)
			}
			if c.wanted {
				if err := <-fetched; err != nil {
					t.Fatal(err)
				}
			}
			if b.swarm.orphans.all != 0 {
				t.Fatal("an orphan is still counted")
			}
		})
	}
}

func TestOpenBlob_FullDiskPassesThrough(t *testing.T) {
	const big = 30*mib + 5 // more than the window and what is asked ahead
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(big)
	w := a.put(data)
	b.swarm.keep = fullDisk
	t.Run("whole", func(t *testing.T) {
		r, err := b.swarm.OpenBlob(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a range up to the end, then back", func(t *testing.T) {
		r, err := b.swarm.OpenBlob(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Seek(20*mib+1, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, mib)
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[20*mib+1:21*mib+1]) {
			t.Fatal("forward", err)
		}
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:mib]) {
			t.Fatal("back", err)
		}
		if _, err := r.Seek(25*mib, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(rest, data[25*mib:]) {
			t.Fatalf("to the end: %d bytes, %v", len(rest), err)
		}
	})
	if _, err := b.store.Stat(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("stored: %v", err)
	}
	eventually(t, "slots and buffers are given back", func() bool {
		return len(b.swarm.passing) == 0 && b.swarm.buffers.unused()
	})
}

func TestOpenBlob_Local(t *testing.T) {
	l := newLab(t)
	a := l.start()
	data := content(odd)
	w := a.put(data)
	r, err := a.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, ok := r.(store.Blob); !ok {
		t.Fatal("a local blob is the store's own, for sendfile")
	}
}
