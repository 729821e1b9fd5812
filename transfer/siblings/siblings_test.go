package siblings

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/swarm"
)

// bed is a catalogue, and a mesh whose blobs come when a test says so.
type bed struct {
	*Siblings
	t    *testing.T
	pid  identity.ProjectID
	rest bool // the project may rest here

	mu        sync.Mutex
	manifests map[image][]catalog.Ref
	here      map[digest.Digest]bool
	under     map[digest.Digest]chan error // on their way
	asked     []swarm.Want                 // in order
}

// run runs a test in a bubble.
func run(t *testing.T, test func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{t: t, pid: identity.NewProjectID(), rest: true, manifests: map[image][]catalog.Ref{}, here: map[digest.Digest]bool{}, under: map[digest.Digest]chan error{}}
		s, err := New(Config{Catalog: b, Fetch: b.fetch, MayRest: func(identity.ProjectID) bool { return b.rest }})
		if err != nil {
			t.Fatal(err)
		}
		b.Siblings = s
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		test(b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(b.underWay()) != 0 || len(b.of) != 0 {
			t.Errorf("after the end: %v, %v", b.underWay(), b.of)
		}
	})
}

// pass moves the bubble's clock on: nothing of it takes time.
func pass(d time.Duration) { <-time.After(d) }

func (b *bed) ManifestWithRefs(pid identity.ProjectID, repo string, d digest.Digest) (catalog.ManifestInfo, []catalog.Ref, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	refs, ok := b.manifests[image{repository{pid, repo}, d}]
	if !ok {
		return catalog.ManifestInfo{}, nil, catalog.ErrNotFound
	}
	return catalog.ManifestInfo{Repo: repo, Digest: d}, refs, nil
}

func (b *bed) Linked(pid identity.ProjectID, repo string, d digest.Digest) (int64, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, refs := range b.manifests {
		if i.repository == (repository{pid, repo}) && slices.ContainsFunc(refs, func(r catalog.Ref) bool { return r.Digest == d }) {
			return 1, true, nil
		}
	}
	return 0, false, nil
}

func (b *bed) Proven(pid identity.ProjectID, d digest.Digest) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return pid == b.pid && b.here[d], nil
}

func (b *bed) fetch(ctx context.Context, w swarm.Want) error {
	c := make(chan error, 1)
	b.mu.Lock()
	b.asked = append(b.asked, w)
	b.under[w.Digest] = c
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.under, w.Digest)
	}()
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// underWay lists the images under way.
func (s *Siblings) underWay() (out []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.pulls {
		out = append(out, i.manifest)
	}
	slices.Sort(out)
	return out
}

func named(name string) digest.Digest { return digest.FromString(name) }

// push makes a manifest that names blobs, by their names with a space between.
func (b *bed) push(repo, manifest, blobs string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var refs []catalog.Ref
	for n := range strings.FieldsSeq(blobs) {
		refs = append(refs, catalog.Ref{Digest: named(n), Size: 1, Kind: catalog.RefBlob})
	}
	b.manifests[image{repository{b.pid, repo}, named(manifest)}] = refs
}

// wants checks what is on its way, once nothing moves any more.
func (b *bed) wants(blobs string) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	want := strings.Fields(blobs)
	for _, n := range want {
		if b.under[named(n)] == nil {
			b.t.Errorf("%s is not on its way", n)
		}
	}
	if len(b.under) != len(want) {
		b.t.Errorf("%d blobs are on their way instead of %q", len(b.under), blobs)
	}
}

// comes lets a blob arrive, or fail.
func (b *bed) comes(blob string, err error) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.under[named(blob)] == nil {
		b.t.Fatalf("%s is not on its way", blob)
	}
	b.here[named(blob)] = err == nil
	b.under[named(blob)] <- err
}

// get is a client's GET of a blob that is missing.
func (b *bed) get(subject, repo, blob string) (end func()) {
	return b.Asked(Ask{Subject: subject, PID: b.pid, Repo: repo, Digest: named(blob), Missing: true})
}

func (b *bed) counts(result string) float64 {
	return testutil.ToFloat64(b.metrics.blobs.WithLabelValues(result))
}

func TestSiblings_TheRestComesInOrder(t *testing.T) {
	run(t, func(b *bed) {
		b.push("app", "m", "config one two three four")
		b.here[named("two")] = true
		b.Served(b.pid, "app", named("m"))
		b.wants("") // the manifest alone begins nothing
		defer b.get("user:dev", "app", "one")()
		b.wants("config three") // not what was asked for, nor what is here
		b.comes("config", nil)
		b.wants("three four")
		b.comes("three", nil)
		b.comes("four", nil)
		b.wants("")
		for _, w := range b.asked {
			if w.PID != b.pid || w.Class != catalog.Cached || !w.Ahead || w.Hurry || w.Subject != "user:dev" {
				t.Errorf("fetched as %+v", w)
			}
		}
		if b.counts(blobBrought) != 3 || b.counts(blobHere) != 1 {
			t.Errorf("brought %v, here %v", b.counts(blobBrought), b.counts(blobHere))
		}
	})
}

