package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// opOverhead is what one write costs in a Badger transaction beyond its key and
// value: two bytes of meta data and ten for the version.
const opOverhead = 16

// reader gives point reads and scans of one snapshot.
type reader struct{ txn *badger.Txn }

// get gives nil for a key that is not there.
func (r reader) get(key []byte) ([]byte, error) {
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := item.ValueCopy(nil)
	if v == nil && err == nil {
		v = []byte{} // there, and empty
	}
	return v, err
}

// scan calls fn for the keys with the prefix from start on (nil: from the
// first), until it says false. With values nil values are not read.
func (r reader) scan(prefix, start []byte, values bool, fn func(key, value []byte) (more bool, err error)) error {
	opts := badger.DefaultIteratorOptions
	opts.Prefix = prefix
	opts.PrefetchValues = false // scans here are short, or want keys alone
	it := r.txn.NewIterator(opts)
	defer it.Close()
	if start == nil {
		start = prefix
	}
	for it.Seek(start); it.ValidForPrefix(prefix); it.Next() {
		item := it.Item()
		var value []byte
		if values {
			var err error
			if value, err = item.ValueCopy(nil); err != nil {
				return err
			}
		}
		more, err := fn(item.KeyCopy(nil), value)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// any reports whether some key has the prefix.
func (r reader) any(prefix []byte) (bool, error) {
	found := false
	err := r.scan(prefix, nil, false, func(_, _ []byte) (bool, error) { found = true; return false, nil })
	return found, err
}

func (r reader) entry(pid identity.ProjectID, k entryKey) (*entry, error) {
	b, err := r.get(keyEntry(pid, k))
	if err != nil || b == nil {
		return nil, err
	}
	return decodeEntry(k, b)
}

func (r reader) vector(tab byte, pid identity.ProjectID) (Vector, error) {
	v := Vector{}
	err := r.scan(prefixPID(tab, pid), nil, true, func(key, value []byte) (bool, error) {
		inc, ok := parseVector(key)
		if !ok || len(value) != 8 {
			return false, damaged(key)
		}
		v[inc] = binary.BigEndian.Uint64(value)
		return true, nil
	})
	return v, err
}

func (r reader) sums(pid identity.ProjectID) (sums, error) {
	pb := &rowpb.Check{}
	ok, err := r.message(keyCheck(pid), pb)
	if err != nil || !ok {
		return sums{}, err
	}
	return sumsFromPB(pid, pb)
}

func sumsFromPB(pid identity.ProjectID, pb *rowpb.Check) (sums, error) {
	if len(pb.Xor) != 16 || len(pb.LiveXor) != 16 {
		return sums{}, damaged(keyCheck(pid))
	}
	return sums{Check{pb.Count, [16]byte(pb.Xor)}, Check{pb.LiveCount, [16]byte(pb.LiveXor)}}, nil
}

func (r reader) message(key []byte, m proto.Message) (bool, error) {
	b, err := r.get(key)
	if err != nil || b == nil {
		return false, err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return false, fmt.Errorf("%w: %w", damaged(key), err)
	}
	return true, nil
}

func damaged(key []byte) error {
	return fmt.Errorf("catalog: row %x is damaged: restore the database, or remove it and let this site sync anew", key)
}

// op is one write of a batch; a nil value with del set removes the key.
type op struct {
	key, value []byte
	del        bool
}

// batch is what one request does: reads of the state before it, and writes that
// come into force together or not at all. A batch may be run twice (when the
// transaction it was to join is full), so jobs keep their state inside it.
type batch struct {
	reader
	before reader // finds what is purged: see group.before
	c      *Catalog
	ops    []op
	at     map[string]int // key -> index in ops
	size   int64
	inc    identity.Incarnation // of the dot it took: its row has to be durable with it

	rederived bool // derived rows were taken back: see add

	// Rows that nearly every entry changes: read once, written once (settle).
	sum  map[identity.ProjectID]sums
	repo map[string]*rowpb.Repository // by key

	projects map[identity.ProjectID]change
	feed     bool     // the store's own feed grew
	lost     int      // conflict rows that were added
	judged   *Ordered // who knows the control state says what lost to its words; nil: nobody yet
	stores   bool     // a store got a number, or was dropped
	dropped  []Dropped
}

// change says how a batch changed a project.
type change struct {
	local     bool
	overruled bool   // see OnOverruled
	beside    bool   // what sites wrote stands beside the control state's word
	wrote     uint64 // requests of this store's own
	last      uint64 // the number of the newest of them
}

func (c change) and(o change) change {
	return change{c.local || o.local, c.overruled || o.overruled, c.beside || o.beside, c.wrote + o.wrote, max(c.last, o.last)}
}

func (c *Catalog) newBatch(txn *badger.Txn) *batch {
	return &batch{
		reader: reader{txn}, before: reader{txn}, c: c, at: map[string]int{}, projects: map[identity.ProjectID]change{},
		sum: map[identity.ProjectID]sums{}, repo: map[string]*rowpb.Repository{},
	}
}

// get sees the batch's own writes; scan does not.
func (b *batch) get(key []byte) ([]byte, error) {
	if i, ok := b.at[string(key)]; ok {
		return b.ops[i].value, nil
	}
	return b.reader.get(key)
}

func (b *batch) put(o op) {
	if i, ok := b.at[string(o.key)]; ok {
		b.size += int64(len(o.value) - len(b.ops[i].value))
		b.ops[i] = o
		return
	}
	b.at[string(o.key)] = len(b.ops)
	b.ops = append(b.ops, o)
	b.size += int64(len(o.key) + len(o.value) + opOverhead)
}

func (b *batch) set(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	b.put(op{key: key, value: value})
}

func (b *batch) del(key []byte) { b.put(op{key: key, del: true}) }

func (b *batch) setMessage(key []byte, m proto.Message) error {
	v, err := deterministic.Marshal(m)
	if err != nil {
		return err
	}
	b.set(key, v)
	return nil
}

func (b *batch) message(key []byte, m proto.Message) (bool, error) {
	v, err := b.get(key)
	if err != nil || v == nil {
		return false, err
	}
	if err := proto.Unmarshal(v, m); err != nil {
		return false, fmt.Errorf("%w: %w", damaged(key), err)
	}
	return true, nil
}

func (b *batch) entry(pid identity.ProjectID, k entryKey) (*entry, error) {
	if b.c.arriving.absent(pid, k) {
		return nil, nil
	}
	v, err := b.get(keyEntry(pid, k))
	if err != nil || v == nil {
		return nil, err
	}
	return decodeEntry(k, v)
}

func (b *batch) sums(pid identity.ProjectID) (sums, error) {
	if s, ok := b.sum[pid]; ok {
		return s, nil
	}
	return b.reader.sums(pid)
}

func (b *batch) setSums(pid identity.ProjectID, s sums) { b.sum[pid] = s }

// repository gives a repository's row, empty if there is none, to be changed.
func (b *batch) repository(pid identity.ProjectID, repo string) (*rowpb.Repository, error) {
	key := keyRepo(pid, repo)
	if pb := b.repo[string(key)]; pb != nil {
		return pb, nil
	}
	pb := &rowpb.Repository{}
	if _, err := b.reader.message(key, pb); err != nil {
		return nil, err
	}
	b.repo[string(key)] = pb
	return pb, nil
}

// settle writes what was gathered for the end of the batch.
func (b *batch) settle() error {
	for pid, s := range b.sum {
		if err := b.setMessage(keyCheck(pid), &rowpb.Check{Count: s.all.Count, Xor: s.all.Xor[:], LiveCount: s.live.Count, LiveXor: s.live.Xor[:]}); err != nil {
			return err
		}
	}
	for key, pb := range b.repo {
		if pb.Tags == 0 && pb.Manifests == 0 {
			b.del([]byte(key))
		} else if err := b.setMessage([]byte(key), pb); err != nil {
			return err
		}
	}
	return nil
}

// dot gives the request its dot and notes it in the project's vector.
func (b *batch) dot(pid identity.ProjectID) Dot {
	d := b.number(pid)
	b.touch(pid, change{local: true, wrote: 1, last: d.Seq})
	return d
}

// number notes a new dot in the project's vector, as that of a request or of nothing,
// which is no write that could be lost (rule 14); see Announce.
func (b *batch) number(pid identity.ProjectID) Dot {
	d := b.c.nextDot()
	b.inc = d.Inc
	b.setVector(tabVector, pid, d)
	b.touch(pid, change{})
	return d
}

func (b *batch) setVector(tab byte, pid identity.ProjectID, d Dot) {
	b.set(keyVector(tab, pid, d.Inc), binary.BigEndian.AppendUint64(nil, d.Seq))
}

func (b *batch) touch(pid identity.ProjectID, ch change) {
	b.projects[pid] = b.projects[pid].and(ch)
}

// save puts the new state of an entry in the place of the old one, with all that
// follows from it: index rows, check, derived rows, counts, conflicts. Writes
// made here and merges both end here.
func (b *batch) save(pid identity.ProjectID, k entryKey, old, new *entry) error {
	if old == nil && new.live() {
		new.goneMs = 0
		p, err := prepare(pid, k, new, nil)
		if err != nil {
			return err
		}
		return b.saveNew(pid, k, new, p)
	}
	b.c.arriving.note(pid, k)
	suffix := k.suffix()
	if k.kind == kindTag && new.overruled() {
		b.touch(pid, change{overruled: true, beside: new.beside()})
	}
	switch {
	case new.live():
		new.goneMs = 0
	case old == nil || old.live() || !old.ctx.Equal(new.ctx):
		new.goneMs = max(b.c.now().UnixMilli(), 0)
	default:
		new.goneMs = old.goneMs
	}
	value, err := new.encode()
	if err != nil {
		return err
	}
	b.set(keyEntry(pid, k), value)

	var was Vector
	if old != nil {
		was = old.ctx
	}
	for inc, seq := range new.ctx {
		if was[inc] != seq {
			if was[inc] != 0 {
				b.del(keyIndex(pid, Dot{inc, was[inc]}, k))
			}
			b.set(keyIndex(pid, Dot{inc, seq}, k), nil)
		}
	}

	sum, err := b.sums(pid)
	if err != nil {
		return err
	}
	if old != nil {
		sum.take(old, suffix)
	}
	sum.put(new, suffix)
	b.setSums(pid, sum)

	if err := b.rederive(pid, k, old, new); err != nil {
		return err
	}
	if err := b.noteDropped(pid, k, old, new); err != nil {
		return err
	}
	b.touch(pid, change{})
	if k.kind == kindTag {
		return b.noteConflicts(pid, k, new)
	}
	return nil
}

func (b *batch) rederive(pid identity.ProjectID, k entryKey, old, new *entry) error {
	before, err := derive(pid, k, old)
	if err != nil {
		return err
	}
	after, err := derive(pid, k, new)
	if err != nil {
		return err
	}
	b.rederived = true
	var same map[string]bool
	if len(before) > 0 { // else all of it is new
		keep := make(map[string][]byte, len(after))
		for _, r := range after {
			keep[string(r.key)] = r.value
		}
		same = make(map[string]bool, len(before))
		for _, r := range before {
			v, ok := keep[string(r.key)]
			if !ok {
				b.del(r.key)
			} else if slices.Equal(v, r.value) {
				same[string(r.key)] = true
			}
		}
	}
	for _, r := range after {
		if !same[string(r.key)] {
			b.set(r.key, r.value)
		}
	}
	if old.live() != new.live() {
		return b.count(pid, k, new.live())
	}
	return nil
}

// count keeps the repository's row, which is there while it has live entries.
func (b *batch) count(pid identity.ProjectID, k entryKey, up bool) error {
	pb, err := b.repository(pid, k.repo)
	if err != nil {
		return err
	}
	n := &pb.Tags
	if k.kind == kindManifest {
		n = &pb.Manifests
	}
	switch {
	case up:
		*n++
	case *n == 0:
		return damaged(keyRepo(pid, k.repo))
	default:
		*n--
	}
	return nil
}

// noteConflicts adds a row for each write of this store that is now known to
// have lost (invariant 8). The row stays when the conflict has been reported, so
// that it is reported once.
func (b *batch) noteConflicts(pid identity.ProjectID, k entryKey, e *entry) error {
	if len(e.sibs) < 2 && len(e.losers) == 0 {
		return nil
	}
	var winner []byte
	w := e.winner()
	if w != nil {
		winner = tagDigest(w)
	}
	nowMs := b.c.now().UnixMilli()
	note := func(d Dot, digest []byte, actor string) error {
		if _, ok := b.c.own[d.Inc]; !ok {
			return nil
		}
		key := keyConflict(pid, d, k.repo, k.name)
		if v, err := b.get(key); err != nil || v != nil {
			return err
		}
		b.lost++
		return b.setMessage(key, &rowpb.Conflict{Winner: winner, Loser: digest, Actor: actor, FoundUnixMs: nowMs})
	}
	losing := e.losing()
	if w != nil && w.dot.Inc == strongInc {
		// Whether the control state's word came after what is beside it, or nobody knew of
		// that, depends on the state: who knows it is told (OnOverruled), and makes a loser
		// of it (PutStrong) or says so (NoteOverruled).
		if b.judged == nil {
			losing = nil
		} else {
			after := b.judged.of(k).after
			losing = slices.DeleteFunc(losing, after)
		}
	}
	for _, s := range losing {
		if err := note(s.dot, tagDigest(s), s.actor); err != nil {
			return err
		}
	}
	for _, l := range e.losers {
		if l.keepUntilMs < nowMs {
			continue
		}
		if err := note(l.dot, []byte(l.digest), ""); err != nil {
			return err
		}
	}
	return nil
}

func stampTime(stamp uint64) time.Time { return time.UnixMilli(int64(stamp >> stampShift)) }
