package oracle

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// blobStore implements distribution.BlobStore.
type blobStore struct{ *repository }

func (b *blobStore) Stat(_ context.Context, d digest.Digest) (v1.Descriptor, error) {
	size, err := b.linked(d)
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: size}, err
}

func (b *blobStore) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if _, err := b.linked(d); err != nil {
		return nil, err
	}
	return b.Store.Open(ctx, d)
}

func (b *blobStore) Get(ctx context.Context, d digest.Digest) ([]byte, error) {
	r, err := b.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// ServeBlob sets what distribution's own does.
func (b *blobStore) ServeBlob(ctx context.Context, w http.ResponseWriter, r *http.Request, d digest.Digest) error {
	content, err := b.Open(ctx, d)
	if err != nil {
		return err
	}
	defer content.Close()
	w.Header().Set("Etag", `"`+d.String()+`"`)
	w.Header().Set("Cache-Control", "max-age=31536000")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, content)
	return nil
}

func (b *blobStore) link() store.Link { return store.Link{PID: b.pid, Repo: b.path} }

func (b *blobStore) Put(ctx context.Context, mediaType string, p []byte) (v1.Descriptor, error) {
	d, err := b.Store.PutBytes(ctx, p, b.link())
	return v1.Descriptor{MediaType: mediaType, Digest: d.Digest, Size: d.Size}, err
}

// Create begins an upload, or mounts when the options ask for it.
func (b *blobStore) Create(ctx context.Context, options ...distribution.BlobCreateOption) (distribution.BlobWriter, error) {
	var opts distribution.CreateOptions
	for _, o := range options {
		if err := o.Apply(&opts); err != nil {
			return nil, err
		}
	}
	if opts.Mount.ShouldMount {
		from, err := b.Repository(ctx, opts.Mount.From)
		if err == nil {
			d := opts.Mount.From.Digest()
			if desc, err := from.Blobs(ctx).Stat(ctx, d); err == nil {
				lease := catalog.Lease{PID: b.pid, Repo: b.path, Until: time.Now().Add(store.LeaseFor)}
				if err := b.catalog().Lease(ctx, d, lease); err == nil {
					return nil, distribution.ErrBlobMounted{From: opts.Mount.From, Descriptor: desc}
				}
			}
		}
	}
	id, err := b.Store.CreateUpload(ctx)
	if err != nil {
		return nil, err
	}
	return b.Resume(ctx, id)
}

func (b *blobStore) Resume(ctx context.Context, id string) (distribution.BlobWriter, error) {
	up, err := b.Store.Upload(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, distribution.ErrBlobUploadUnknown
	}
	if err != nil {
		return nil, err
	}
	return &writer{ctx: ctx, up: up, b: b, at: time.Now()}, nil
}

func (b *blobStore) Delete(ctx context.Context, d digest.Digest) error {
	if _, err := b.linked(d); err != nil {
		return err
	}
	err := b.catalog().EndLease(ctx, d, b.pid, b.path)
	if errors.Is(err, catalog.ErrInUse) {
		return distribution.ErrUnsupported // manifests need it
	}
	return err
}

// writer implements distribution.BlobWriter.
type writer struct {
	ctx context.Context
	up  *store.Upload
	b   *blobStore
	at  time.Time
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.ReadFrom(&oneRead{p})
	return int(n), err
}

// oneRead is a reader of bytes without WriteTo.
type oneRead struct{ p []byte }

func (r *oneRead) Read(p []byte) (int, error) {
	if len(r.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.p)
	r.p = r.p[n:]
	return n, nil
}

func (w *writer) ReadFrom(r io.Reader) (int64, error) { return w.up.Append(w.ctx, r) }
func (w *writer) Close() error                        { return nil }
func (w *writer) Size() int64                         { return w.up.Offset() }
func (w *writer) ID() string                          { return w.up.ID() }
func (w *writer) StartedAt() time.Time                { return w.at }
func (w *writer) Cancel(context.Context) error {
	if err := w.up.Cancel(); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

func (w *writer) Commit(ctx context.Context, want v1.Descriptor) (v1.Descriptor, error) {
	d, err := w.up.Commit(ctx, want.Digest, w.b.link())
	if errors.Is(err, store.ErrDigestMismatch) {
		return v1.Descriptor{}, distribution.ErrBlobInvalidDigest{Digest: want.Digest, Reason: err}
	}
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: d.Digest, Size: d.Size}, err
}
