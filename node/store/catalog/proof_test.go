package catalog

import (
	"errors"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func wantProven(t *testing.T, c *Catalog, pid identity.ProjectID, d digest.Digest, want bool) {
	t.Helper()
	if got, err := c.Proven(pid, d); err != nil || got != want {
		t.Errorf("%s is content of %s: %t (%v), want %t", d, pid, got, err, want)
	}
}

func nilOr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Invariant 23, one way in which bytes come after the other.
func TestProof_BytesMakeIt_NamesDoNot(t *testing.T) {
	c := openMemory(t, Options{})
	ctx, a, b, d := t.Context(), identity.NewProjectID(), identity.NewProjectID(), digest.FromString("layer")
	lease := Lease{PID: a, Repo: "app", Until: time.Now().Add(time.Hour)}
	putBlob(t, c, d, Home, &lease) // an upload
	wantProven(t, c, a, d, true)
	wantProven(t, c, b, d, false)
	wantProven(t, c, identity.ProjectID{}, d, false)

	nilOr(t, c.Lease(ctx, d, Lease{PID: b, Repo: "app", Until: time.Now().Add(time.Hour)}))
	_, err := c.PutManifest(ctx, Put{PID: b, Repo: "app", Digest: digest.FromString("m"), Size: 1 << 20, Refs: []Ref{{d, 1 << 20, RefBlob}}, Home: "mal"})
	nilOr(t, err)
	if _, _, linked, err := c.LinkedIn(b, d); err != nil || !linked {
		t.Fatalf("linked: %t, %v", linked, err)
	}
	wantProven(t, c, b, d, false)
	if _, err := c.BlobIn(b, d); !errors.Is(err, ErrNotFound) {
		t.Errorf("its row for a project that only names it: %v", err)
	}
	nobody := identity.NewProjectID()
	if err := c.Mount(ctx, d, nobody, Lease{PID: b, Repo: "app", Until: time.Now().Add(time.Hour)}); !errors.Is(err, ErrNotFound) {
		t.Errorf("mounted from a project whose content it is not: %v", err)
	}
	wantProven(t, c, b, d, false)
	nilOr(t, c.Mount(ctx, d, a, Lease{PID: b, Repo: "app", Until: time.Now().Add(time.Hour)}))
	wantProven(t, c, b, d, true)

	// A fetch for a third one, and a proof for a fourth.
	third, fourth := identity.NewProjectID(), identity.NewProjectID()
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 1 << 20, Class: Cached, For: third}, nil, nil))
	nilOr(t, c.Prove(ctx, d, fourth))
	nilOr(t, c.Prove(ctx, d, fourth))
	for _, pid := range []identity.ProjectID{a, b, third, fourth} {
		wantProven(t, c, pid, d, true)
	}
	row, err := c.Blob(d)
	if err != nil || row.Class != Home || row.For != a || string(row.Record) != "signed" {
		t.Errorf("%+v, %v", row, err)
	}
	var also []identity.ProjectID
	for _, pid := range []identity.ProjectID{a, b, third, fourth} {
		nilOr(t, c.EachProof(pid, func(raw []byte) error {
			if got, ok := parseDigest(raw); ok && got == d {
				also = append(also, pid)
			}
			return nil
		}))
	}
	if len(also) != 3 {
		t.Errorf("%d projects have a row, besides the one in the blob's", len(also))
	}
	// Bytes that are lost and come back for one project stay content of all.
	nilOr(t, c.LostBlob(ctx, d))
	wantProven(t, c, a, d, false)
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 1 << 20, Class: Cached, For: fourth}, nil, nil))
	for _, pid := range []identity.ProjectID{a, b, third, fourth} {
		wantProven(t, c, pid, d, true)
	}
	// A dropped project's proof goes, also when it is the row's.
	nilOr(t, c.DropProject(ctx, b))
	wantProven(t, c, b, d, false)
	wantProven(t, c, a, d, true)
}

// What was collected is nobody's content when it is here again.
func TestProof_CollectedIsForgotten(t *testing.T) {
	c := openMemory(t, Options{})
	ctx, a, b, d := t.Context(), identity.NewProjectID(), identity.NewProjectID(), digest.FromString("layer")
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 9, Class: Cached, For: a}, nil, nil))
	nilOr(t, c.Prove(ctx, d, b))
	nilOr(t, c.MarkDeleting(ctx, d))
	wantProven(t, c, a, d, false)
	nilOr(t, c.RemoveBlob(ctx, d))
	third := identity.NewProjectID()
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 9, Class: Cached, For: third}, nil, nil))
	wantProven(t, c, a, d, false)
	wantProven(t, c, b, d, false)
	wantProven(t, c, third, d, true)
}

