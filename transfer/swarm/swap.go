package swarm

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

const (
	// swapPatience, and swapDelays round trips to the holder, is how long a receiver has
	// to bring a small blob that another one asks it for: its own request and its answer
	// behind all that its holder sends it (some 3 MiB, 0.7 s where three share 100
	// Mbit/s), and the check. swapPatienceMost bounds what a receiver waits because
	// another one asks it to.
	swapPatience     = 1200 * time.Millisecond
	swapDelays       = 4
	swapPatienceMost = 4 * time.Second
	// swapOverdue, and its patience, is how much earlier than an answered request one
	// may have been asked that has no answer yet: the other side answers in any order,
	// and none is left out for ever. A stream whose requests are further apart on their
	// way than when they were written has been silent for long.
	swapOverdue = 10 * time.Second
	// swapSlack is how much longer than that, and a round trip, a batch may be quiet.
	swapSlack = 500 * time.Millisecond
	// swapWaits is how often a blob is asked for again of a receiver that says that it
	// is bringing it, or others before it. Else the one that is ahead would take from
	// the holder what the others are about to be given, and get further ahead: they
	// then have all from it alone, through its uplink, and theirs lie idle.
	swapWaits = 3
	// swapLively is how lately a holder must have answered a receiver that says so.
	swapLively = time.Second
	// swapRest is for how long nothing is left to a receiver that did not bring a blob
	// in time, the first time; each time in a row doubles it, up to swapRestMost. So
	// one that does not want what others want costs swapPatience now and then.
	swapRest     = 10 * time.Second
	swapRestMost = 5 * time.Minute
	// circleKnownFor is how long a holder's word on its circle holds.
	circleKnownFor = 2 * circleFor
	// maxRests, twice, bounds the receivers of all holders that are remembered as at rest.
	maxRests = 1024
	// maxWays bounds the nodes that a small blob is asked of in batches, one after the
	// other: its owner, the holder, who was given it, the holder.
	maxWays = 4
)

// takenError is the answer that another receiver was given the blob.
type takenError struct{ by identity.NodeID }

func (e *takenError) Error() string { return "it was given to " + e.by.Short() }

// swaps is what this node knows of others that take the same small blobs from a
// holder.
type swaps struct {
	mu      sync.Mutex
	circles map[circleAt][]receiver // sorted, this node left out
	heard   map[circleAt]time.Time
	rests   map[swapBetween]swapper
}

// swapBetween names a receiver to which blobs of a holder are left. What it does not
// bring of one holder's, which it may not reach, says nothing of another's.
type swapBetween struct{ holder, node identity.NodeID }

// circleAt names a circle: a holder's, of a project.
type circleAt struct {
	holder identity.NodeID
	pid    identity.ProjectID
}

// swapper is a receiver that did not bring what was left to it.
type swapper struct {
	until time.Time
	times int // in a row
}

func newSwaps() *swaps {
	return &swaps{circles: map[circleAt][]receiver{}, heard: map[circleAt]time.Time{}, rests: map[swapBetween]swapper{}}
}

