package swarm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
)

const (
	// firstRun is how many units are asked for together with the record.
	firstRun = 4
	// maxStrikes is how many bad units a holder may send for one blob.
	maxStrikes = 2
	// maxFalse is how many holders must show another list before the one in use is
	// left at once: two agree by chance or plot less often than one does.
	maxFalse = 2
	// roundPause lies between two tries of all holders, when a flight was under
	// way and nobody can go on with it.
	roundPause = 250 * time.Millisecond
	// storeAgainAfter lies between two tries to store a blob that is all here, while
	// the store's bucket is away and clients read the blob.
	storeAgainAfter = 5 * time.Second
)

var (
	// errLocal marks errors of this node: no other holder would help.
	errLocal = errors.New("this node can't take the blob")
	// errBad marks a holder that is out for this blob.
	errBad = errors.New("holder sent wrong bytes")
)

// stalledError ends a round in which nothing came any more. To others it is what
// it wraps: those that were asked can't be reached.
type stalledError struct{ *store.Unreachable }

func (e *stalledError) Is(err error) bool { return err == errStalled }
func (e *stalledError) Unwrap() error     { return e.Unreachable }

// flight is one blob on its way.
//
//	begun -> (queued) -> asking holders -> opened: units come -> complete -> done
//	                          \------------------\--- failed, dropped -> done
type flight struct {
	s      *Swarm
	digest digest.Digest
	pid    identity.ProjectID // on whose behalf all is asked, see proof.go
	size   int64              // as who began it says; 0: not known
	since  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	pass   bool // through a window, nothing is stored; not in Swarm.flights

	urgent chan struct{} // closed when the first reader, or fetcher in a hurry, joins
	opened chan struct{} // closed when the first unit is here
	done   chan struct{} // closed at the end; err and stored are set before
	err    error
	stored catalog.Class // as what the store was told to hold it; 0: not known

	// Guarded by Swarm.mu.
	readers, fetchers int
	asks              int // fetchers whose Want is not Ahead
	orphan, dropped   bool
	keeps             bool   // it was dropped, and keeps what came
	leftBy            string // the subject that left an orphan
	hurried           bool   // urgent is closed
	class             catalog.Class
	sharing           map[*Limit]int // of fetchers, nil: without one
	aims              map[aim]int    // of fetchers
	flies             bool           // it has taken its turn
	place             *places.Place  // among those that nobody waits for, or in line; nil: it has none
	counted           class          // its purpose, as those that stand in line were told

	limits    atomic.Pointer[[]*Limit] // of sharing; none: it is not held
	relimited chan struct{}            // capacity 1: they changed, or somebody came that is more urgent

	uplink  uint32        // what this node says that it can send to others
	stirred chan struct{} // capacity 1: there is something for the flight's goroutine
	whole   chan struct{} // closed when it is complete
	reading atomic.Int32  // readers, without Swarm.mu
	hurries atomic.Int32  // fetchers in a hurry
	ahead   atomic.Bool   // all fetchers' Wants are Ahead
	moved   atomic.Int64  // Unix ns: when bytes last came, or could not be asked for
	came    atomic.Int64  // bytes of pieces, and of the units that an earlier flight left
	keeping atomic.Int32  // units that this node itself holds up, see ownTime

	aimed  atomic.Pointer[chan struct{}] // closed when its purpose or order changes
	parcel atomic.Pointer[parcel]        // in a batch's queue, or the last that was; nil: none was

	order atomic.Pointer[places.Order] // the first of aims; of the last ones, if there are none; see standsAt

	listing sync.Mutex // see openOnce; before mu

	mu        sync.Mutex
	layout    *layout // nil: size not known yet
	sched     *schedule
	lanes     map[identity.NodeID]*lane
	past      []*lane                                // not looked at yet
	log       []uint32                               // units in the order in which they came
	watches   map[identity.NodeID]identity.ProjectID // who is watched, on whose behalf
	told      map[identity.NodeID][]receiver         // who receives the blob, by who said so
	rumour    bool                                   // told has changed, or the crowd here, see regroup
	resting   map[identity.NodeID]time.Time          // receivers that failed, and when to try again
	vessel    vessel
	small     store.Checked  // a blob of one unit
	early     map[int]*early // units whose first bytes readers may have
	have      int            // units that are here and checked
	complete  bool           // the whole chain holds
	over      bool           // err is final: nothing more comes
	poisoned  bool           // what came may be wrong although it fits the list
	foreign   bool           // some of what is here came for another project
	proving   atomic.Bool    // it is here, and being shown
	aside     atomic.Bool    // a small blob that another receiver is asked for
	changed   chan struct{}
	positions map[*reader]int         // the unit that each reader stands in
	from      identity.NodeID         // whose unit came last
	known     []identity.NodeID       // holders that were thought of
	asked     map[identity.NodeID]int // those that are waited for now
	strikes   map[identity.NodeID]int // maxStrikes: out for this blob
	charges   map[identity.NodeID]*charge
	shown     int                      // holders that showed another list, and bytes that fit it
	rivals    int                      // those of them whose list no known forger signed
	good      map[identity.NodeID]bool // holders whose units fit the list in use
	partial   *store.Partial           // the vessel, unless pass
	last      time.Time                // when the last unit came
	abandoned bool                     // remove what came
	held      held

	asking sync.WaitGroup // requests to holders
	flying sync.WaitGroup // lanes

	// Of the flight's goroutine alone.
	begun   bool      // units of an earlier flight are here
	grouped time.Time // when the receivers were last put together
}

