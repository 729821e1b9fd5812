package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// schemaVersion is raised when an older program would misread the rows.
//
//	1: first version
//	2: rows of blobs say whose content they are (proof.go); an older program would
//	   give it to whoever names it
const schemaVersion = 2

const (
	// memTableBytes bounds one transaction to 15 % of it (4.8 MiB: tens of thousands
	// of rows) and is about what a busy catalogue holds in memory.
	memTableBytes = 32 << 20
	valueLogBytes = 64 << 20
	// tableBytes is the size of a table of the first level below the memtables; each
	// further level doubles it. A compaction builds up to a dozen at a time on the
	// heap (DESIGN.md, Memory).
	tableBytes = 2 << 20
	// levelZeroTables of the size of a memtable are gathered before they are compacted,
	// and levelZeroStall is at how many writes wait. What comes in at once, as a first
	// exchange does, is written again for each level that it passes and for what is
	// there already: gathering more makes that less often. Each costs a read one look
	// into its filter.
	levelZeroTables, levelZeroStall = 16, 22
	smallLevelZero, smallStall      = 3, 9 // on a small disk
	// baseLevelBytes is how large the first level below those may grow: with Badger's
	// 10 MiB a million entries that come in at once are written through one level more.
	// A compaction into it writes as much and the tables above, which Space keeps room
	// for.
	baseLevelBytes = 192 << 20
	smallBaseLevel = 64 << 20
	// blockBytes is what a read of a row checks, so smaller is quicker: with 32 KiB a
	// receiver of small images used a tenth of its time for it. It holds a blob of 10 KB:
	// a block that a row overflows is copied to twice its size while a table is built, so
	// that one of Badger's 4 KiB and a blob took 34 KB in memory. A row of 30 KB takes
	// 103 KB for that time, where blocks of 32 KiB took 33.
	blockBytes = 12 << 10
)

// RoomToCompact is what Space is to keep free: two memtables that are flushed and one
// compaction at its largest, as many tables of level 0 as there can be into the base
// level.
const RoomToCompact = (2+levelZeroStall)*memTableBytes + baseLevelBytes + 64<<20

// Need says what space on the disk is asked for.
type Need uint8

const (
	// ToGrow is for what adds to the database.
	ToGrow Need = iota
	// ToShrink is for what leads to more space, as deletes do: it may use most of
	// what is kept free.
	ToShrink
	// ToOpen is for a start, so that a node whose disk is full can be started again
	// and serves what it has. It flushes the memtables that a crash left as logs.
	ToOpen
	// ToClose is for the end, which flushes the memtable and can't be refused.
	ToClose
	// ToFlush is for a memtable that was filled and is being written to a table. An
	// error says that others may take what it needs: the commit is answered when that
	// is done.
	ToFlush
)

// Options of Open. The zero value of each field has a sensible meaning.
type Options struct {
	Logger     *slog.Logger          // default slog.Default
	Now        func() time.Time      // wall clock for stamps and expiry; default time.Now
	OnConflict func(Conflict)        // called for each conflict that a write of this store lost; again only after a crash
	Metrics    prometheus.Registerer // nil: no metrics
	InMemory   bool                  // nothing is kept after Close; for tests
	// Space is asked before each transaction, before Open touches the disk and before
	// Close flushes to it: an error refuses what was asked for, but for a close. Badger writes through memory maps, and a disk
	// that fills up under one ends the process, so this must say no while there is
	// still room for a transaction, for memtables that are flushed and for a
	// compaction. Nil: never refuses.
	Space func(Need) error
	// Room is what Space keeps free; 0: RoomToCompact. With less, compactions are kept
	// small and there are more of them.
	Room int64
}