// A manifest's bytes are content of the projects that they came for: a page that
// only names them brings nothing, and takes nothing along.
func TestProof_ManifestBytes(t *testing.T) {
	here, liar, reader := openMemory(t, Options{}), openMemory(t, Options{}), openMemory(t, Options{})
	ctx, open, shut := t.Context(), identity.NewProjectID(), identity.NewProjectID()
	raw := body("secret")
	d := digest.FromBytes(raw)
	put := Put{PID: shut, Repo: "app", Digest: d, Size: int64(len(raw)), Bytes: raw, Home: "fra", Tags: []string{"v1"}}
	_, err := here.PutManifest(ctx, put)
	nilOr(t, err)
	put.PID, put.Bytes = open, nil
	_, err = liar.PutManifest(ctx, put)
	nilOr(t, err)
	move := func(from, to *Catalog) (missing int) {
		t.Helper()
		in, err := to.Receive(open)
		nilOr(t, err)
		defer in.End()
		_, err = from.Delta(ctx, open, in.Since(), 1<<20, func(p Page) error {
			got, err := in.Page(ctx, p)
			missing += len(got.MissingBytes)
			return err
		})
		nilOr(t, err)
		return missing
	}
	if n := move(liar, here); n != 1 {
		t.Errorf("%d manifests miss their bytes: those of another project are here", n)
	}
	if _, ok, err := here.ContentIn(open, d); ok || err != nil {
		t.Errorf("another project's bytes are given: %v", err)
	}
	if n := move(here, reader); n != 1 {
		t.Errorf("%d manifests miss their bytes", n)
	}
	if _, ok, err := reader.Content(d); ok || err != nil {
		t.Errorf("the page took another project's bytes along: %v", err)
	}
	// Who has them pushes them.
	put.Bytes = raw
	_, err = here.PutManifest(ctx, put)
	nilOr(t, err)
	if n := move(here, reader); n != 0 {
		t.Errorf("%d manifests miss their bytes", n)
	}
	for _, c := range []*Catalog{here, reader} {
		if got, ok, err := c.ContentIn(open, d); !ok || err != nil || string(got) != string(raw) {
			t.Errorf("%q, %t, %v", got, ok, err)
		}
	}
}

// A store of schema 1 goes on giving each project what it names; from then on a
// name is not enough. The step can be cut short.
func TestProof_Schema1(t *testing.T) {
	dir := t.TempDir()
	ctx, a, b := t.Context(), identity.NewProjectID(), identity.NewProjectID()
	layer, leased, idle := digest.FromString("layer"), digest.FromString("leased"), digest.FromString("idle")
	c, err := Open(dir, Options{Logger: quiet})
	nilOr(t, err)
	for _, d := range []digest.Digest{layer, leased, idle} {
		nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 9, Class: Home}, nil, nil))
	}
	for _, pid := range []identity.ProjectID{a, b} {
		_, err := c.PutManifest(ctx, Put{PID: pid, Repo: "app", Digest: digest.FromString("m" + pid.String()), Size: 1 << 20, Refs: []Ref{{layer, 9, RefBlob}}, Home: "fra"})
		nilOr(t, err)
	}
	nilOr(t, c.Lease(ctx, leased, Lease{PID: b, Repo: "app", Until: time.Now().Add(time.Hour)}))
	id := c.DatabaseID()
	// As an older program left it, but for what a step that was cut short did.
	schema, err := proto.Marshal(&rowpb.Schema{Version: 1, DatabaseId: id[:]})
	nilOr(t, err)
	nilOr(t, c.Prove(ctx, layer, b))
	nilOr(t, c.db.Update(func(txn *badger.Txn) error { return txn.Set(keyMeta(metaSchema), schema) }))
	nilOr(t, c.Close())

	for range 2 {
		c, err = Open(dir, Options{Logger: quiet})
		nilOr(t, err)
		if c.DatabaseID() != id {
			t.Error("it is another database")
		}
		wantProven(t, c, a, layer, true)
		wantProven(t, c, b, layer, true)
		wantProven(t, c, b, leased, true)
		wantProven(t, c, a, leased, false)
		wantProven(t, c, a, idle, false)
		if row, err := c.Blob(layer); err != nil || row.Class != Home || row.Size != 9 {
			t.Errorf("%+v, %v", row, err)
		}
		late := identity.NewProjectID()
		_, err := c.PutManifest(ctx, Put{PID: late, Repo: "app", Digest: digest.FromString("m" + late.String()), Size: 1 << 20, Refs: []Ref{{layer, 9, RefBlob}}, Home: "mal"})
		nilOr(t, err)
		wantProven(t, c, late, layer, false)
		nilOr(t, c.Close())
	}
}
