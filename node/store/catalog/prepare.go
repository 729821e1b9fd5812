package catalog

import (
	"hash/maphash"

	"github.com/dgraph-io/ristretto/v2/z"

	"github.com/portolan/portolan/node/identity"
)

// This file is what makes a large exchange cheap for the committer: what an entry
// writes that is new here is made beforehand, while a page before it is written, and
// whether it is new is known without a read while a project comes in for the first time.

// prepared is what an entry writes where nothing is here of its key: a function of the
// project and the entry alone.
type prepared struct {
	entry     row   // the entry's own row
	rows      []row // what follows from it: index and derived rows
	all, live [16]byte
}

// prepare makes the rows of a live entry. A tombstone's have the time at which it is
// written, so it gives nil for one. encoded is the entry's row; nil: it is made.
func prepare(pid identity.ProjectID, k entryKey, e *entry, encoded []byte) (*prepared, error) {
	if !e.live() {
		return nil, nil
	}
	value, err := encoded, error(nil)
	if value == nil {
		value, err = e.encode()
	}
	if err != nil {
		return nil, err
	}
	derived, err := derive(pid, k, e)
	if err != nil {
		return nil, err
	}
	suffix := k.suffix()
	p := &prepared{entry: row{keyEntry(pid, k), value}, rows: derived, all: e.hash(suffix), live: e.liveHash(suffix)}
	for inc, seq := range e.ctx {
		p.rows = append(p.rows, row{key: keyIndex(pid, Dot{inc, seq}, k)})
	}
	return p, nil
}

// saveNew is save for an entry that is live, and of which nothing was here.
func (b *batch) saveNew(pid identity.ProjectID, k entryKey, e *entry, p *prepared) error {
	b.c.arriving.note(pid, k)
	if k.kind == kindTag && e.overruled() {
		b.touch(pid, change{overruled: true, beside: e.beside()})
	}
	b.set(p.entry.key, p.entry.value)
	for _, r := range p.rows {
		if b.rederived {
			b.set(r.key, r.value)
		} else {
			b.add(r)
		}
	}
	sum, err := b.sums(pid)
	if err != nil {
		return err
	}
	sum.all.add(p.all, 1)
	sum.live.add(p.live, 1)
	b.setSums(pid, sum)
	if err := b.count(pid, k, true); err != nil {
		return err
	}
	b.touch(pid, change{})
	if k.kind == kindTag {
		return b.noteConflicts(pid, k, e)
	}
	return nil
}

// add is set for a row that the batch has not written before and does not read: it is
// not looked for, neither now nor by a write that follows, which comes into force all
// the same because it comes later.
func (b *batch) add(r row) {
	if r.value == nil {
		r.value = []byte{}
	}
	b.ops = append(b.ops, op{key: r.key, value: r.value})
	b.size += int64(len(r.key) + len(r.value) + opOverhead)
}

const (
	// maxArriving bounds the projects of which is remembered what came, for the sake of
	// memory: as many as are pulled from two peers at a time.
	maxArriving = 8
	// arrivingKeys and arrivingWrong make a filter of 1.25 MiB. With more keys it is
	// wrong more often, which costs a read each time.
	arrivingKeys, arrivingWrong = 1 << 20, 0.01
)

// arriving is what the committer knows of projects of which nothing was here when an
// exchange began, and of blobs if there were none then: filters of the keys that were
// written since. What is in none needs no read. Only the committer touches it.
type arriving struct {
	projects map[identity.ProjectID]*arrivals
	// blobs is kept when the exchange ends, for the next ones; nil: there were some, or
	// there are more now than a filter is for.
	blobs *z.Bloom
	noted int // how often
}

type arrivals struct {
	exchanges int // that are under way
	keys      *z.Bloom
}

func newFilter() *z.Bloom { return z.NewBloomFilter(arrivingKeys, arrivingWrong) }

// begin notes that an exchange of a project begins. empty says that no key has a prefix.
func (a *arriving) begin(pid identity.ProjectID, empty func(prefix []byte) (bool, error)) (began bool, err error) {
	if here := a.projects[pid]; here != nil {
		here.exchanges++
		return true, nil
	}
	if len(a.projects) >= maxArriving {
		return false, nil
	}
	none, err := empty(prefixPID(tabEntry, pid))
	if err != nil || !none {
		return false, err
	}
	if a.projects == nil { // the first since the start
		for _, tab := range []byte{tabBlob, tabProof} {
			no, err := empty([]byte{tab})
			if err != nil {
				return false, err
			}
			none = none && no
		}
		if none {
			a.blobs = newFilter()
		}
		a.projects = map[identity.ProjectID]*arrivals{}
	}
	a.projects[pid] = &arrivals{exchanges: 1, keys: newFilter()}
	return true, nil
}

// end is called once for each begin that began.
func (a *arriving) end(pid identity.ProjectID) {
	here := a.projects[pid]
	if here.exchanges--; here.exchanges == 0 {
		delete(a.projects, pid)
	}
}

// note is called before an entry's row is written, also if that fails later.
func (a *arriving) note(pid identity.ProjectID, k entryKey) {
	if here := a.projects[pid]; here != nil {
		here.keys.Add(k.sum())
	}
}

// absent reports that nothing is here of a key. No answer is false.
func (a *arriving) absent(pid identity.ProjectID, k entryKey) bool {
	here := a.projects[pid]
	return here != nil && !here.keys.Has(k.sum())
}

// noteBlob is note for a blob's row, and for a proof of it.
func (a *arriving) noteBlob(raw []byte) {
	if a.blobs == nil {
		return
	}
	a.blobs.Add(maphash.Bytes(keySeed, raw))
	if a.noted++; a.noted > arrivingKeys {
		a.blobs = nil
	}
}

// noBlob is absent for a blob: neither its row nor a proof is here.
func (a *arriving) noBlob(raw []byte) bool {
	return a.blobs != nil && !a.blobs.Has(maphash.Bytes(keySeed, raw))
}

// sum is a number that few keys share.
func (k entryKey) sum() uint64 { return maphash.Comparable(keySeed, k) }

var keySeed = maphash.MakeSeed()
