package swarm

import (
	"context"
	"errors"
	"io"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

const (
	// maxSplitting bounds the units that are read and hashed for their sub-states at
	// the same time, each through 64 KiB of memory: others than those who wait for
	// first bytes need the processors and the disk as well.
	maxSplitting = 4
	// splitWait is how long a request waits for its turn. Units of 8 MiB are hashed in
	// some 10 ms; when it takes longer, the unit goes out without.
	splitWait = 100 * time.Millisecond
	// maxSplits bounds the sub-states that are remembered, some 4 KiB each and 8 KiB at
	// most: many clients want the beginning of the same blob, at many sites.
	maxSplits = 256
)

// splitter makes the sub-states of units that this node sends.
type splitter struct {
	s     *server
	turns chan struct{}
	known *lru.Cache[splitKey, []byte]
}

type splitKey struct {
	d    digest.Digest
	unit int
}

func newSplitter(s *server) *splitter {
	known, err := lru.New[splitKey, []byte](maxSplits)
	if err != nil {
		panic(err) // for a size below one alone
	}
	return &splitter{s: s, turns: make(chan struct{}, maxSplitting), known: known}
}

// of gives the sub-states of a unit of b, or none: the unit goes out without them,
// as it does to who wants none. It leaves b's read position anywhere.
func (p *splitter) of(ctx context.Context, d digest.Digest, b store.Blob, unit int) []byte {
	if units.SubStatesBytes(d.Algorithm(), spanOf(b, unit)) == 0 {
		return nil
	}
	key := splitKey{d, unit}
	if subs, ok := p.known.Get(key); ok {
		return subs
	}
	// A bucket would be asked for the unit twice.
	if r, ok := b.(interface{ Remote() bool }); ok && r.Remote() {
		return nil
	}
	turn := time.NewTimer(splitWait)
	defer turn.Stop()
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
	case <-turn.C:
		return nil
	case <-ctx.Done():
		return nil
	}
	if subs, ok := p.known.Get(key); ok { // made meanwhile
		return subs
	}
	_, list, verified, err := p.s.src.Record(ctx, d)
	if err != nil || list == nil || unit >= list.Units() || list.Size != b.Size() {
		return nil
	}
	off, _ := list.Span(unit)
	if _, err := b.Seek(off, io.SeekStart); err != nil {
		return nil // it is asked for again, and then says why
	}
	subs, err := list.SubStates(unit, b)
	if errors.Is(err, units.ErrBadUnit) {
		// The receiver finds out as well, and asks another.
		p.s.src.Doubt(d)
		p.s.log.Error("a unit of a blob here is not the blob's", "digest", d, "unit", unit, "error", err)
	}
	if err != nil {
		return nil
	}
	if verified { // by a list that is the blob's: what arrives may yet turn out to be none
		p.known.Add(key, subs)
	}
	return subs
}

func spanOf(b store.Blob, unit int) int64 {
	_, n := layoutOf(b.Size()).span(unit)
	return n
}
