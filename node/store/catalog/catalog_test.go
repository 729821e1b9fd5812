package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/y"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func TestPutManifest_IsReadBack(t *testing.T) {
	clk := newClock()
	c := openMemory(t, Options{Now: clk.now})
	pid := identity.NewProjectID()
	p := put(pid, "app/web", "one", "1.0", "latest", "1.0")
	p.Subject, p.ArtifactType = digest.FromString("subject"), "application/vnd.test"
	dot := mustPut(t, c, p)

	for _, tag := range []string{"1.0", "latest"} {
		got, err := c.Tag(pid, "app/web", tag)
		want := TagInfo{Name: tag, Digest: p.Digest, Stamp: uint64(clk.at.UnixMilli()) << stampShift, Dot: dot, Actor: "ann", At: got.At}
		if err != nil || !cmp.Equal(got, want) || !got.At.Equal(clk.at) {
			t.Errorf("tag %s: %+v, %v", tag, got, err)
		}
	}
	got, err := c.Manifest(pid, "app/web", p.Digest)
	want := ManifestInfo{Repo: "app/web", Digest: p.Digest, MediaType: p.MediaType, Size: p.Size, Subject: p.Subject,
		ArtifactType: p.ArtifactType, Home: "fra", Actor: "ann", Dot: dot, At: got.At}
	if err != nil || got != want {
		t.Errorf("manifest: %+v, %v; want %+v", got, err, want)
	}
	if refs, err := c.Refs(pid, "app/web", p.Digest); err != nil || !cmp.Equal(refs, p.Refs) {
		t.Errorf("refs: %v, %v", refs, err)
	}
	if b, ok, err := c.Content(p.Digest); err != nil || !ok || string(b) != string(p.Bytes) {
		t.Errorf("content: %q, %v, %v", b, ok, err)
	}
	if info, err := c.Repository(pid, "app/web"); err != nil || info != (RepositoryInfo{"app/web", 2, 1}) {
		t.Errorf("repository: %+v, %v", info, err)
	}
	for d, want := range map[digest.Digest]int64{p.Digest: p.Size, p.Refs[0].Digest: 11, p.Refs[1].Digest: 1 << 20} {
		if size, ok, err := c.Linked(pid, "app/web", d); err != nil || !ok || size != want {
			t.Errorf("linked %s: %d, %v, %v", d, size, ok, err)
		}
		if _, ok, err := c.Linked(pid, "app", d); err != nil || ok {
			t.Errorf("%s is linked to another repository: %v", d, err)
		}
		if repo, _, ok, err := c.LinkedIn(pid, d); err != nil || !ok || repo != "app/web" {
			t.Errorf("linked in %q: %v, %v", repo, ok, err)
		}
		if _, _, ok, err := c.LinkedIn(identity.NewProjectID(), d); err != nil || ok {
			t.Errorf("%s is linked in another project: %v", d, err)
		}
	}
}

func TestPutManifest_RefusesWhatIsMalformed(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	for name, spoil := range map[string]func(*Put){
		"no repository":               func(p *Put) { p.Repo = "" },
		"a NUL in the repository":     func(p *Put) { p.Repo = "a\x00b" },
		"an empty tag":                func(p *Put) { p.Tags = []string{""} },
		"a long tag":                  func(p *Put) { p.Tags = []string{strings.Repeat("x", maxNameBytes+1)} },
		"a digest of other bytes":     func(p *Put) { p.Digest = digest.FromString("other") },
		"no digest":                   func(p *Put) { p.Digest = "" },
		"a wrong size":                func(p *Put) { p.Size++ },
		"a malformed subject":         func(p *Put) { p.Subject = "sha256:00" },
		"a malformed reference":       func(p *Put) { p.Refs[0].Digest = "x" },
		"a negative size":             func(p *Put) { p.Refs[0].Size = -1 },
		"a NUL in the artifact type":  func(p *Put) { p.ArtifactType = "a\x00" },
		"too many bytes to be inline": func(p *Put) { p.Bytes = make([]byte, MaxInlineManifest+1) },
	} {
		t.Run(name, func(t *testing.T) {
			p := put(pid, "app", "one", "1.0")
			spoil(&p)
			if _, err := c.PutManifest(t.Context(), p); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want ErrInvalid", err)
			}
		})
	}
	if projects, err := c.Projects(); err != nil || len(projects) != 0 {
		t.Errorf("something was written: %v, %v", projects, err)
	}
}

