package swarm

import "slices"

// held is what a flight may ask for under a Limit. flight.mu guards it.
type held struct {
	place  *place // nil: it does not wait
	by     *Limit // who granted what is left
	got    *place // the last that was granted
	left   int64  // bytes that were granted and not asked for yet
	opened int64  // bytes that its first request asks for, see awaitOpening
}

// shares counts a fetcher's limit in (by 1) or out (by -1); nil: it has none.
// Swarm.mu is held. A flight that nobody fetches any more keeps its last ones.
func (f *flight) shares(l *Limit, by int) {
	if f.sharing[l] += by; f.sharing[l] <= 0 {
		delete(f.sharing, l)
	}
	if len(f.sharing) == 0 {
		return
	}
	var all []*Limit
	for l := range f.sharing {
		if l == nil {
			all = nil
			break
		}
		all = append(all, l)
	}
	f.limits.Store(&all)
	wake(f.relimited)
	f.wakeLanes(nil)
}

// limit is the one that holds the flight now: the widest of those that its
// fetchers came with; nil if one of them has none, and while clients read it.
func (f *flight) limit() *Limit {
	all := f.limits.Load()
	if f.pass || f.reading.Load() > 0 || all == nil || len(*all) == 0 {
		return nil
	}
	widest := slices.MaxFunc(*all, func(a, b *Limit) int {
		// No limit, 0, wraps around to the most.
		x, y := a.Bits()-1, b.Bits()-1
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	if widest.Bits() == 0 {
		return nil
	}
	return widest
}

// granted is for how many bytes a flight that is held by l may ask now. With
// none it is in line for n, and is woken when its turn comes. mu is held.
func (f *flight) granted(l *Limit, n int64) int64 {
	h := &f.held
	if h.by != l {
		f.letBack()
		h.by = l
	}
	if h.left >= n {
		return h.left
	}
	if h.place == nil {
		h.place = l.queue(n, func() {
			wake(f.relimited)
			f.wakeLanes(nil)
		})
	}
	if !h.place.granted() {
		return 0
	}
	h.left += h.place.n
	h.got, h.place = h.place, nil
	return h.left
}

// letBack leaves the line, and gives back what was granted and not asked for; mu is
// held. So it does with the first request of a flight as far as nobody answered it:
// holders that are away cost a rule nothing.
func (f *flight) letBack() {
	h := &f.held
	if h.place != nil {
		h.place.leave()
	}
	if f.last.IsZero() {
		h.left += max(0, h.opened-f.came.Load())
	}
	if h.got != nil && h.left > 0 {
		h.got.giveBack(h.left)
	}
	*h = held{}
}

// awaitOpening waits until a held blob of one unit may be asked for: it comes
// with the first request. Larger ones begin with the list alone.
func (f *flight) awaitOpening() error {
	if err := f.awaitCalm(); err != nil {
		return err
	}
	for urgent := f.urgent; ; {
		f.mu.Lock()
		l := f.limit()
		if l == nil || f.layout == nil || f.layout.units() > 1 || f.layout.size == 0 {
			f.mu.Unlock()
			return nil
		}
		if f.granted(l, f.layout.size) > 0 {
			f.held.left, f.held.opened = 0, f.layout.size
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-f.relimited:
		case <-urgent:
			urgent = nil // once: who hurried may be gone by now
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
}
