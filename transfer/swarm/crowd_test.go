package swarm

import (
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
)

func nodeOf(i int) identity.NodeID { return identity.NodeID{byte(i + 1), 7} }

func TestCrowd_GivesAUnitToOneReceiver(t *testing.T) {
	at := time.Unix(1000, 0)
	c := newCrowd()
	for i := range 3 {
		c.watchers[nodeOf(i)] = &watched{}
	}
	ask := func(i int, within, after time.Duration, want bool) {
		t.Helper()
		if got := c.claim(5, nodeOf(i), within, at.Add(after)); got != want {
			t.Errorf("receiver %d after %s: given %v", i, after, got)
		}
	}
	ask(0, always, 0, true)
	ask(1, always, time.Second, false)
	ask(0, always, 2*time.Second, true)                          // it may ask again, which keeps it no longer:
	ask(1, 2*time.Second, 2*time.Second, true)                   // taken over,
	ask(2, 2*time.Second, 3*time.Second, false)                  // by one at a time
	ask(9, 0, 3*time.Second, true)                               // a stranger to the crowd changes nothing
	ask(2, always, time.Minute, false)                           // it is still receiver 1's
	c.unclaim(nodeOf(1))                                         // who goes
	ask(2, always, time.Minute, true)                            // and leaves it to others
	if !c.claim(6, nodeOf(1), always, at) || len(c.given) != 2 { // other units are their own
		t.Errorf("%d units given", len(c.given))
	}
}

func TestStripes_AreEvenAndStable(t *testing.T) {
	d := digest.FromString("a blob")
	var all []receiver
	for i := range 8 {
		all = append(all, receiver{node: nodeOf(i)})
	}
	const n = 400
	owner := stripes(d, n, all)
	for prefix := 1; prefix <= n; prefix++ {
		counts := make([]int, len(all))
		for _, o := range owner[:prefix] {
			counts[o]++
		}
		for i, c := range counts {
			if float64(c) > float64(prefix)/8+2 {
				t.Fatalf("receiver %d owns %d of the first %d units", i, c, prefix)
			}
		}
	}
	// A ninth takes from all, and moves little between the others.
	more := stripes(d, n, append(slices.Clone(all), receiver{node: nodeOf(8)}))
	moved := 0
	for i := range owner {
		if more[i] != owner[i] && more[i] != 8 {
			moved++
		}
	}
	if moved > n/3 {
		t.Errorf("%d of %d units moved between receivers that stayed", moved, n)
	}
	// Twice the share is twice the units; who says nothing counts as the median.
	all[0].share, all[1].share, all[2].share = 200, 100, 100
	counts := make([]int, len(all))
	for _, o := range stripes(d, 900, all) {
		counts[o]++
	}
	if counts[0] < 195 || counts[0] > 205 || counts[7] < 95 || counts[7] > 105 {
		t.Errorf("units by owner: %v", counts)
	}
}

func TestBitmap_OnTheWire(t *testing.T) {
	for _, n := range []int{1, 7, 8, 9, 63, 64, 65, 1000} {
		b := newBitmap(n)
		for i := 0; i < n; i += 3 {
			b.set(i)
		}
		raw := b.marshal(n)
		back, ok := parseBitmap(raw, n)
		if !ok || !slices.Equal(back, b) {
			t.Errorf("%d units come back as others", n)
		}
		if _, ok := parseBitmap(append(raw, 0), n); ok {
			t.Errorf("%d units: a byte too many is taken", n)
		}
		if n%8 != 0 {
			raw[len(raw)-1] |= 0x80
			if _, ok := parseBitmap(raw, n); ok {
				t.Errorf("%d units: one that the blob has not is taken", n)
			}
		}
	}
}

// A class gets its twentieth of a busy link, and what is less urgent takes no
// room from what is more.
func TestPipe_ClassesShareALink(t *testing.T) {
	at := time.Unix(1000, 0)
	p := &pipe{waiting: map[*waiter]class{}, rate: 10 * mib, delay: 100 * time.Millisecond}
	const unit = mib
	if room := p.room(classReplication, unit, 8*unit); room < 2*unit {
		t.Fatalf("room for %d alone", room)
	}
	p.ask(classReplication, p.room(classReplication, unit, 8*unit), at)
	if room := p.room(classClient, unit, 8*unit); room < 2*unit {
		t.Errorf("a client finds room for %d behind replication", room)
	}
	var came [classes]int64
	for range 2000 {
		for c := range classes {
			if n := p.room(c, unit, unit); n > 0 {
				p.ask(c, n, at)
			}
		}
		// The link gives one unit of each that has some on its way, oldest class last.
		at = at.Add(50 * time.Millisecond)
		for c := range classes {
			if p.flying[c] > 0 {
				p.arrived(c, unit, false, at)
				came[c] += unit
			}
		}
	}
	all := came[classClient] + came[classHurried] + came[classReplication]
	for c, name := range map[class]string{classHurried: "what is hurried", classReplication: "replication"} {
		if share := float64(came[c]) / float64(all); share < 0.05 || share > 0.08 {
			t.Errorf("%s has %.1f %% of the link", name, 100*share)
		}
	}
}

