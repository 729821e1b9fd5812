package swarm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// Readers that can take their word back have the bytes of the unit that they stand
// in while it comes, 64 KiB at a time, as far as those fit the sub-states that the
// sender sent before them: "Bytes before their unit" in DESIGN.md.

// splitWorthAfter is the shortest time of a unit for which sub-states are asked for:
// its holder hashes it before it sends the first byte, which takes up to some 10 ms,
// and the receiver hashes it twice.
const splitWorthAfter = 25 * time.Millisecond

// errTakenBack ends a reader that was given bytes which turned out to be wrong.
var errTakenBack = errors.New("bytes given out early are not the blob's: the answer must be cut off")

// splitsFunc is told of the sub-states of a unit whose bytes will come into data.
// What it gives, which may be nil, is told how many of them are here.
type splitsFunc func(unit int, subs, data []byte) func(n int)

// early is a unit that comes with its sub-states.
type early struct {
	unit  int
	from  identity.NodeID
	list  *units.List
	subs  []byte
	most  int64          // bytes before the last sub-unit, which waits for the unit's own link
	check *units.Checker // of the lane's goroutine

	// Guarded by flight.mu.
	data   []byte // the lane's buffer; nil: nothing more comes
	good   int64  // bytes that fit, and not more than most
	proven bool   // it linked: whatever was given out of it is right
	blamed bool   // some of what was given out of it is wrong, and said to be
}

// worthSplitting says whether an order is to ask for sub-states. That is so for the
// first unit that a reader waits for, or will wait for next, if nothing of it is on its
// way: of a peer whose rate is not known, or from which a unit takes longer than a
// round trip. Elsewhere the next unit is here before the last one is read. mu is held.
func (f *flight) worthSplitting(node identity.NodeID, o order) bool {
	if o.n == 0 || f.layout == nil || f.reading.Load() == 0 || o.first >= f.layout.units()-1 {
		return false // the last unit waits for the whole chain
	}
	at := f.standing()
	if len(at) == 0 {
		at = []int{0} // whoever waits for the blob to be opened
	}
	for _, i := range at {
		for i < o.first && f.sched.have.has(i) {
			i++
		}
		if i == o.first {
			_, n := f.layout.span(i)
			return f.s.pipes.slow(node, n)
		}
	}
	return false
}

// slow says whether n bytes of a peer take longer than it takes to ask for them, as
// far as is known.
func (ps *pipes) slow(node identity.NodeID, n int64) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.peers[node]
	return p == nil || p.rate == 0 || float64(n)/p.rate > max(p.delay, ps.splitWorth).Seconds()
}

// subStates reads the sub-states of the unit that follows, if there are any, and
// tells of them.
func (s *session) subStates(r *run, a *Answer, data []byte) (told func(n int), err error) {
	wanted := r.subs
	r.subs = false
	if a.SubBytes == 0 {
		return nil, nil
	}
	if !wanted || int64(a.SubBytes) != int64(units.SubStatesBytes(r.alg, int64(len(data)))) {
		return nil, fmt.Errorf("%w: %d bytes of sub-states of unit %d", errProtocol, a.SubBytes, a.Unit)
	}
	subs := make([]byte, a.SubBytes)
	if err := s.readFull(subs, nil); err != nil {
		return nil, err
	}
	if s.splits == nil {
		return nil, nil
	}
	return s.splits(r.next, subs, data), nil
}

// splits begins to show a unit to readers while it comes.
func (l *lane) splits(unit int, subs, data []byte) func(n int) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vessel == nil || unit >= f.layout.units()-1 {
		return nil // nothing to check it against, or nothing to gain
	}
	e := &early{
		unit: unit, from: l.node, list: f.vessel.List(), subs: subs, data: data,
		most: (int64(len(data)) - 1) / units.SubUnit * units.SubUnit,
	}
	var err error
	if e.check, err = e.list.Checker(unit, subs); err != nil {
		return nil // this build has no states
	}
	l.early = e
	taken := 0
	return func(n int) {
		_ = e.check.Take(data[taken:n]) // what it thinks of the whole, take looks at
		taken = n
		f.shows(e, min(e.check.Checked(), e.most))
	}
}

// shows lets readers have the bytes of a unit up to good. Of two peers that send the
// same one, it is the one that is ahead that is read from.
func (f *flight) shows(e *early, good int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if good == e.good {
		return
	}
	e.good = good
	if now := f.early[e.unit]; now != nil && now.good > good {
		return // another one is ahead
	}
	if f.early == nil {
		f.early = map[int]*early{}
	}
	f.early[e.unit] = e
	f.announce()
	f.broadcast()
}

// unsplit ends what splits began: the buffer is somebody else's from now on.
func (l *lane) unsplit() {
	e := l.early
	if e == nil {
		return
	}
	l.early = nil
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	e.data = nil
	if l.f.early[e.unit] == e {
		delete(l.f.early, e.unit)
	}
}

// proves notes that a peer's unit linked; mu is held. A peer has one lane of a flight,
// which takes one unit at a time: what it showed of this one is what linked. Whoever
// read of another peer's compares.
func (f *flight) proves(unit int, from identity.NodeID) {
	if e := f.early[unit]; e != nil && e.from == from {
		e.proven = true
	}
}