// Catalog is one site's catalogue.
type Catalog struct {
	db         *badger.DB
	log        *slog.Logger
	now        func() time.Time
	space      func(Need) error
	onConflict func(Conflict)
	id         [16]byte
	dir        string // "": in memory
	metrics    *metrics

	jobs      chan *job
	life      context.Context // of the goroutines; ended by Close
	end       context.CancelFunc
	stop      <-chan struct{} // life's end
	committed chan struct{}   // closed when the committer has ended
	closing   sync.Once
	closeErr  error
	running   sync.WaitGroup
	building  sync.WaitGroup // ends with the database
	reading   sync.RWMutex   // held shared by reads: Badger's Close does not wait for them

	// Only the committer touches these.
	inc       identity.Incarnation          // of the writes made now; 0 before the first
	seq       uint64                        // of the last dot given
	own       map[identity.Incarnation]bool // all incarnations of this store: is the row on disk?
	feedN     uint64                        // of the last feed row
	epoch     feedEpoch
	incarnate func() (identity.Incarnation, uint64)
	finish    func(*badger.Txn) error
	dirSynced time.Time // the directory's time when it was last synced
	flushing  bool      // a memtable may be on its way to a table
	// broken is why nothing is written any more: after a sync that failed the
	// system may call clean what it dropped, so that a later one that succeeds
	// proves nothing, and a restart would stop reading the log before it.
	broken   error
	merge    func(here, in *entry, purged Vector) *entry
	windows  map[*Receiving]bool // exchanges with a full list
	arriving arriving
	// maxDrops is the constant of that name, but in tests.
	maxDrops int

	sound   func(want, sum Check) bool // whether a full list adds up
	seenAll func(seen, ctx Vector) bool
	words   atomic.Pointer[words] // see OnlyOver
	listing chan struct{}         // one slot: a full list is being made
	ahead   chan struct{}         // slots of deltas that look far ahead

	storesGen atomic.Uint64 // grows when a store gets a number, or is dropped
	known     atomic.Pointer[storesKnown]

	mu        sync.Mutex
	watchers  map[*watcher]bool
	wake      chan struct{} // one slot: something for the notifier
	dirty     map[identity.ProjectID]change
	wrote     map[identity.ProjectID]Written // here, in this incarnation
	announced map[identity.ProjectID]Check   // see Announce
	feedNew   bool
	conflict  bool
	dropped   []Dropped
}

// Open opens the catalogue in dir, or makes it. A directory that a newer
// program wrote is refused.
func Open(dir string, opts Options) (*Catalog, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Space == nil {
		opts.Space = func(Need) error { return nil }
	}
	c := &Catalog{
		space: opts.Space,
		log:   opts.Logger, now: opts.Now, onConflict: opts.OnConflict, metrics: newMetrics(),
		jobs: make(chan *job, maxQueued), committed: make(chan struct{}),
		own: map[identity.Incarnation]bool{}, incarnate: newIncarnation, merge: merge,
		windows: map[*Receiving]bool{}, maxDrops: maxDrops, sound: func(want, sum Check) bool { return want == sum }, seenAll: Vector.Dominates, listing: make(chan struct{}, 1), ahead: make(chan struct{}, maxAhead), finish: (*badger.Txn).Commit,
		watchers: map[*watcher]bool{}, wake: make(chan struct{}, 1),
		dirty: map[identity.ProjectID]change{}, wrote: map[identity.ProjectID]Written{}, announced: map[identity.ProjectID]Check{},
	}
	c.life, c.end = context.WithCancel(context.Background())
	c.stop = c.life.Done()
	err := opts.Space(ToOpen)
	if err != nil {
		return nil, fmt.Errorf("catalog: open %s: %w", dir, err)
	}
	if !opts.InMemory {
		if err := prepareDir(dir); err != nil {
			return nil, fmt.Errorf("catalog: open %s: %w", dir, err)
		}
	}
	if c.db, err = badger.Open(badgerOptions(dir, opts)); err != nil {
		return nil, fmt.Errorf("catalog: open %s: %w", dir, err)
	}
	if !opts.InMemory {
		c.dir = dir
	}
	if err := c.load(dir); err != nil {
		return nil, errors.Join(err, c.db.Close())
	}
	if opts.Metrics != nil {
		if err := c.metrics.register(opts.Metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("catalog: metrics: %w", err), c.db.Close())
		}
	}
	c.conflict = true // reports that a crash kept from being delivered
	c.poke()
	c.running.Go(c.commitLoop)
	c.running.Go(c.notifyLoop)
	c.running.Go(c.upkeepLoop)
	if returned := allocators(c.db); returned != nil {
		c.building.Go(func() { c.freeAllocators(returned) })
	}
	return c, nil
}

// Close waits for the request that is being written, refuses those that wait,
// and closes the database.
func (c *Catalog) Close() error {
	c.closing.Do(func() {
		c.end()
		c.running.Wait()
		c.metrics.unregister()
		c.reading.Lock()
		defer c.reading.Unlock()
		if err := c.space(ToClose); err != nil {
			c.log.Warn("there may not be space to close the catalogue", "error", err)
		}
		c.closeErr = c.db.Close()
		c.building.Wait()
	})
	return c.closeErr
}

// DatabaseID is random and made with the database: a peer that remembers where
// it was in this one's data must forget it when the ID changes.
func (c *Catalog) DatabaseID() [16]byte { return c.id }

