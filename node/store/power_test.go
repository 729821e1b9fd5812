package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/faultfs"
)

// powerRequest is what a test asks its worker, which alone touches the files.
type powerRequest struct {
	Script string // to run; "": check
	Dir    string
	Said   []said // what must hold
	All    bool   // everything survived, as when only the process was killed
	Killed bool   // the script's store is left open, for the worker to be killed
}

func servePower(raw json.RawMessage) error {
	var r powerRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	if r.Script != "" {
		return runPowerScript(r)
	}
	return checkPower(r)
}

// badgerTables: Badger syncs a table, and then names it in its manifest without a
// sync of the directory (levelsController.addLevel0Table).
var badgerTables = []string{".sst"}

// TestPowerCut runs each script once and looks at crashes after each of its
// operations, with what a disk may hold then: see faultfs.
func TestPowerCut(t *testing.T) {
	faultfs.Require(t)
	atMost := 150
	if testing.Short() {
		atMost = 30
	}
	workers := []*faultfs.Worker{faultfs.StartWorker(t), faultfs.StartWorker(t)}
	seed := faultfs.Seed(t)
	var made *faultfs.Image
	for _, name := range []string{"new store", "uploads", "fetches", "manifests", "collect", "races"} {
		t.Run(name, func(t *testing.T) {
			base := made
			if base == nil {
				base = faultfs.Empty()
			}
			f := faultfs.New(base)
			f.NamedBySync = badgerTables
			dir, unmount := f.MountT(t)
			if err := workers[0].Do(powerRequest{Script: name, Dir: dir}); err != nil {
				t.Fatal(err)
			}
			unmount()
			if name == "new store" {
				made = f.Crash(f.Len(), 1)
			}
			faultfs.Explore(t, f, seed, atMost, workers, func(w *faultfs.Worker, c faultfs.Crashed) error {
				return afterPowerCut(t, w, c)
			})
		})
		if t.Failed() {
			break
		}
	}
}

// afterPowerCut mounts what survived and checks it; then it cuts the power
// again, somewhere in the start that has come of it.
func afterPowerCut(t *testing.T, w *faultfs.Worker, c faultfs.Crashed) error {
	r := powerRequest{All: c.Seed == 1}
	for _, m := range c.Marks {
		var s said
		if err := json.Unmarshal([]byte(m.Text), &s); err != nil {
			return err
		}
		r.Said = append(r.Said, s)
	}
	f, err := checkImage(t, w, c.Image, r)
	if err != nil || c.N%secondCut != 0 {
		return err
	}
	// The uploads have come to their end meanwhile.
	r.Said = slices.DeleteFunc(r.Said, func(s said) bool { return s.What == saysOffset })
	r.All = false
	n := rand.New(rand.NewPCG(c.Seed, uint64(c.N))).IntN(f.Len() + 1)
	if _, err := checkImage(t, w, f.Crash(n, c.Seed), r); err != nil {
		return fmt.Errorf("and again after %d operations of the start: %w", n, err)
	}
	return nil
}

// secondCut: of so many crashes one is followed by another.
const secondCut = 4

// checkImage lets the worker check an image, and gives what that made of it.
func checkImage(t *testing.T, w *faultfs.Worker, image *faultfs.Image, r powerRequest) (*faultfs.FS, error) {
	f := faultfs.New(image)
	f.NamedBySync = badgerTables
	dir, unmount := f.MountT(t)
	defer unmount()
	r.Dir = dir
	return f, w.Do(r)
}

// expected is what must be true after all that was said.
type expected struct {
	held    map[digest.Digest][]byte // is there
	gone    map[digest.Digest]bool   // is not there
	inUse   map[digest.Digest]bool   // cannot be collected
	offsets map[string]said
	tags    map[string][]uint64 // what a tag may say; 0: nothing
	at      time.Duration
}

func expect(all []said) expected {
	e := expected{
		held: map[digest.Digest][]byte{}, gone: map[digest.Digest]bool{}, inUse: map[digest.Digest]bool{},
		offsets: map[string]said{}, tags: map[string][]uint64{},
	}
	for _, s := range all {
		var d digest.Digest
		var b []byte
		if s.Size > 0 {
			b = crashContent(s.Seed, s.Size)
			d = digest.FromBytes(b)
		}
		switch s.What {
		case saysPutting:
			delete(e.gone, d)
		case saysPut:
			e.held[d] = b
		case saysCollecting:
			delete(e.held, d)
			delete(e.inUse, d)
		case saysCollected:
			e.gone[d] = true
		case saysHeld:
			e.inUse[d] = true
		case saysOffset:
			e.offsets[s.ID] = s
		case saysEnding:
			delete(e.offsets, s.ID)
		case saysTagging:
			if e.tags[s.Tag] == nil {
				e.tags[s.Tag] = []uint64{0}
			}
			e.tags[s.Tag] = append(e.tags[s.Tag], s.Seed)
		case saysTagged:
			e.tags[s.Tag] = []uint64{s.Seed}
		case saysClock:
			e.at = s.At
		}
	}
	return e
}

// checkPower opens what survived, without help, and holds it against what was
// said. It runs in the worker.
func checkPower(r powerRequest) error {
	e := expect(r.Said)
	p, err := openPower(context.Background(), r.Dir, e.at)
	if err != nil {
		return fmt.Errorf("open what survived: %w", err)
	}
	err = errors.Join(p.wholeOrAbsent(), p.keeps(e), p.goesOn(e, r.All), p.leavesNothing())
	return errors.Join(err, p.Close())
}

