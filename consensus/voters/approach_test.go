package voters

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// board is a mesh that does what the promoter says, one site a server.
type board struct {
	*Promoter
	leader raft.ServerID
	votes  map[raft.ServerID]bool
	ill    map[raft.ServerID]bool
	since  time.Time // of everybody's health
	moves  []string
	every  time.Duration // a round
}

func newBoard(d Distances, want int, voting, learning []raft.ServerID) *board {
	b := &board{leader: voting[0], votes: map[raft.ServerID]bool{}, ill: map[raft.ServerID]bool{}, since: time.Now(), every: 2 * time.Second}
	for _, id := range voting {
		b.votes[id] = true
	}
	for _, id := range learning {
		b.votes[id] = false
	}
	b.Promoter = &Promoter{Sites: func() int { return len(b.votes) }, Want: func() int { return want }, Trip: d, Exchange: func(from, to raft.ServerID) {
		b.moves = append(b.moves, fmt.Sprintf("%s>%s", from, to))
		b.votes[from], b.votes[to] = false, true
	}}
	return b
}

func (b *board) voting() []raft.ServerID {
	var out []raft.ServerID
	for id, v := range b.votes {
		if v {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// round asks the promoter once and does what it says.
func (b *board) round() {
	servers := make(map[string]srv)
	for id, v := range b.votes {
		well := time.Since(b.since)
		if b.ill[id] {
			well = -well
		}
		servers[string(id)] = srv{string(id), v, well}
	}
	s := pictureAt(time.Now(), string(b.leader), servers)
	c := b.CalculatePromotionsAndDemotions(nil, s)
	for _, id := range c.Demotions {
		b.moves = append(b.moves, "-"+string(id))
		b.votes[id] = false
	}
	for _, id := range c.Promotions {
		b.moves = append(b.moves, "+"+string(id))
		b.votes[id] = true
	}
	if c.Leader != "" {
		b.moves = append(b.moves, "leads:"+string(c.Leader))
		b.leader = c.Leader
	}
}

// pass lets time go by, round after round.
func (b *board) pass(d time.Duration) string {
	for end := time.Now().Add(d); time.Now().Before(end); {
		<-time.After(b.every)
		b.round()
	}
	out := strings.Join(b.moves, " ")
	b.moves = nil
	return out
}

// TestPromoter_Distance: votes move towards one another when it has been worth
// it for long, one at a time.
func TestPromoter_Distance(t *testing.T) {
	for _, c := range []struct {
		name             string
		want             int
		voting, learning []raft.ServerID // the first leads
		change           func(*board)
		soon, long       string // moves in nine minutes, and in two hours more
	}{
		{name: "a far voter", voting: list("ams", "fra", "sgp"), learning: list("lon"), long: "sgp>lon"},
		{name: "two far ones, one after the other", voting: list("ams", "sgp", "tyo"), learning: list("fra", "lon"), long: "sgp>fra tyo>lon"},
		{name: "the leader is the far one: it hands over first", voting: list("sgp", "ams", "fra"), learning: list("lon"), long: "leads:ams sgp>lon"},
		{name: "near already", voting: list("ams", "fra", "lon"), learning: list("par", "sgp")},
		{name: "no site to go to", voting: list("ams", "fra", "sgp")},
		{name: "the other site is as far", voting: list("ams", "fra", "sgp"), learning: list("tyo")},
		{name: "one of them is not measured", voting: list("ams", "fra", "sgp"), learning: list("lon", "mars")},
		{name: "a voter is not measured", voting: list("ams", "fra", "mars"), learning: list("lon")},
		{name: "anybody is ill", voting: list("ams", "fra", "sgp"), learning: list("lon", "tyo"), change: func(b *board) { b.ill["tyo"] = true }},
		{name: "the near site drains", voting: list("ams", "fra", "sgp"), learning: list("lon"),
			change: func(b *board) { b.Draining = func(id raft.ServerID) bool { return id == "lon" } }},
		{name: "the near site does not answer", voting: list("ams", "fra", "sgp"), learning: list("lon"),
			change: func(b *board) { b.Answers = func(id raft.ServerID) bool { return id != "lon" } }},
		{name: "another voter does not answer", voting: list("ams", "fra", "sgp"), learning: list("lon"),
			change: func(b *board) { b.Answers = func(id raft.ServerID) bool { return id != "fra" } }},
		{name: "the one that loses its vote need not answer", voting: list("ams", "fra", "sgp"), learning: list("lon"),
			change: func(b *board) { b.Answers = func(id raft.ServerID) bool { return id != "sgp" } }, long: "sgp>lon"},
		{name: "five", want: 5, voting: list("ams", "fra", "lon", "sgp", "tyo"), learning: list("par", "waw"), long: "sgp>par tyo>waw"},
		{name: "five of three and five", want: 5, voting: list("ams", "fra", "lon"), learning: list("par", "waw", "sgp", "tyo"), soon: "+par +waw"},
		{name: "three of five: the far ones go", want: 3, voting: list("ams", "fra", "lon", "sgp", "tyo"), soon: "-sgp -tyo"},
		{name: "the first three are the near ones", voting: list("sgp"), learning: list("ams", "fra", "syd", "tyo"), soon: "+syd +tyo"},
		{name: "a voter drains: its vote goes to a near site", voting: list("ams", "fra", "par"), learning: list("lon", "sgp"),
			change: func(b *board) { b.Draining = func(id raft.ServerID) bool { return id == "par" } }, soon: "par>lon"},
		{name: "a voter drains and another does not answer", voting: list("ams", "fra", "par"), learning: list("lon", "sgp"), change: func(b *board) {
			b.Draining = func(id raft.ServerID) bool { return id == "par" }
			b.Answers = func(id raft.ServerID) bool { return id != "fra" }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard(europe(), max(3, c.want), c.voting, c.learning)
				<-time.After(2 * time.Minute) // everybody is well for long
				if c.change != nil {
					c.change(b)
				}
				if got := b.pass(9 * time.Minute); got != c.soon {
					t.Errorf("in nine minutes: %q, want %q", got, c.soon)
				}
				if got := b.pass(2 * time.Hour); got != c.long {
					t.Errorf("in two hours: %q, want %q", got, c.long)
				}
			})
		})
	}
}

// TestPromoter_Distance_MustLast: what is better for a while only, or by little,
// moves no vote; and the time begins anew after each break.
func TestPromoter_Distance_MustLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := 180 * ms
		d := func(a, b raft.ServerID) (time.Duration, bool) {
			if a == "sgp" || b == "sgp" {
				return far, true
			}
			return 20 * ms, true
		}
		b := newBoard(d, 3, list("ams", "fra", "sgp"), list("lon"))
		<-time.After(2 * time.Minute)
		for range 5 { // the way to sgp is long for a while, again and again
			far = 180 * ms
			if got := b.pass(9 * time.Minute); got != "" {
				t.Fatalf("moved: %s", got)
			}
			far = 22 * ms
			if got := b.pass(time.Minute); got != "" {
				t.Fatalf("moved for little: %s", got)
			}
		}
		far = 26 * ms // a third more, and nothing that anybody would notice
		if got := b.pass(time.Hour); got != "" {
			t.Fatalf("moved for %s: %s", far-20*ms, got)
		}
		far = 180 * ms
		b.ill["lon"] = true
		b.pass(5 * time.Minute)
		b.ill["lon"] = false
		if got := b.pass(9 * time.Minute); got != "" {
			t.Fatalf("moved to a site that had been ill: %s", got)
		}
		if got := b.pass(2 * time.Minute); got != "sgp>lon" {
			t.Fatalf("moves %q", got)
		}
		far = 21 * ms // and not back
		if got := b.pass(24 * time.Hour); got != "" {
			t.Fatalf("moved back: %s", got)
		}
	})
}

