package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
)

const (
	// stallAfter is how long the bucket may take for the next piece of anything.
	// It covers the driver's own retries.
	stallAfter = 30 * time.Second
	// slowestRate is the least number of bytes in a second at which a part is sent:
	// drivers tell nothing before a part is complete.
	slowestRate = 256 << 10
	// maxSends bounds the blobs on their way to the bucket at once: a driver holds
	// one or two parts of each in memory.
	maxSends = 8
	// wholeUpTo is the size up to which a blob is sent in one request instead of
	// the three that a multi-part upload takes: what S3 asks of a part at least.
	wholeUpTo = 5 << 20
	// maxControlBytes bounds the small objects that are read whole: a unit list has
	// at most some 4 MiB (units.MaxSize).
	maxControlBytes = 8 << 20
)

// objects keeps finished blobs in a bucket, under the keys that they have on a
// disk:
//
//	/blobs/<alg>/ab/<hex>   a blob
//	/units/<alg>/ab/<hex>   its unit list, if it has more than one unit
//	/owner                  whose they are: "portolan store 1", the store's id
//	/probe-<store id>       there for a moment at each start and each Probe
//
// Objects are immutable: a digest has one content. None of the calls that make a
// driver list is on a request's path: existence and size are the row's, and what
// has to be removed is noted and removed by the sweep (see doubt.go).
type objects struct {
	*Backend
	id    string
	log   *slog.Logger
	stall time.Duration
	notes doubts
	sends chan struct{}
	lists listCache

	metrics metrics
	proof   proof
}

func newObjects(cfg Config) *objects {
	o := &objects{
		Backend: cfg.Backend, id: cfg.StoreID, log: cfg.Logger, stall: cfg.Backend.Stall,
		notes: newDoubts(cfg.Dir, cfg.Now), sends: make(chan struct{}, maxSends), metrics: newMetrics(), proof: proof{now: cfg.Now, proving: make(chan struct{}, 1)},
	}
	if o.stall <= 0 {
		o.stall = stallAfter
	}
	return o
}

func blobKey(d digest.Digest) string { return "/blobs/" + keyOf(d) }
func listKey(d digest.Digest) string { return "/units/" + keyOf(d) }

// errNoObject: the bucket answered that there is no such object. Whether to
// believe it is for confirm to say.
var errNoObject = fmt.Errorf("no such object: %w", fs.ErrNotExist)

// call runs one call of the driver under the guard: whole writes and deletes.
func (o *objects) call(ctx context.Context, kind, what string, limit time.Duration, fn func(context.Context) error) error {
	g := newGuard(ctx, limit)
	defer g.end()
	begun := time.Now()
	err := o.told(ctx, what, g.explain(fn(g.ctx)))
	o.metrics.note(kind, begun, err)
	return err
}

// told gives a driver's error the form that this package's callers know. The
// caller's own end stays what it is.
func (o *objects) told(ctx context.Context, what string, err error) error {
	var none storagedriver.PathNotFoundError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &none):
		return errNoObject
	}
	o.proof.doubted.Store(true)
	return o.unavailable(what, err)
}

// content reads a small object.
func (o *objects) content(ctx context.Context, key string) ([]byte, error) {
	r, err := o.open(ctx, key, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(io.LimitReader(r, maxControlBytes+1))
	if err == nil && len(b) > maxControlBytes {
		err = o.unavailable("read "+key, errors.New("it is larger than anything that Portolan puts there"))
	}
	return b, err
}

// stream is an object that is being read. Its errors are io.EOF, the context's
// and *Unavailable.
type stream struct {
	o    *objects
	ctx  context.Context
	key  string
	g    *guard
	body io.ReadCloser
}

// open begins to read an object: one request.
func (o *objects) open(ctx context.Context, key string, off int64) (*stream, error) {
	g := newGuard(ctx, o.stall)
	begun := time.Now()
	body, err := o.Driver.Reader(g.ctx, key, off)
	g.rest()
	if err != nil {
		err = o.told(ctx, "read "+key, g.explain(err))
	}
	o.metrics.note(callRead, begun, err)
	if err != nil {
		g.end()
		return nil, err
	}
	return &stream{o: o, ctx: ctx, key: key, g: g, body: body}, nil
}

func (s *stream) Read(p []byte) (int, error) {
	s.g.arm()
	n, err := s.body.Read(p)
	s.g.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.o.told(s.ctx, "read "+s.key, s.g.explain(err))
	}
	return n, err
}

func (s *stream) Close() error {
	s.g.end() // a body that is not read to its end is not waited for
	return s.body.Close()
}

// has asks for the last byte: one request that tells presence and size, where a
// driver's Stat may list.
func (o *objects) has(ctx context.Context, d digest.Digest, size int64) (bool, error) {
	r, err := o.open(ctx, blobKey(d), size-1)
	if errors.Is(err, errNoObject) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = r.Close() }()
	var two [2]byte
	n, err := io.ReadFull(r, two[:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n == 1, nil
	}
	return false, err // nil: the object is longer
}

