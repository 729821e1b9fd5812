package consensus

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/durable"
)

const (
	walDirName = "wal"
	// nextSuffix is of the directory that takes the place of another.
	nextSuffix = ".next"
	// asideMark and replacedMark are in the names of what was kept.
	asideMark    = ".aside-"
	replacedMark = ".replaced-"
	// asidesKept bounds what nodes set aside by themselves; what `portolan recover`
	// replaced is people's to delete.
	asidesKept = 3
	keptTime   = "20060102T150405.000Z"
)

var errNoLog = errors.New("there is no raft log: this node was never a member, or its directory was emptied")

// errNoState is of a log in which no mesh was made or learned yet.
var errNoState = errors.New("has no control state: this node has not got it yet")

// directory is what a raft directory holds, read without raft.
type directory struct {
	state  *state.State
	last   position // of the log and the snapshots
	term   uint64   // raft's own
	config []raft.Server
}

// readDirectory reads all of a raft directory: the newest snapshot and every
// entry after it, also those of which nobody knows whether they are committed.
// onlyApplied leaves those out, as a start does.
func readDirectory(dir string, onlyApplied bool) (*directory, error) {
	walDir := filepath.Join(dir, walDirName)
	if files, err := os.ReadDir(walDir); err != nil || len(files) == 0 {
		return nil, errors.Join(errNoLog, err)
	}
	logs, err := wal.Open(walDir, wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return nil, fmt.Errorf("the raft log is damaged: %w", err)
	}
	d, err := readLogs(dir, logs, onlyApplied)
	return d, errors.Join(err, logs.Close())
}

func readLogs(dir string, logs *wal.WAL, onlyApplied bool) (*directory, error) {
	d := &directory{state: state.New()}
	snaps, err := openSnapshots(dir)
	if err != nil {
		return nil, err
	}
	if d.term, err = logs.GetUint64(keyCurrentTerm); err != nil {
		return nil, fmt.Errorf("the raft log is damaged: %w", err)
	}
	mark, err := openMarker(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = mark.close() }()
	f := newFSM(d.state, mark)
	if onlyApplied {
		return d, replay(f, logs, snaps, mark)
	}
	f.mark = nil // what is applied here is no start
	first, err := logs.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("the raft log is damaged: %w", err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("the raft log is damaged: %w", err)
	}
	if err := d.restore(f, snaps, first); err != nil {
		return nil, err
	}
	if err := d.replayAll(f, logs, first, last); err != nil {
		return nil, err
	}
	if applied, _ := mark.get(); applied > d.last.index {
		return nil, fmt.Errorf("the raft log ends with entry %d, and this node had applied %d: its end is lost", d.last.index, applied)
	}
	return d, nil
}

// restore takes the newest snapshot that can be read, if the log goes on from it.
func (d *directory) restore(f *fsm, snaps raft.SnapshotStore, first uint64) error {
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("the snapshots cannot be listed: %w", err)
	}
	var why error
	for _, meta := range list {
		_, r, err := snaps.Open(meta.ID)
		if err == nil {
			err = f.Restore(r)
		}
		if halted := f.haltedBy(); halted != nil {
			return halted
		}
		if err == nil {
			d.last, d.config = position{meta.Term, meta.Index}, meta.Configuration.Servers
			break
		}
		why = errors.Join(why, fmt.Errorf("snapshot %s: %w", meta.ID, err))
	}
	if d.last.index == 0 && (len(list) > 0 || first > 1) || first > d.last.index+1 {
		return errors.Join(fmt.Errorf("the raft log begins with entry %d and no snapshot that can be read reaches it", first), why)
	}
	return nil
}

func (d *directory) replayAll(f *fsm, logs raft.LogStore, first, last uint64) error {
	if first == 0 {
		return nil
	}
	var l raft.Log
	for i := max(first, d.last.index+1); i <= last; i++ {
		if err := logs.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d of the raft log is damaged: %w", i, err)
		}
		if p := (position{l.Term, l.Index}); l.Index != i || !p.after(d.last) {
			return fmt.Errorf("entry %d of the raft log is damaged: it says that it is of %s", i, p)
		}
		d.last = position{l.Term, l.Index}
		switch l.Type {
		case raft.LogConfiguration:
			c, err := decodeConfiguration(l.Data)
			if err != nil {
				return fmt.Errorf("entry %d of the raft log is damaged: %w", i, err)
			}
			d.config = c.Servers
		case raft.LogCommand:
			f.Apply(&l)
			if err := f.haltedBy(); err != nil {
				return err
			}
		}
	}
	return nil
}

