package swarm

import (
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/places"
)

const (
	// maxPeerBytes and maxAllBytes bound what is asked for and not yet here, of one
	// peer and of all: it comes to lie in receive windows, of which the host gives out
	// 128 MiB, half of it as first ones. What has no window waits at its sender.
	maxPeerBytes = 32 << 20
	maxAllBytes  = 96 << 20
	// firstWindow is asked for ahead while a peer's rate is not known, and slack on
	// top of windowDelays times the bandwidth times delay; the sum is rounded up to units. So a
	// peer that sends slowly has one unit to send and one that follows, as others
	// could send the next; one that is quick never waits for a request: with a unit
	// less asked ahead, receivers that swap take more from the holder in the end.
	firstWindow = 3 << 20
	slack       = 7 << 18
	// windowDelays: a delay for the request, one that a lost packet holds up all that
	// is behind it, one for the unit that is only counted when it is whole, and one
	// to grow into.
	windowDelays = 4
	// measureFor is how long arrivals are counted for one measurement of the rate.
	measureFor = 200 * time.Millisecond
	// creditShare: while a higher class is on its way from a peer, a lower one may
	// ask for one byte for each so many that came for the higher one: 5.9 %.
	creditShare = 16
)

// class is what a transfer is for. Lower numbers go first.
type class uint8

const (
	classClient      class = iota // a client waits here
	classHurried                  // a push waits, here or elsewhere, or it is a manifest: see Want.Hurry
	classReplication              // what rules want here
	classes
)

// onLink is how it stands in line at a capped link, where more classes meet.
func (c class) onLink() budget.Class {
	return [classes]budget.Class{budget.Client, budget.Hurried, budget.Replication}[c]
}

// leastBytes is how much of maxAllBytes is kept for each class, whatever the others
// have on its way: what one flight asks ahead of a peer for clients, and a unit of the
// largest blobs for the others. So rules have three quarters of it at most.
var leastBytes = [classes]int64{inflightBytes, 8 << 20, 8 << 20}

// spare is how much of most class c may take, if so much is used, and the least of
// each other one is kept for it.
func spare[N int | int64](most N, used, least [classes]N, c class) N {
	for o := range classes {
		most -= used[o]
		if o != c {
			most -= max(0, least[o]-used[o])
		}
	}
	return max(0, most)
}

// pipe is the way from one peer: how fast it was, and what is on its way. It
// reads no clock; its owner locks it.
type pipe struct {
	rate    float64       // bytes a second; 0: not known
	delay   time.Duration // shortest time from a request to its answer; 0: not known
	unit    time.Duration // from a request to the whole unit, smoothed; 0: not known
	since   time.Time     // the first request of those that none was answered of
	mark    time.Time     // the measurement began
	came    int64         // bytes since
	flying  [classes]int64
	credit  [classes]int64
	waiting map[*waiter]class
}

// waiter is a lane that has something to ask for, and no room.
type waiter struct {
	rank  rank // of its flight; guarded by pipes.mu, as fresh and ahead are
	fresh bool // it would ask for what nobody was asked for
	ahead bool // nobody asked for the blob yet
	wake  chan struct{}
}

// rank is where a flight stands among those of its class: by what it is wanted for,
// then by age.
type rank struct {
	places.Order
	since time.Time
}

func (r rank) before(o rank) bool {
	if r.Order != o.Order {
		return r.Before(o.Order)
	}
	return r.since.Before(o.since)
}

func (p *pipe) total() int64 {
	sum := int64(0)
	for _, n := range p.flying {
		sum += n
	}
	return sum
}

// window is how much may be on its way: more than what fills the link, so that it
// grows until the rate does not.
func (p *pipe) window() int64 {
	if p.rate == 0 || p.delay == 0 {
		return firstWindow
	}
	return min(maxPeerBytes, int64(windowDelays*p.rate*p.delay.Seconds())+slack)
}

// room is how many of n bytes a class may ask for now. At least one unit is on
// its way from a peer that has something, whatever its length.
func (p *pipe) room(c class, unit, n int64) int64 {
	total := p.total()
	window := (p.window() + unit - 1) / unit * unit
	if total == 0 {
		return max(unit, min(n, window))
	}
	free := window - total
	higher := false
	for h := range c {
		higher = higher || p.flying[h] > 0
	}
	if higher {
		if p.credit[c] < unit {
			return 0
		}
		return unit // beyond the window if need be: it is its share
	}
	if lower := total - p.above(c); lower > 0 {
		free += lower // what is less urgent takes no room
	}
	return min(n, free/unit*unit)
}

// above is what is on its way of c and the classes above.
func (p *pipe) above(c class) int64 {
	sum := int64(0)
	for h := range c + 1 {
		sum += p.flying[h]
	}
	return sum
}

func (p *pipe) ask(c class, n int64, now time.Time) {
	if p.total() == 0 {
		p.mark, p.came, p.since = now, 0, now
	}
	p.flying[c] += n
	p.credit[c] = max(0, p.credit[c]-n)
}

// arrived notes n bytes that came, or that will not come (lost).
func (p *pipe) arrived(c class, n int64, lost bool, now time.Time) {
	p.flying[c] = max(0, p.flying[c]-n)
	if lost {
		return
	}
	for l := c + 1; l < classes; l++ {
		p.credit[l] = min(p.credit[l]+n/creditShare, maxPeerBytes/4) // a unit of the largest blobs
	}
	p.came += n
	if d := now.Sub(p.mark); d >= max(measureFor, p.delay) {
		r := float64(p.came) / d.Seconds()
		if p.rate == 0 {
			p.rate = r
		}
		p.rate += (r - p.rate) / 2
		p.mark, p.came = now, 0
	}
}

