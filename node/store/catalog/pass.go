package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file goes through all rows of a kind, for those who compare what should be
// here with what is: a million of them in seconds. One goroutine reads them, several
// look at them, and nothing is made of a row but what is asked for.

const (
	// passRows and passBytes bound what is handed to a worker at a time. No snapshot is
	// held for longer than that takes to read.
	passRows  = 1024
	passBytes = 1 << 20
	// passAhead is how many of them there are in memory, for each worker.
	passAhead = 2
)

// rowChunk is some rows, one behind the other.
type rowChunk struct {
	bytes []byte
	ends  []int // of each key, and of the value behind it
}

func (c *rowChunk) each(fn func(key, value []byte) error) error {
	at := 0
	for i := 0; i < len(c.ends); i += 2 {
		end := c.ends[i+1]
		if err := fn(c.bytes[at:c.ends[i]], c.bytes[c.ends[i]:end]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// pass has the rows of a prefix looked at by workers: each gets a function of its
// own from newLook, which is called for one row after the other. The rows are valid
// during the call.
func (c *Catalog) pass(ctx context.Context, prefix []byte, workers int, newLook func() func(key, value []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	full := make(chan *rowChunk)
	free := make(chan *rowChunk, workers*passAhead)
	for range cap(free) {
		free <- &rowChunk{}
	}
	g.Go(func() error {
		defer close(full)
		for start := prefix; start != nil; {
			if err := ctx.Err(); err != nil {
				return err // a choice between two that are ready is by chance
			}
			var chunk *rowChunk
			select {
			case chunk = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			var err error
			if start, err = c.readChunk(chunk, prefix, start); err != nil {
				return err
			}
			select {
			case full <- chunk:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			look := newLook()
			for chunk := range full {
				if err := chunk.each(look); err != nil {
					return err
				}
				free <- chunk // there is room for all
			}
			return nil
		})
	}
	return g.Wait()
}

// readChunk reads rows from a key on and gives the key to go on with; nil: there is
// no more.
func (c *Catalog) readChunk(to *rowChunk, prefix, from []byte) (next []byte, err error) {
	to.bytes, to.ends = to.bytes[:0], to.ends[:0]
	err = c.view(func(r reader) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix, opts.PrefetchValues = prefix, false // values lie beside their keys
		it := r.txn.NewIterator(opts)
		defer it.Close()
		for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
			item := it.Item()
			if len(to.ends) == 2*passRows || len(to.bytes) >= passBytes {
				next = item.KeyCopy(nil)
				return nil
			}
			to.bytes = append(to.bytes, item.Key()...)
			to.ends = append(to.ends, len(to.bytes))
			if err := item.Value(func(v []byte) error { to.bytes = append(to.bytes, v...); return nil }); err != nil {
				return err
			}
			to.ends = append(to.ends, len(to.bytes))
		}
		return nil
	})
	return next, err
}

// PassBlobs has all blobs that this store holds looked at by several goroutines:
// each gets a function of its own from newLook, which is called with raw digests (the
// algorithm's byte and the bytes), which are valid during the call, and the project
// that the row says they are content of (BlobRow.For).
func (c *Catalog) PassBlobs(ctx context.Context, workers int, newLook func() func(raw []byte, class Class, pid identity.ProjectID) error) error {
	return c.pass(ctx, []byte{tabBlob}, workers, func() func(key, value []byte) error {
		look, pb := newLook(), &rowpb.Blob{}
		return func(key, value []byte) error {
			pb.Reset()
			if err := proto.Unmarshal(value, pb); err != nil || !isDigest(key[1:]) {
				return damaged(key)
			}
			if BlobState(pb.State) != Present {
				return nil
			}
			return look(key[1:], Class(pb.Class), projectFromPB(pb.ProvenFor))
		}
	})
}

// HeldAs says as what this store holds a project's blob, by its raw digest; 0: not
// at all, or for other projects alone.
func (c *Catalog) HeldAs(pid identity.ProjectID, raw []byte) (Class, error) {
	var row BlobRow
	err := c.view(func(r reader) (err error) {
		row, err = r.blobIn(pid, raw)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return row.Class, err
}

// PassManifests has all live manifests of a project looked at by several goroutines,
// as PassBlobs does. Each worker sees repositories and digests in their order.
func (c *Catalog) PassManifests(ctx context.Context, pid identity.ProjectID, workers int, newLook func() func(*Sighting) error) error {
	return c.pass(ctx, append(prefixPID(tabEntry, pid), byte(kindManifest)), workers, func() func(key, value []byte) error {
		look, s := newLook(), &Sighting{}
		return func(key, value []byte) error {
			live, err := s.read(key, value)
			if err != nil || !live {
				return err
			}
			return look(s)
		}
	})
}

// Sighting is a live manifest as a pass sees it: valid during the call.
type Sighting struct {
	key, value []byte // of its entry's row
	repo       []byte
	raw        []byte // digest
	says       []byte // the winner's ManifestValue
}

// read takes a row and says whether it is a live manifest's.
func (s *Sighting) read(key, value []byte) (live bool, err error) {
	const project = 1 + len(identity.ProjectID{})
	if len(key) < project {
		return false, damaged(key)
	}
	s.key, s.value = key, value
	rest := key[project:]
	name := 1
	for name < len(rest) && rest[name] != 0 {
		name++
	}
	if name >= len(rest) || name == 1 || !isDigest(rest[name+1:]) {
		return false, damaged(key)
	}
	s.repo, s.raw = rest[1:name], rest[name+1:]
	siblings, only, whole := lookIntoEntry(value)
	switch {
	case whole && siblings == 0:
		return false, nil
	case whole && siblings == 1:
		s.says = only
		return true, nil
	}
	// Several siblings, or a row that is damaged: the long way.
	e, err := s.entry()
	if err != nil || !e.live() {
		return false, err
	}
	s.says = e.winner().value
	return true, nil
}

func (s *Sighting) entry() (*entry, error) {
	_, k, ok := parsePIDEntry(s.key)
	if !ok {
		return nil, damaged(s.key)
	}
	return decodeEntry(k, s.value)
}

// lookIntoEntry counts an entry's siblings and gives the value of the last one.
// whole: the row could be read, and the value is all there.
func lookIntoEntry(row []byte) (siblings int, value []byte, whole bool) {
	whole = eachField(row, func(num protowire.Number, sibling []byte, _ uint64) bool {
		switch num {
		case 1: // siblings
			siblings++
			return eachField(sibling, func(num protowire.Number, v []byte, _ uint64) bool {
				if num == 4 {
					value = v
				}
				return true
			})
		case 4: // tail: a part of each value
			return false
		}
		return true
	})
	return siblings, value, whole
}

// eachField calls fn for each field of a message: with the bytes of one that has a
// length, or the number of a varint. It says whether all were read and fn said so.
func eachField(message []byte, fn func(num protowire.Number, bytes []byte, n uint64) bool) bool {
	for len(message) > 0 {
		num, typ, size := protowire.ConsumeTag(message)
		if size < 0 {
			return false
		}
		message = message[size:]
		var bytes []byte
		var n uint64
		switch typ {
		case protowire.BytesType:
			bytes, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(message)
		default:
			size = protowire.ConsumeFieldValue(num, typ, message)
		}
		if size < 0 {
			return false
		}
		message = message[size:]
		if !fn(num, bytes, n) {
			return false
		}
	}
	return true
}

// Repo is the manifest's repository.
func (s *Sighting) Repo() []byte { return s.repo }

// Raw is the manifest's raw digest.
func (s *Sighting) Raw() []byte { return s.raw }

// Home is the site that accepted the manifest.
func (s *Sighting) Home() (home []byte) {
	eachField(s.says, func(num protowire.Number, v []byte, _ uint64) bool {
		if num == 5 {
			home = v
		}
		return true
	})
	return home
}

// EachRef calls fn with the raw digests that the manifest refers to, until it says
// false or fails.
func (s *Sighting) EachRef(fn func(raw []byte, kind RefKind) (more bool, err error)) error {
	var err error
	more := true
	whole := eachField(s.says, func(num protowire.Number, v []byte, _ uint64) bool {
		if num != 6 {
			return true
		}
		var raw []byte
		var kind uint64
		ok := eachField(v, func(num protowire.Number, v []byte, n uint64) bool {
			switch num {
			case 1:
				raw = v
			case 3:
				kind = n
			}
			return true
		})
		if !ok || !isDigest(raw) {
			return false
		}
		more, err = fn(raw, RefKind(kind))
		return more && err == nil
	})
	if err == nil && more && !whole {
		err = fmt.Errorf("%w: what it refers to", damaged(s.key))
	}
	return err
}

// HasChild reports whether a manifest of the same repository is live.
func (c *Catalog) HasChild(pid identity.ProjectID, s *Sighting, raw []byte) (live bool, err error) {
	err = c.view(func(r reader) error {
		e, err := r.entry(pid, entryKey{kindManifest, string(s.repo), string(raw)})
		live = e.live()
		return err
	})
	return live, err
}

// Info gives what the entry says.
func (s *Sighting) Info() (ManifestInfo, error) {
	_, k, ok := parsePIDEntry(s.key)
	if !ok {
		return ManifestInfo{}, damaged(s.key)
	}
	e, err := decodeEntry(k, s.value)
	if err != nil {
		return ManifestInfo{}, err
	}
	return infoFromEntry(k, e)
}
