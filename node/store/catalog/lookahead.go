package catalog

import (
	"bytes"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// A delta goes in the order of requests, in which one key has nothing to do with the
// next: read one by one, each costs a search in every level and the check of a whole
// block. So the rows that the next index rows name are read beforehand, in the order
// of their keys, where neighbours share blocks; pages are then built in the order of
// requests (invariant 4) from what was read. What was read holds while the project's
// sum, which every change of an entry changes, is what it was: so a page says what is
// here when it is built, as it would if nothing were read ahead.

const (
	// aheadMost is how many index rows a delta looks ahead, and aheadLeast how many
	// when the project changes meanwhile or many deltas are under way: about those of a
	// page.
	aheadMost, aheadLeast = 1 << 14, 1 << 10
	// aheadBytes bounds what is read ahead: what does not fit is read when its turn
	// comes.
	aheadBytes = 8 << 20
	// maxAhead is how many deltas at a time look far ahead, for the sake of memory: as
	// many as one peer pulls.
	maxAhead = 4
	// walkLeast: with fewer keys point reads cost less than an iterator.
	walkLeast = 64
	// stepsPerKey is how many rows an iterator may pass for each that is wanted, and
	// still costs less than a point read.
	stepsPerKey = 24
)

// lookahead are index rows of one snapshot that are still to be sent, and what was read
// of what they name.
type lookahead struct {
	sum  sums // of the project then
	next []named
	rows map[string][]byte // by key; nil: it is not there; what is missing was not looked for
	size int
}

// named is one index row.
type named struct {
	dot Dot
	key entryKey
}

// fill looks ahead in a snapshot whose sum is given. Nothing is ahead when there
// is nothing to send any more.
func (d *delta) fill(r reader, sum sums) error {
	d.ahead = lookahead{sum: sum}
	w := &d.ahead
	for d.at < len(d.incs) && len(w.next) < d.look {
		inc := d.incs[d.at]
		if d.since[inc] == math.MaxUint64 {
			d.at++
			continue
		}
		prefix := prefixInc(tabIndex, d.pid, inc)
		from := d.from
		if from == nil {
			from = keyIndex(d.pid, Dot{inc, d.since[inc] + 1}, entryKey{})[:len(prefix)+8]
		}
		full := false
		err := r.scan(prefix, from, false, func(key, _ []byte) (bool, error) {
			if full = len(w.next) == d.look; full {
				d.from = key
				return false, nil
			}
			dot, k, ok := parseIndex(key)
			if !ok {
				return false, damaged(key)
			}
			w.next = append(w.next, named{dot, k})
			return true, nil
		})
		if err != nil {
			return err
		}
		if !full {
			d.at, d.from = d.at+1, nil
		}
	}
	return w.readAhead(r, d.pid)
}

// forget gives up what was read ahead: the walk goes on with the first index row that
// was not sent, or where it is now.
func (d *delta) forget() {
	if w := d.ahead.next; len(w) > 0 {
		d.at = slices.Index(d.incs, w[0].dot.Inc)
		d.from = keyIndex(d.pid, w[0].dot, w[0].key)
	}
	d.ahead = lookahead{}
}

// readAhead reads what the entries that are ahead need that a page is built of.
func (w *lookahead) readAhead(r reader, pid identity.ProjectID) error {
	w.rows = make(map[string][]byte, 3*len(w.next))
	if len(w.next) < walkLeast {
		return nil
	}
	entries := make([][]byte, 0, len(w.next))
	var blobs, contents [][]byte
	for _, n := range w.next {
		entries = append(entries, keyEntry(pid, n.key))
		if n.key.kind == kindManifest {
			blobs = append(blobs, prefixDigest(tabBlob, []byte(n.key.name)))
		}
	}
	if err := w.read(r, prefixPID(tabEntry, pid), entries); err != nil {
		return err
	}
	if err := w.read(r, []byte{tabBlob}, blobs); err != nil {
		return err
	}
	for _, key := range blobs {
		pb := &rowpb.Blob{}
		// A row that is damaged is an error when its turn comes.
		if value := w.rows[string(key)]; value != nil && proto.Unmarshal(value, pb) == nil && pb.Inline && BlobState(pb.State) == Present {
			contents = append(contents, append([]byte{tabContent}, key[1:]...))
		}
	}
	return w.read(r, []byte{tabContent}, contents)
}

// read reads the rows of keys, all of one prefix, in their order. By an iterator, as
// long as they lie close enough together.
func (w *lookahead) read(r reader, prefix []byte, keys [][]byte) error {
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	opts := badger.DefaultIteratorOptions
	opts.Prefix, opts.PrefetchValues = prefix, false
	it := r.txn.NewIterator(opts)
	defer func() { it.Close() }()
	walk, steps := true, 0
	for n, key := range keys {
		if w.size > aheadBytes {
			return nil
		}
		walk = walk && steps <= (walkLeast+n)*stepsPerKey
		var value []byte
		var err error
		if walk {
			var took int
			value, took, err = walkTo(it, prefix, key, n == 0)
			steps += took
		} else {
			value, err = r.get(key)
		}
		if err != nil {
			return err
		}
		w.rows[string(key)] = value
		w.size += len(key) + len(value)
	}
	return nil
}

// walkTo moves an iterator forward to a key and gives its value; nil: it is not there.
// steps is what that cost, in rows.
func walkTo(it *badger.Iterator, prefix, key []byte, first bool) (value []byte, steps int, err error) {
	const far = 4 * stepsPerKey // a seek costs as much
	for seek := first; ; steps++ {
		if seek = seek || steps == far; seek {
			it.Seek(key)
			steps += far
			break
		}
		if !it.ValidForPrefix(prefix) || bytes.Compare(it.Item().Key(), key) >= 0 {
			break
		}
		it.Next()
	}
	if !it.ValidForPrefix(prefix) || !bytes.Equal(it.Item().Key(), key) {
		return nil, steps, nil
	}
	value, err = it.Item().ValueCopy(nil)
	if value == nil && err == nil {
		value = []byte{} // there, and empty
	}
	return value, steps, err
}
