package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/faultfs"
)

// said is what a script says of itself, before or after it does something. A
// crash is judged by what was said before it.
type said struct {
	What what
	Seed uint64        // with Size: the content that it is about, see crashContent
	Size int           //
	ID   string        // of an upload
	Off  int64         // that it answered
	Tag  string        //
	At   time.Duration // how far the clock was moved
}

type what string

const (
	saysPutting    what = "putting"    // a blob may be there from now on
	saysPut        what = "put"        // it was acknowledged
	saysCollecting what = "collecting" // it may go
	saysCollected  what = "collected"  // it has gone
	saysHeld       what = "held"       // a lease or pin holds it
	saysOffset     what = "offset"     // an upload answered that it is at Off
	saysEnding     what = "ending"     // it may end
	saysTagging    what = "tagging"    // a tag may be set to the manifest of Seed; Seed 0: deleted
	saysTagged     what = "tagged"     // that was acknowledged
	saysClock      what = "clock"      // the clock was moved
)

// powerLink is where scripts push to: the same in all processes.
var powerLink = Link{PID: identity.ProjectID{1, 2, 3}, Repo: "app"}

// powerNode is a store on a file system that a test serves, in the worker.
type powerNode struct {
	*Store
	ctx   context.Context
	dir   string
	moved atomic.Int64 // by how much the clock is ahead
}

func openPower(ctx context.Context, dir string, at time.Duration) (*powerNode, error) {
	p := &powerNode{ctx: ctx, dir: dir}
	p.moved.Store(int64(at))
	id, _, err := identity.LoadOrCreate(filepath.Join(dir, "node"))
	if err != nil {
		return nil, err
	}
	p.Store, err = Open(ctx, Config{
		Dir: filepath.Join(dir, "node", "store"), Identity: id, Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Now().Add(time.Duration(p.moved.Load())) },
	})
	return p, err
}

// powerScript runs in the worker, on a file system that is cut later.
type powerScript struct {
	*powerNode
	mark *os.File
	mu   sync.Mutex
}

// say puts a word into the journal: it is there before say returns, and a crash
// after it knows it.
func (p *powerScript) say(s said) {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.mark.Write(b); err != nil {
		panic(err)
	}
}

var powerScripts = map[string]func(*powerScript) error{
	"new store": func(p *powerScript) error { return errors.Join(p.put(1, sizeRow), p.put(2, sizeFile)) },
	"uploads":   scriptUploads,
	"fetches":   scriptFetches,
	"manifests": scriptManifests,
	"collect":   scriptCollect,
	"races":     scriptRaces,
	"faults":    scriptFaults,
	"few":       func(p *powerScript) error { return p.fill(10) },
	"many":      func(p *powerScript) error { return p.fill(200) },
	"pull":      scriptPull,
}