func TestPipes_BoundWhatIsOnItsWay(t *testing.T) {
	for _, order := range [][]class{
		{classReplication, classHurried, classClient},
		{classClient, classHurried, classReplication},
		{classHurried, classClient, classReplication},
	} {
		ps := newPipes()
		var got [classes]int
		for k, c := range order {
			for i := range 64 {
				node := nodeOf(100*k + i)
				w := &waiter{wake: make(chan struct{}, 1)}
				ps.of(node).rate, ps.of(node).delay = 1<<30, time.Second // as fast as can be
				got[c] += ps.reserve(node, w, c, mib, 64)
			}
		}
		all := got[classClient] + got[classHurried] + got[classReplication]
		if all*mib > maxAllBytes || got[classReplication]*mib > maxAllBytes/4*3 {
			t.Errorf("%v: %v MiB are on their way", order, got)
		}
		for c, n := range got {
			if int64(n)*mib < leastBytes[c] {
				t.Errorf("%v: %d MiB for class %d", order, n, c)
			}
		}
		if ps.flying() != int64(all)*mib {
			t.Errorf("%d bytes are counted", ps.flying())
		}
		// Room that comes back is offered to those that wait.
		w := &waiter{wake: make(chan struct{}, 1)}
		if n := ps.reserve(nodeOf(900), w, classReplication, mib, 1); n != 0 {
			t.Fatalf("room for %d more", n)
		}
		ps.release(nodeOf(0), order[0], mib, false)
		select {
		case <-w.wake:
		default:
			t.Error("nobody was told of room")
		}
	}
}

// What a liar says of units costs it its place, and nothing else.
func TestHave_LiesAreRefused(t *testing.T) {
	l := newLab(t)
	a := l.start()
	for name, h := range map[string]*Have{
		"units beyond the blob":    {Units: []uint32{3}},
		"a bitmap of another blob": {Size: 3 * mib, Bitmap: []byte{1, 0}},
		"a unit that it has not":   {Size: 3 * mib, Bitmap: []byte{0x80}},
		"too many receivers":       {ReceiversChanged: true, Receivers: make([]*Receiver, maxReceivers+1)},
		"half a receiver":          {ReceiversChanged: true, Receivers: []*Receiver{{Node: []byte{1}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlight(a.swarm, Want{Digest: digest.FromString(name), Size: 3 * mib, PID: project, Class: catalog.Placed})
			defer f.cancel()
			f.setSize(3 * mib)
			liar := nodeOf(3)
			if err := f.heard(liar, &Have{Size: 3 * mib, Bitmap: []byte{2}}); err != nil || !f.sched.useful(liar) {
				t.Fatalf("an honest bitmap: %v", err)
			}
			if f.heard(liar, h) == nil {
				t.Error("it was believed")
			}
			if f.sched.peers[liar] != nil || !f.struckOut(liar) {
				t.Error("it is still asked")
			}
			if err := f.heard(liar, &Have{Size: 3 * mib, Bitmap: []byte{7}}); err != nil || f.sched.peers[liar] != nil {
				t.Errorf("it came back: %v", err)
			}
		})
	}
}

// A node that may not have the project hears neither what is here nor who
// receives it.
func TestHave_AccessIsAsked(t *testing.T) {
	l := newLab(t)
	a := l.start()
	stranger := l.bare()
	l.mu.Lock()
	l.denied[stranger.ID()] = true
	l.mu.Unlock()
	w := a.put(content(3 * mib))
	st, err := stranger.Open(t.Context(), a.id.ID, HaveProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Reset() }()
	if err := peer.WriteMsg(st, &Watch{Id: 4, Digest: w.Digest.String(), Project: project[:]}, maxMessage); err != nil {
		t.Fatal(err)
	}
	var m Haves
	if err := peer.ReadMsg(st, &m, maxHaves); err != nil {
		t.Fatal(err)
	}
	if len(m.Haves) != 1 || m.Haves[0].Id != 4 || m.Haves[0].Status != Status_STATUS_DENIED || m.Haves[0].Whole || m.Haves[0].Size != 0 {
		t.Errorf("told %v", &m)
	}
	if len(a.swarm.crowds.receivers(w.Digest, project)) != 0 {
		t.Error("it is told of as a receiver")
	}
}
