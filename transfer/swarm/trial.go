package swarm

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// That a peer's unit does not fit the list in use does not say which of the two is
// wrong. Nobody is named before the evidence does: "Who is named" in DESIGN.md.

var (
	// errAside puts a peer out for this blob, and says nothing of who is wrong.
	errAside = errors.New("its bytes do not fit the unit list in use, and which of the two is wrong is not known")
	// errContested ends a flight whose list did not bring the blob whole, while a
	// holder has another one and bytes that fit it. The next flight goes by that.
	errContested = errors.New("holders have another signed unit list of the blob")
)

// What a peer is charged with, as people are told.
const (
	wrongUnit = "bytes that are not the blob's"
	wrongSubs = "sub-states that are not the blob's"
)

// charge is what one peer sent in a flight that does not fit the list in use. Guarded
// by flight.mu.
type charge struct {
	candidate
	why     string
	unit    int       // the last one
	units   int       // for which it was not named yet
	holder  bool      // it is thought to have all of the blob
	root    *[32]byte // of the list that it showed as its own; nil: none
	tried   bool      // it was asked for that
	excused bool      // what it sends fits another list, which it showed
	guilty  bool      // it was named
}

// trial is the question to a peer for its own record and list, and in the same answer
// for a unit: whose list and bytes do not fit each other is wrong, whatever list is in
// use. Guarded by flight.mu.
type trial struct {
	unit         int
	asked        bool
	record, list []byte // of the answer; nil: not here
}

// charged gives the charge of a peer, which may be empty; mu is held.
func (f *flight) charged(c candidate) *charge {
	ch := f.charges[c.node]
	if ch == nil {
		ch = &charge{}
		f.charges[c.node] = ch
	}
	ch.candidate, ch.holder = c, f.holds(c.node)
	return ch
}

// holds says whether a node is thought to have all of the blob; mu is held.
func (f *flight) holds(node identity.NodeID) bool {
	if f.sched != nil {
		if p := f.sched.peers[node]; p != nil {
			return p.whole
		}
	}
	return slices.Contains(f.known, node) && (f.sched == nil || !f.receives(node))
}

// evident says whether a charge needs no trial: the digest itself tells, or the peer is
// a holder whose own list is the one in use. A receiver may have gone over from one
// list to another. mu is held.
func (f *flight) evident(ch *charge) bool {
	return f.vessel == nil || ch.holder && ch.root != nil && *ch.root == f.vessel.Record().Root
}

// strike counts what did not fit; mu is held. Beyond maxStrikes nothing is counted: it
// was asked for before.
func (f *flight) strike(ch *charge, unit int, why string, by int) {
	if f.strikes[ch.node] < maxStrikes {
		ch.unit, ch.why = unit, why
		ch.units++
	}
	f.strikes[ch.node] = min(maxStrikes, f.strikes[ch.node]+by)
}

// blame takes a unit that does not fit. Its peer goes on after the first (a flipped bit
// somewhere), and is out for this blob after maxStrikes, when its trial is over. It is
// named when it is evident that it is wrong.
func (f *flight) blame(l *lane, unit int, err error) error {
	f.mu.Lock()
	ch := f.charged(l.candidate)
	f.strike(ch, unit, wrongUnit, 1)
	evident := f.evident(ch)
	if !evident && l.trial == nil && !ch.tried {
		ch.tried, l.trial = true, &trial{unit: unit}
	}
	out := f.strikes[l.node] >= maxStrikes && l.trial == nil
	if out {
		delete(f.good, l.node)
	}
	f.mu.Unlock()
	if evident {
		f.convict(ch, err)
	} else {
		f.s.log.Info("a unit does not fit the signed list in use: its sender is asked for its own list", "digest", f.digest, "unit", unit)
	}
	switch {
	case !out:
		return nil
	case evident:
		return fmt.Errorf("%w: %w", errBad, err)
	}
	return errAside
}

// convict names a peer for what it was charged with.
func (f *flight) convict(ch *charge, err error) {
	f.mu.Lock()
	n, first, c, unit, why, holder := ch.units, !ch.guilty, ch.candidate, ch.unit, ch.why, ch.holder
	ch.units, ch.guilty = 0, true
	f.mu.Unlock()
	if n == 0 {
		return
	}
	f.s.metrics.badUnits.WithLabelValues(c.node.String()).Add(float64(n))
	if first {
		f.s.suspects.add(c.node, f.digest, why)
	}
	sent := "a unit that is not the blob's"
	if why == wrongSubs {
		sent = "sub-states of a unit that are not the blob's"
	}
	f.s.log.Warn("peer sent "+sent, "digest", f.digest, "node", c.node, "site", f.s.site(c.node), "unit", unit, "holder", holder, "error", err)
	if why == wrongUnit {
		f.s.doubt(c, f.digest)
	}
}

