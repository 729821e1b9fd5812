package faultfs

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// MarkFile is the name, in the root directory, of a file that is not part of the
// disk: each write to it is a [Mark].
const MarkFile = ".mark"

const markIno = 2

// Mark is a word in the journal.
type Mark struct {
	At   int // so many operations came before it
	Text string
}

// Fault lets one operation, or each from some one on, fail without effect.
type Fault struct {
	Kind  Kind
	Nth   int // of its kind from now on; from 1
	Errno syscall.Errno
	Stays bool // all later ones fail as well
}

// Counts says how often the disk was asked; the kernel answers some questions
// from its caches.
type Counts struct {
	Opens, Reads, Lookups, DirReads int
}

// FS is one life of a disk: from an image to a crash or a clean end. It is safe
// for concurrent use.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS where nothing is overridden

	// Free is the space that the disk says it has; for statfs alone.
	Free int64
	// NamedBySync lists endings of names that an fsync of the file itself makes
	// durable, with what came before in their directory: all journalling file
	// systems do so for new files, though none has to. It is for libraries that rely
	// on it; a test that sets it says which, and where.
	NamedBySync []string
	// Tick is the resolution of file times; 0 is the clock's own. Real file systems
	// have some milliseconds, old ones seconds.
	Tick time.Duration

	mu     sync.Mutex
	base   *Image
	live   *Image // what processes see; inodes without a name stay in it
	ops    []op
	marks  []Mark
	counts Counts
	faults []*Fault
	hit    int // operations that failed

	cutAt int           // 0: no cut
	cut   chan struct{} // closed when the power is gone
	off   chan struct{} // closed by Unblock: what still waits fails
}

// New makes a file system that begins with what base holds.
func New(base *Image) *FS {
	return &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		Free:          64 << 30,
		base:          base, live: base.clone(),
		cut: make(chan struct{}), off: make(chan struct{}),
	}
}

// Len is the number of operations so far.
func (f *FS) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ops)
}

// Kinds gives the kind of each operation so far.
func (f *FS) Kinds() []Kind {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Kind, len(f.ops))
	for i := range f.ops {
		out[i] = f.ops[i].kind
	}
	return out
}

// Mark puts a word into the journal.
func (f *FS) Mark(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks = append(f.marks, Mark{len(f.ops), text})
}

// Marks gives the words so far.
func (f *FS) Marks() []Mark {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Mark(nil), f.marks...)
}

// Counts gives what was asked so far.
func (f *FS) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// Fail adds a fault.
func (f *FS) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Failed is the number of operations that a fault has hit.
func (f *FS) Failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}

// Heal removes all faults.
func (f *FS) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Crash gives what a power cut after the first n operations leaves. It can be
// called at any time and for any n up to Len, and changes nothing.
func (f *FS) Crash(n int, seed uint64) *Image {
	f.mu.Lock()
	defer f.mu.Unlock()
	return crash(f.base, f.ops[:n], f.live, seed, f.NamedBySync)
}

// CutAt switches the power off before operation n+1, or at once if there were
// as many: from then on nobody gets an answer, so that no process can do or say
// anything that depends on one. The channel is closed when that has happened.
// The caller kills the processes and then calls Unblock.
func (f *FS) CutAt(n int) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutAt = max(n, 1)
	if len(f.ops) >= f.cutAt {
		f.powerOff()
	}
	return f.cut
}

func (f *FS) powerOff() {
	select {
	case <-f.cut:
	default:
		close(f.cut)
	}
}

// Unblock answers EIO to all who wait since the power was cut, and to all who
// come: killed processes can end only then.
func (f *FS) Unblock() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.powerOff()
	select {
	case <-f.off:
	default:
		close(f.off)
	}
}

// enter lets an operation begin, and gives EIO once the power is off. If it
// gives OK the lock is held.
func (f *FS) enter() fuse.Status {
	f.mu.Lock()
	select {
	case <-f.cut:
		f.mu.Unlock()
		<-f.off
		return fuse.EIO
	default:
		return fuse.OK
	}
}

// change lets an operation that is journalled begin; note adds it.
func (f *FS) change(kind Kind) fuse.Status {
	if s := f.enter(); !s.Ok() {
		return s
	}
	for _, fault := range f.faults {
		if fault.Kind != kind {
			continue
		}
		fault.Nth--
		if fault.Nth == 0 || fault.Nth < 0 && fault.Stays {
			f.hit++
			f.mu.Unlock()
			return fuse.Status(fault.Errno)
		}
	}
	return fuse.OK
}

// note journals an operation that was done.
func (f *FS) note(o op) {
	f.ops = append(f.ops, o)
	if f.cutAt > 0 && len(f.ops) >= f.cutAt {
		f.powerOff()
	}
}

// clock is the time for a file.
func (f *FS) clock() time.Time {
	now := time.Now()
	if f.Tick > 0 {
		now = now.Truncate(f.Tick)
	}
	return now
}

// changed notes the time at which names or bytes of an inode changed.
func (f *FS) changed(ino uint64) {
	i := f.live.inodes[ino]
	i.mtime = f.clock()
	i.ctime = i.mtime
}