func newFlight(s *Swarm, w Want) *flight {
	f := &flight{
		s: s, digest: w.Digest, pid: w.PID, size: w.Size, since: time.Now(),
		urgent: make(chan struct{}), opened: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}), positions: map[*reader]int{}, asked: map[identity.NodeID]int{},
		strikes: map[identity.NodeID]int{}, charges: map[identity.NodeID]*charge{}, good: map[identity.NodeID]bool{},
		stirred: make(chan struct{}, 1), whole: make(chan struct{}), uplink: s.uplink.share(),
		lanes: map[identity.NodeID]*lane{}, told: map[identity.NodeID][]receiver{}, resting: map[identity.NodeID]time.Time{},
		aims: map[aim]int{}, sharing: map[*Limit]int{}, relimited: make(chan struct{}, 1),
		counted: classReplication,
		watches: map[identity.NodeID]identity.ProjectID{}, rumour: true, // some may watch this node already
	}
	f.order.Store(&places.Order{At: f.since.UnixNano()})
	aimed := make(chan struct{})
	f.aimed.Store(&aimed)
	f.ctx, f.cancel = context.WithCancel(s.ctx)
	return f
}

// joined counts a caller in; Swarm.mu is held.
func (f *flight) joined(w Want, reader bool) {
	f.adopted()
	if reader {
		f.readers++
		f.reading.Add(1)
	} else {
		f.fetchers++
		f.wanted(w, 1)
	}
	if reader || w.Hurry {
		wake(f.relimited)
	}
	if (reader || w.Hurry) && !f.hurried {
		f.hurried = true
		close(f.urgent)
	}
	f.s.count(f)
	if reader || w.Hurry {
		f.wakeLanes(nil) // they are held no more, and ask for more
	}
	if f.class == 0 || w.Class == catalog.Placed {
		f.class = w.Class
	}
}

func (f *flight) ended() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// share is the part of the blob that is here.
func (f *flight) share() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layout == nil {
		return 0
	}
	return float64(f.have) / float64(f.layout.units())
}

func (f *flight) progress() Progress {
	p := Progress{Digest: f.digest, Class: f.class, Readers: f.readers, Since: f.since}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.From = f.from
	if f.layout != nil {
		p.Total = f.layout.size
		p.Done = min(p.Total, int64(f.have)*f.layout.unitSize)
	}
	return p
}

// run is the flight's goroutine.
func (f *flight) run() {
	err := f.contested(f.fly())
	f.cancel()
	f.asking.Wait()
	f.flying.Wait()
	f.settle()
	f.mu.Lock()
	f.over = true
	f.letBack()
	f.broadcast()
	f.mu.Unlock()
	if f.partial != nil {
		// Readers that stand in it go on in the store.
		end := f.partial.Close
		if f.s.abandons(f, err) {
			end = f.partial.Abandon
			f.s.roots.dropped(f.digest)
		}
		if cerr := end(); cerr != nil {
			f.s.log.Error("partial blob can't be put away", "digest", f.digest, "error", cerr)
		}
	}
	f.s.landed(f, err)
}

// abandons says whether what came is of no use to a later flight.
func (s *Swarm) abandons(f *flight, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return err != nil && (f.abandoned || f.dropped && !f.keeps && !s.closed)
}