// note takes what a holder's answer says of its circle.
func (sw *swaps) note(at circleAt, a *Answer, now time.Time) error {
	var told []receiver
	if a.ReceiversChanged {
		if len(a.Receivers) > maxReceivers {
			return fmt.Errorf("%w: %d receivers", errProtocol, len(a.Receivers))
		}
		told = make([]receiver, 0, len(a.Receivers))
		for _, r := range a.Receivers {
			id, err := identity.NodeIDFromBytes(r.Node)
			if err != nil {
				return fmt.Errorf("%w: receiver: %w", errProtocol, err)
			}
			told = append(told, receiver{id, min(r.Share, maxShare)})
		}
		sortReceivers(told)
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if a.ReceiversChanged {
		if len(sw.circles) >= maxCircles {
			for k, t := range sw.heard {
				if now.Sub(t) > circleKnownFor || len(sw.circles) >= 2*maxCircles {
					delete(sw.circles, k)
					delete(sw.heard, k)
				}
			}
		}
		sw.circles[at] = told
	}
	if _, ok := sw.circles[at]; ok {
		sw.heard[at] = now
	}
	return nil
}

// owner is the receiver that a small blob is left to; zero: this node itself takes
// it from the holder, as there is no other, or the other is at rest.
func (sw *swaps) owner(at circleAt, self receiver, d digest.Digest, now time.Time) identity.NodeID {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	others := sw.circles[at]
	if len(others) == 0 || now.Sub(sw.heard[at]) > circleKnownFor {
		return identity.NodeID{}
	}
	all := make([]receiver, 0, len(others)+1)
	all = append(append(all, others...), self)
	sortReceivers(all)
	owner := ownerOf(d, all)
	if owner == self.node || sw.resting(swapBetween{at.holder, owner}, now) {
		return identity.NodeID{}
	}
	return owner
}

// lively says whether a holder of small blobs of a project answered lately: then this
// node is bringing some, and may be asked again for one that it has not yet.
func (sw *swaps) lively(pid identity.ProjectID, now time.Time) bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for at, heard := range sw.heard { // bounded, and asked after a wait in vain only
		if at.pid == pid && now.Sub(heard) < swapLively {
			return true
		}
	}
	return false
}

// resting says whether nothing is left to a receiver now; mu is held.
func (sw *swaps) resting(who swapBetween, now time.Time) bool {
	return now.Before(sw.rests[who].until)
}

// fit says whether a blob may be left to a receiver.
func (sw *swaps) fit(who swapBetween, now time.Time) bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return !sw.resting(who, now)
}

// failed notes that a receiver did not bring a blob in time; true: it was not at
// rest. brought notes that one did.
func (sw *swaps) failed(who swapBetween, now time.Time) bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.resting(who, now) {
		return false // all that was left to it before comes back now
	}
	r, known := sw.rests[who]
	if !known && len(sw.rests) >= maxRests {
		for o, r := range sw.rests {
			if now.Sub(r.until) > swapRestMost || len(sw.rests) >= 2*maxRests {
				delete(sw.rests, o)
			}
		}
	}
	r.until = now.Add(min(swapRest<<min(r.times, 10), swapRestMost))
	r.times++
	sw.rests[who] = r
	return true
}

func (sw *swaps) brought(who swapBetween) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	delete(sw.rests, who)
}

// way is how a small blob is asked for in a batch.
type way struct {
	node   identity.NodeID
	holder bool          // else it is another receiver, which may wait for the blob itself
	unless time.Duration // of a holder: not if another receiver was given it within so long
	wait   time.Duration // of another receiver: how long it may take to bring it
}

// ways are those that a small blob is asked of, one after the other.
type ways struct {
	holder, self, owner identity.NodeID
	tried               map[identity.NodeID]bool // receivers
	asked               int
	taken               bool // the holder said so
}

// next gives the next way after what the last one said (nil at first); false: the
// blob comes as any other. It is a pure function of what is known.
func (w *ways) next(said error, fit func(identity.NodeID) bool) (way, bool) {
	if w.asked++; w.asked > maxWays {
		return way{}, false
	}
	left := func(to identity.NodeID) (way, bool) {
		if w.tried == nil {
			w.tried = map[identity.NodeID]bool{}
		}
		w.tried[to] = true
		return way{node: to}, true
	}
	if said == nil {
		if !w.owner.IsZero() && w.owner != w.self && w.owner != w.holder {
			return left(w.owner)
		}
		return way{node: w.holder, holder: true, unless: givenFor}, true
	}
	var taken *takenError
	if errors.As(said, &taken) && !w.taken {
		w.taken = true
		if by := taken.by; by != w.self && by != w.holder && !w.tried[by] && fit(by) {
			return left(by)
		}
	}
	if w.taken {
		return way{node: w.holder, holder: true}, true
	}
	return way{node: w.holder, holder: true, unless: givenFor}, true
}
