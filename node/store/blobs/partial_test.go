package blobs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/smalldisk"
)

func listed(t testing.TB, b []byte) (units.Record, *units.List) {
	t.Helper()
	return listedAs(t, digest.SHA256, b)
}

func listedAs(t testing.TB, alg digest.Algorithm, b []byte) (units.Record, *units.List) {
	t.Helper()
	h := units.NewHasher(alg)
	_, _ = h.Write(b)
	l, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	return record(t, l), l
}

func unitOf(l *units.List, b []byte, i int) []byte {
	off, n := l.Span(i)
	return b[off : off+n]
}

func fetch(t testing.TB, s *Store, b []byte) *Partial {
	t.Helper()
	return fetchAs(t, s, digest.SHA256, b)
}

func fetchAs(t testing.TB, s *Store, alg digest.Algorithm, b []byte) *Partial {
	t.Helper()
	rec, l := listedAs(t, alg, b)
	p, err := s.BeginFetch(rec, l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func finish(t testing.TB, s *Store, p *Partial, want []byte) {
	t.Helper()
	if err := p.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := p.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("reading on after the install: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(p.Record().Digest, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("fetched blob differs: %v", err)
	}
	noLeftovers(t, s)
}

// Any order, bad units in between, restarts at any point: only verified bytes
// are readable, and what comes out is the blob.
func TestPartial_AnyOrder_BadUnits_Restarts(t *testing.T) {
	want := content(6, int(5*units.Unit)+1234)
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		alg := rapid.SampledFrom(units.Algorithms()).Draw(r, "algorithm")
		s := open(t, dir)
		p := fetchAs(t, s, alg, want)
		here := map[int]bool{}
		for _, i := range rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(r, "order") {
			unit := unitOf(p.List(), want, i)
			switch rapid.SampledFrom([]string{"", "", "bad unit", "restart", "kill", "read", "twice"}).Draw(r, "event") {
			case "bad unit":
				bad := bytes.Clone(unit)
				bad[len(bad)/2] ^= 1
				if err := p.Put(i, bad); !errors.Is(err, units.ErrBadUnit) || p.Has(i) {
					t.Fatalf("bad unit: %v", err)
				}
			case "restart":
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, dir)
				p = fetchAs(t, s, alg, want)
			case "kill": // nothing is closed: the units since the last checkpoint are lost
				_ = p.f.Close()
				s = open(t, dir)
				p = fetchAs(t, s, alg, want)
				for i := range here {
					if !p.Has(i) {
						delete(here, i)
					}
				}
			case "read":
				off := rapid.Int64Range(0, int64(len(want))).Draw(r, "offset")
				b := make([]byte, rapid.IntRange(0, 3<<20).Draw(r, "length"))
				n, err := p.ReadAt(b, off)
				if !bytes.Equal(b[:n], want[off:off+int64(n)]) {
					t.Fatal("read something else")
				}
				if n < len(b) && err == nil {
					t.Fatal("short read without an error")
				}
				for i := off / units.Unit; n > 0 && i <= (off+int64(n)-1)/units.Unit; i++ {
					if !here[int(i)] {
						t.Fatalf("read unit %d, which is not here", i)
					}
				}
			case "twice":
				if err := p.Put(i, unit); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Put(i, unit); err != nil {
				t.Fatal(err)
			}
			here[i] = true
			if p.Missing() != 6-len(here) {
				t.Fatalf("%d are missing, %d of 6 are here", p.Missing(), len(here))
			}
		}
		for i := range 6 {
			if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
				t.Fatal(err)
			}
		}
		finish(t, s, p, want)
	})
}

