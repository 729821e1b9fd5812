package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/portolan/portolan/node/store/catalog"
)

// The ballast is a file that holds space for the flush of a memtable. What a
// commit acknowledged may stay in the memtable for days, and a close or a start
// writes it to a table however full others have made the disk meanwhile: then the
// ballast is given up for as long as that takes. While there is none, nothing may
// grow.
const (
	ballastFile = "reserve"
	catalogDir  = "catalog"
	// ballastBytes is what one memtable takes as a table, 38 MiB at most, and some
	// for the log and the list of tables. Several are flushed one after the other,
	// and each leaves its log's space to the next.
	ballastBytes = 48 << 20
)

// ballastSize is what is set aside on a disk of total bytes.
func ballastSize(total int64) int64 { return min(ballastBytes, total/keptShare) }

func (s *space) ballastPath() string { return filepath.Join(s.dir, ballastFile) }

// findBallast says whether an earlier run has set the space aside.
func (s *space) findBallast() bool {
	st, err := os.Stat(s.ballastPath())
	if err != nil {
		return false
	}
	_, total, err := s.free(s.dir)
	return err == nil && allocated(st) >= ballastSize(total)
}

// hold sets the space aside if leave bytes are free then.
func (s *space) hold(leave int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return nil
	}
	free, total, err := s.free(s.dir)
	if err != nil {
		return err
	}
	size := ballastSize(total)
	if missing := leave + size - free; missing > 0 {
		return fmt.Errorf("%w (%d bytes free below %s, %d more are needed)", ErrNoSpace, free, s.dir, missing)
	}
	f, err := os.OpenFile(s.ballastPath(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("set space aside: %w", err)
	}
	err = allocate(f, size)
	if err != nil {
		// Part of it is of no use to anybody.
		err = errors.Join(err, f.Truncate(0))
	}
	err = errors.Join(err, f.Close())
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	if err != nil {
		return fmt.Errorf("set space aside: %w", err)
	}
	s.held = true
	return nil
}

// release gives the space up if less than need is free without it.
func (s *space) release(need int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, _, err := s.free(s.dir)
	if err != nil || free >= need || !s.held {
		return err
	}
	f, err := os.OpenFile(s.ballastPath(), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("give up the space set aside: %w", err)
	}
	// Synced: some file systems give blocks to others only when they have noted
	// that they are free.
	err = errors.Join(f.Truncate(0), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("give up the space set aside: %w", err)
	}
	s.held = false
	s.log.Warn("the store's disk is full: the space set aside is used to write the catalogue's memory to it", "store", s.dir, "free_bytes", free)
	return nil
}

func (s *space) holds() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// unflushed is what a start has to write: the largest of the logs that a process
// left which did not come to its end.
func (s *space) unflushed() (int64, error) {
	logs, err := catalog.Logs(filepath.Join(s.dir, catalogDir))
	if err != nil {
		return 0, err
	}
	var most int64
	for _, name := range logs {
		st, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		most = max(most, allocated(st))
	}
	return most, nil
}