func TestListings_AreInByteOrderAndPaged(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	tags := []string{"0", "10", "2", "Z", "_a", "a", "a-b", "a.b", "ab"}
	repos := []string{"a", "a-b", "a/b", "a/b/c", "ab"}
	mustPut(t, c, put(pid, "a/b", "x", tags...))
	for _, r := range repos {
		mustPut(t, c, put(pid, r, "x"))
	}
	mustPut(t, c, put(identity.NewProjectID(), "elsewhere", "x", "t"))
	for n := 1; n <= len(tags)+1; n++ {
		if got := pages(t, n, func(after string) ([]string, error) { return c.Tags(pid, "a/b", after, n) }); !slices.Equal(got, tags) {
			t.Errorf("tags by %d: %v", n, got)
		}
		if got := pages(t, n, func(after string) ([]string, error) { return c.Repositories(pid, after, n) }); !slices.Equal(got, repos) {
			t.Errorf("repositories by %d: %v", n, got)
		}
	}
	if got, err := c.Tags(pid, "a/b", "1", 2); err != nil || !slices.Equal(got, []string{"10", "2"}) {
		t.Errorf("tags behind one that is not there: %v, %v", got, err)
	}
	if got, err := c.Tags(pid, "a", "", 5); err != nil || len(got) != 0 {
		t.Errorf("tags of the repository above: %v, %v", got, err)
	}
}

func pages(t *testing.T, n int, list func(after string) ([]string, error)) []string {
	t.Helper()
	var all []string
	for after := ""; ; after = all[len(all)-1] {
		got, err := list(after)
		if err != nil || len(got) > n {
			t.Fatalf("%v, %v", got, err)
		}
		all = append(all, got...)
		if len(got) < n {
			return all
		}
	}
}