// lied says that the unit linked, and its sub-states are not its own.
func (e *early) lied() bool {
	return e != nil && e.check.Done() && e.check.Checked() < int64(len(e.data))
}

// blameSubs puts a peer out whose sub-states do not fit the list in use. At once: an
// honest one has none for bytes that are not the blob's. But the list may be the one
// that is wrong: it is named when that is known, see blame.
func (f *flight) blameSubs(e *early) error {
	node, unit := e.from, e.unit
	err := fmt.Errorf("%w: false sub-states of unit %d", errBad, unit)
	f.mu.Lock()
	if e.blamed { // by another reader
		f.mu.Unlock()
		return f.outAs(node)
	}
	e.blamed = true
	c := candidate{node: node}
	l := f.lanes[node]
	if l != nil {
		c = l.candidate
	}
	ch := f.charged(c)
	ch.unit, ch.why = unit, wrongSubs
	ch.units++
	f.strikes[node] = maxStrikes
	delete(f.good, node)
	evident := f.evident(ch)
	trying := !evident && l != nil && !ch.tried
	if trying {
		ch.tried, l.trial = true, &trial{unit: unit}
	} else if l == nil || l.trial == nil {
		f.sched.leave(node)
	}
	f.mu.Unlock()
	f.stir()
	f.wakeLanes(&node)
	switch {
	case evident:
		f.convict(ch, err)
		return err
	case trying:
		return nil
	}
	return errAside
}

// agrees says whether two peers say the same of a unit's first n bytes: what one of
// them gave is then what the other has.
func (e *early) agrees(o *early, n int64) bool {
	size := units.StateSize(e.list.Digest.Algorithm())
	k := int(n / units.SubUnit)
	return e.good >= n && bytes.Equal(e.subs[(k-1)*size:k*size], o.subs[(k-1)*size:k*size])
}

// fits compares what was said of a unit's first n bytes with the unit that linked.
func (e *early) fits(unit io.ReaderAt, n int64) (bool, error) {
	check, err := e.list.Checker(e.unit, e.subs)
	if err != nil {
		return false, err
	}
	off, _ := e.list.Span(e.unit)
	buf := make([]byte, units.SubUnit)
	for at := int64(0); at < n; at += units.SubUnit {
		if got, err := unit.ReadAt(buf, off+at); got < len(buf) {
			return false, errors.Join(io.ErrUnexpectedEOF, err)
		}
		_ = check.Take(buf) // Checked says what it thinks
	}
	return check.Checked() >= n, nil
}

// owing is what a reader was given of a unit before that linked.
type owing struct {
	*early
	given int64 // bytes from the unit's start on, in whole sub-units
}

// Early makes Read give out bytes of the unit that it stands in before the whole unit
// is checked: their sender vouches for them, and nobody else. Who calls it keeps back
// the end of what it passes on until Proven is nil.
func (r *reader) Early() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.early = true
}

// Proven blocks until all that Read gave out is checked as T1 says. With an error
// some of it is wrong, or that can't be known any more: what was passed on must be cut
// off.
func (r *reader) Proven() error {
	for r.owes.early != nil {
		switch {
		case r.closed:
			return errReaderClosed
		case r.failed != nil:
			return r.failed
		}
		wait, err := r.prove()
		if err == nil && wait != nil {
			err = r.pause(wait)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// peeked gives bytes of unit i before it is here; mu is held.
func (r *reader) peeked(p []byte, i int) int {
	f := r.f
	e := f.early[i]
	if e == nil || !r.early || f.poisoned || f.over || f.vessel.Has(i) {
		return 0
	}
	off, _ := f.layout.span(i)
	at := r.off - off
	// Who was given something by another sender goes on with this one if it has the same.
	if at >= e.good || r.owes.early != nil && r.owes.early != e && !e.agrees(r.owes.early, r.owes.given) {
		return 0
	}
	n := copy(p, e.data[at:e.good])
	given := (at + int64(n) + units.SubUnit - 1) / units.SubUnit * units.SubUnit
	r.owes = owing{e, max(given, r.owes.given)}
	return n
}

// prove looks whether what was given out early is right. Either that is so, and
// nothing is owed any more, or it is not, which is the error, or it is not known: then
// it gives what to wait for.
func (r *reader) prove() (wait <-chan struct{}, err error) {
	f, e := r.f, r.owes.early
	var unit io.ReaderAt = r.local
	if r.local == nil {
		f.mu.Lock()
		r.stand(e.unit)
		wait = f.changed
		v, proven, poisoned := f.vessel, e.proven, f.poisoned
		f.mu.Unlock()
		if w, passing := v.(*window); passing {
			f.follow(w, e.unit)
		}
		if proven {
			r.owes = owing{}
			return nil, nil
		}
		if poisoned || !v.Has(e.unit) {
			return wait, nil
		}
		unit = v
	}
	right, err := e.fits(unit, r.owes.given)
	switch {
	case err != nil && r.local == nil:
		return f.done, nil // it closed its partial just now: how it ended tells more
	case err != nil:
		return nil, err
	case !right:
		_ = f.blameSubs(e)
		r.failed = fmt.Errorf("blob %s, unit %d of node %s: %w", f.digest, e.unit, e.from.Short(), errTakenBack)
		return nil, r.failed
	}
	r.owes = owing{}
	return nil, nil
}
