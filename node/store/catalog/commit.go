package catalog

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/portolan/portolan/node/identity"
)

const (
	// maxQueued bounds the requests that wait for the committer; further callers
	// wait in their own goroutines.
	maxQueued = 1024
	// maxGroup bounds the requests in one transaction, so that the first of them
	// does not wait for too many others.
	maxGroup = 512
	// groupShare of what Badger takes in one transaction is filled; the rest is
	// room for the rows that the committer adds itself.
	groupShare = 0.9
	// requestShare is what one request made here may fill. A store that lacks all of
	// it has more to write for the same entries (rows of other writers, siblings),
	// and must be able to take in whatever any other has accepted.
	requestShare = groupShare / 2
)

// job is one request on its way to the committer.
type job struct {
	run  func(*batch) error
	done chan error // buffered
	kind jobKind
}

// jobKind says what a job may take of the disk and of a transaction.
type jobKind uint8

const (
	jobRequest  jobKind = iota // of a client: bounded by requestShare
	jobReceived                // what another store accepted
	jobFreeing                 // leads to space on the disk: allowed when little is left
	jobEnding                  // writes nothing: allowed on a full disk
)

// submit runs fn in the committer and waits until what it wrote is on disk.
// With a context that ends while it waits, the outcome is open.
func (c *Catalog) submit(ctx context.Context, fn func(*batch) error) error {
	return c.submitAs(ctx, jobRequest, fn)
}

// Sound reports why nothing is written any more, as after a sync that failed:
// then nobody knows which of the last rows a restart will find.
func (c *Catalog) Sound(ctx context.Context) error {
	return c.submitAs(ctx, jobEnding, func(*batch) error { return nil })
}

