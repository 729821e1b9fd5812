package swarm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// maxSessions bounds the streams to one holder, below what its host admits (32 per
	// protocol); Host.StreamsEach does in a larger mesh.
	maxSessions = 28
	// batchSessions of them are the batch's of small blobs: it is one stream a holder,
	// which has no part in the slots. So it waits for no large blob, and takes nothing
	// from what is kept for a class.
	batchSessions = 1
	// maxLent bounds the streams beyond their parts that all holders have together: as
	// many as the host has left of a protocol when all have theirs (16 of 144). A node
	// that catches up from one holder in a large mesh takes them all there.
	maxLent = 16
	// lendAgain is how long nothing is lent to a holder that refused a stream: others
	// take their parts there.
	lendAgain = 10 * time.Second
)

// lender has the streams that are lent.
type lender struct {
	mu   sync.Mutex
	lent int
}

// leastSessions is how many of maxSessions are kept for each class: rules have 20 at
// most, and 2 however many clients wait. Of fewer streams as large a part is, rounded
// up.
var leastSessions = [classes]int{6, 2, 2}

// need is what somebody needs a stream for, which may change meanwhile. The zero need
// is of rules.
type need struct {
	// at is what it is for at the moment; changed is closed when that changes. It must
	// not block; nil: always rules.
	at func() (c class, r rank, changed <-chan struct{})
	// waits is called when it is not given one at once; nil: nothing is.
	waits func()
	// over is closed when it is for nothing any more; nil: that is not known.
	over <-chan struct{}
	// stands is called each laneTick as long as it stands in line; nil: nothing is.
	stands func()
}

func (n need) now() (c class, r rank, changed <-chan struct{}) {
	if n.at == nil {
		return classReplication, rank{}, nil
	}
	return n.at()
}

// least is what of so many streams is kept for each class. Of two one is kept for
// clients; one is for whoever comes first.
func least(most int) (out [classes]int) {
	switch {
	case most < 2:
		return out
	case most < len(out):
		out[classClient] = 1
		return out
	}
	for c, n := range leastSessions {
		out[c] = (n*most + maxSessions - 1) / maxSessions
	}
	return out
}

// slots are the streams to one holder. They are given by class, and by rank in it.
type slots struct {
	most func() int // may change; at most maxSessions
	lend *lender    // nil: none are lent

	mu   sync.Mutex
	used map[*slot]struct{} // at most maxSessions
	line []*slot
	owed int       // of those that are used, lent
	part time.Time // until then it has its part alone
}

// slot is one of them, or somebody in line for one.
type slot struct {
	need  need
	class class // that it stands as; of one that is held, need says
	rank  rank
	got   chan struct{} // closed when it is given
	held  bool
	shed  func() // ends its stream, as if the holder had; nil: it has none that may end
	ends  bool   // shed was called
}

// errOver is the end of standing in line for what is not needed any more.
var errOver = errors.New("the stream is not needed any more")

// take waits for a slot; errOver if what it is for is over before.
func (s *slots) take(ctx context.Context, n need) (*slot, error) {
	tick := time.NewTicker(laneTick)
	defer tick.Stop()
	for {
		w, changed := s.stand(n)
		if n.waits != nil && !w.given() {
			n.waits()
		}
		for waits := true; waits; {
			select {
			case <-w.got:
				return w, nil
			case <-tick.C:
				if n.stands != nil {
					n.stands()
				}
				s.again()
			case <-changed:
				select {
				case <-w.got: // just now
					return w, nil
				default:
				}
				s.leave(w)
				waits = false
			case <-n.over:
				s.leave(w)
				return nil, errOver
			case <-ctx.Done():
				s.leave(w)
				return nil, ctx.Err()
			}
		}
	}
}

// given says whether the slot is.
func (w *slot) given() bool {
	select {
	case <-w.got:
		return true
	default:
		return false
	}
}

// stand gives a slot, or a place in line for one. It stands as what it is for at the moment.
func (s *slots) stand(n need) (w *slot, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w = &slot{need: n, got: make(chan struct{})}
	w.class, w.rank, changed = n.now()
	at, _ := slices.BinarySearchFunc(s.line, w, func(o, w *slot) int {
		if w.class < o.class || w.class == o.class && w.rank.before(o.rank) {
			return 1
		}
		return -1 // behind those that stand as it does
	})
	s.line = slices.Insert(s.line, at, w)
	s.give()
	return w, changed
}

// leave gives a slot back, or leaves the line.
func (s *slots) leave(w *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.held {
		delete(s.used, w)
	} else {
		s.line = slices.DeleteFunc(s.line, func(o *slot) bool { return o == w })
	}
	s.give()
}

// again gives what another holder's have given back, or what there are more of.
func (s *slots) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give()
}

// refused notes that the holder has no room for what is lent. What rules have of that
// ends: who is more urgent would wait for it.
func (s *slots) refused() {
	for _, shed := range s.takeBack() {
		shed() // without mu: it writes to the connection
	}
}

// takeBack ends lending for a while, and gives what ends the streams of rules that are
// beyond their share of the part.
func (s *slots) takeBack() (sheds []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part = time.Now().Add(lendAgain)
	part := max(1, s.most())
	kept := least(part)
	rules := max(1, part-kept[classClient]-kept[classHurried])
	for w := range s.used {
		if c, _, _ := w.need.now(); c != classReplication || w.ends {
			continue
		}
		if rules--; rules < 0 && w.shed != nil {
			sheds = append(sheds, w.shed)
			w.shed, w.ends = nil, true
		}
	}
	return sheds
}

// carries says what ends the stream of a slot.
func (s *slots) carries(w *slot, shed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.shed = shed
}

// give gives what is free to the first of each class; mu is held. A slot counts as what
// it is for at the moment: one whose client left keeps no other client out.
func (s *slots) give() {
	part := max(1, s.most())
	most := part
	if s.lend != nil {
		s.lend.mu.Lock()
		defer s.lend.mu.Unlock()
		s.lend.lent -= s.owed
		if !time.Now().Before(s.part) {
			most = max(part, min(maxSessions-batchSessions, part+maxLent-s.lend.lent))
		}
		defer func() {
			s.owed = max(0, len(s.used)-part)
			s.lend.lent += s.owed
		}()
	}
	kept := least(most)
	var used [classes]int
	for w := range s.used {
		c, _, _ := w.need.now()
		used[c]++
	}
	s.line = slices.DeleteFunc(s.line, func(w *slot) bool {
		if spare(most, used, kept, w.class) == 0 {
			return false
		}
		if s.used == nil {
			s.used = map[*slot]struct{}{}
		}
		s.used[w] = struct{}{}
		used[w.class]++
		w.held = true
		close(w.got)
		return true
	})
}

// unused says whether nobody has one, or waits for one.
func (s *slots) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.used)+len(s.line) == 0
}

// full says whether an error is that the other side has no room for a stream.
func full(err error) bool {
	var f interface{ Full() bool }
	return errors.As(err, &f) && f.Full()
}
