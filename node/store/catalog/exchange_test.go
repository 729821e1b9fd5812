package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func TestExchange_BringsEntriesAndBytes(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	p := put(pid, "app", "one", "1.0")
	large := put(pid, "app", "large")
	large.Bytes = nil // above the limit: its bytes are a blob
	large.Size = MaxInlineManifest + 1
	mustPut(t, a, p)
	mustPut(t, a, large)
	got := mustPull(t, b, a, pid)
	if got.Entries != 3 || got.Changed != 3 || len(got.NewManifests) != 2 || len(got.MissingBytes) != 0 {
		t.Errorf("applied %+v", got)
	}
	if bytes, ok, err := b.Content(p.Digest); err != nil || !ok || string(bytes) != string(p.Bytes) {
		t.Errorf("content %q, %v, %v", bytes, ok, err)
	}
	if row, err := b.Blob(p.Digest); err != nil || row.Class != Placed || !row.Inline {
		t.Errorf("row %+v, %v", row, err)
	}
	if refs, err := b.Refs(pid, "app", p.Digest); err != nil || !slices.Equal(refs, p.Refs) {
		t.Errorf("refs %v, %v", refs, err)
	}
	if got := mustPull(t, b, a, pid); got.Entries != 0 {
		t.Errorf("a second pull brought %+v", got)
	}
	if err := auditDerived(b, pid); err != nil {
		t.Error(err)
	}
	if feed, err := b.Feed(0, 10); err != nil || len(feed) != 0 {
		t.Errorf("manifests that travel with entries are in the feed: %v, %v", feed, err)
	}
}