// tries gives the trial that is to be asked for, with the room that its unit needs.
func (l *lane) tries() (order, bool) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	t := l.trial
	if t == nil || t.asked {
		return order{}, false
	}
	t.asked = true
	c := f.purpose()
	if _, on := l.asked[t.unit]; !on {
		_, n := f.layout.span(t.unit)
		now := time.Now()
		f.s.pipes.force(l.node, c, n)
		l.asked[t.unit] = inRoom{c, n, now}
		f.sched.asked(t.unit, l.node, now)
	}
	return order{first: t.unit, n: 1, record: true, trial: true, class: c}, true
}

// next chooses what to ask for: a trial before all else.
func (l *lane) next() (order, bool) {
	if o, ok := l.reopen(); ok {
		return o, true
	}
	if o, ok := l.tries(); ok {
		return o, true
	}
	return l.plan()
}

// untried ends a trial that shows nothing: the peer has no list, or not the unit.
func (l *lane) untried() error {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.trial = nil
	if l.f.strikes[l.node] >= maxStrikes {
		return errAside
	}
	return nil
}

// tried takes the answer to a trial.
func (l *lane) tried(got received) error {
	f := l.f
	f.mu.Lock()
	t := l.trial
	if got.list != nil {
		t.record, t.list = got.record, got.list
	}
	f.mu.Unlock()
	if got.unit < 0 {
		return nil
	}
	l.landed(got.unit, false)
	f.mu.Lock()
	f.sched.landed(got.unit, l.node)
	f.mu.Unlock()
	f.s.received(l.node, len(got.data))
	if t.list == nil {
		return l.untried()
	}
	rec, list, err := f.readList(t.record, t.list)
	if err != nil {
		return f.blameList(l.node, err)
	}
	f.s.witness(rec)
	fits := list.Verify(got.unit, got.data)
	if errors.Is(fits, units.ErrUnavailable) {
		return l.untried()
	}
	known := f.s.isBadRoot(rec.Root) // to be false: it speaks against no other
	forger := f.s.suspects.forges(rec.Signer)
	f.mu.Lock()
	ch := f.charged(l.candidate)
	ch.root, l.trial = &rec.Root, nil
	another := rec.Root != f.vessel.Record().Root
	switch {
	case fits != nil:
		f.strike(ch, got.unit, wrongUnit, maxStrikes)
	case another:
		ch.excused = true
		f.strikes[l.node] = maxStrikes
		if ch.holder && !known {
			f.shown++
			if !forger {
				f.rivals++
			}
		}
	}
	out := f.strikes[l.node] >= maxStrikes
	if out {
		delete(f.good, l.node)
	}
	contested := f.rivals >= max(maxFalse, len(f.good))
	guilty := fits != nil || !another && f.evident(ch)
	f.mu.Unlock()
	if guilty {
		f.convict(ch, fits)
	}
	switch {
	case another && fits == nil && contested:
		return errContested
	case fits == nil && !another:
		if err := f.put(got.unit, got.data, l.node); err != nil {
			return fmt.Errorf("%w: %w", errLocal, err) // it fits, as was seen
		}
		f.s.metrics.unitsReceived.Inc()
	}
	switch {
	case !out:
		return nil
	case guilty:
		return fmt.Errorf("%w: its own list and bytes do not fit each other", errBad)
	}
	return errAside
}

// outAs is why a peer is out.
func (f *flight) outAs(node identity.NodeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch := f.charges[node]; ch != nil && !ch.guilty {
		return errAside
	}
	return errBad
}

// contested says at a flight's end whether the list in use is to be left for another:
// it did not bring the blob whole, and a holder shows another one that fits its bytes.
func (f *flight) contested(err error) error {
	if err == nil || f.ctx.Err() != nil || errors.Is(err, errLocal) {
		return err
	}
	f.mu.Lock()
	// A forger's word counts when nobody has what fits the list in use: it may have been
	// broken once, and others pass on what it signed since.
	others := f.rivals > 0 || f.shown > 0 && errors.Is(err, ErrBadHolders)
	if f.vessel == nil || f.complete || !others {
		f.mu.Unlock()
		return err
	}
	f.poisoned, f.abandoned = true, true
	root := f.vessel.Record().Root
	f.mu.Unlock()
	f.s.roots.failed(f.digest, root, time.Now())
	f.s.log.Warn("a blob did not come whole under one signed unit list, and a holder has another: that is tried next", "digest", f.digest)
	if errors.Is(err, errContested) {
		return err
	}
	return fmt.Errorf("%w: %w", errContested, err)
}

// settle looks at the charges when the blob is here, whole: the list in use is true, so
// what did not fit it is not the blob's. Who signed another list is named, and who sent
// wrong bytes and has no excuse. A receiver whose list is not known may have gone by
// another one, if there is one.
func (f *flight) settle() {
	f.mu.Lock()
	if f.vessel == nil || !f.complete || f.poisoned {
		f.mu.Unlock()
		return
	}
	rec := f.vessel.Record()
	var left []*charge
	for _, ch := range f.charges {
		if ch.units > 0 && !ch.excused {
			left = append(left, ch)
		}
	}
	f.mu.Unlock()
	f.s.provenBy(rec)
	disputed := f.s.roots.disputed(f.digest)
	for _, ch := range left {
		if ch.holder || !disputed {
			f.convict(ch, errors.New("the blob came whole under the list that it does not fit"))
		}
	}
}