// wholeOrAbsent: what is visible is whole.
func (p *powerNode) wholeOrAbsent() error {
	return p.Catalog().EachBlob(func(row catalog.BlobRow) error {
		if row.State != catalog.Present {
			return nil
		}
		b, err := p.Open(p.ctx, row.Digest)
		if err != nil {
			return err
		}
		defer func() { _ = b.Close() }()
		v := row.Digest.Verifier()
		if n, err := io.Copy(v, b); err != nil || n != row.Size || !v.Verified() {
			return fmt.Errorf("%s is visible and not whole: %d of %d bytes, %w", row.Digest, n, row.Size, err)
		}
		return nil
	})
}

// keeps: what was acknowledged is there, and what is used cannot be collected.
func (p *powerNode) keeps(e expected) error {
	for d, want := range e.held {
		b, err := p.Open(p.ctx, d)
		if err != nil {
			return fmt.Errorf("an acknowledged blob of %d bytes is lost: %w", len(want), err)
		}
		got, err := io.ReadAll(b)
		if err := errors.Join(err, b.Close()); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("an acknowledged blob of %d bytes has others: %w", len(want), err)
		}
		if rec, list, err := p.Record(p.ctx, d); err != nil {
			return fmt.Errorf("the record of a blob of %d bytes: %w", len(want), err)
		} else if err := errors.Join(rec.Verify(), rec.Matches(list)); err != nil {
			return err
		}
	}
	for d := range e.gone {
		if _, err := p.Stat(p.ctx, d); !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("a collected blob is back: %w", err)
		}
	}
	for d := range e.inUse {
		if err := p.Collect(p.ctx, d); !errors.Is(err, catalog.ErrInUse) {
			return fmt.Errorf("a leased, pinned or referenced blob was collected: %w", err)
		}
	}
	stored, counted, err := p.Catalog().Recount(p.ctx, powerLink.PID)
	if err != nil || stored != counted {
		return fmt.Errorf("the catalogue's check is %v, recounted %v: %w", stored, counted, err)
	}
	for tag, may := range e.tags {
		info, err := p.Catalog().Tag(powerLink.PID, powerLink.Repo, tag)
		if errors.Is(err, catalog.ErrNotFound) {
			if !slices.Contains(may, 0) {
				return fmt.Errorf("tag %s is lost", tag)
			}
			continue
		}
		if err != nil {
			return err
		}
		at := slices.IndexFunc(may, func(seed uint64) bool { return seed > 0 && powerManifest(seed).Digest == info.Digest })
		if at < 0 {
			return fmt.Errorf("tag %s says %s, which is none of %v", tag, info.Digest, may)
		}
		m := powerManifest(may[at])
		if b, ok, err := p.Catalog().Content(m.Digest); err != nil || !ok || !bytes.Equal(b, m.Bytes) {
			return fmt.Errorf("tag %s names a manifest without bytes: %w", tag, err)
		}
		for _, ref := range m.Refs {
			if _, err := p.Stat(p.ctx, ref.Digest); err != nil {
				return fmt.Errorf("tag %s names a manifest without its blobs: %w", tag, err)
			}
			if err := p.Collect(p.ctx, ref.Digest); !errors.Is(err, catalog.ErrInUse) {
				return fmt.Errorf("a blob of tag %s was collected: %w", tag, err)
			}
		}
	}
	return nil
}

// goesOn: uploads go on where they say that they are, fetches go on, and pushes
// work.
func (p *powerNode) goesOn(e expected, all bool) error {
	for id, s := range e.offsets {
		u, err := p.Upload(p.ctx, id)
		if errors.Is(err, ErrNotFound) && !all && s.Off < units.Unit {
			continue // the promise begins with the first MiB
		}
		if err != nil {
			return fmt.Errorf("upload at %d: %w", s.Off, err)
		}
		// invariant S4
		if off := u.Offset(); all && off < s.Off || off <= s.Off-units.Unit || off > int64(s.Size) {
			return fmt.Errorf("an upload that answered %d is at %d", s.Off, off)
		}
		b := crashContent(s.Seed, s.Size)
		if _, err := u.Finish(p.ctx, bytes.NewReader(b[u.Offset():]), digest.FromBytes(b), powerLink); err != nil {
			return fmt.Errorf("an upload does not go on at %d: %w", u.Offset(), err)
		}
	}
	for _, seed := range []uint64{12, 13} {
		if done, err := p.fetch(seed, 0, 1, 2); err != nil || !done {
			return fmt.Errorf("a fetch does not go on: %w", err)
		}
	}
	for _, size := range []int{sizeRow, sizeFile} {
		if _, err := p.PutBytes(p.ctx, crashContent(99, size), powerLink); err != nil {
			return err
		}
	}
	_, err := p.Catalog().PutManifest(p.ctx, powerManifest(99, "after"))
	return errors.Join(err, p.wholeOrAbsent())
}

// leavesNothing: once nobody can want it any more, what was left half-done goes,
// and collections have come to their end.
func (p *powerNode) leavesNothing() error {
	p.moved.Add(int64(QuarantineKeptFor + 24*time.Hour))
	p.Sweep(p.ctx)
	err := p.Catalog().EachBlob(func(row catalog.BlobRow) error {
		if row.State != catalog.Present {
			return fmt.Errorf("%s is still being deleted", row.Digest)
		}
		return nil
	})
	root := p.files.Dir()
	return errors.Join(err, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch top, _, _ := bytes.Cut([]byte(rel), []byte("/")); string(top) {
		case catalogDir, idFile, ballastFile:
			return nil
		case "blobs", "units":
			if _, err := p.Stat(p.ctx, digest.NewDigestFromEncoded(digest.Algorithm(strings.Split(rel, "/")[1]), d.Name())); err != nil {
				return fmt.Errorf("%s is left without a row: %w", rel, err)
			}
			return nil
		}
		return fmt.Errorf("%s is left", rel)
	}))
}