func TestSiblings_OnlyOfAManifestThatWasServed(t *testing.T) {
	run(t, func(b *bed) {
		b.push("app", "old", "one two")
		b.push("app", "new", "one three")
		b.push("app", "unserved", "one four")
		b.push("app", "index", "")
		b.push("other", "m", "one five")
		b.Served(b.pid, "other", named("m"))
		defer b.get("user:dev", "app", "one")()
		b.wants("") // in this repository nothing was served
		b.Served(b.pid, "app", named("old"))
		b.Served(b.pid, "app", named("new"))
		b.Served(b.pid, "app", named("index"))
		b.Served(b.pid, "app", named("deleted"))
		other := Ask{Subject: "user:dev", PID: identity.NewProjectID(), Repo: "app", Digest: named("one"), Missing: true}
		defer b.Asked(other)()
		b.wants("") // nor in that project
		here := Ask{Subject: "user:dev", PID: b.pid, Repo: "app", Digest: named("one")}
		defer b.Asked(here)()
		b.wants("") // what is here begins nothing
		defer b.get("user:dev", "app", "one")()
		b.wants("three") // of the one that was served last
	})
}

func TestSiblings_NotTwiceWithinAWhile(t *testing.T) {
	run(t, func(b *bed) {
		b.push("app", "m", "one two")
		b.Served(b.pid, "app", named("m"))
		defer b.get("user:dev", "app", "one")()
		defer b.get("user:other", "app", "one")()
		b.wants("two")
		b.comes("two", errors.New("no"))
		b.wants("")
		pass(notAgain - time.Second)
		b.get("user:dev", "app", "one")()
		b.wants("")
		pass(time.Second)
		b.get("user:dev", "app", "one")()
		b.wants("two")
	})
}

func TestSiblings_EndsWhenTheClientsLeft(t *testing.T) {
	run(t, func(b *bed) {
		b.push("app", "m", "one two three four")
		b.Served(b.pid, "app", named("m"))
		first := b.get("user:dev", "app", "one")
		pass(3 * goneAfter) // one blob may take long
		first()
		first() // twice is as good as once
		pass(goneAfter - time.Second)
		b.wants("two three")
		here := Ask{Subject: "user:dev", PID: b.pid, Repo: "app", Digest: named("one")}
		b.Asked(here)() // a client that is still there
		pass(goneAfter - time.Second)
		b.wants("two three")
		pass(time.Second)
		b.wants("")
		if len(b.underWay()) != 0 || b.counts(blobGivenUp) != 2 || len(b.asked) != 2 {
			t.Errorf("under way %v, given up %v, asked for %d", b.underWay(), b.counts(blobGivenUp), len(b.asked))
		}
	})
}

func TestSiblings_WhatEndsAnImage(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		then string // on its way
	}{
		"nobody has one: the others come": {store.ErrNotFound, "three four"},
		"the disk is full":                {store.ErrNoSpace, ""},
		"the sites can't be reached":      {&store.Unreachable{Sites: []string{"nyc"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				b.push("app", "m", "one two three four")
				b.Served(b.pid, "app", named("m"))
				defer b.get("user:dev", "app", "one")()
				b.comes("two", c.err)
				b.wants(c.then)
			})
		})
	}
}

func TestSiblings_LooksAgainBeforeEachBlob(t *testing.T) {
	for name, change := range map[string]func(*bed){
		"the manifest was deleted":   func(b *bed) { b.push("app", "m", "") },
		"the project left this site": func(b *bed) { b.rest = false },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				b.push("app", "m", "one two three four")
				b.Served(b.pid, "app", named("m"))
				defer b.get("user:dev", "app", "one")()
				b.wants("two three")
				b.mu.Lock()
				before := len(b.asked)
				b.mu.Unlock()
				change(b)
				b.comes("two", nil)
				synctest.Wait()
				if len(b.asked) != before {
					t.Errorf("%d more were asked for", len(b.asked)-before)
				}
			})
		})
	}
}

func TestSiblings_IsBounded(t *testing.T) {
	run(t, func(b *bed) {
		pull := func(subject, name string) {
			b.push(name, name, "one "+name+"-a "+name+"-b "+name+"-c")
			b.Served(b.pid, name, named(name))
			t.Cleanup(b.get(subject, name, "one"))
			synctest.Wait()
		}
		for i := range imagesEach + 1 {
			pull("user:greedy", "greedy"+string(rune('a'+i)))
		}
		if n := len(b.underWay()); n != imagesEach {
			t.Errorf("one subject has %d images under way", n)
		}
		for i := range maxImages {
			pull("user:"+string(rune('a'+i)), "image"+string(rune('a'+i)))
		}
		b.mu.Lock()
		fetches := len(b.under)
		b.mu.Unlock()
		if n := len(b.underWay()); n != maxImages || fetches != maxFetches {
			t.Errorf("%d images and %d blobs are under way", n, fetches)
		}
		if n := testutil.ToFloat64(b.metrics.images.WithLabelValues(imageRefused)); n != 1+imagesEach {
			t.Errorf("%v were refused", n)
		}
	})
}

func TestSiblings_RemembersAFewManifestsOfARepository(t *testing.T) {
	run(t, func(b *bed) {
		for i := range maxServed + 1 {
			name := string(rune('a' + i))
			b.push("app", name, name+"1 "+name+"2")
			b.Served(b.pid, "app", named(name))
		}
		b.Served(b.pid, "app", named("b")) // again: it is the newest now
		b.push("app", "z", "z1 z2")
		b.Served(b.pid, "app", named("z"))
		for _, first := range []string{"a1", "b1", "c1", "d1"} {
			defer b.get("user:dev", "app", first)()
		}
		b.wants("b2 d2")
	})
}
