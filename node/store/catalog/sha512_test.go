package catalog

import (
	"errors"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// long gives a manifest that is named by sha512, with parts of both kinds.
func long(pid identity.ProjectID, body string, tags ...string) Put {
	p := put(pid, "app", body, tags...)
	p.Digest = digest.SHA512.FromBytes(p.Bytes)
	p.Refs[0].Digest = digest.SHA512.FromString(body + " config")
	return p
}

// Everything that rows say by sha256 they say by sha512 as well, here and at the
// site that the rows travel to.
func TestSHA512(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	p := long(pid, "one", "1.0", "latest")
	short := put(pid, "app", "one", "short") // the same bytes by sha256
	note := long(pid, "note")
	note.Subject, note.ArtifactType = p.Digest, "application/vnd.note"
	for _, m := range []Put{p, short, note} {
		mustPut(t, a, m)
	}
	mustPull(t, b, a, pid)

	for site, c := range map[string]*Catalog{"here": a, "there": b} {
		for _, tag := range []string{"1.0", "latest"} {
			if got, err := c.Tag(pid, "app", tag); err != nil || got.Digest != p.Digest {
				t.Errorf("%s: tag %s is %s, %v", site, tag, got.Digest, err)
			}
		}
		if got, err := c.Tag(pid, "app", "short"); err != nil || got.Digest != short.Digest {
			t.Errorf("%s: the tag of the other digest is %s, %v", site, got.Digest, err)
		}
		if got, err := c.Manifest(pid, "app", note.Digest); err != nil || got.Subject != p.Digest {
			t.Errorf("%s: %+v, %v", site, got, err)
		}
		if refs, err := c.Refs(pid, "app", p.Digest); err != nil || !slices.Equal(refs, p.Refs) {
			t.Errorf("%s: refs %v, %v", site, refs, err)
		}
		if bytes, ok, err := c.Content(p.Digest); err != nil || !ok || string(bytes) != string(p.Bytes) {
			t.Errorf("%s: content %q, %v, %v", site, bytes, ok, err)
		}
		for _, d := range []digest.Digest{p.Digest, p.Refs[0].Digest, p.Refs[1].Digest, short.Digest} {
			if _, ok, err := c.Linked(pid, "app", d); err != nil || !ok {
				t.Errorf("%s: %s is not linked: %v", site, d, err)
			}
		}
		if tags, err := c.TagsOf(pid, "app", p.Digest, 10); err != nil || !slices.Equal(tags, []string{"1.0", "latest"}) {
			t.Errorf("%s: tags %v, %v", site, tags, err)
		}
		if got, err := c.Referrers(pid, "app", p.Digest, "application/vnd.note", "", 10); err != nil || len(got) != 1 || got[0].Digest != note.Digest {
			t.Errorf("%s: referrers %v, %v", site, got, err)
		}
		if got, err := c.Referrers(pid, "app", short.Digest, "", "", 10); err != nil || len(got) != 0 {
			t.Errorf("%s: referrers of the other digest %v, %v", site, got, err)
		}
		// Pages over both algorithms bring each manifest once.
		var all []digest.Digest
		for after := digest.Digest(""); ; {
			page, err := c.Manifests(pid, "app", after, 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			after = page[0].Digest
			all = append(all, after)
		}
		want := []digest.Digest{p.Digest, short.Digest, note.Digest}
		slices.Sort(all)
		slices.Sort(want)
		if !slices.Equal(all, want) {
			t.Errorf("%s: manifests %v, want %v", site, all, want)
		}
		if err := auditDerived(c, pid); err != nil {
			t.Errorf("%s: %v", site, err)
		}
	}

	if err := a.DeleteManifest(t.Context(), pid, "app", p.Digest, "ann", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Tag(pid, "app", "1.0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tag of what was deleted: %v", err)
	}
	if got, err := a.Tag(pid, "app", "short"); err != nil || got.Digest != short.Digest {
		t.Errorf("the other digest's tag: %s, %v", got.Digest, err)
	}
	spoilt := long(pid, "two")
	spoilt.Digest = digest.SHA512.FromString("other bytes")
	if _, err := a.PutManifest(t.Context(), spoilt); !errors.Is(err, ErrInvalid) {
		t.Errorf("a digest of other bytes: %v", err)
	}

	// Blobs: rows, leases, feed.
	d := digest.SHA512.FromString("layer")
	putBlob(t, a, d, Home, &Lease{PID: pid, Repo: "app", Until: a.now().Add(1e12)})
	if err := a.MarkDeleting(t.Context(), d); !errors.Is(err, ErrInUse) {
		t.Errorf("a leased blob: %v", err)
	}
	if err := a.EndLease(t.Context(), d, pid, "app"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.MarkDeleting(t.Context(), d), a.RemoveBlob(t.Context(), d)); err != nil {
		t.Fatal(err)
	}
	feed, err := a.Feed(0, 100)
	if err != nil || len(feed) == 0 || feed[len(feed)-1].Digest != d || feed[len(feed)-1].State != Gone {
		t.Errorf("feed %v, %v", feed, err)
	}
}
