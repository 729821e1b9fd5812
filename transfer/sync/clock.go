package sync

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// clockAlarm is how far a peer's clock may be off before it is said aloud: the
// bound beyond which a node takes no tag writes (catalogue rule 13).
const clockAlarm = 60 * time.Second

// hello starts a question; its clock reading comes back with the answer.
func (s *Sync) hello() *Hello {
	id := s.cfg.Store.ID()
	return &Hello{
		SentUnixNs: s.cfg.Now().UnixNano(),
		RaftIndex:  s.cfg.State.View().Index(),
		StoreId:    id[:],
	}
}

// answer starts an answer to a question that came at the given time.
func (s *Sync) answer(cameAt time.Time) *Hello {
	h := s.hello()
	h.ReceivedUnixNs = cameAt.UnixNano()
	return h
}

// clockOffset takes the four readings of one question: asked and answered by
// our clock, received and sent by the peer's. The offset is the peer's clock
// minus ours, wrong by at most half the round trip.
func clockOffset(asked, received, sent, answered int64) (offset, rtt time.Duration) {
	// Differences first: sums of two readings would overflow.
	offset = time.Duration((received-asked)/2 + (sent-answered)/2)
	rtt = time.Duration((answered - asked) - (sent - received))
	return offset, max(rtt, 0)
}

// measured keeps a peer's offset and raises or ends the alarm.
func (l *link) measured(question, answer *Hello) {
	if answer.GetReceivedUnixNs() == 0 {
		return
	}
	offset, rtt := clockOffset(question.GetSentUnixNs(), answer.GetReceivedUnixNs(), answer.GetSentUnixNs(), l.s.cfg.Now().UnixNano())
	l.mu.Lock()
	l.status.offset, l.status.rtt, l.status.compared, l.status.set = offset, rtt, true, l.s.clock.set(l.s.cfg.Now())
	before := l.status.alarmed
	l.status.alarmed = offset.Abs() > clockAlarm
	now := l.status.alarmed
	l.mu.Unlock()
	if now != before {
		wake(l.s.clock.due)
	}
	switch {
	case now && !before:
		l.s.log.Error("clocks of this node and a peer are too far apart: set both by NTP", "node", l.node, "site", l.site(), "offset", offset)
	case before && !now:
		l.s.log.Info("clocks of this node and a peer agree again", "node", l.node, "site", l.site(), "offset", offset)
	}
}

// clock is what this node knows about its own clock. While it is off the median of
// the peers in reach, this site takes no tags, and what it wrote unseen is stamped
// anew before it is exchanged with whom it does not agree (catalogue rule 13).
type clock struct {
	due  chan struct{} // capacity 1: look again
	wall time.Time     // of this node at a moment, and
	mono time.Time     // the same moment, by what nobody sets

	mu        sync.Mutex
	restamped bool // since it is off; what is written meanwhile has no stamps
}

func (c *clock) init(now time.Time) {
	c.due, c.wall, c.mono = make(chan struct{}, 1), now.Round(0), time.Now()
}

// set says by how much the clock was set since the node started, as far as it
// shows: a machine that slept counts as one whose clock was set.
func (c *clock) set(now time.Time) time.Duration {
	return now.Round(0).Sub(c.wall) - time.Since(c.mono)
}

// ClockOff says whether this node's clock is more than a minute off the median of
// the peers in reach, and by how much: what has to be added to it. A node that
// reaches nobody is not off.
func (s *Sync) ClockOff() (by time.Duration, off bool) {
	by, _ = s.judgeClock()
	if off = by.Abs() > clockAlarm; !off {
		// Who asks may write with this clock now, however short the time is in which
		// nobody is in reach.
		s.clock.mu.Lock()
		s.clock.restamped = false
		s.clock.mu.Unlock()
	}
	return by, off
}

// judgeClock gives the median of the offsets of the peers in reach. judged: there
// are such, and all peers were asked since the start, so that it is not the word of
// the first alone.
func (s *Sync) judgeClock() (median time.Duration, judged bool) {
	var offsets []time.Duration
	set := s.clock.set(s.cfg.Now())
	judged = true
	for _, l := range s.allLinks() {
		st := l.state()
		judged = judged && st.asked
		switch {
		case st.err != nil || st.contactAt.IsZero():
		case (set - st.set).Abs() > clockAlarm:
			judged = false // measured before the clock was set: it has to be measured again
		default:
			offsets = append(offsets, st.offset)
		}
	}
	if len(offsets) == 0 {
		return 0, false // what was measured before it was cut off says nothing of its clock now
	}
	slices.Sort(offsets)
	lower, upper := offsets[(len(offsets)-1)/2], offsets[len(offsets)/2]
	// Between two the one that is nearer to this node's counts: with it, that is the
	// majority. One whose clock is right must not stop because of one that is wrong.
	if lower.Abs() < upper.Abs() {
		return lower, judged
	}
	return upper, judged
}