// What one request did, and what its tags need, is never torn apart.
func TestDelta_KeepsRequestsTogether(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	for i := range 30 {
		if i%7 == 0 {
			if err := a.restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		child := put(pid, "app", fmt.Sprint("child ", i))
		mustPut(t, a, child)
		index := put(pid, "app", fmt.Sprint("index ", i), "latest", fmt.Sprint("v", i), fmt.Sprint("w", i))
		index.Refs = []Ref{{Digest: child.Digest, Size: child.Size, Kind: RefManifest}}
		mustPut(t, a, index)
	}
	n := 0
	v, err := a.Delta(t.Context(), pid, nil, 1, func(p Page) error {
		n++
		if _, err := b.ApplyPage(t.Context(), pid, p); err != nil {
			return err
		}
		tags, err := b.Tags(pid, "app", "", 1000)
		if err != nil {
			return err
		}
		for _, tag := range tags {
			info, err := b.Tag(pid, "app", tag)
			if err != nil {
				return err
			}
			refs, err := b.Refs(pid, "app", info.Digest)
			if err != nil {
				return fmt.Errorf("tag %s says a manifest that is not here: %w", tag, err)
			}
			if _, err := b.Manifest(pid, "app", refs[0].Digest); err != nil {
				return fmt.Errorf("child of tag %s: %w", tag, err)
			}
			twin := "w" + strings.TrimPrefix(tag, "v")
			if strings.HasPrefix(tag, "v") && !slices.Contains(tags, twin) {
				return fmt.Errorf("tag %s came without %s of the same request", tag, twin)
			}
		}
		return nil
	})
	if err != nil || n < 10 {
		t.Fatalf("%d pages, %v", n, err)
	}
	if err := b.Adopt(t.Context(), pid, nil, v); err != nil {
		t.Fatal(err)
	}
	same(t, pid, a, b)
}

func same(t *testing.T, pid identity.ProjectID, cats ...*Catalog) {
	t.Helper()
	var first Check
	for i, c := range cats {
		stored, counted, err := c.Recount(t.Context(), pid)
		if err != nil || stored != counted {
			t.Errorf("catalogue %d: check %v, recounted %v, %v", i, stored, counted, err)
		}
		if i == 0 {
			first = stored
		} else if stored != first {
			t.Errorf("catalogue %d has %v, the first %v", i, stored, first)
		}
	}
}

// A site dies in the middle of an exchange: what it got out must still reach
// everybody, though nobody's vector covers it.
func TestDelta_PassesOnWhatABrokenExchangeBrought(t *testing.T) {
	a, b, c := openMemory(t, Options{}), openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	for i := range 20 {
		mustPut(t, a, put(pid, "app", fmt.Sprint(i), fmt.Sprint(i)))
	}
	died := errors.New("the sender died")
	_, err := a.Delta(t.Context(), pid, nil, 1, func(p Page) error {
		if _, err := b.ApplyPage(t.Context(), pid, p); err != nil {
			return err
		}
		return died
	})
	if !errors.Is(err, died) {
		t.Fatal(err)
	}
	tags, err := b.Tags(pid, "app", "", 100)
	if err != nil || len(tags) == 0 || len(tags) == 20 {
		t.Fatalf("%v, %v", tags, err)
	}
	mustPull(t, c, b, pid)
	if got, err := c.Tags(pid, "app", "", 100); err != nil || !slices.Equal(got, tags) {
		t.Errorf("%v, %v; want %v", got, err, tags)
	}
	mustPull(t, b, a, pid) // it lives after all
	mustPull(t, c, a, pid)
	same(t, pid, a, b, c)
}

func TestApplyPage_RefusesWhatIsWrong(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "one", "1.0"))
	var good Page
	if _, err := a.Delta(t.Context(), pid, nil, 1<<20, func(p Page) error { good = p; return nil }); err != nil {
		t.Fatal(err)
	}
	entry := func(spoil func(*rowpb.Entry)) func(*rowpb.Page) {
		return func(p *rowpb.Page) {
			e := &rowpb.Entry{}
			if err := proto.Unmarshal(p.Entries[0].Entry, e); err != nil {
				t.Fatal(err)
			}
			spoil(e)
			var err error
			if p.Entries[0].Entry, err = proto.Marshal(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, spoil := range map[string]func(*rowpb.Page){
		"a later version":          func(p *rowpb.Page) { p.Version++ },
		"other bytes":              func(p *rowpb.Page) { p.Contents[0].Bytes[3] ^= 1 },
		"an unknown kind":          func(p *rowpb.Page) { p.Entries[0].Key[0] = 9 },
		"no entry":                 func(p *rowpb.Page) { p.Entries[0].Entry = nil },
		"no message":               func(p *rowpb.Page) { p.Entries[0].Entry = []byte{0xff} },
		"no context":               entry(func(e *rowpb.Entry) { e.Ctx = nil }),
		"a dot outside the ctx":    entry(func(e *rowpb.Entry) { e.Siblings[0].Seq++ }),
		"a value that is not one":  entry(func(e *rowpb.Entry) { e.Siblings[0].Value = []byte{1} }),
		"a repository with no end": func(p *rowpb.Page) { p.Entries[0].Key = []byte{1, 'a'} },
	} {
		t.Run(name, func(t *testing.T) {
			pb := &rowpb.Page{}
			if err := proto.Unmarshal(good, pb); err != nil {
				t.Fatal(err)
			}
			spoil(pb)
			page, err := proto.Marshal(pb)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.ApplyPage(t.Context(), pid, page); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want ErrInvalid", err)
			}
		})
	}
	if _, err := b.ApplyPage(t.Context(), pid, Page("no page")); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want ErrInvalid", err)
	}
	if got, err := b.Projects(); err != nil || len(got) != 0 {
		t.Errorf("something was written: %v, %v", got, err)
	}
}

// One page may need more than one transaction at the receiver, which derives
// rows that the sender had already.
func TestApplyPage_LargerThanATransaction(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	index := put(pid, "app", "index", "1.0")
	index.Refs = nil
	for i := range 60 {
		child := put(pid, "app", fmt.Sprint("child ", i))
		for j := range 800 {
			child.Refs = append(child.Refs, Ref{Digest: digest.FromString(fmt.Sprint(i, j)), Size: 1, Kind: RefBlob})
		}
		mustPut(t, a, child)
		index.Refs = append(index.Refs, Ref{Digest: child.Digest, Size: child.Size, Kind: RefManifest})
	}
	mustPut(t, a, index)
	var pages int
	since := Vector{}
	v, err := a.Delta(t.Context(), pid, since, 1<<30, func(p Page) error {
		pages++
		got, err := b.ApplyPage(t.Context(), pid, p)
		if err == nil && (got.Entries != 62 || got.Changed != 62 || len(got.NewManifests) != 61) {
			t.Errorf("applied %d entries, %d changed, %d manifests", got.Entries, got.Changed, len(got.NewManifests))
		}
		return err
	})
	if err != nil || pages != 1 {
		t.Fatalf("%d pages, %v", pages, err)
	}
	if err := b.Adopt(t.Context(), pid, since, v); err != nil {
		t.Fatal(err)
	}
	same(t, pid, a, b)
	if err := auditDerived(b, pid); err != nil {
		t.Error(err)
	}
}