func runPowerScript(r powerRequest) error {
	mark, err := os.OpenFile(filepath.Join(r.Dir, faultfs.MarkFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mark.Close() }()
	n, err := openPower(context.Background(), r.Dir, 0)
	if err != nil && r.Killed {
		return nil // a start that fails has acknowledged nothing
	}
	if err != nil {
		return err
	}
	err = powerScripts[r.Script](&powerScript{powerNode: n, mark: mark})
	if r.Killed {
		return err
	}
	return errors.Join(err, n.Close())
}

// put pushes a content in so many requests and the last one.
func (p *powerScript) put(seed uint64, size int, chunks ...int) error {
	b := crashContent(seed, size)
	id, err := p.CreateUpload(p.ctx)
	if err != nil {
		return err
	}
	u, err := p.Upload(p.ctx, id)
	if err != nil {
		return err
	}
	for _, n := range chunks {
		if _, err := u.Append(p.ctx, bytes.NewReader(b[:n])); err != nil {
			return err
		}
		b = b[n:]
		p.say(said{What: saysOffset, ID: id, Off: u.Offset(), Seed: seed, Size: size})
	}
	p.say(said{What: saysEnding, ID: id})
	p.say(said{What: saysPutting, Seed: seed, Size: size})
	if _, err := u.Finish(p.ctx, bytes.NewReader(b), digest.FromBytes(crashContent(seed, size)), powerLink); err != nil {
		return err
	}
	p.say(said{What: saysPut, Seed: seed, Size: size})
	return nil
}

// Sizes of every kind: a row, a file of one unit, a file with a list.
const (
	sizeRow   = 100
	sizeFile  = InlineMax + 1
	sizeUnits = int(2*units.Unit) + 5
)

func scriptUploads(p *powerScript) error {
	if err := errors.Join(
		p.put(1, sizeRow), p.put(2, sizeRow, 40, 30), p.put(3, sizeFile), p.put(4, sizeFile, 10, 2000),
		p.put(5, sizeUnits), p.put(6, sizeUnits, 700_000, 900_000),
		p.put(3, sizeFile), p.put(1, sizeRow), // the same again, as a client that lost the answer does
	); err != nil {
		return err
	}
	// One that is left open, and goes on after the crash.
	id, err := p.CreateUpload(p.ctx)
	if err != nil {
		return err
	}
	u, err := p.Upload(p.ctx, id)
	if err != nil {
		return err
	}
	b := crashContent(7, sizeUnits)
	for _, n := range []int{1_200_000, 5000, 300_000} {
		if _, err := u.Append(p.ctx, bytes.NewReader(b[:n])); err != nil {
			return err
		}
		b = b[n:]
		p.say(said{What: saysOffset, ID: id, Off: u.Offset(), Seed: 7, Size: sizeUnits})
	}
	// And one that is cancelled.
	if id, err = p.CreateUpload(p.ctx); err != nil {
		return err
	}
	if u, err = p.Upload(p.ctx, id); err != nil {
		return err
	}
	if _, err := u.Append(p.ctx, bytes.NewReader(b)); err != nil {
		return err
	}
	return u.Cancel()
}

// described gives the record and list of a content, by a member elsewhere.
func described(b []byte) (units.Record, *units.List, error) {
	h := units.NewHasher(digest.SHA256)
	if _, err := h.Write(b); err != nil {
		return units.Record{}, nil, err
	}
	list, err := h.List()
	if err != nil {
		return units.Record{}, nil, err
	}
	dir, err := os.MkdirTemp("", "member")
	if err != nil {
		return units.Record{}, nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		return units.Record{}, nil, err
	}
	rec, err := units.Sign(list, id.ID, id)
	return rec, list, err
}

// fetch brings units of a content, in this order, and commits it once all are
// there.
func (p *powerNode) fetch(seed uint64, order ...int) (done bool, err error) {
	b := crashContent(seed, sizeUnits)
	rec, list, err := described(b)
	if err != nil {
		return false, err
	}
	f, err := p.BeginFetch(p.ctx, rec, list)
	if err != nil {
		return false, err
	}
	for _, i := range order {
		off, n := list.Span(i)
		if err := f.Put(i, b[off:off+n]); err != nil {
			return false, errors.Join(err, f.Close())
		}
	}
	if done = f.Complete(); done {
		err = f.Commit(p.ctx, Placed)
	}
	return done, errors.Join(err, f.Close())
}

func scriptFetches(p *powerScript) error {
	small := crashContent(11, sizeFile)
	p.say(said{What: saysPutting, Seed: 11, Size: sizeFile})
	if err := p.PutFetched(p.ctx, identity.ProjectID{}, digest.FromBytes(small), small, Placed); err != nil {
		return err
	}
	p.say(said{What: saysPut, Seed: 11, Size: sizeFile})
	if _, err := p.fetch(12, 2, 0); err != nil {
		return err
	}
	p.say(said{What: saysPutting, Seed: 12, Size: sizeUnits})
	if done, err := p.fetch(12, 1); err != nil || !done {
		return fmt.Errorf("the fetch did not take up what was there: %w", err)
	}
	p.say(said{What: saysPut, Seed: 12, Size: sizeUnits})
	_, err := p.fetch(13, 1) // is left so
	return err
}

// powerManifest refers to two blobs that manifest makes.
func powerManifest(seed uint64, tags ...string) catalog.Put {
	config, layer := crashContent(seed+1000, sizeRow), crashContent(seed+2000, sizeFile)
	b := fmt.Appendf(nil, `{"manifest":%d}`, seed)
	return catalog.Put{
		PID: powerLink.PID, Repo: powerLink.Repo, Digest: digest.FromBytes(b), Bytes: b, Size: int64(len(b)),
		MediaType: "application/vnd.oci.image.manifest.v1+json", Home: "here", Actor: "ann", Tags: tags,
		Refs: []catalog.Ref{
			{Digest: digest.FromBytes(config), Size: sizeRow, Kind: catalog.RefBlob},
			{Digest: digest.FromBytes(layer), Size: sizeFile, Kind: catalog.RefBlob},
		},
	}
}

func (p *powerScript) manifest(seed uint64, tags ...string) error {
	if err := errors.Join(p.put(seed+1000, sizeRow), p.put(seed+2000, sizeFile)); err != nil {
		return err
	}
	return p.tag(seed, tags...)
}

func (p *powerScript) tag(seed uint64, tags ...string) error {
	for _, tag := range tags {
		p.say(said{What: saysTagging, Tag: tag, Seed: seed})
	}
	if _, err := p.Catalog().PutManifest(p.ctx, powerManifest(seed, tags...)); err != nil {
		return mapCatalogError(err)
	}
	for _, tag := range tags {
		p.say(said{What: saysTagged, Tag: tag, Seed: seed})
	}
	return nil
}

func (p *powerScript) untag(tag string) error {
	p.say(said{What: saysTagging, Tag: tag})
	if err := p.Catalog().DeleteTag(p.ctx, powerLink.PID, powerLink.Repo, tag, "ann", 0); err != nil {
		return err
	}
	p.say(said{What: saysTagged, Tag: tag})
	return nil
}

func scriptManifests(p *powerScript) error {
	return errors.Join(
		p.manifest(21, "v1", "latest"), p.manifest(22, "v2", "latest"), p.tag(21, "latest"),
		p.untag("v1"), p.tag(22, "v1"), p.untag("v2"))
}

// later moves the clock beyond the leases that were given.
func (p *powerScript) later() {
	at := time.Duration(p.moved.Add(int64(LeaseFor + time.Hour)))
	p.say(said{What: saysClock, At: at})
}

func (p *powerScript) collect(seed uint64, size int) error {
	p.say(said{What: saysCollecting, Seed: seed, Size: size})
	if err := p.Collect(p.ctx, digest.FromBytes(crashContent(seed, size))); err != nil {
		return err
	}
	p.say(said{What: saysCollected, Seed: seed, Size: size})
	return nil
}

// refused asks for a collection that something must prevent.
func (p *powerScript) refused(seed uint64, size int) error {
	if err := p.Collect(p.ctx, digest.FromBytes(crashContent(seed, size))); !errors.Is(err, catalog.ErrInUse) {
		return fmt.Errorf("the collection of a blob in use: %w", err)
	}
	p.say(said{What: saysHeld, Seed: seed, Size: size})
	return nil
}

func scriptCollect(p *powerScript) error {
	if err := errors.Join(p.put(31, sizeRow), p.put(32, sizeFile), p.put(33, sizeUnits), p.manifest(34, "keep"), p.put(35, sizeFile), p.put(36, sizeUnits)); err != nil {
		return err
	}
	p.later()
	d := func(seed uint64, size int) digest.Digest { return digest.FromBytes(crashContent(seed, size)) }
	lease := catalog.Lease{PID: powerLink.PID, Repo: "other", Until: p.now().Add(LeaseFor)}
	pin := catalog.Pin{Digest: d(36, sizeUnits), For: identity.StoreID{9}, PID: powerLink.PID, Until: p.now().Add(LeaseFor)}
	return errors.Join(
		p.Catalog().Lease(p.ctx, d(35, sizeFile), lease), p.refused(35, sizeFile),
		p.Catalog().Pin(p.ctx, pin), p.refused(36, sizeUnits),
		p.refused(2034, sizeFile), // the manifest's
		p.collect(31, sizeRow), p.collect(32, sizeFile), p.collect(33, sizeUnits),
		p.put(32, sizeFile), p.put(33, sizeUnits, 1_100_000), // come again
		p.refused(33, sizeUnits),
	)
}

// scriptRaces lets pushes, leases and collections of the same blobs meet.
func scriptRaces(p *powerScript) error {
	for round := range uint64(4) {
		size := []int{sizeRow, sizeFile}[round%2]
		seed := 41 + round%2
		if err := p.put(seed, size); err != nil {
			return err
		}
		p.later()
		d := digest.FromBytes(crashContent(seed, size))
		p.say(said{What: saysCollecting, Seed: seed, Size: size})
		errs := make([]error, 3)
		var running sync.WaitGroup
		running.Go(func() { errs[0] = p.Collect(p.ctx, d) })
		running.Go(func() { errs[1] = p.put(seed, size) })
		running.Go(func() {
			errs[2] = p.Catalog().Lease(p.ctx, d, catalog.Lease{PID: powerLink.PID, Repo: "other", Until: p.now().Add(LeaseFor)})
		})
		running.Wait()
		if errors.Is(errs[0], catalog.ErrInUse) {
			errs[0] = nil
		}
		if errors.Is(errs[2], catalog.ErrNotFound) {
			errs[2] = nil
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		// The push was acknowledged, whoever was faster.
		if _, err := p.Stat(p.ctx, d); err != nil {
			return err
		}
		p.say(said{What: saysPut, Seed: seed, Size: size})
	}
	return nil
}
