package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// A pass sees each live manifest once and says of it what point reads say, also of
// one that several sites accepted, and nothing of what was deleted.
func TestPass_SaysWhatPointReadsSay(t *testing.T) {
	ctx, pid := t.Context(), identity.NewProjectID()
	fra, sgp := openMemory(t, Options{}), openMemory(t, Options{})
	const n, workers = 2*passRows + 100, 3
	var g sync.WaitGroup
	want := map[ManifestRef]bool{}
	for i := range n {
		p := put(pid, fmt.Sprintf("app%d", i%3), fmt.Sprint("image ", i))
		if i == 0 {
			p.Refs = append(p.Refs, Ref{Digest: digest.SHA512.FromString("a layer"), Size: 5, Kind: RefBlob}, Ref{Digest: digest.FromString("child"), Size: 7, Kind: RefManifest})
		}
		want[ManifestRef{p.Repo, p.Digest}] = true
		g.Go(func() {
			if _, err := fra.PutManifest(ctx, p); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	both := put(pid, "app1", "image 1") // two siblings, whose values share their tail
	both.Home = "sgp"
	mustPut(t, sgp, both)
	mustPull(t, fra, sgp, pid)
	gone := put(pid, "app2", "image 2")
	if err := fra.DeleteManifest(ctx, pid, gone.Repo, gone.Digest, "ann", 1); err != nil {
		t.Fatal(err)
	}
	delete(want, ManifestRef{gone.Repo, gone.Digest})

	var mu sync.Mutex
	seen := map[ManifestRef]int{}
	err := fra.PassManifests(ctx, pid, workers, func() func(*Sighting) error {
		var last []byte
		return func(s *Sighting) error {
			if bytes.Compare(last, s.key) >= 0 {
				t.Errorf("%x comes after %x", s.key, last)
			}
			last = append(last[:0], s.key...)
			info, err := s.Info()
			if err != nil {
				return err
			}
			wantInfo, wantRefs, err := fra.ManifestWithRefs(pid, info.Repo, info.Digest)
			if err != nil {
				return err
			}
			raw, err := rawDigest(info.Digest)
			if err != nil {
				return err
			}
			if info != wantInfo || string(s.Repo()) != info.Repo || string(s.Home()) != info.Home || !bytes.Equal(s.Raw(), raw) {
				t.Errorf("seen %+v at home %s, want %+v", info, s.Home(), wantInfo)
			}
			var refs []Ref
			err = s.EachRef(func(raw []byte, kind RefKind) (bool, error) {
				refs = append(refs, Ref{Digest: digestOrEmpty(raw), Kind: kind})
				return true, nil
			})
			if !slices.EqualFunc(refs, wantRefs, func(a, b Ref) bool { return a.Digest == b.Digest && a.Kind == b.Kind }) {
				t.Errorf("%s refers to %v, want %v", info.Digest, refs, wantRefs)
			}
			mu.Lock()
			seen[ManifestRef{info.Repo, info.Digest}]++
			mu.Unlock()
			return err
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for m := range want {
		if seen[m] != 1 {
			t.Errorf("%v was seen %d times", m, seen[m])
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d manifests were seen, want %d", len(seen), len(want))
	}
}

func TestPass_BlobsAreThoseThatAreHeld(t *testing.T) {
	ctx := t.Context()
	c, pid := openMemory(t, Options{}), identity.NewProjectID()
	classes := []Class{Home, Placed, Cached}
	want := map[string]Class{}
	var ds []digest.Digest
	for i := range 30 {
		d := digest.FromString(fmt.Sprint("blob ", i))
		if i%2 == 0 {
			d = digest.SHA512.FromString(fmt.Sprint("blob ", i))
		}
		raw, err := rawDigest(d)
		if err != nil {
			t.Fatal(err)
		}
		ds, want[string(raw)] = append(ds, d), classes[i%3]
		if err := c.PutBlob(ctx, BlobRow{Digest: d, Size: 5, Class: classes[i%3], For: pid}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := rawDigest(ds[0])
	if err != nil {
		t.Fatal(err)
	}
	delete(want, string(gone))
	if err := c.MarkDeleting(ctx, ds[0]); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]Class{}
	err = c.PassBlobs(ctx, 2, func() func([]byte, Class, identity.ProjectID) error {
		return func(raw []byte, class Class, of identity.ProjectID) error {
			if of != pid {
				t.Errorf("%x is of %s", raw, of)
			}
			mu.Lock()
			defer mu.Unlock()
			got[string(raw)] = class
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := c.BlobsIn(pid, append(ds, digest.FromString("never here")))
	if err != nil || len(rows) != len(ds)+1 || rows[0].State == Present || rows[len(ds)].State == Present {
		t.Fatalf("%d rows, the first %+v, the last %+v: %v", len(rows), rows[0], rows[len(rows)-1], err)
	}
	for i, d := range ds {
		raw, _ := rawDigest(d)
		if class, err := c.HeldAs(pid, raw); err != nil || class != want[string(raw)] || got[string(raw)] != class {
			t.Errorf("%s is held as %d, seen as %d, want %d: %v", d, class, got[string(raw)], want[string(raw)], err)
		}
		if i > 0 && (rows[i].Digest != d || rows[i].Class != want[string(raw)]) {
			t.Errorf("row %d is %+v, want %s", i, rows[i], d)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d blobs were seen, want %d", len(got), len(want))
	}
	// Another project has none of them, until one is shown to be its own.
	other := identity.NewProjectID()
	if err := c.Prove(ctx, ds[2], other); err != nil {
		t.Fatal(err)
	}
	rows, err = c.BlobsIn(other, ds)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range ds {
		raw, _ := rawDigest(d)
		class, err := c.HeldAs(other, raw)
		if err != nil {
			t.Fatal(err)
		}
		if own := i == 2; (class != 0) != own || (rows[i].State == Present) != own {
			t.Errorf("blob %d is held as %d for another project, its row is %+v", i, class, rows[i])
		}
	}
}

// The first error ends a pass, and so does the end of its context.
func TestPass_EndsEarly(t *testing.T) {
	pid, stop := identity.NewProjectID(), errors.New("stop")
	c := openMemory(t, Options{})
	for i := range 50 {
		mustPut(t, c, put(pid, "app", fmt.Sprint("image ", i)))
	}
	err := c.PassManifests(t.Context(), pid, 2, func() func(*Sighting) error { return func(*Sighting) error { return stop } })
	if !errors.Is(err, stop) {
		t.Errorf("a worker's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = c.PassManifests(ctx, pid, 2, func() func(*Sighting) error { return func(*Sighting) error { return nil } })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
}

// What LinkedContent gives is what LinkedIn and Content give.
func TestLinkedContent_NeedsTheProjectsLink(t *testing.T) {
	ctx, pid := t.Context(), identity.NewProjectID()
	c := openMemory(t, Options{})
	p := put(pid, "app", "image")
	mustPut(t, c, p)
	config := p.Refs[0].Digest
	body := []byte("config of image")
	if err := c.PutBlob(ctx, BlobRow{Digest: config, Size: int64(len(body)), Class: Home, For: pid}, body, nil); err != nil {
		t.Fatal(err)
	}
	q := put(pid, "app", "another")
	mustPut(t, c, q)
	foreign := q.Refs[0].Digest
	if err := c.PutBlob(ctx, BlobRow{Digest: foreign, Size: 17, Class: Home, For: identity.NewProjectID()}, []byte("config of another"), nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		pid    identity.ProjectID
		d      digest.Digest
		body   []byte
		linked bool
	}{
		{"a manifest names it", pid, config, body, true},
		{"the manifest itself", pid, p.Digest, p.Bytes, true},
		{"named, and not here", pid, p.Refs[1].Digest, nil, true},
		{"another project's", identity.NewProjectID(), config, nil, false},
		{"named, and here for another project alone", pid, foreign, nil, true},
		{"nobody's", pid, digest.FromString("other"), nil, false},
	} {
		got, linked, err := c.LinkedContent(tc.pid, tc.d)
		if err != nil || linked != tc.linked || !bytes.Equal(got, tc.body) || (got == nil) != (tc.body == nil) {
			t.Errorf("%s: %q, linked %v, want %q, %v: %v", tc.name, got, linked, tc.body, tc.linked, err)
		}
	}
}