func TestDropVector_HealsAStoreThatLostRows(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	for i := range 5 {
		mustPut(t, a, put(pid, "app", fmt.Sprint("a", i), fmt.Sprint("a", i)))
		mustPut(t, b, put(pid, "app", fmt.Sprint("b", i), fmt.Sprint("b", i)))
	}
	mustPull(t, a, b, pid)
	mustPull(t, b, a, pid)
	own := mustPut(t, b, put(pid, "app", "unseen", "unseen")) // nobody else has it
	// Entries, one with a row that follows from it; a manifest; and such rows alone.
	gone, err := rawDigest(put(pid, "app", "a3", "a3").Digest)
	if err != nil {
		t.Fatal(err)
	}
	lost := [][]byte{
		keyEntry(pid, entryKey{kindTag, "app", "a1"}), keyLive(pid, entryKey{kindTag, "app", "a1"}),
		keyEntry(pid, entryKey{kindTag, "app", "b2"}), keyEntry(pid, entryKey{kindManifest, "app", string(gone)}),
		keyLive(pid, entryKey{kindTag, "app", "b3"}), keyRepo(pid, "app"),
	}
	if err := b.db.Update(func(txn *badger.Txn) error {
		for _, key := range lost {
			if err := txn.Delete(key); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	stored, counted, err := b.Recount(t.Context(), pid)
	if err != nil || stored == counted {
		t.Fatalf("the loss is not seen: %v, %v, %v", stored, counted, err)
	}
	before, err := b.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DropVector(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if err := auditDerived(b, pid); err != nil {
		t.Error(err)
	}
	mustPull(t, openMemory(t, Options{}), b, pid) // what is left can be given out
	if err := b.Adopt(t.Context(), pid, before, Noted{Vector: before}); !errors.Is(err, ErrVectorDropped) {
		t.Errorf("an exchange from before the drop ended with %v", err)
	}
	if dot := mustPut(t, b, put(pid, "app", "next", "next")); dot.Inc == own.Inc {
		t.Error("the incarnation whose rows were lost goes on")
	}
	mustPull(t, b, a, pid)
	mustPull(t, a, b, pid)
	for _, c := range []*Catalog{a, b} {
		for _, tag := range []string{"a1", "b2", "unseen", "next"} {
			if _, err := c.Tag(pid, "app", tag); err != nil {
				t.Errorf("tag %s: %v", tag, err)
			}
		}
	}
	same(t, pid, a, b)
	for _, c := range []*Catalog{a, b} {
		if err := auditDerived(c, pid); err != nil {
			t.Error(err)
		}
	}
}

func TestConflict_IsReportedOnceByTheLosersSite(t *testing.T) {
	clk := newClock()
	reports := make(chan Conflict, 10)
	dir := t.TempDir()
	opts := Options{Now: clk.now, Logger: quiet, OnConflict: func(c Conflict) { reports <- c }}
	loser, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	winner := openMemory(t, Options{Now: clk.now, OnConflict: func(c Conflict) { t.Errorf("the winner's site reported %+v", c) }})
	third := openMemory(t, Options{Now: clk.now, OnConflict: func(c Conflict) { t.Errorf("a third site reported %+v", c) }})
	pid := identity.NewProjectID()
	lost, won := put(pid, "app", "lost", "latest"), put(pid, "app", "won", "latest")
	dot := mustPut(t, loser, lost)
	clk.at = clk.at.Add(time.Second)
	mustPut(t, winner, won)
	mustPull(t, third, loser, pid)
	mustPull(t, third, winner, pid)
	mustPull(t, winner, loser, pid)
	mustPull(t, loser, winner, pid)
	want := Conflict{PID: pid, Repo: "app", Tag: "latest", Loser: lost.Digest, Winner: won.Digest, Dot: dot, Actor: "ann"}
	if got := <-reports; got != want {
		t.Errorf("reported %+v, want %+v", got, want)
	}
	// It stays to be read after the report, which may have been to a log that was lost.
	kept := []FoundConflict{{want, clk.at}}
	same := func(a, b FoundConflict) bool { return a.Conflict == b.Conflict && a.FoundAt.Equal(b.FoundAt) }
	for of, want := range map[identity.ProjectID][]FoundConflict{{}: kept, pid: kept, identity.NewProjectID(): nil} {
		if got, err := loser.Conflicts(of, 10); err != nil || !slices.EqualFunc(got, want, same) {
			t.Errorf("lists %+v, %v, want %+v", got, err, want)
		}
	}
	if got, err := winner.Conflicts(pid, 10); err != nil || len(got) != 0 {
		t.Errorf("the winner's site lists %+v, %v", got, err)
	}
	if n := testutil.ToFloat64(loser.metrics.conflicts); n != 1 {
		t.Errorf("it counts %v conflicts", n)
	}
	for _, c := range []*Catalog{loser, winner, third} {
		info, err := c.Tag(pid, "app", "latest")
		if err != nil || info.Digest != won.Digest || !slices.Equal(info.Conflicts, []digest.Digest{lost.Digest}) {
			t.Errorf("%+v, %v", info, err)
		}
		if tags, err := c.TagsOf(pid, "app", lost.Digest, 5); err != nil || len(tags) != 0 {
			t.Errorf("tags of the loser: %v, %v", tags, err)
		}
	}
	// The write that ends it carries the loser along.
	mustPut(t, third, put(pid, "app", "end", "latest"))
	mustPull(t, loser, third, pid)
	e := mustEntry(t, loser, pid, entryKey{kindTag, "app", "latest"})
	if len(e.sibs) != 1 || len(e.losers) != 1 || e.losers[0].dot != dot || e.losers[0].keepUntilMs != clk.at.Add(LoserKeptFor).UnixMilli() {
		t.Errorf("entry %+v", e)
	}
	if err := loser.Close(); err != nil {
		t.Fatal(err)
	}
	loser = openAt(t, dir, opts)
	mustPull(t, loser, third, pid)
	if got, err := loser.Conflicts(pid, 10); err != nil || !slices.EqualFunc(got, kept, same) {
		t.Errorf("after a restart it lists %+v, %v", got, err)
	}
	// Time passes, and the next write lets the loser go.
	clk.at = clk.at.Add(LoserKeptFor + time.Hour)
	mustPut(t, loser, put(pid, "app", "later", "latest"))
	if e := mustEntry(t, loser, pid, entryKey{kindTag, "app", "latest"}); len(e.losers) != 0 {
		t.Errorf("entry %+v", e)
	}
	if err := loser.Close(); err != nil { // waits for the callbacks
		t.Fatal(err)
	}
	if len(reports) != 0 {
		t.Errorf("reported again: %+v", <-reports)
	}
}

// A report that was not delivered before the process ended is delivered after
// the next start.
func TestConflict_SurvivesARestart(t *testing.T) {
	clk := newClock()
	dir := t.TempDir()
	loser, err := Open(dir, Options{Now: clk.now, Logger: quiet}) // nobody listens
	if err != nil {
		t.Fatal(err)
	}
	winner := openMemory(t, Options{Now: clk.now})
	pid := identity.NewProjectID()
	mustPut(t, loser, put(pid, "app", "lost", "latest"))
	clk.at = clk.at.Add(time.Second)
	mustPut(t, winner, put(pid, "app", "won", "latest"))
	mustPull(t, loser, winner, pid)
	if err := loser.Close(); err != nil {
		t.Fatal(err)
	}
	reports := make(chan Conflict, 10)
	openAt(t, dir, Options{Now: clk.now, OnConflict: func(c Conflict) { reports <- c }})
	if got := <-reports; got.Tag != "latest" {
		t.Errorf("reported %+v", got)
	}
}

func mustEntry(t *testing.T, c *Catalog, pid identity.ProjectID, k entryKey) *entry {
	t.Helper()
	var e *entry
	if err := c.view(func(r reader) (err error) { e, err = r.entry(pid, k); return err }); err != nil || e == nil {
		t.Fatal(e, err)
	}
	return e
}

func TestWatchers(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	commits, locals, feeds := make(chan identity.ProjectID, 100), make(chan identity.ProjectID, 100), make(chan bool, 100)
	cancel := b.OnCommit(func(p identity.ProjectID) { commits <- p })
	b.OnLocalWrite(func(p identity.ProjectID) { locals <- p })
	b.OnFeed(func() { feeds <- true })
	mustPut(t, a, put(pid, "app", "one", "1.0"))
	mustPull(t, b, a, pid)
	if got := <-commits; got != pid {
		t.Errorf("told of %s", got)
	}
	putBlob(t, b, digest.FromString("x"), Cached, nil)
	<-feeds
	if len(locals) != 0 {
		t.Error("a merge counted as a write made here")
	}
	cancel()
	mustPut(t, b, put(pid, "app", "two", "2.0"))
	if got := <-locals; got != pid {
		t.Errorf("told of %s", got)
	}
	if _, err := b.ApplyPage(t.Context(), pid, nil); err == nil {
		t.Error("an empty page was taken")
	}
}