// landed takes a flight off the map and tells those that wait.
func (s *Swarm) landed(f *flight, err error) {
	s.mu.Lock()
	if s.flights[f.digest] == f {
		delete(s.flights, f.digest)
	}
	f.adopted()
	if err != nil && s.closed {
		err = ErrClosed
	}
	f.err = err
	close(f.done)
	dropped := f.dropped
	s.mu.Unlock()
	s.watching.end(f)
	s.crowds.news(f.digest) // it is whole, or gone
	s.landings.news(f.digest)
	result := "stored"
	switch {
	case dropped && err != nil:
		result = "dropped"
	case errors.Is(err, ErrClosed):
		result = "stopped"
	case err != nil:
		result = "failed"
		s.log.Warn("blob not fetched", "digest", f.digest, "after", time.Since(f.since).Round(time.Millisecond), "error", err)
	default:
		s.log.Debug("blob fetched", "digest", f.digest, "after", time.Since(f.since).Round(time.Millisecond))
	}
	s.metrics.flights.WithLabelValues(result).Inc()
}

// fly brings the blob in.
func (f *flight) fly() error {
	// A flight that ended between the caller's look into the store and now.
	if !f.pass {
		f.s.mu.Lock()
		class := f.class
		f.s.mu.Unlock()
		here, err := f.s.here(f.ctx, f.digest, catalog.Cached)
		if here && err == nil {
			// First: what is not the project's is not kept for it.
			if err = f.prove(); err == nil {
				here, err = f.s.here(f.ctx, f.digest, class)
			}
		}
		if err != nil {
			return err
		}
		if here {
			f.stored = class
			return nil
		}
	}
	if f.size > 0 {
		f.setSize(f.size)
	}
	// Before its turn: what is held takes none from what is not.
	if err := f.awaitOpening(); err != nil {
		return err
	}
	if done, err := f.batched(); done || err != nil {
		return err
	}
	if err := f.s.turn(f); err != nil {
		return err
	}
	defer f.s.over(f)
	f.begun = !f.pass && f.s.cfg.Store.FetchBegan(f.digest)
	stalled := false
	for {
		before := f.units()
		tried, err := f.round()
		if err == nil || f.ctx.Err() != nil || errors.Is(err, errLocal) || errors.Is(err, errContested) {
			return err
		}
		if f.units() > before {
			stalled = false
			continue
		}
		if errors.Is(err, errStalled) && !stalled {
			stalled = true // holders that were out in that round may be back: once more
			continue
		}
		// Nobody goes on with it. What was under way gets the stall time again:
		// a holder that restarts, a link that flaps.
		f.mu.Lock()
		last := f.last
		f.mu.Unlock()
		if tried == 0 || last.IsZero() || time.Since(last) > f.s.cfg.Stall {
			return err
		}
		select {
		case <-time.After(roundPause):
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
}

func (f *flight) units() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have
}

// round asks each holder that is left, best first, and other receivers. A nil
// error: the blob is stored. Else the error says why nobody could give it.
func (f *flight) round() (tried int, err error) {
	if f.isComplete() { // all of it was kept from before
		return 0, f.store()
	}
	q := &field{seen: map[candidate]bool{}, out: map[identity.NodeID]bool{}, busy: map[identity.NodeID]bool{}}
	defer f.dismiss()
	f.enter(q)
	for {
		ct := f.contact(q)
		if ct == nil && !f.hopeful() && !f.isComplete() {
			break
		}
		err := f.drive(ct, q)
		if err == nil {
			f.dismiss()
			return q.tried, f.store()
		}
		if f.ctx.Err() != nil {
			return q.tried, f.ctx.Err()
		}
		if errors.Is(err, errLocal) || errors.Is(err, errContested) {
			return q.tried, err
		}
		if errors.Is(err, errStalled) {
			return q.tried, &stalledError{f.s.unreachable(f.holders())}
		}
	}
	if f.ctx.Err() != nil {
		return q.tried, f.ctx.Err()
	}
	return q.tried, f.verdict(q)
}

// listed says whether units can be checked: the list is here, or not needed.
func (f *flight) listed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.vessel != nil || f.complete
}

// read says whether clients wait for the blob or read it.
func (f *flight) read() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.readers > 0
}

// readable says whether readers can have the blob though the flight is over and
// the store has it not: it is small and in memory, or in a window.
func (f *flight) readable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.complete && !f.poisoned && (f.small.Bytes() != nil || f.pass)
}

func (f *flight) isComplete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.complete
}

func (f *flight) setSize(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layout == nil {
		l := layoutOf(size)
		f.layout = &l
		f.sched = newSchedule(f.digest, receiver{f.s.cfg.Host.ID(), f.uplink}, l.units())
	}
}