// decodeConfiguration is raft's, which panics at what it cannot read.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a configuration that cannot be read: %v", r)
		}
	}()
	return raft.DecodeConfiguration(b), nil
}

func openSnapshots(dir string) (*raft.FileSnapshotStore, error) {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return nil, fmt.Errorf("consensus: open snapshots in %s: %w", dir, err)
	}
	return snaps, nil
}

// keyCurrentTerm is raft's name for its term in the stable store.
var keyCurrentTerm = []byte("CurrentTerm")

// swap puts next in dir's place and keeps what was there under a name with mark
// and the time. A kill at any moment leaves dir as it was, or, once it has been
// renamed, next, which is whole: whoever opens dir after that ends the swap.
func swap(dir, next, mark string, now time.Time) (kept string, err error) {
	parent := filepath.Dir(dir)
	// What next has is on disk under its name before it can take dir's place.
	if err := syncTree(next); err != nil {
		return "", err
	}
	if err := durable.SyncDirs(parent); err != nil {
		return "", err
	}
	kept = dir + mark + now.UTC().Format(keptTime)
	if err := os.Rename(dir, kept); err != nil {
		return "", err
	}
	// The new one is not seen before the old one is safe under its new name.
	if err := durable.SyncDirs(parent); err != nil {
		return "", err
	}
	return kept, finishSwap(dir)
}

// finishSwap ends a swap that was cut short between its two renames.
func finishSwap(dir string) error {
	next := dir + nextSuffix
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Lstat(next); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := os.Rename(next, dir); err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	return durable.SyncDirs(filepath.Dir(dir))
}

// syncTree makes all files below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return durable.SyncDirs(path) // a file's fsync is the same call
	})
}

// SetAside begins a raft directory anew, after an [OutdatedError]: it keeps what
// was there beside it, with the time in its name, and leaves the members' places
// in the new one. The node that is opened on it comes back as a learner. It
// gives the name under which the old directory is kept.
func SetAside(dir string, now time.Time) (kept string, err error) {
	if err := finishSwap(dir); err != nil {
		return "", err
	}
	var o Outdated
	found, err := readMessage(filepath.Join(dir, outdatedFile), &o)
	if err != nil || !found {
		return "", err // it was set aside already
	}
	d, err := readDirectory(dir, true)
	if err != nil {
		return "", fmt.Errorf("consensus: set %s aside: %w", dir, err)
	}
	view := d.state.View()
	next := dir + nextSuffix
	if err := os.RemoveAll(next); err != nil { // of an attempt that was cut short
		return "", fmt.Errorf("consensus: set %s aside: %w", dir, err)
	}
	if err := KeepSeeds(next, view.Mesh().Profile, o.GetGeneration(), nodeRecords(view)); err != nil {
		return "", err
	}
	b, err := proto.Marshal(&Returning{Follow: o.GetFollow(), Before: before(view, o.GetVoters())})
	if err == nil {
		err = durable.WriteFile(filepath.Join(next, returningFile), b)
	}
	if err == nil {
		err = copyMemory(dir, next)
	}
	if err == nil {
		kept, err = swap(dir, next, asideMark, now)
	}
	if err != nil {
		return "", fmt.Errorf("consensus: set %s aside: %w", dir, err)
	}
	return kept, dropOldAsides(dir)
}

// before lists the members of a directory that is set aside.
func before(view *state.View, voters [][]byte) []*Before {
	var out []*Before
	for _, m := range view.Nodes() {
		votes := slices.ContainsFunc(voters, func(id []byte) bool { return string(id) == string(m.ID[:]) })
		out = append(out, &Before{NodeId: m.ID[:], Site: m.Site, Voter: votes})
	}
	return out
}

// copyMemory keeps what this node knows of others: they may have lost theirs too.
// Of another generation it says nothing, and openMemory sees that.
func copyMemory(from, to string) error {
	b, err := os.ReadFile(filepath.Join(from, memoryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(to, memoryFile), b)
}

// copyTree copies a directory of files for this process alone: it has password
// hashes and keys.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(filepath.Join(to, rel), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	})
}

func dropOldAsides(dir string) error {
	list, err := filepath.Glob(dir + asideMark + "*")
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	slices.SortFunc(list, strings.Compare) // by time
	for _, old := range list[:max(0, len(list)-asidesKept)] {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
	}
	return nil
}
