package sync

import "time"

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
	l.status.offset, l.status.rtt = offset, rtt
	before := l.status.alarmed
	l.status.alarmed = offset.Abs() > clockAlarm
	now := l.status.alarmed
	l.mu.Unlock()
	switch {
	case now && !before:
		l.s.log.Error("clocks of this node and a peer are too far apart: set both by NTP", "node", l.node, "site", l.site(), "offset", offset)
	case before && !now:
		l.s.log.Info("clocks of this node and a peer agree again", "node", l.node, "site", l.site(), "offset", offset)
	}
}