// errClocks: nothing is exchanged before it is known whose clock is wrong.
var errClocks = errors.New("the clocks of the two nodes are too far apart: it is being found out which is wrong")

// mayExchange says whether entries may go between this node and one whose clock is
// off by so much.
func (s *Sync) mayExchange(offset time.Duration) error {
	if offset.Abs() <= clockAlarm {
		return nil
	}
	by, judged := s.judgeClock()
	s.clock.mu.Lock()
	restamped := s.clock.restamped
	s.clock.mu.Unlock()
	if judged && (by.Abs() <= clockAlarm || restamped) {
		return nil
	}
	wake(s.clock.due)
	return errClocks
}

// clocksAgree is mayExchange for a pull from the peer.
func (l *link) clocksAgree() error {
	st := l.state()
	if !st.compared {
		// A hint was faster than the first exchange of heads, which asks for it again.
		return errors.New("the clocks of the two nodes were not compared yet")
	}
	return l.s.mayExchange(st.offset)
}

// agreesWith is mayExchange for an answer. The question's reading alone is wrong
// by the way that it took, which is little against the alarm.
func (s *Sync) agreesWith(question *Hello) *Refusal {
	if question.GetSentUnixNs() == 0 {
		return nil
	}
	offset := time.Duration(question.GetSentUnixNs() - s.cfg.Now().UnixNano())
	err := s.mayExchange(offset)
	if err == nil {
		return nil
	}
	for _, l := range s.allLinks() {
		wake(l.headsDue) // which measures
	}
	return refusal(Refusal_CODE_FAILED, err.Error())
}

// watchClock stamps anew what was written with a wrong clock, once for each time
// that it is found wrong.
func (s *Sync) watchClock(ctx context.Context) {
	said := false // that it is wrong
	for pause(ctx, s.poll, s.clock.due) {
		by, judged := s.judgeClock()
		off := by.Abs() > clockAlarm
		s.clock.mu.Lock()
		was := s.clock.restamped
		if !off {
			s.clock.restamped = false
		}
		s.clock.mu.Unlock()
		switch {
		case !off && said:
			said = false
			s.log.Info("this node's clock is right again: it takes tags", "offset", by)
		case off && judged && !was:
			said = true
			s.log.Error("this node's clock is wrong: it takes no tags until the clock is set, by NTP", "offset", by)
			if err := s.restamp(ctx, by); err != nil {
				if ctx.Err() == nil {
					s.log.Error("what was written with a wrong clock could not be stamped anew: trying again", "error", err)
				}
				continue
			}
			s.clock.mu.Lock()
			s.clock.restamped = true
			s.clock.mu.Unlock()
			for _, l := range s.allLinks() {
				wake(l.headsDue)
			}
		}
	}
}

// restamp corrects the stamps of this store's writes that no peer has seen.
func (s *Sync) restamp(ctx context.Context, by time.Duration) error {
	pids, err := s.cat.Projects()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		own, err := s.cat.OwnVector(pid)
		if err != nil {
			return err
		}
		if len(own) == 0 {
			continue
		}
		n, err := s.cat.Restamp(ctx, pid, s.seenByPeers(ctx, pid, own), by)
		if err != nil {
			return err
		}
		if n > 0 {
			s.log.Warn("tags that were set with a wrong clock are stamped anew", "pid", pid, "tags", n, "offset", by)
		}
	}
	return nil
}

// seenByPeers asks how far the peers in reach have seen what this store wrote. One
// that does not answer may have seen more: then a tag is written anew that it has,
// which is a write like any other.
func (s *Sync) seenByPeers(ctx context.Context, pid identity.ProjectID, own catalog.Vector) catalog.Vector {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	seen := catalog.Vector{}
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	view := s.cfg.State.View()
	for _, l := range s.allLinks() {
		if l.state().err != nil || s.shared(view, pid, l.node) != nil {
			continue
		}
		wg.Go(func() {
			v, err := s.Seen(ctx, l.node, pid, own)
			if err != nil {
				s.log.Debug("a peer does not say what it has seen", "node", l.node, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for inc, seq := range v {
				seen[inc] = max(seen[inc], min(seq, own[inc]))
			}
		})
	}
	wg.Wait()
	return seen
}
