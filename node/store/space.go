package store

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
)

// What is kept free on the store's disk, so that a full one is an answer and not
// the end of the process: the database writes through memory maps, where a
// missing page is a signal that no code can handle. Blobs stop first.
const (
	// keptForCatalog is room for what the catalogue writes on its own. What a close or a
	// start flushes has a ballast of its own.
	keptForCatalog = catalog.RoomToCompact
	// keptShare of a small disk is kept instead if that is less.
	keptShare = 4 // a quarter
	// keptForBlobs in percent of what the catalogue keeps: what is free between the
	// two is for transactions, so that a push whose blobs fitted can end.
	keptForBlobs = 150
	// Deletes may use half of what is kept, a start all but an eighth.
	keptFromDeletes, keptFromStart = 2, 8
	// keptToFlush times what is kept is free where flushes are not waited for.
	keptToFlush = 2
)

// space watches the disk under one store.
type space struct {
	dir  string
	log  *slog.Logger
	free func(dir string) (free, total int64, err error) // blobs.Free; tests lie
	full atomic.Bool                                     // said already

	mu   sync.Mutex
	held bool // the ballast
}

// catalog is asked before the database writes.
func (s *space) catalog(need catalog.Need) error {
	switch need {
	case catalog.ToOpen:
		left, err := s.unflushed()
		if err != nil {
			return err
		}
		if left > 0 {
			if err := s.release(ballastBytes); err != nil {
				return err
			}
		}
		return s.ask(left, func(kept int64) int64 { return kept / keptFromStart })
	case catalog.ToShrink:
		// A memtable may be full now.
		return s.ask(0, func(kept int64) int64 { return max(kept/keptFromDeletes, min(ballastBytes, kept)) })
	case catalog.ToClose:
		return s.release(ballastBytes)
	case catalog.ToFlush:
		free, total, err := s.free(s.dir)
		if err == nil && free < keptToFlush*keptOf(total) {
			err = ErrNoSpace
		}
		return err
	case catalog.ToGrow:
	}
	return s.grow(0, 100)
}

// blobs is asked before files grow.
func (s *space) blobs(bytes int64) error { return s.grow(bytes, keptForBlobs) }

// grow asks for more than percent of what is kept, and for the ballast.
func (s *space) grow(bytes, percent int64) error {
	keep := func(kept int64) int64 { return kept * percent / 100 }
	if err := s.ask(bytes, keep); err != nil || s.holds() {
		return err
	}
	_, total, err := s.free(s.dir)
	if err != nil {
		return err
	}
	return s.hold(keep(keptOf(total)) + bytes)
}

func (s *space) ask(bytes int64, keep func(kept int64) int64) error {
	free, total, err := s.free(s.dir)
	if err != nil {
		return err
	}
	kept := keptOf(total)
	if missing := keep(kept) + bytes - free; missing > 0 {
		if !s.full.Swap(true) {
			s.log.Error("the store's disk is full: pushes are refused and pulls go on, free some space", "store", s.dir, "free_bytes", free, "kept_bytes", keep(kept))
		}
		return fmt.Errorf("%w (%d bytes free below %s, %d more are needed)", ErrNoSpace, free, s.dir, missing)
	}
	if free > 2*kept && s.full.Swap(false) {
		s.log.Info("the store's disk has space again", "store", s.dir, "free_bytes", free)
	}
	return nil
}

func keptOf(total int64) int64 { return min(keptForCatalog, total/keptShare) }

// room is what is kept of this disk; as good as nothing if its size can't be read, so
// that compactions stay small.
func (s *space) room() int64 {
	_, total, err := s.free(s.dir)
	if err != nil {
		return 1
	}
	return keptOf(total)
}

func newSpace(dir string, log *slog.Logger) *space {
	s := &space{dir: dir, log: log, free: blobs.Free}
	s.held = s.findBallast()
	return s
}