// TestPromoter_Stabilises: a learner votes when it has been well for a second;
// it takes over from a silent voter after a minute of both.
func TestPromoter_Stabilises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(nil, 3, list("ams"), list("fra", "lon", "sgp"))
		b.round()
		if got := b.pass(0); got != "" {
			t.Fatalf("moved at once: %s", got)
		}
		if got := b.pass(2 * time.Second); got != "+fra +lon" {
			t.Fatalf("after two seconds: %q", got)
		}
		<-time.After(10 * time.Minute)
		b.ill["lon"], b.since = true, time.Now()
		if got := b.pass(58 * time.Second); got != "" {
			t.Fatalf("within a minute: %q", got)
		}
		if got := b.pass(4 * time.Second); got != "+sgp -lon" && got != "-lon +sgp" {
			t.Fatalf("after a minute: %q", got)
		}
	})
}

// TestPromoter_HalfDone_Waits: with two voters, as between the steps of an
// exchange, a new leader waits for a learner that is well and only not for long.
func TestPromoter_HalfDone_Waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(nil, 3, list("ams", "fra"), list("lon"))
		<-time.After(500 * ms)
		b.round()
		if got := b.pass(0); got != "" {
			t.Fatalf("moved: %s", got)
		}
		if got := b.pass(2 * time.Second); got != "+lon" {
			t.Fatalf("then: %q", got)
		}
	})
}