func badgerOptions(dir string, opts Options) badger.Options {
	zero, stall, base := levelZeroTables, levelZeroStall, int64(baseLevelBytes)
	if opts.Room > 0 && opts.Room < RoomToCompact {
		zero, stall, base = smallLevelZero, smallStall, smallBaseLevel
	}
	o := badger.DefaultOptions(dir).
		WithSyncWrites(true).                              // what a commit acknowledged survives a power cut
		WithDetectConflicts(false).                        // there is one writer
		WithMetricsEnabled(false).                         // its metrics are process-wide globals
		WithNumVersionsToKeep(1).                          // nothing reads the past
		WithChecksumVerificationMode(options.OnBlockRead). // rows that a disk changed are an error, not another row
		WithMemTableSize(memTableBytes).
		WithNumMemtables(2).
		WithCompression(options.None). // read from the page cache as they are: nothing is unpacked
		WithBlockCacheSize(0).         // only packed or encrypted tables need one
		WithIndexCacheSize(0).         // only encrypted tables have one: others' are mapped
		WithBaseTableSize(tableBytes).
		WithBlockSize(blockBytes).
		WithBaseLevelSize(base).
		WithValueLogFileSize(valueLogBytes).
		WithNumCompactors(2).
		WithNumLevelZeroTables(zero). // bounds what one compaction writes, see Space
		WithNumLevelZeroTablesStall(stall).
		WithCompactL0OnClose(false). // it would need as much of the disk again as it compacts
		WithLogger(logger{opts.Logger})
	if opts.InMemory {
		// Badger refuses directories in memory mode.
		o = o.WithInMemory(true).WithDir("").WithValueDir("").WithCompactL0OnClose(false)
	}
	return o
}

// load reads what the committer keeps in memory, and writes the schema row of a
// new database.
func (c *Catalog) load(dir string) error {
	schema := &rowpb.Schema{}
	err := c.db.View(func(txn *badger.Txn) error {
		r := reader{txn}
		if _, err := r.message(keyMeta(metaSchema), schema); err != nil {
			return err
		}
		if schema.Version > schemaVersion {
			return fmt.Errorf("catalog: %s was written by a newer version of Portolan (schema %d, this one reads up to %d): run that version or a later one",
				dir, schema.Version, schemaVersion)
		}
		err := r.scan([]byte{tabInc}, nil, false, func(key, _ []byte) (bool, error) {
			inc, ok := parseInc(key)
			if !ok {
				return false, damaged(key)
			}
			c.own[inc] = true
			return true, nil
		})
		if err != nil {
			return err
		}
		c.feedN, err = r.lastFeed()
		return err
	})
	if err != nil {
		return err
	}
	if len(schema.DatabaseId) == 16 && schema.Version == 1 {
		c.log.Info("the catalogue is brought to schema 2: what projects name here is noted as theirs")
		if err := c.proveLinks(); err != nil {
			return err
		}
		// Last: what was cut short before begins anew.
		schema.Version = 2
		if err := c.writeSchema(schema, dir); err != nil {
			return err
		}
	}
	if schema.Version == 0 {
		schema = &rowpb.Schema{Version: schemaVersion, DatabaseId: make([]byte, 16), CreatedUnixMs: c.now().UnixMilli()}
		_, _ = rand.Read(schema.DatabaseId) // never fails
		if err := c.writeSchema(schema, dir); err != nil {
			return err
		}
	}
	if len(schema.DatabaseId) != 16 {
		return damaged(keyMeta(metaSchema))
	}
	c.id = [16]byte(schema.DatabaseId)
	return nil
}

func (c *Catalog) writeSchema(schema *rowpb.Schema, dir string) error {
	value, err := proto.Marshal(schema)
	if err != nil {
		return err
	}
	err = c.db.Update(func(txn *badger.Txn) error { return errors.Join(txn.Set(keyMeta(metaSchema), value), spanAll(txn)) })
	if err != nil {
		return fmt.Errorf("catalog: write the schema of %s: %w", dir, err)
	}
	return nil
}

// view runs fn on a snapshot that has everything acknowledged so far. Views must
// not be nested, nor wait for anybody.
func (c *Catalog) view(fn func(reader) error) error {
	c.reading.RLock()
	defer c.reading.RUnlock()
	select {
	case <-c.stop:
		return ErrClosed
	default:
	}
	return c.db.View(func(txn *badger.Txn) error { return fn(reader{txn}) })
}

// logger passes Badger's warnings and errors on; the rest is its housekeeping.
type logger struct{ log *slog.Logger }

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("badger", "detail", fmt.Sprintf(format, args...))
}

func (l logger) Warningf(format string, args ...any) {
	l.log.Warn("badger", "detail", fmt.Sprintf(format, args...))
}
func (logger) Infof(string, ...any)  {}
func (logger) Debugf(string, ...any) {}