func TestManifests_Referrers_TagsOf(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	subject := mustManifest(t, c, put(pid, "app", "subject", "1.0", "latest"))
	var sboms, all []digest.Digest
	for i := range 6 {
		p := put(pid, "app", fmt.Sprint("referrer ", i))
		p.Subject, p.ArtifactType = subject, "application/vnd.sbom"
		if i%3 == 0 {
			p.ArtifactType = "application/vnd.signature"
		}
		d := mustManifest(t, c, p)
		all = append(all, d)
		if i%3 != 0 {
			sboms = append(sboms, d)
		}
	}
	slices.Sort(all)
	slices.Sort(sboms)
	for typ, want := range map[string][]digest.Digest{"": all, "application/vnd.sbom": sboms, "application/vnd.none": nil} {
		var got []digest.Digest
		for after := digest.Digest(""); ; after = got[len(got)-1] {
			page, err := c.Referrers(pid, "app", subject, typ, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page {
				got = append(got, m.Digest)
			}
			if len(page) < 2 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("referrers of type %q: %v, want %v", typ, got, want)
		}
	}
	if tags, err := c.TagsOf(pid, "app", subject, 10); err != nil || !slices.Equal(tags, []string{"1.0", "latest"}) {
		t.Errorf("tags of the subject: %v, %v", tags, err)
	}
	infos, err := c.Manifests(pid, "app", "", 100)
	if err != nil || len(infos) != 7 {
		t.Errorf("%d manifests, %v", len(infos), err)
	}
	n := 0
	if err := c.EachManifest(pid, func(m ManifestInfo) error { n++; return nil }); err != nil || n != 7 {
		t.Errorf("each of %d manifests, %v", n, err)
	}
	stop := errors.New("enough")
	if err := c.EachManifest(pid, func(ManifestInfo) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("walk ended with %v", err)
	}
}

func mustManifest(t *testing.T, c *Catalog, p Put) digest.Digest {
	t.Helper()
	mustPut(t, c, p)
	return p.Digest
}

func TestDelete(t *testing.T) {
	c := openMemory(t, Options{})
	pid, ctx := identity.NewProjectID(), t.Context()
	a, b := put(pid, "app", "a", "1", "2", "latest"), put(pid, "app", "b", "latest")
	mustPut(t, c, a)
	mustPut(t, c, b)
	gone := func(tag string) {
		t.Helper()
		if _, err := c.Tag(pid, "app", tag); !errors.Is(err, ErrNotFound) {
			t.Errorf("tag %s: %v, want ErrNotFound", tag, err)
		}
	}
	if err := c.DeleteTag(ctx, pid, "app", "1", "ann", 1); err != nil {
		t.Fatal(err)
	}
	gone("1")
	if err := c.DeleteTag(ctx, pid, "app", "1", "ann", 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := c.DeleteManifest(ctx, pid, "app", a.Digest, "ann", 1); err != nil {
		t.Fatal(err)
	}
	gone("2")
	if info, err := c.Tag(pid, "app", "latest"); err != nil || info.Digest != b.Digest {
		t.Errorf("latest: %+v, %v", info, err)
	}
	if _, err := c.Manifest(pid, "app", a.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("manifest: %v", err)
	}
	if _, ok, err := c.Linked(pid, "app", a.Refs[0].Digest); ok || err != nil {
		t.Errorf("a blob of the deleted manifest is linked: %v", err)
	}
	if _, ok, err := c.Linked(pid, "app", a.Refs[1].Digest); !ok || err != nil {
		t.Errorf("a blob that the other manifest has too is not linked: %v", err)
	}
	if err := c.DeleteManifest(ctx, pid, "app", a.Digest, "ann", 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := c.DeleteRepository(ctx, pid, "app", "ann", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(pid, "app"); !errors.Is(err, ErrNotFound) {
		t.Errorf("repository: %v", err)
	}
	if repos, err := c.Repositories(pid, "", 10); err != nil || len(repos) != 0 {
		t.Errorf("repositories: %v, %v", repos, err)
	}
	if err := c.DeleteRepository(ctx, pid, "app", "ann", 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := auditDerived(c, pid); err != nil {
		t.Error(err)
	}
}

// A manifest may have more tags than one transaction takes.
func TestDelete_ManifestAndRepositoryWithManyTags(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	const n = 2*deleteChunk + 10
	setTags := func() digest.Digest {
		p := put(pid, "app", "a")
		for i := range n {
			p.Tags = append(p.Tags, tagName(i))
		}
		return mustManifest(t, c, p)
	}
	d := setTags()
	if err := c.DeleteManifest(t.Context(), pid, "app", d, "ann", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(pid, "app"); !errors.Is(err, ErrNotFound) {
		t.Errorf("repository: %v", err)
	}
	setTags()
	if err := c.DeleteRepository(t.Context(), pid, "app", "ann", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(pid, "app"); !errors.Is(err, ErrNotFound) {
		t.Errorf("repository: %v", err)
	}
	if err := auditDerived(c, pid); err != nil {
		t.Error(err)
	}
}

func TestPutManifest_IndexAddsItsChildrenAgain(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	child := put(pid, "app", "child")
	mustPut(t, a, child)
	mustPut(t, a, put(pid, "app", "other"))
	mustPull(t, b, a, pid)
	// One site cleans up the untagged child while another pushes an index of it.
	if err := b.DeleteManifest(t.Context(), pid, "app", child.Digest, "gc", 1); err != nil {
		t.Fatal(err)
	}
	index := put(pid, "app", "index", "1.0")
	index.Refs = []Ref{{Digest: child.Digest, Size: child.Size, Kind: RefManifest}}
	dot := mustPut(t, a, index)
	mustPull(t, a, b, pid)
	mustPull(t, b, a, pid)
	for _, c := range []*Catalog{a, b} {
		if info, err := c.Manifest(pid, "app", child.Digest); err != nil || info.Dot != dot {
			t.Errorf("child: %+v, %v", info, err)
		}
	}
}

func TestPutManifest_RefusesWhatIsTooLargeAndWritesNothing(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	p := put(pid, "app", "large", "1.0")
	for i := range 40_000 {
		p.Refs = append(p.Refs, Ref{Digest: digest.FromString(fmt.Sprint(i)), Size: 1, Kind: RefBlob})
	}
	if _, err := c.PutManifest(t.Context(), p); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("error %v, want ErrTooLarge", err)
	}
	if _, err := c.Tag(pid, "app", "1.0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tag: %v", err)
	}
	mustPut(t, c, put(pid, "app", "small", "1.0"))
	if err := auditDerived(c, pid); err != nil {
		t.Error(err)
	}
}

// Many requests that together exceed one transaction go into several.
func TestCommit_SplitsGroupsButNoRequest(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	const n = 60
	errs := make(chan error, n)
	for i := range n {
		go func() {
			p := put(pid, "app", fmt.Sprint(i), fmt.Sprint("t", i))
			for j := range 1000 {
				p.Refs = append(p.Refs, Ref{Digest: digest.FromString(fmt.Sprint(i, j)), Size: 1, Kind: RefBlob})
			}
			_, err := c.PutManifest(context.WithoutCancel(t.Context()), p)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if info, err := c.Repository(pid, "app"); err != nil || info.Manifests != n || info.Tags != n {
		t.Errorf("%+v, %v", info, err)
	}
	if err := auditDerived(c, pid); err != nil {
		t.Error(err)
	}
}

func TestOpen_KeepsAllAndBeginsANewIncarnation(t *testing.T) {
	dir, pid := t.TempDir(), identity.NewProjectID()
	var dots []Dot
	var id [16]byte
	for i := range 3 {
		c, err := Open(dir, Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && c.DatabaseID() != id {
			t.Error("the database has a new ID")
		}
		id = c.DatabaseID()
		for j := range i {
			if info, err := c.Tag(pid, "app", fmt.Sprint(j)); err != nil || info.Dot != dots[j] {
				t.Errorf("tag %d after %d starts: %+v, %v", j, i, info, err)
			}
		}
		dots = append(dots, mustPut(t, c, put(pid, "app", fmt.Sprint(i), fmt.Sprint(i))))
		if _, own := c.own[dots[0].Inc]; !own {
			t.Error("an incarnation of this store was forgotten")
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if _, err := c.PutManifest(t.Context(), put(pid, "app", "x")); !errors.Is(err, ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		if _, err := c.Tag(pid, "app", "0"); !errors.Is(err, ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	}
	if dots[0].Inc == dots[1].Inc || dots[1].Inc == dots[2].Inc {
		t.Errorf("dots %v share an incarnation", dots)
	}
}

// TestTables_AllOverlap: whatever a run of a node left, Badger compacts it together
// with what comes after it.
func TestTables_AllOverlap(t *testing.T) {
	dir := t.TempDir()
	pid := identity.NewProjectID()
	const runs = 3
	for i := range runs {
		c, err := Open(dir, Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 { // the first makes the database alone
			mustPut(t, c, put(pid, "app", fmt.Sprint(i)))
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tables := c.db.Tables()
	if len(tables) == 0 {
		t.Fatal("there is no table to look at")
	}
	for _, table := range tables {
		left, right := y.ParseKey(table.Left), y.ParseKey(table.Right)
		if table.Level != 0 || !bytes.Equal(left, []byte{tabMeta}) || !bytes.Equal(right, []byte{tabEnd}) {
			t.Errorf("a table of level %d goes from %x to %x", table.Level, left, right)
		}
	}
}

func TestOpen_RefusesANewerSchema(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	err = c.db.Update(func(txn *badger.Txn) error {
		v, err := deterministic.Marshal(&rowpb.Schema{Version: schemaVersion + 1, DatabaseId: make([]byte, 16)})
		if err != nil {
			return err
		}
		return txn.Set(keyMeta(metaSchema), v)
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(dir, Options{Logger: quiet}); err == nil || !strings.Contains(err.Error(), "newer version of Portolan") {
		t.Errorf("error %v", err)
	}
}

func TestClose_WhileOthersReadAndWrite(t *testing.T) {
	for range 5 {
		c, err := Open(t.TempDir(), Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		pid := identity.NewProjectID()
		mustPut(t, c, put(pid, "app", "first", "1.0"))
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					var err error
					if w%2 == 0 {
						_, err = c.Tags(pid, "app", "", 100)
					} else {
						_, err = c.PutManifest(context.Background(), put(pid, "app", fmt.Sprint(w, i), "x"))
					}
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}
