package consensus

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// A marker remembers which entry was applied last, so that a node that starts
// without a leader has the state that it had when it stopped: raft alone would
// know nothing of the entries after the last snapshot until a leader tells it
// what is committed (raft has no RestoreCommittedLogs before 1.8).
//
// Format 1, 32 bytes: "PTLA", format u32, index u64, term u64, CRC-32C of these
// u32, zero u32. It is written in place without fsync: a marker that is lost or
// old makes the node start with an older state, never with a wrong one, for an
// entry is replayed only if the log has it with the marker's term.
type marker struct {
	f *os.File
	// err is the first failure to write; the marker then stays as it is.
	err error
}

const (
	markerFile   = "applied"
	markerFormat = 1
	markerBytes  = 32
	markerMagic  = "PTLA"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openMarker(dir string) (*marker, error) {
	f, err := os.OpenFile(filepath.Join(dir, markerFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("consensus: open marker: %w", err)
	}
	return &marker{f: f}, nil
}

// get gives the last entry that was applied; 0 if it is not known.
func (m *marker) get() (index, term uint64) {
	var b [markerBytes]byte
	if n, _ := m.f.ReadAt(b[:], 0); n != len(b) {
		return 0, 0
	}
	if string(b[:4]) != markerMagic || binary.BigEndian.Uint32(b[4:]) != markerFormat ||
		crc32.Checksum(b[:24], castagnoli) != binary.BigEndian.Uint32(b[24:]) {
		return 0, 0
	}
	return binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
}

// set is called by raft's apply goroutine alone; nil remembers nothing.
func (m *marker) set(index, term uint64) {
	if m == nil || m.err != nil {
		return
	}
	var b [markerBytes]byte
	copy(b[:], markerMagic)
	binary.BigEndian.PutUint32(b[4:], markerFormat)
	binary.BigEndian.PutUint64(b[8:], index)
	binary.BigEndian.PutUint64(b[16:], term)
	binary.BigEndian.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	_, m.err = m.f.WriteAt(b[:], 0)
}

func (m *marker) close() error { return m.f.Close() }

// replay brings the state machine to where it was: the newest snapshot that can
// be read, and the entries of the log up to the marker. It runs before raft does.
func replay(f *fsm, logs raft.LogStore, snaps raft.SnapshotStore, m *marker) error {
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("consensus: list snapshots: %w", err)
	}
	from := uint64(0)
	for _, meta := range list {
		_, r, err := snaps.Open(meta.ID)
		if err == nil {
			err = f.Restore(r)
		}
		if halted := f.haltedBy(); halted != nil {
			return halted
		}
		if err == nil {
			from = meta.Index
			break
		}
	}
	index, term := m.get()
	first, err := logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("consensus: read log: %w", err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("consensus: read log: %w", err)
	}
	if index <= from || index > last || first == 0 || first > from+1 {
		return nil
	}
	var l raft.Log
	if known := logs.GetLog(index, &l) == nil && l.Term == term; !known {
		return nil // another log than the marker's: a leader will tell
	}
	batch := make([]*raft.Log, 0, maxAppendEntries)
	for i := from + 1; i <= index; i++ {
		l := new(raft.Log)
		if err := logs.GetLog(i, l); err != nil {
			return fmt.Errorf("consensus: read log entry %d: %w", i, err)
		}
		if batch = append(batch, l); len(batch) < cap(batch) && i < index {
			continue
		}
		// The marker stays where it is: it would only go back, and come again.
		f.applyAll(batch)
		if err := f.haltedBy(); err != nil {
			return err
		}
		batch = batch[:0]
	}
	return nil
}