// TestPromoter_Properties: meshes by chance, where links change, sites fall ill,
// drain and come back. There are never fewer voters than before by more than one
// change, never two changes for distance at once, never one while anything is
// ill, and the leader keeps its vote; in a quiet hour the votes come to rest.
func TestPromoter_Properties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := world{}
			n := 3 + r.IntN(6)
			for i := range n {
				w[raft.ServerID(fmt.Sprintf("s%02d", i))] = [2]float64{r.Float64() * 400, r.Float64() * 400}
			}
			ids := w.ids()
			want := []int{3, 5}[r.IntN(2)]
			b := newBoard(w.trip, want, ids[:1], ids[1:])
			draining := map[raft.ServerID]bool{}
			b.Draining = func(id raft.ServerID) bool { return draining[id] }
			b.every = 20 * time.Second
			exchange := b.Exchange
			var moved time.Time
			b.Exchange = func(from, to raft.ServerID) {
				if time.Now().Equal(moved) {
					t.Fatalf("two exchanges in a round")
				}
				moved = time.Now()
				// For distance nothing may be ill; for one that drains, no voter.
				ill := slices.ContainsFunc(ids, func(id raft.ServerID) bool { return b.ill[id] && (!draining[from] || b.votes[id] && id != from) })
				if from == b.leader || !b.votes[from] || b.votes[to] || ill || b.ill[to] || draining[to] {
					t.Fatalf("%s to %s, led by %s, votes %v, ill %v, draining %v", from, to, b.leader, b.votes, b.ill, draining)
				}
				exchange(from, to)
			}
			check := func(before int) {
				v := b.voting()
				if !b.votes[b.leader] {
					t.Fatalf("the leader %s lost its vote: %v", b.leader, v)
				}
				if len(v) < before-1 || len(v) > max(before, 3, want) {
					t.Fatalf("%d voters, then %d", before, len(v))
				}
				if len(v)%2 == 0 && before%2 == 0 && before > len(v) {
					t.Fatalf("from %d voters to %d", before, len(v))
				}
			}
			<-time.After(2 * time.Minute)
			for range 40 {
				switch id := ids[r.IntN(n)]; r.IntN(6) {
				case 0:
					w[id] = [2]float64{r.Float64() * 400, r.Float64() * 400}
				case 1:
					if id != b.leader && !slices.ContainsFunc(ids, func(id raft.ServerID) bool { return b.ill[id] }) {
						b.ill[id] = true
					}
				case 2:
					clear(b.ill)
				case 3:
					draining[id] = id != b.leader && !draining[id]
				}
				for range 1 + r.IntN(100) {
					<-time.After(b.every)
					before := len(b.voting())
					b.round()
					check(before)
				}
			}
			clear(b.ill)
			clear(draining)
			b.pass(6 * time.Hour)
			if got := b.pass(6 * time.Hour); got != "" {
				t.Fatalf("in rest it moves on: %s", got)
			}
			if have := len(b.voting()); have != b.target(3) {
				t.Fatalf("%d voters of %d sites in rest, want %d", have, n, b.target(3))
			}
			best, _, _ := Choose(nil, ids, b.target(3), w.trip)
			have, _ := CostOf(b.voting(), w.trip)
			least, _ := CostOf(best, w.trip)
			if gain := have.Worst - least.Worst; gain >= gainLeast && float64(gain) >= gainPart*float64(have.Worst) {
				t.Fatalf("in rest the voters %v cost %+v, and %v would %+v", b.voting(), have, best, least)
			}
		})
	}
}

var _ autopilot.Promoter = (*Promoter)(nil)
