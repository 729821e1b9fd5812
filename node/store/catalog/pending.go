package catalog

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
)

// Options of Open. The zero value of each field has a sensible meaning.
type Options struct {
	Logger     *slog.Logger          // default slog.Default
	Now        func() time.Time      // wall clock for stamps and expiry; default time.Now
	OnConflict func(Conflict)        // called at least once per conflict lost by a write of this store
	Metrics    prometheus.Registerer // nil: no metrics
	InMemory   bool                  // nothing is kept after Close; for tests
}

// Catalog is one site's catalogue.
type Catalog struct{}

func Open(dir string, opts Options) (*Catalog, error) { return &Catalog{}, nil }
func (c *Catalog) Close() error                       { return nil }

// DatabaseID is random and made with the database.
func (c *Catalog) DatabaseID() [16]byte { return [16]byte{} }

// writes
func (c *Catalog) PutManifest(ctx context.Context, p Put) (Dot, error) { return Dot{}, ErrClosed }
func (c *Catalog) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag, actor string, aclIndex uint64) error {
	return ErrClosed
}
func (c *Catalog) DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error {
	return ErrClosed
}
func (c *Catalog) DeleteRepository(ctx context.Context, pid identity.ProjectID, repo, actor string, aclIndex uint64) error {
	return ErrClosed
}

// reads
func (c *Catalog) Tag(pid identity.ProjectID, repo, tag string) (TagInfo, error) {
	return TagInfo{}, ErrClosed
}
func (c *Catalog) Manifest(pid identity.ProjectID, repo string, d digest.Digest) (ManifestInfo, error) {
	return ManifestInfo{}, ErrClosed
}
func (c *Catalog) Refs(pid identity.ProjectID, repo string, d digest.Digest) ([]Ref, error) {
	return nil, ErrClosed
}
func (c *Catalog) Content(d digest.Digest) ([]byte, bool, error) { return nil, false, ErrClosed }
func (c *Catalog) Tags(pid identity.ProjectID, repo, after string, n int) ([]string, error) {
	return nil, ErrClosed
}
func (c *Catalog) Repositories(pid identity.ProjectID, after string, n int) ([]string, error) {
	return nil, ErrClosed
}
func (c *Catalog) Repository(pid identity.ProjectID, repo string) (RepositoryInfo, error) {
	return RepositoryInfo{}, ErrClosed
}
func (c *Catalog) Manifests(pid identity.ProjectID, repo string, after digest.Digest, n int) ([]ManifestInfo, error) {
	return nil, ErrClosed
}
func (c *Catalog) TagsOf(pid identity.ProjectID, repo string, d digest.Digest, n int) ([]string, error) {
	return nil, ErrClosed
}
func (c *Catalog) Referrers(pid identity.ProjectID, repo string, subject digest.Digest, artifactType string, after digest.Digest, n int) ([]ManifestInfo, error) {
	return nil, ErrClosed
}
func (c *Catalog) EachManifest(pid identity.ProjectID, fn func(ManifestInfo) error) error {
	return ErrClosed
}

// Linked: referenced by a live manifest of the repository, or leased to it.
func (c *Catalog) Linked(pid identity.ProjectID, repo string, d digest.Digest) (size int64, ok bool, err error) {
	return 0, false, ErrClosed
}

// LinkedIn: as Linked, for any repository of the project.
func (c *Catalog) LinkedIn(pid identity.ProjectID, d digest.Digest) (repo string, size int64, ok bool, err error) {
	return "", 0, false, ErrClosed
}

// blob rows
func (c *Catalog) PutBlob(ctx context.Context, row BlobRow, inline []byte, lease *Lease) error {
	return ErrClosed
}
func (c *Catalog) SetClass(ctx context.Context, d digest.Digest, class Class) error { return ErrClosed }
func (c *Catalog) Blob(d digest.Digest) (BlobRow, error)                            { return BlobRow{}, ErrClosed }
func (c *Catalog) EachBlob(fn func(BlobRow) error) error                            { return ErrClosed }
func (c *Catalog) Lease(ctx context.Context, d digest.Digest, l Lease) error        { return ErrClosed }
func (c *Catalog) Pin(ctx context.Context, p Pin) error                             { return ErrClosed }
func (c *Catalog) Pins(d digest.Digest) ([]Pin, error)                              { return nil, ErrClosed }
func (c *Catalog) MarkDeleting(ctx context.Context, d digest.Digest) error          { return ErrClosed }
func (c *Catalog) RemoveBlob(ctx context.Context, d digest.Digest) error            { return ErrClosed }

// LostBlob removes the row of a blob whose file is gone or bad.
func (c *Catalog) LostBlob(ctx context.Context, d digest.Digest) error { return ErrClosed }

// feeds and hints
func (c *Catalog) Feed(after uint64, n int) ([]FeedEntry, error) { return nil, ErrClosed }
func (c *Catalog) ApplyFeed(ctx context.Context, store identity.StoreID, entries []FeedEntry, cursor uint64) error {
	return ErrClosed
}
func (c *Catalog) FeedCursor(store identity.StoreID) (uint64, error)           { return 0, ErrClosed }
func (c *Catalog) Holders(d digest.Digest) ([]identity.StoreID, error)         { return nil, ErrClosed }
func (c *Catalog) DropStore(ctx context.Context, store identity.StoreID) error { return ErrClosed }

// exchange
func (c *Catalog) Projects() ([]identity.ProjectID, error)       { return nil, ErrClosed }
func (c *Catalog) Vector(pid identity.ProjectID) (Vector, error) { return nil, ErrClosed }
func (c *Catalog) Check(pid identity.ProjectID) (Check, error)   { return Check{}, ErrClosed }
func (c *Catalog) Recount(pid identity.ProjectID) (stored, counted Check, err error) {
	return Check{}, Check{}, ErrClosed
}

// Delta gives the vector noted before the first page.
func (c *Catalog) Delta(ctx context.Context, pid identity.ProjectID, since Vector, maxBytes int, fn func(Page) error) (Vector, error) {
	return nil, ErrClosed
}
func (c *Catalog) ApplyPage(ctx context.Context, pid identity.ProjectID, p Page) (Applied, error) {
	return Applied{}, ErrClosed
}

// Adopt: since is the vector that this side sent when the exchange began.
func (c *Catalog) Adopt(ctx context.Context, pid identity.ProjectID, since, v Vector) error {
	return ErrClosed
}
func (c *Catalog) DropVector(ctx context.Context, pid identity.ProjectID) error { return ErrClosed }

// OnCommit: fn is called, coalesced, after any change of a project's entries.
func (c *Catalog) OnCommit(fn func(identity.ProjectID)) (cancel func()) { return func() {} }

// OnLocalWrite: the same, only for writes made here.
func (c *Catalog) OnLocalWrite(fn func(identity.ProjectID)) (cancel func()) { return func() {} }

// OnFeed: fn is called, coalesced, after any change of this store's feed.
func (c *Catalog) OnFeed(fn func()) (cancel func()) { return func() {} }
