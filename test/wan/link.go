package wan

import (
	"math/rand/v2"
	"time"
)

// siteSpan is the default queue of a site's caps: what a home router keeps.
const siteSpan = 100 * time.Millisecond

// link is one direction between two sites.
type link struct {
	LinkStatus
	src, dst *site
	pipe     shaper
	wire     fifo
	last     int64 // due time of the packet put on the wire last
}

// site is a namespace with its TUN device.
type site struct {
	SiteStatus
	index           int
	ns              *namespace
	egress, ingress shaper
	to              [maxSites + 1]*link // by index of the destination
	from            []*link
	out             fifo   // packets in or past the ingress cap
	overflows       uint64 // packets for which the router had no memory
	hostDropsBase   uint64 // hostDrops at the last reset
}

func (l *link) blocked() bool { return l.Down || l.src.Isolated || l.dst.Isolated }

// set changes the link for packets to come. Those accepted already keep their
// due times, and nothing overtakes them.
func (l *link) set(p Params) error {
	if err := p.check(); err != nil {
		return err
	}
	l.Params = p
	l.pipe.set(p.Rate, p.Queue, time.Duration(p.RTT))
	return nil
}

// admit stamps p with the time at which it reaches the far end. If p is to be
// dropped, it returns the counter for the reason.
func (l *link) admit(p *packet, now int64) (dropped *uint64) {
	if l.blocked() {
		return &l.DropDown
	}
	t, ok := l.src.egress.admit(now, p.n)
	if !ok {
		return &l.src.EgressDrops
	}
	l.src.EgressBytes += uint64(p.n)
	if t, ok = l.pipe.admit(t, p.n); !ok {
		return &l.DropQueue
	}
	if l.Loss > 0 && rand.Float64() < l.Loss { // lost further out: it has used the capacity
		return &l.DropLoss
	}
	t += int64(l.RTT / 2)
	if l.Jitter > 0 {
		t += rand.Int64N(int64(l.Jitter) + 1)
	}
	l.last = max(l.last, t)
	p.due = l.last
	return nil
}
