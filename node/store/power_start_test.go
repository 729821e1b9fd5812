package store

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/faultfs"

	"github.com/portolan/portolan/node/identity"
)

// fill pushes so many blobs that are files, and as many tags of one manifest.
func (p *powerScript) fill(n uint64) error {
	tags := make([]string, n)
	for i := range n {
		b := crashContent(5000+i, sizeFile)
		if err := p.PutFetched(p.ctx, identity.ProjectID{}, digest.FromBytes(b), b, Placed); err != nil {
			return err
		}
		tags[i] = fmt.Sprint("v", i)
	}
	return p.manifest(70, tags...)
}

// scriptPull answers one pull, by tag: all that a start has to come to.
func scriptPull(p *powerScript) error {
	info, err := p.Catalog().Tag(powerLink.PID, powerLink.Repo, "v1")
	if err != nil {
		return err
	}
	refs, err := p.Catalog().Refs(powerLink.PID, powerLink.Repo, info.Digest)
	if err != nil {
		return err
	}
	for _, r := range refs {
		b, err := p.Open(p.ctx, r.Digest)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, b)
		if err := errors.Join(err, b.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestOpen_DoesNotWalkTheStore counts what a start and a first pull ask of the
// disk: it does not grow with the number of blobs.
func TestOpen_DoesNotWalkTheStore(t *testing.T) {
	faultfs.Require(t)
	w := faultfs.StartWorker(t)
	asked := func(script string) faultfs.Counts {
		f := faultfs.New(faultfs.Empty())
		dir, unmount := f.MountT(t)
		if err := w.Do(powerRequest{Script: script, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		unmount()
		again := faultfs.New(f.Crash(f.Len(), 1)) // nothing of it is in the kernel's caches
		dir, unmount = again.MountT(t)
		if err := w.Do(powerRequest{Script: "pull", Dir: dir}); err != nil {
			t.Fatal(err)
		}
		unmount()
		return again.Counts()
	}
	few, many := asked("few"), asked("many")
	t.Logf("a start and a pull with 10 blobs: %+v, with 200: %+v", few, many)
	// The fan-out has 256 directories, of which 10 blobs fill 10: that they are
	// there is not looked at either.
	const slack = 8 // the database's own files
	if many.DirReads > few.DirReads+slack || many.Opens > few.Opens+slack || many.Lookups > few.Lookups+slack {
		t.Errorf("a start with 20 times the blobs asked %+v of the disk, one with few %+v", many, few)
	}
}