// confirm finds out whether a blob that could not be read as its row says is
// lost: nil if it is there after all, ErrCorrupt if the bucket is still this
// store's and does not have it. A bucket that is gone, empty or another one is
// Unavailable: its word is nothing to remove rows by.
func (o *objects) confirm(ctx context.Context, d digest.Digest, size int64) error {
	ok, err := o.has(ctx, d, size)
	if err != nil || ok {
		return err
	}
	o.proof.doubted.Store(true)
	if err := o.owned(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w (%s: %s does not have its %d bytes)", ErrCorrupt, d, o.Name, size)
}

// install sends the blob. The note comes before the first byte and goes when the
// row is there: what a crash or a lost answer leaves is found by the sweep.
func (o *objects) install(ctx context.Context, b *staged) error {
	// Before there is a place to wait for: all that wait hear one answer.
	if err := o.ours(ctx); err != nil {
		return err
	}
	select {
	case o.sends <- struct{}{}:
		defer func() { <-o.sends }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := o.ours(ctx); err != nil {
		return err
	}
	// Promise: no object is in the bucket that neither a row nor a note knows.
	if err := o.notes.begin(b.digest); err != nil {
		return err
	}
	list, err := marshalList(b.list)
	if err != nil {
		return err
	}
	if list != nil {
		if err := o.sendList(ctx, b.digest, list); err != nil {
			o.notes.keep(b.digest)
			return err
		}
	}
	// Promise: when this returns the bucket has acknowledged the whole object.
	err = o.send(ctx, b)
	if err == nil {
		// Many parts may take longer than a proof holds.
		err = o.ours(ctx)
	}
	if err != nil {
		o.notes.keep(b.digest)
	}
	return err
}

func (o *objects) send(ctx context.Context, b *staged) error {
	key, what := blobKey(b.digest), "store blob "+b.digest.String()
	if b.size > wholeUpTo {
		begun := time.Now()
		err := o.sendParts(ctx, b, key, what)
		o.metrics.note(callWrite, begun, err)
		return err
	}
	all := make([]byte, b.size)
	if _, err := io.ReadFull(io.NewSectionReader(b.f, 0, b.size), all); err != nil {
		return fmt.Errorf("read back %s: %w", b.digest, err)
	}
	return o.call(ctx, callWrite, what, o.partLimit(b.size), func(ctx context.Context) error {
		return o.Driver.PutContent(ctx, key, all)
	})
}

// sendParts sends a blob in parts, one after the other. Each may take partLimit.
func (o *objects) sendParts(ctx context.Context, b *staged, key, what string) error {
	g := newGuard(ctx, o.partLimit(o.Part))
	defer g.end()
	w, err := o.Driver.Writer(g.ctx, key, false)
	if err != nil {
		return o.told(ctx, what, g.explain(err))
	}
	buf := make([]byte, copyBuffer)
	for at := int64(0); at < b.size; {
		p := buf[:min(int64(len(buf)), b.size-at)]
		if _, err := b.f.ReadAt(p, at); err != nil {
			// Our disk, not the bucket.
			_ = o.giveUp(ctx, g, w, what, err)
			return fmt.Errorf("read back %s: %w", b.digest, err)
		}
		g.arm()
		if _, err := w.Write(p); err != nil {
			return o.giveUp(ctx, g, w, what, err)
		}
		at += int64(len(p))
	}
	g.arm()
	if err := w.Commit(g.ctx); err != nil {
		return o.giveUp(ctx, g, w, what, err)
	}
	_ = w.Close() // nothing is left to flush: it gives the driver's buffer back
	return nil
}

// partLimit is how long a part of so many bytes may take.
func (o *objects) partLimit(bytes int64) time.Duration {
	return o.stall + time.Duration(bytes/slowestRate)*time.Second
}

// giveUp ends an upload that failed and tells the bucket to forget its parts, if
// it still listens; else the sweep does.
func (o *objects) giveUp(ctx context.Context, g *guard, w storagedriver.FileWriter, what string, err error) error {
	err = o.told(ctx, what, g.explain(err))
	if errors.Is(err, errNoObject) { // of an upload: it was ended by somebody else
		err = o.unavailable(what, errors.New("the bucket has lost the upload"))
	}
	end := newGuard(context.WithoutCancel(ctx), o.stall)
	defer end.end()
	_ = w.Cancel(end.ctx)
	g.end()       // so that Close does not send what is left in its buffer
	_ = w.Close() // gives the driver's buffer back
	return err
}

func (o *objects) list(ctx context.Context, d digest.Digest) ([]byte, error) {
	if b := o.lists.get(d); b != nil {
		return b, nil
	}
	b, err := o.content(ctx, listKey(d))
	if err == nil {
		o.lists.put(d, b)
	}
	return b, err
}

func (o *objects) putList(ctx context.Context, d digest.Digest, b []byte, _ string) error {
	if err := o.ours(ctx); err != nil {
		return err
	}
	return o.sendList(ctx, d, b)
}

func (o *objects) sendList(ctx context.Context, d digest.Digest, b []byte) error {
	err := o.call(ctx, callWrite, "store the unit list of "+d.String(), o.partLimit(int64(len(b))), func(ctx context.Context) error {
		return o.Driver.PutContent(ctx, listKey(d), b)
	})
	if err == nil {
		o.lists.put(d, b)
	}
	return err
}

// remove deletes blob, list, and what is left of uploads that were not ended.
func (o *objects) remove(ctx context.Context, d digest.Digest) error {
	o.lists.forget(d)
	// Another store's object of the same digest is not ours to delete.
	if err := o.ours(ctx); err != nil {
		return err
	}
	for _, key := range []string{blobKey(d), listKey(d)} {
		err := o.call(ctx, callDelete, "delete "+key, o.stall, func(ctx context.Context) error { return o.Driver.Delete(ctx, key) })
		if err != nil && !errors.Is(err, errNoObject) {
			return err
		}
	}
	return nil
}

// maxLeftUploads bounds the unfinished uploads of one digest that a sweep ends:
// each attempt to store it leaves one at most.
const maxLeftUploads = 100

// endUploads ends the uploads of a digest that a crash or a dead bucket left.
func (o *objects) endUploads(ctx context.Context, d digest.Digest) error {
	// Another store's upload of the same digest is not ours to end.
	if err := o.ours(ctx); err != nil {
		return err
	}
	for range maxLeftUploads {
		if !o.Resumable {
			return nil
		}
		found := false
		err := o.call(ctx, callDelete, "end the uploads of "+d.String(), o.stall, func(ctx context.Context) error {
			w, err := o.Driver.Writer(ctx, blobKey(d), true)
			var whole storagedriver.Error
			if errors.As(err, &whole) && o.isWhole(whole) {
				return nil // there is only the object
			}
			if err != nil {
				return err
			}
			found = true
			err = w.Cancel(ctx)
			_ = w.Close()
			return err
		})
		if errors.Is(err, errNoObject) {
			return nil
		}
		if err != nil || !found {
			return err
		}
	}
	return nil
}

// isWhole recognises the S3 driver's refusal to append to a finished object.
func (o *objects) isWhole(err storagedriver.Error) bool {
	return err.Detail != nil && strings.Contains(err.Detail.Error(), "append to zero-size path")
}

// quarantine leaves the object where it is: without a row nobody is served from
// it, and a good copy replaces it. The note makes a later sweep remove it.
func (o *objects) quarantine(d digest.Digest) error {
	o.lists.forget(d)
	return o.notes.aside(d)
}

// drop leaves the removal to the sweep: a driver's Delete lists.
func (o *objects) drop(_ context.Context, d digest.Digest) error {
	o.notes.keep(d)
	return nil
}

func (o *objects) settled(d digest.Digest) { o.notes.settle(d) }

// Remote says whether finished blobs are in a bucket and not on the disk.
func (s *Store) Remote() bool { return s.objects != nil }

// Prove makes sure that the bucket belongs to this store and works; on a disk it
// does nothing. With claim a bucket without an owner is taken: only for a store
// that has no content yet.
func (s *Store) Prove(ctx context.Context, claim bool) error {
	if s.objects == nil {
		return nil
	}
	return s.objects.prove(ctx, claim)
}

// OpenAt begins to read a blob of a bucket at off, with one request. A bucket
// that says that it has none is fs.ErrNotExist: see Confirm. The bytes are as
// they come, unchecked; io.EOF may come early.
func (s *Store) OpenAt(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	r, err := s.objects.open(ctx, blobKey(d), off)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Unavailable makes the error of a bucket that does not do what it should.
func (s *Store) Unavailable(cause string) error {
	return &Unavailable{Place: s.objects.Name, Cause: cause}
}

// Confirm finds out whether a blob in a bucket that could not be read as its row
// says is lost (ErrCorrupt), or is there after all (nil). [*Unavailable] says
// neither.
func (s *Store) Confirm(ctx context.Context, d digest.Digest, size int64) error {
	return s.objects.confirm(ctx, d, size)
}

// URL gives a presigned URL at which whoever made r can read the blob, or "" if
// there is none. It asks nobody.
func (s *Store) URL(r *http.Request, d digest.Digest) (string, error) {
	if s.objects == nil || !s.objects.Redirects {
		return "", nil
	}
	u, err := s.objects.Driver.RedirectURL(r, blobKey(d))
	if err != nil {
		return "", s.objects.unavailable("presign a URL", err)
	}
	return u, nil
}
