package swarm

import (
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
)

const (
	// uplinkSlot is how long sending is counted for one measurement, uplinkSlots how
	// many are remembered: some minutes of work, so that a link that changed is
	// believed after that.
	uplinkSlot  = time.Second
	uplinkSlots = 120
)

// uplink measures what this node can send, for the share that it tells other
// receivers. Only seconds in which several peers wanted more than they got tell
// of it: one peer may be slow itself.
type uplink struct {
	mu      sync.Mutex
	slot    time.Time
	bytes   int64
	peers   map[identity.NodeID]bool
	sending int
	since   time.Time // sending > 0
	busy    time.Duration
	rates   []int64 // bytes a second, a ring
	next    int
}

// begin notes that a unit is being sent, end that it was, or not.
func (u *uplink) begin(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.turn(now)
	if u.sending++; u.sending == 1 {
		u.since = now
	}
}

func (u *uplink) end(to identity.NodeID, n int64, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.turn(now)
	if u.sending--; u.sending == 0 {
		u.busy += now.Sub(u.since)
	}
	u.bytes += n
	if u.peers == nil {
		u.peers = map[identity.NodeID]bool{}
	}
	u.peers[to] = true
}

// turn closes the slot when it is over.
func (u *uplink) turn(now time.Time) {
	passed := now.Sub(u.slot)
	if passed < uplinkSlot {
		return
	}
	if u.sending > 0 {
		u.busy += now.Sub(u.since)
		u.since = now
	}
	if !u.slot.IsZero() && u.busy >= passed*9/10 && len(u.peers) > 1 {
		rate := int64(float64(u.bytes) / passed.Seconds())
		if len(u.rates) < uplinkSlots {
			u.rates = append(u.rates, rate)
		} else {
			u.rates[u.next%uplinkSlots] = rate
		}
		u.next++
	}
	u.slot, u.bytes, u.busy = now, 0, 0
	clear(u.peers)
}

// share is the best of the remembered rates in Mbit/s; 0: nothing was measured.
func (u *uplink) share() uint32 {
	u.mu.Lock()
	defer u.mu.Unlock()
	best := int64(0)
	for _, r := range u.rates {
		best = max(best, r)
	}
	return uint32(min(best*8/1e6, maxShare))
}