// answered notes how long the first answer took when nothing was before it.
func (p *pipe) answered(d time.Duration) {
	if p.delay == 0 || d < p.delay {
		p.delay = max(d, time.Microsecond)
	}
}

// took notes how long a unit took, from its request on.
func (p *pipe) took(d time.Duration) {
	if p.unit == 0 {
		p.unit = d
	}
	p.unit += (d - p.unit) / 8
	p.since = time.Time{}
}

// unitTook is how long units take. Before one came, as long as one is waited for.
func (p *pipe) unitTook(now time.Time) time.Duration {
	if p.unit == 0 && !p.since.IsZero() && p.total() > 0 {
		return now.Sub(p.since)
	}
	return p.unit
}

// pipes are the ways from all peers.
type pipes struct {
	mu   sync.Mutex
	all  [classes]int64 // on its way, from all peers
	full bool           // somebody was refused because of all
	// filled is told what each peer was measured to fill: bytes a second times the
	// delay; nil: nobody is. It must not block.
	filled func(node identity.NodeID, bytes int64)
	peers  map[identity.NodeID]*pipe
	asides map[*waiter]struct{} // those that stand aside, see ahead.go
	firsts int                  // first requests of clients and pushes, not answered
	// splitWorth is splitWorthAfter, but in tests.
	splitWorth time.Duration
}

func newPipes() *pipes {
	return &pipes{peers: map[identity.NodeID]*pipe{}, asides: map[*waiter]struct{}{}, splitWorth: splitWorthAfter}
}

func (ps *pipes) of(node identity.NodeID) *pipe {
	p := ps.peers[node]
	if p == nil {
		p = &pipe{waiting: map[*waiter]class{}}
		ps.peers[node] = p
	}
	return p
}

// reserve takes room for at most n units of a peer and says for how many. With
// none, w is woken when there is some; forget ends that.
func (ps *pipes) reserve(node identity.NodeID, w *waiter, c class, unit int64, n int) int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.of(node)
	got := int64(0)
	if !p.behind(w, c) {
		if w.ahead { // who stands aside goes when that takes nothing from those above
			got = p.idle(unit, int64(n)*unit)
		} else {
			got = p.room(c, unit, int64(n)*unit)
		}
		if limit := spare(maxAllBytes, ps.all, leastBytes, c); got > limit {
			ps.full = true
			got = limit
		}
	}
	if got /= unit; got <= 0 {
		p.waiting[w] = c
		return 0
	}
	delete(p.waiting, w)
	ps.add(c, got*unit)
	p.ask(c, got*unit, time.Now())
	return int(got)
}

// wanted says whether another flight of class c, or above, waits for room to ask a
// peer for what was asked of nobody. fresh says whether w itself has such.
func (ps *pipes) wanted(node identity.NodeID, w *waiter, c class, fresh bool) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w.fresh = fresh
	for o, oc := range ps.of(node).waiting {
		if o != w && oc <= c && o.fresh {
			return true
		}
	}
	return false
}

// stands says where what a waiter asks for stands among others.
func (ps *pipes) stands(w *waiter, r rank) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w.rank = r
}

// force takes room for n bytes that were asked for already.
func (ps *pipes) force(node identity.NodeID, c class, n int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.of(node)
	ps.add(c, n)
	p.ask(c, n, time.Now())
}

// behind says whether somebody waits that goes before w.
func (p *pipe) behind(w *waiter, c class) bool {
	for o, oc := range p.waiting {
		if o != w && oc == c && o.rank.before(w.rank) {
			return true
		}
	}
	return false
}

func (ps *pipes) add(c class, n int64) { ps.all[c] += n }

// release gives back room: the bytes came, or will not come.
func (ps *pipes) release(node identity.NodeID, c class, n int64, lost bool) {
	if n == 0 {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.of(node)
	mark := p.mark
	p.arrived(c, n, lost, time.Now())
	if p.mark != mark && ps.filled != nil && p.delay > 0 {
		ps.filled(node, int64(p.rate*p.delay.Seconds()))
	}
	ps.add(c, -n)
	p.rouse()
	ps.rouseAside()
	if ps.full {
		ps.full = false
		for _, o := range ps.peers {
			o.rouse()
		}
	}
}

func (p *pipe) rouse() {
	for w := range p.waiting {
		wake(w.wake)
	}
}

// came notes how long a unit took that came.
func (ps *pipes) came(node identity.NodeID, d time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.of(node).took(d)
}

// unitTook is how long units of a peer take.
func (ps *pipes) unitTook(node identity.NodeID) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.of(node).unitTook(time.Now())
}

// forget lets a waiter go that has nothing to ask for any more.
func (ps *pipes) forget(node identity.NodeID, w *waiter) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.asides, w)
	p := ps.of(node)
	if _, ok := p.waiting[w]; ok {
		delete(p.waiting, w)
		p.rouse() // those behind it
		ps.rouseAside()
	}
}

func (ps *pipes) answered(node identity.NodeID, d time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.of(node).answered(d)
}

// delay is the shortest time that a peer took to answer; 0: not known.
func (ps *pipes) delay(node identity.NodeID) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.peers[node]; p != nil {
		return p.delay
	}
	return 0
}

// crowded says whether somebody waits for room among the bytes of all peers.
func (ps *pipes) crowded() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.full
}

// flying is what is on its way from all peers.
func (ps *pipes) flying() int64 {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	sum := int64(0)
	for _, n := range ps.all {
		sum += n
	}
	return sum
}

// wake tells who waits on a channel of capacity 1.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
