package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"
	"os"
	"strings"
	"sync"

	"encoding/binary"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

const (
	extUnits = ".units"
	extMap   = ".map"
	extTmp   = ".tmp"
)

// Partial is a blob that arrives unit by unit. One per digest is open at a time;
// its owner may call Put, Has and ReadAt from many goroutines and ends it with
// Close, whatever came before.
//
//	begun --Put…--> complete --Install--> installed --Close--> closed
//	   \--Close (kept for a resume) or Abandon (removed)--/
type Partial struct {
	s    *Store
	rec  units.Record
	list *units.List
	// early: some of the units are from before this fetch. Set by open.
	early bool

	// Lock order: saving, then mu. Neither is held while a unit is verified.
	saving sync.Mutex // one checkpoint at a time
	lost   bool       // guarded by saving: a sync failed, nobody knows what is on the disk

	mu       sync.RWMutex // guards what is below; read-held across file reads and writes
	f        *os.File     // nil once closed
	have     []uint64     // bit i: unit i is verified and written
	missing  int          // units not in have
	origin   [16]byte     // of all units here, see Serve; zero: of several, or not known
	unsynced int64        // bytes written since the last checkpoint
	moved    bool         // Install has renamed the file
	useless  bool         // nothing here is worth keeping, see Drop
	left     bool         // the notes stay, see Leave
}

// BeginFetch opens the partial blob of rec, which the caller has verified, and
// takes up what an earlier fetch with the same list left. The space for all of
// it is reserved first.
func (s *Store) BeginFetch(rec units.Record, list *units.List) (*Partial, error) {
	if err := rec.Matches(list); err != nil {
		return nil, err
	}
	if o := s.objects; o != nil && o.MaxObject > 0 && rec.Size > o.MaxObject {
		return nil, fmt.Errorf("fetch %s: %w: %s takes at most %d bytes in parts of %d", rec.Digest, ErrTooLarge, o.Name, o.MaxObject, o.Part)
	}
	p := &Partial{s: s, rec: rec, list: list, missing: list.Units()}
	p.have = make([]uint64, (list.Units()+63)/64)

	s.mu.Lock()
	if _, ok := s.partials[rec.Digest]; ok {
		s.mu.Unlock()
		return nil, fmt.Errorf("fetch %s: %w", rec.Digest, ErrFetchBusy)
	}
	s.partials[rec.Digest] = p
	s.mu.Unlock()
	if err := p.open(); err != nil {
		p.forget()
		return nil, fmt.Errorf("fetch %s: %w", rec.Digest, mapError(err))
	}
	return p, nil
}

// Began says whether an earlier fetch of a digest left units to go on with.
func (s *Store) Began(d digest.Digest) bool {
	_, err := os.Stat(s.path("partial", stem(d)+extMap))
	return err == nil
}

func (p *Partial) path(ext string) string {
	return p.s.path("partial", stem(p.rec.Digest)+ext)
}

func (p *Partial) forget() {
	p.s.mu.Lock()
	delete(p.s.partials, p.rec.Digest)
	p.s.mu.Unlock()
}

