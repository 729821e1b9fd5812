package swarm

import (
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// Only seconds in which several peers wanted more than they got tell what a node
// can send.
func TestUplink_Share(t *testing.T) {
	const mbyte = 1e6
	type sent struct {
		to         int
		bytes      int64
		begin, end time.Duration
	}
	busy := func(peers ...int) []sent {
		var out []sent
		for at := time.Duration(0); at < time.Second; at += 100 * time.Millisecond {
			for _, p := range peers {
				out = append(out, sent{p, mbyte, at, at + 100*time.Millisecond})
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		sent []sent
		want uint32
	}{
		"nothing":                    {nil, 0},
		"one peer may be slow":       {busy(1), 0},
		"two that want more":         {busy(1, 2), 160},
		"two now and then":           {busy(1, 2)[:8], 0},
		"what failed does not count": {[]sent{{1, 0, 0, time.Second}, {2, 0, 0, time.Second}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var u uplink
			start := time.Unix(1000, 0)
			u.turn(start)
			for i := 0; i < len(c.sent); {
				j := i
				for ; j < len(c.sent) && c.sent[j].begin == c.sent[i].begin; j++ {
					u.begin(start.Add(c.sent[j].begin))
				}
				for ; i < j; i++ {
					u.end(nodeOf(c.sent[i].to), c.sent[i].bytes, start.Add(c.sent[i].end-time.Nanosecond))
				}
			}
			u.begin(start.Add(time.Second))
			if got := u.share(); got != c.want {
				t.Errorf("%d Mbit/s, want %d", got, c.want)
			}
		})
	}
}

// The best of the last minutes counts: a link that became slow is believed after
// them, and memory is bounded.
func TestUplink_Forgets(t *testing.T) {
	var u uplink
	at := time.Unix(1000, 0)
	u.turn(at)
	second := func(bytes int64) {
		u.begin(at)
		u.begin(at)
		at = at.Add(uplinkSlot)
		u.sending, u.busy = 0, uplinkSlot // they end with the slot
		u.bytes += bytes
		u.peers = map[identity.NodeID]bool{}
		u.peers[nodeOf(1)], u.peers[nodeOf(2)] = true, true
		u.turn(at)
	}
	second(100e6)
	for range uplinkSlots - 1 {
		second(10e6)
	}
	if got := u.share(); got != 800 {
		t.Errorf("%d Mbit/s while the best second is remembered", got)
	}
	second(10e6)
	if got := u.share(); got != 80 || len(u.rates) != uplinkSlots {
		t.Errorf("%d Mbit/s of %d seconds", got, len(u.rates))
	}
}