// One content under two digests is two partials and two blobs, which share no
// file and no resume.
func TestPartial_TwoAlgorithmsOfOneContent(t *testing.T) {
	want := content(7, int(2*units.Unit)+1)
	dir := t.TempDir()
	s := open(t, dir)
	a, b := fetchAs(t, s, digest.SHA256, want), fetchAs(t, s, digest.SHA512, want)
	if err := a.Put(0, unitOf(a.List(), want, 0)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	if !s.Began(a.Record().Digest) {
		t.Fatal("the first fetch left nothing")
	}
	s = open(t, dir)
	a, b = fetchAs(t, s, digest.SHA256, want), fetchAs(t, s, digest.SHA512, want)
	if a.Missing() != 2 || b.Missing() != 3 {
		t.Fatalf("%d and %d units are missing", a.Missing(), b.Missing())
	}
	// The states of one do not pass under the record of the other.
	raw, err := a.List().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := units.ParseList(b.Record(), raw); !errors.Is(err, units.ErrBadList) {
		t.Fatalf("states of the other algorithm: %v", err)
	}
	if _, err := s.BeginFetch(b.Record(), a.List()); !errors.Is(err, units.ErrBadList) {
		t.Fatalf("list of the other algorithm: %v", err)
	}
	for i := range 3 {
		if err := errors.Join(a.Put(i, unitOf(a.List(), want, i)), b.Put(i, unitOf(b.List(), want, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Abandon(); err != nil {
		t.Fatal(err)
	}
	finish(t, s, a, want)
	if here, err := s.Has(t.Context(), b.Record().Digest, int64(len(want))); err != nil || here {
		t.Fatal("the other digest is there, too")
	}
}

func TestPartial_ManyWritersAndReaders(t *testing.T) {
	want := content(7, int(20*units.Unit))
	s := open(t, t.TempDir())
	p := fetch(t, s, want)
	var wg sync.WaitGroup
	for i := range 20 {
		for range 2 {
			wg.Go(func() {
				if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
					t.Error(err)
				}
				b := make([]byte, 1000)
				if _, err := p.ReadAt(b, int64(i)*units.Unit); err != nil || !bytes.Equal(b, want[int64(i)*units.Unit:][:1000]) {
					t.Errorf("unit %d is not readable after Put: %v", i, err)
				}
			})
		}
	}
	wg.Wait()
	finish(t, s, p, want)
}

func TestPartial_Exclusive_Incomplete_Abandoned(t *testing.T) {
	want := content(8, int(2*units.Unit))
	s := open(t, t.TempDir())
	p := fetch(t, s, want)
	rec, l := listed(t, want)
	if _, err := s.BeginFetch(rec, l); !errors.Is(err, ErrFetchBusy) {
		t.Fatalf("second fetch: %v", err)
	}
	if err := p.Put(1, unitOf(l, want, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.Install(t.Context()); !errors.Is(err, ErrIncomplete) {
		t.Fatalf("half a blob: %v", err)
	}
	if err := p.Abandon(); err != nil {
		t.Fatal(err)
	}
	noLeftovers(t, s)
	if err := p.Put(0, unitOf(l, want, 0)); !errors.Is(err, errClosed) {
		t.Fatalf("put after the end: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p := fetch(t, s, want); p.Missing() != 2 {
		t.Fatal("an abandoned fetch was taken up")
	} else if err := p.Abandon(); err != nil {
		t.Fatal(err)
	}
	_, other := listed(t, content(9, int(2*units.Unit)))
	if _, err := s.BeginFetch(rec, other); !errors.Is(err, units.ErrBadList) {
		t.Fatalf("foreign list: %v", err)
	}
}

func TestPartial_DamagedMap_StartsAnew(t *testing.T) {
	want := content(8, int(3*units.Unit))
	for name, damage := range map[string]func(b []byte) []byte{
		"torn":    func(b []byte) []byte { return b[:len(b)-2] },
		"flipped": func(b []byte) []byte { b[1] ^= 4; return b },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			p := fetch(t, s, want)
			if err := p.Put(0, unitOf(p.List(), want, 0)); err != nil {
				t.Fatal(err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(p.path(extMap))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.path(extMap), damage(b), filePerm); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			p = fetch(t, s, want)
			if p.Missing() != 3 {
				t.Fatalf("%d units are missing", p.Missing())
			}
			for i := range 3 {
				if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
					t.Fatal(err)
				}
			}
			finish(t, s, p, want)
		})
	}
}

// A kill between the rename and the row leaves list and map of a file that is a
// blob now. They say nothing about the file that the next fetch makes, also if
// that one is killed before its first checkpoint.
func TestPartial_AfterAKilledCommit_StartsAnew(t *testing.T) {
	want := content(9, int(3*units.Unit))
	dir := t.TempDir()
	p := fetch(t, open(t, dir), want)
	for i := range 3 {
		if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p = fetch(t, open(t, dir), want); !p.Complete() {
		t.Fatal("nothing was kept")
	}
	for range 2 {
		if err := p.Install(t.Context()); !p.Complete() || err != nil {
			t.Fatal(err)
		}
		for again := range 2 { // the second finds what the first, killed as well, has made
			if p = fetch(t, open(t, dir), want); p.Missing() != 3 {
				t.Fatalf("attempt %d: %d of 3 units are missing from a new file", again, p.Missing())
			}
		}
		for i := range 3 {
			if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	finish(t, p.s, p, want)
}

// A real small file system, where tests may make one.
func TestFullDisk(t *testing.T) {
	dir := smalldisk.Mount(t, "4m")
	s := open(t, dir)
	big := content(1, int(6*units.Unit))
	rec, l := listed(t, big)
	if _, err := s.BeginFetch(rec, l); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("fetch: %v", err)
	}
	noLeftovers(t, s)

	u := begin(t, s)
	add(t, u, big[:units.Unit])
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	_, err := u.Append(t.Context(), bytes.NewReader(big[units.Unit:]), false)
	u.Release()
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("upload: %v", err)
	}
	if u.Offset() != units.Unit {
		t.Fatalf("offset %d", u.Offset())
	}
	// What was acknowledged is still there and fits.
	add(t, u, big[units.Unit:2*units.Unit])
	install(t, s, u, big[:2*units.Unit])
}

// A file that was installed and has no row is found by its note: a fetch that finds the
// disk full takes none away.
func TestPartial_FullDiskKeepsTheNoteOfAnInstalledFile(t *testing.T) {
	s := open(t, t.TempDir())
	want := content(1, int(2*units.Unit))
	p := fetch(t, s, want)
	for i := range 2 {
		if err := p.Put(i, unitOf(p.List(), want, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Leave()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	s.cfg.Space = func(int64) error { return ErrNoSpace }
	if _, err := s.BeginFetch(p.Record(), p.List()); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
	var orphans []digest.Digest
	_, err := s.Sweep(t.Context(), Keep{}, func(d digest.Digest, _ func() error) error {
		orphans = append(orphans, d)
		return nil
	})
	if err != nil || len(orphans) != 1 || orphans[0] != p.Record().Digest {
		t.Fatalf("the sweep finds %v, %v", orphans, err)
	}
	noLeftovers(t, s)
}

func TestSweep(t *testing.T) { each(t, testSweep) }

func testSweep(t *testing.T, alg digest.Algorithm) {
	dir := t.TempDir()
	now := time.Now()
	reopen := func() *Store {
		s := open(t, dir)
		s.cfg.Now = func() time.Time { return now }
		return s
	}
	keep := Keep{Uploads: time.Hour, Partials: 2 * time.Hour, Quarantine: 3 * time.Hour}
	sweep := func(s *Store, want Swept, orphans ...digest.Digest) {
		t.Helper()
		var got []digest.Digest
		did, err := s.Sweep(t.Context(), keep, func(d digest.Digest, _ func() error) error { got = append(got, d); return nil })
		if err != nil || did != want {
			t.Fatalf("swept %+v, want %+v: %v", did, want, err)
		}
		if len(got) != len(orphans) || (len(got) > 0 && got[0] != orphans[0]) {
			t.Fatalf("orphans %v, want %v", got, orphans)
		}
	}
	s := reopen()
	before, after := begin(t, s), content(1, 5000)
	add(t, before, after)
	p := fetchAs(t, s, alg, content(2, int(units.Unit)*2))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	sweep(s, Swept{})
	s = reopen()
	now = now.Add(61 * time.Minute)
	live := begin(t, s)
	add(t, live, after)
	sweep(s, Swept{Uploads: 1})
	if _, err := s.Upload(before.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an expired upload: %v", err)
	}
	open := fetchAs(t, s, alg, content(3, int(units.Unit)*2))
	now = now.Add(61 * time.Minute)
	if err := live.Acquire(); err != nil { // somebody is writing: not stale
		t.Fatal(err)
	}
	now = now.Add(61 * time.Minute)
	sweep(s, Swept{Partials: 1})
	live.Release()
	if err := open.Abandon(); err != nil {
		t.Fatal(err)
	}

	// A crash after the rename of an upload, and of a partial.
	if err := live.Acquire(); err != nil {
		t.Fatal(err)
	}
	if err := live.Install(t.Context(), alg.FromBytes(after), nil); err != nil {
		t.Fatal(err)
	}
	live.Release()
	s = reopen()
	if _, err := s.Upload(live.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a committed upload: %v", err)
	}
	sweep(s, Swept{Orphans: 1}, alg.FromBytes(after))
	sweep(s, Swept{})
	b := content(4, 100_000)
	p = fetchAs(t, s, alg, b)
	if err := p.Put(0, b); err != nil {
		t.Fatal(err)
	}
	if err := p.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = p.f.Close()
	s = reopen()
	sweep(s, Swept{Orphans: 1}, alg.FromBytes(b))
	sweep(s, Swept{})

	if err := s.Quarantine(alg.FromBytes(b)); err != nil {
		t.Fatal(err)
	}
	sweep(s, Swept{})
	now = now.Add(4 * time.Hour)
	sweep(s, Swept{Quarantined: 1})
	noLeftovers(t, s)
}