func (p *Partial) open() error {
	head, err := partialHead(p.rec, p.list)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(p.path(extUnits))
	resumed := err == nil && bytes.Equal(old, head)
	undo := p.remove
	if err == nil {
		// It may lead the sweep to a file that was installed and has no row: it stays,
		// whatever becomes of this fetch.
		undo = func() error { return p.removeOnly(extMap, extTmp, extData, extList) }
	}
	if !resumed {
		// The map of another list says nothing about this one.
		if err := undo(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(p.path(extData), os.O_RDWR|os.O_CREATE, filePerm)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != p.rec.Size {
		resumed = false
		// The file became a blob, or its making was cut short: what the map says is
		// not in this one. The list stays: the sweep goes by it.
		if err = os.Remove(p.path(extMap)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			err = p.s.cfg.Space(p.rec.Size - st.Size())
		}
		if err == nil {
			err = reserve(f, p.rec.Size)
		}
		if err == nil {
			err = f.Truncate(p.rec.Size)
		}
	}
	if err == nil && !resumed {
		err = p.replace(extUnits, head)
	}
	if err != nil {
		_ = f.Close()
		// Nothing half reserved stays behind on a full disk.
		return errors.Join(err, undo())
	}
	p.f = f
	if resumed {
		p.loadMap()
		p.early = p.missing < p.list.Units()
	}
	return nil
}

// partialHead is what decides whether an earlier fetch can be taken up: the
// list's root, which covers digest, size and states. The record is not part of
// it, since several members may sign the same list.
func partialHead(rec units.Record, list *units.List) ([]byte, error) {
	b, err := list.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return append(append([]byte(nil), rec.Root[:]...), b...), nil
}

// remove removes all files. The map first: without it the rest is not taken up.
func (p *Partial) remove() error { return p.removeOnly(extMap, extTmp, extUnits, extData, extList) }

func (p *Partial) removeOnly(exts ...string) error {
	var errs []error
	for _, ext := range exts {
		if err := os.Remove(p.path(ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// The map file: version byte, the units' origin, the bits as little-endian words,
// crc32c. Version 1 had no origin: its units are fetched again.
const (
	mapVersion = 2
	mapHead    = 1 + 16
)

func (p *Partial) loadMap() {
	b, err := os.ReadFile(p.path(extMap))
	if err != nil || len(b) != mapHead+8*len(p.have)+4 || b[0] != mapVersion ||
		crc32.Checksum(b[:len(b)-4], castagnoli) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return // no map, or a torn one: the units are fetched again
	}
	copy(p.origin[:], b[1:])
	for i := range p.have {
		p.have[i] = binary.LittleEndian.Uint64(b[mapHead+8*i:])
		p.missing -= bits.OnesCount64(p.have[i])
	}
	if extra := p.list.Units() % 64; p.missing < 0 || (extra != 0 && p.have[len(p.have)-1]>>extra != 0) {
		clear(p.have)
		p.missing = p.list.Units()
	}
}

// sync makes what was written durable. After a failure it never succeeds again:
// the system may have dropped what it could not write and call it clean. The
// caller holds saving.
func (p *Partial) sync() error {
	if p.lost {
		return errUnsyncedPartial
	}
	err := p.s.sync(p.f)
	if err == nil {
		return nil
	}
	p.lost = true
	err = errors.Join(mapError(err), errUnsyncedPartial)
	if rerr := os.Remove(p.path(extMap)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// save makes the units that are here durable and notes them, so that a restart
// goes on from there.
func (p *Partial) save() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.f == nil || p.moved || p.useless {
		return nil
	}
	b := make([]byte, 0, mapHead+8*len(p.have)+4)
	b = append(append(b, mapVersion), p.origin[:]...)
	for _, w := range p.have {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	// Promise: a unit that the map names is on the disk: data before map.
	if err := p.sync(); err != nil {
		return err
	}
	// Not synced: a power cut leaves this map, an older one, or a torn one that its
	// checksum gives away.
	return mapError(p.replace(extMap, b))
}

// replace writes one of the files by rename: a full disk leaves the one before.
func (p *Partial) replace(ext string, b []byte) error {
	if err := os.WriteFile(p.path(extTmp), b, filePerm); err != nil {
		return err
	}
	return os.Rename(p.path(extTmp), p.path(ext))
}

// Put checks data as unit i and keeps it. Bytes that do not link are ErrBadUnit.
func (p *Partial) Put(i int, data []byte) error {
	if err := p.list.Verify(i, data); err != nil {
		return err
	}
	if p.Has(i) {
		return nil
	}
	off, _ := p.list.Span(i)
	due, err := p.write(i, data, off)
	if err != nil || !due || !p.saving.TryLock() {
		return err
	}
	defer p.saving.Unlock()
	return p.save()
}

func (p *Partial) write(i int, data []byte, off int64) (due bool, err error) {
	// Two writers of one unit write the same bytes: read-held is enough.
	p.mu.RLock()
	if p.f == nil || p.moved {
		p.mu.RUnlock()
		return false, fmt.Errorf("fetch %s: %w", p.rec.Digest, errClosed)
	}
	_, err = p.f.WriteAt(data, off)
	p.mu.RUnlock()
	if err != nil {
		return false, fmt.Errorf("fetch %s: write unit %d: %w", p.rec.Digest, i, mapError(err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have[i/64]&(1<<(i%64)) == 0 {
		p.have[i/64] |= 1 << (i % 64)
		p.missing--
	}
	p.unsynced += int64(len(data))
	if p.unsynced >= p.s.every {
		p.unsynced = 0
		return true, nil
	}
	return false, nil
}

// Serve says on whose behalf units come from now on, before the first of them: a
// project's id. It reports whether all units that are here came for the same; if
// not the partial has no origin any more, and a resume of it neither.
func (p *Partial) Serve(origin [16]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.missing == p.list.Units() {
		p.origin = origin
	} else if p.origin != origin {
		// What the map on the disk names keeps the origin that it has there.
		p.origin = [16]byte{}
	}
	return p.origin == origin
}

// Origin is what all units here came for; zero: they came for several, or nobody
// said.
func (p *Partial) Origin() [16]byte {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.origin
}

// Record is the record that the blob arrives under.
func (p *Partial) Record() units.Record { return p.rec }

// List is the list that units are checked against.
func (p *Partial) List() *units.List { return p.list }

// Fresh says whether all units were verified as they came to this fetch.
func (p *Partial) Fresh() bool { return !p.early }

// Has says whether unit i is here, verified.
func (p *Partial) Has(i int) bool {
	if i < 0 || i >= p.list.Units() {
		return false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.have[i/64]&(1<<(i%64)) != 0
}

// Missing is the number of units that are not here yet.
func (p *Partial) Missing() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.missing
}

// Complete says whether every unit is here: the digest is then verified.
func (p *Partial) Complete() bool { return p.Missing() == 0 }

// ReadAt implements io.ReaderAt over the verified units. It reads up to the
// first one that is missing and then returns ErrIncomplete. It works until
// Close, also after Install.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.f == nil {
		return 0, fmt.Errorf("fetch %s: %w", p.rec.Digest, errClosed)
	}
	if off < 0 {
		return 0, fmt.Errorf("fetch %s: read at %d", p.rec.Digest, off)
	}
	end := off
	for end < off+int64(len(b)) && end < p.rec.Size {
		i := int(end / p.list.UnitSize)
		if p.have[i/64]&(1<<(i%64)) == 0 {
			break
		}
		end = (int64(i) + 1) * p.list.UnitSize
	}
	limit := min(off+int64(len(b)), p.rec.Size)
	if end >= limit {
		return p.f.ReadAt(b, off) // io.EOF at the blob's end, as ReaderAt wants it
	}
	n, err := p.f.ReadAt(b[:end-off], off)
	if err == nil {
		err = fmt.Errorf("fetch %s at %d: %w", p.rec.Digest, end, ErrIncomplete)
	}
	return n, err
}

// Install makes the complete partial the blob, durably. Its notes stay until
// Close, so that a crash before the row's commit is found and cleaned up. If the
// place of blobs is [*Unavailable] the partial keeps all its units.
func (p *Partial) Install(ctx context.Context) error {
	p.saving.Lock() // keeps Close, and with it the end of p.f, out
	defer p.saving.Unlock()
	if p.s.objects != nil {
		return p.send(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b, err := p.staged()
	if err != nil {
		return err
	}
	// Promise: the bytes are on the disk before a name says that they are.
	if err := p.sync(); err != nil {
		return err
	}
	err = p.s.place.install(ctx, b)
	p.moved = b.moved
	// The name may not stay: what it belongs to must be found again.
	p.left = err != nil && b.moved
	return err
}

// send is Install to a bucket, which takes a while: readers of the partial go on
// meanwhile.
func (p *Partial) send(ctx context.Context) error {
	p.mu.RLock()
	b, err := p.staged()
	p.mu.RUnlock()
	if err != nil {
		return err
	}
	if err := p.sync(); err != nil {
		return err
	}
	return p.s.place.install(ctx, b)
}

// staged is the complete file. The caller has mu.
func (p *Partial) staged() (*staged, error) {
	switch {
	case p.f == nil || p.moved:
		return nil, fmt.Errorf("fetch %s: %w", p.rec.Digest, errClosed)
	case p.missing > 0:
		return nil, fmt.Errorf("fetch %s: %w: %d of %d are missing", p.rec.Digest, ErrIncomplete, p.missing, p.list.Units())
	}
	return &staged{digest: p.rec.Digest, size: p.rec.Size, f: p.f, path: p.path(extData), list: p.list, tmp: p.path(extList)}, nil
}

// Drop says that the blob got into the store another way: Close removes what is
// here instead of keeping it. ReadAt goes on working.
func (p *Partial) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.useless = true
}

// Leave says that the file was installed and that its row may be there or not:
// the notes stay for the sweep after a restart, which knows.
func (p *Partial) Leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = true
}

// Close lets go of the partial. What was fetched is kept for a resume, unless it
// was installed. Close is idempotent.
func (p *Partial) Close() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	err := p.save()
	return errors.Join(err, p.end(false))
}

// Abandon lets go of the partial and removes what was fetched.
func (p *Partial) Abandon() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	return p.end(true)
}

func (p *Partial) end(remove bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil {
		return nil
	}
	err := p.f.Close()
	p.f = nil
	if p.left {
		p.forget()
		return err
	}
	if remove || p.moved || p.useless || p.lost {
		err = errors.Join(err, p.remove())
	}
	p.forget()
	return err
}

// partialOf is the digest that a name under partial/ belongs to.
func partialOf(stem string) (digest.Digest, bool) {
	alg, hex, _ := strings.Cut(stem, "-")
	d := digest.NewDigestFromEncoded(digest.Algorithm(alg), hex)
	return d, units.CheckDigest(d) == nil
}