func (c *Catalog) submitAs(ctx context.Context, kind jobKind, fn func(*batch) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{run: fn, done: make(chan error, 1), kind: kind}
	select {
	case c.jobs <- j:
	case <-c.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-j.done:
		return err
	case <-c.committed: // the committer has gone; it may have answered before
		select {
		case err := <-j.done:
			return err
		default:
			return ErrClosed
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// commitLoop is the single writer of the database: jobs see each other's
// effects in the order in which their dots were given, and no transaction ever
// conflicts.
func (c *Catalog) commitLoop() {
	defer close(c.committed)
	for {
		select {
		case <-c.stop:
			return
		case j := <-c.jobs:
			group := append(make([]*job, 0, 16), j)
		gather:
			for len(group) < maxGroup {
				select {
				case j := <-c.jobs:
					group = append(group, j)
				default:
					break gather
				}
			}
			c.runGroup(group)
		}
	}
}

// group is one transaction and the jobs whose answers wait for it.
type group struct {
	txn *badger.Txn
	// before is the state before the group, for scans of rows that it has not written: a
	// scan of txn sorts all that is pending there first.
	before  *badger.Txn
	purged  bool // it has written to tabPurged
	waiting []*job
	batches []*batch
	size    int64
	count   int64
}

// runGroup runs the jobs in order into as few transactions as Badger's limits
// allow. One job is never split.
func (c *Catalog) runGroup(jobs []*job) {
	g := c.newGroup()
	full := c.fullDisk()
	for _, j := range jobs {
		if err := cmp.Or(c.broken, full(j.kind)); err != nil {
			j.done <- err
			continue
		}
		b, err := g.run(c, j)
		if err == nil && !c.fits(g, b) && len(g.waiting) > 0 {
			c.commit(g)
			g, full = c.newGroup(), c.fullDisk()
			if c.broken != nil { // nothing is taken after what could not be written
				j.done <- c.broken
				continue
			}
			b, err = g.run(c, j)
		}
		if err == nil && (!c.fits(g, b) || j.kind == jobRequest && !b.within(requestShare)) {
			err = ErrTooLarge
		}
		if err != nil {
			j.done <- err
			continue
		}
		g.waiting = append(g.waiting, j)
		if err := g.add(b); err != nil {
			// Part of the batch may be in the transaction, which can't be taken out.
			c.fail(g, err)
			g = c.newGroup()
		}
	}
	c.commit(g)
}

// fullDisk asks for space once for all jobs of a group that are alike.
func (c *Catalog) fullDisk() func(jobKind) error {
	var asked [ToOpen]bool
	var answer [ToOpen]error
	return func(k jobKind) error {
		if k == jobEnding {
			return nil
		}
		need := ToGrow
		if k == jobFreeing {
			need = ToShrink
		}
		if !asked[need] {
			asked[need], answer[need] = true, c.space(need)
		}
		return answer[need]
	}
}

func (c *Catalog) newGroup() *group {
	return &group{txn: c.db.NewTransaction(true), before: c.db.NewTransaction(false)}
}

// discard ends a group, without effect unless it was committed.
func (g *group) discard() {
	g.txn.Discard()
	g.before.Discard()
}

func (g *group) run(c *Catalog, j *job) (*batch, error) {
	b := c.newBatch(g.txn)
	b.before = reader{g.before}
	if g.purged {
		b.before = b.reader
	}
	if err := j.run(b); err != nil {
		return b, err
	}
	return b, b.settle()
}

func (c *Catalog) fits(g *group, b *batch) bool {
	return float64(g.size+b.size) < groupShare*float64(c.db.MaxBatchSize()) &&
		float64(g.count)+float64(len(b.ops)) < groupShare*float64(c.db.MaxBatchCount())
}

// within reports whether a batch takes no more than a share of a transaction.
func (b *batch) within(share float64) bool {
	return float64(b.size) < share*float64(b.c.db.MaxBatchSize()) && float64(len(b.ops)) < share*float64(b.c.db.MaxBatchCount())
}

// half reports that a batch which does as much as it can should stop: the next
// one goes on.
func (b *batch) half() bool { return !b.within(requestShare / 2) }

// add writes a batch that fits into the transaction.
func (g *group) add(b *batch) error {
	for _, o := range b.ops {
		var err error
		if o.del {
			err = g.txn.Delete(o.key)
		} else {
			err = g.txn.Set(o.key, o.value)
		}
		if err != nil {
			return err
		}
		g.purged = g.purged || o.key[0] == tabPurged
	}
	g.size += b.size
	g.count += int64(len(b.ops))
	g.batches = append(g.batches, b)
	return nil
}

// commit makes a group durable and answers its jobs.
func (c *Catalog) commit(g *group) {
	defer g.discard()
	if len(g.waiting) == 0 {
		return
	}
	if err := c.commitTxn(g); err != nil {
		c.fail(g, err)
		return
	}
	if slices.ContainsFunc(g.batches, func(b *batch) bool { return b.stores }) {
		c.storesGen.Add(1) // before anybody hears of it
	}
	c.settle()
	c.notify(g) // before the answers: what was answered is in this node's count (Written)
	for _, j := range g.waiting {
		j.done <- nil
	}
	c.metrics.group(g)
}

// fail answers all of a group that could not be written. Whether it will be
// there after a restart is open. No later transaction may share its incarnation,
// or a peer could believe to have seen dots that come back then (invariant 1).
// If its sync failed no later one is taken at all: see broken.
func (c *Catalog) fail(g *group, err error) {
	g.discard()
	c.inc, c.epoch = 0, feedEpoch{}
	err = fmt.Errorf("catalog: write to the database: %w", err)
	c.log.Error("the catalogue could not be written", "error", err)
	for _, j := range g.waiting {
		j.done <- err
	}
}

func (c *Catalog) commitTxn(g *group) error {
	writes := false
	var begun []identity.Incarnation
	for _, b := range g.batches {
		writes = writes || len(b.ops) > 0
		if b.inc != 0 && !c.own[b.inc] && !slices.Contains(begun, b.inc) {
			begun = append(begun, b.inc)
		}
	}
	if !writes {
		return nil
	}
	if err := spanAll(g.txn); err != nil {
		return err
	}
	for _, inc := range begun {
		started := binary.BigEndian.AppendUint64(nil, uint64(c.now().UnixMilli()))
		if err := g.txn.Set(keyInc(inc), started); err != nil {
			return err
		}
	}
	// Synced: this is the promise of every call that writes.
	if err := errors.Join(c.finish(g.txn), c.syncDir()); err != nil {
		c.broken = fmt.Errorf("catalog: the disk did not keep a write, so that no later one can be relied on: check the disk, then restart the node: %w", err)
		return err
	}
	for _, inc := range begun {
		c.own[inc] = true
	}
	c.epoch.written = c.epoch.written || slices.ContainsFunc(g.batches, func(b *batch) bool { return b.feed })
	return nil
}

// spanAll writes two rows that say nothing, before and behind all others. A table of
// Badger's level 0 is what a memtable had, and of tables there it compacts the oldest
// together with those after it that overlap it. One of few rows, which a short run of
// a node leaves, would go alone; and if compactor 1 has it, compactor 0 meanwhile merges
// the others (four or more, older than 10 s) into a single table, in buffers of 256 and
// 512 MiB and for nothing. Tables that were written with these rows all overlap.
func spanAll(txn *badger.Txn) error {
	return errors.Join(txn.Set(keyMeta(metaFirst), nil), txn.Set([]byte{tabEnd}, nil))
}

// dirTick is the coarsest clock of a file system that a store may be on: two names
// that are made within it may leave the same time at their directory.
const dirTick = 2 * time.Second

// syncDir makes the name of a log durable that Badger began with this commit:
// it syncs files, and its directory at other times only.
func (c *Catalog) syncDir() error {
	if c.dir == "" {
		return nil
	}
	st, err := os.Stat(c.dir)
	if err != nil || st.ModTime().Equal(c.dirSynced) {
		return err
	}
	age := time.Since(st.ModTime()) // by the clock of files, whatever ours is
	if err = syncPath(c.dir); err != nil {
		return err
	}
	c.flushing = true
	if age > dirTick {
		c.dirSynced = st.ModTime()
	}
	return err
}

const (
	// settleFor bounds how long answers wait for a flush, and settlePoll is how often
	// the directory is looked at: a flush takes a tenth of a second.
	settleFor  = 30 * time.Second
	settlePoll = 5 * time.Millisecond
)

// Logs gives the paths of the logs in a catalogue's directory: of the memtable and
// of those that are not tables yet. A log goes when its table is there.
func Logs(dir string) ([]string, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var logs []string
	for _, n := range names {
		if strings.HasSuffix(n.Name(), ".mem") {
			logs = append(logs, filepath.Join(dir, n.Name()))
		}
	}
	return logs, err
}

// settle waits, where space is short, until all memtables but the newest are
// tables. So whatever others do to the disk between two commits, only the newest
// has still to be flushed, and Space sets room for that aside.
func (c *Catalog) settle() {
	if !c.flushing {
		return
	}
	for end := time.Now().Add(settleFor); time.Now().Before(end); {
		logs, err := Logs(c.dir)
		if err != nil || len(logs) <= 1 {
			c.flushing = false
			return
		}
		if c.space(ToFlush) == nil {
			return // looked at again by the next commit
		}
		time.Sleep(settlePoll)
	}
}

// nextDot is called by the committer only.
func (c *Catalog) nextDot() Dot {
	if c.inc == 0 {
		c.inc, c.seq = c.incarnate()
		if _, ok := c.own[c.inc]; !ok {
			c.own[c.inc] = false
		}
	}
	c.seq++
	return Dot{c.inc, c.seq}
}

// newIncarnation begins anew after a start: a disk put back to an older state
// can never give a dot twice.
func newIncarnation() (identity.Incarnation, uint64) { return identity.NewIncarnation(), 0 }
