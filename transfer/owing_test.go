package transfer

import (
	"context"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/rules"
	"github.com/portolan/portolan/transfer/swarm"
)

// lagging is a Fetcher of which the test says how far it is.
type lagging map[digest.Digest]int64

func (s lagging) Done(d digest.Digest) int64                         { return s[d] }
func (s lagging) CameIn(d digest.Digest, _ identity.ProjectID) int64 { return s[d] }
func (s lagging) Fetch(context.Context, swarm.Want) error            { panic("nothing is fetched") }

// owed is a reconciler with nothing but a queue, and its clock.
func owed() (r *Reconciler, now *time.Time, comes lagging) {
	at := time.Unix(1_700_000_000, 0)
	now, comes = &at, lagging{}
	clock := func() time.Time { return *now }
	return &Reconciler{cfg: Config{Now: clock, Swarm: comes, State: state.New(), Site: "fra"}, queue: newQueue(clock)}, now, comes
}

func (r *Reconciler) wantsFrom(home, name string) key {
	k := key{artifact, identity.ProjectID{1}, name, digest.FromString(name)}
	r.want(k, r.cfg.Now().Add(-time.Minute), home, rules.Demand{})
	return k
}

// takes begins an attempt, which finds blobs missing.
func (r *Reconciler) takes(t *testing.T, k key, blobs ...content) *task {
	t.Helper()
	for range len(r.queue.tasks) {
		x, _ := r.queue.take(laneArtifacts)
		if x == nil {
			break
		}
		if x.key == k {
			r.queue.lacks(x, blobs)
			return x
		}
		r.queue.finish(x, "not this one", r.cfg.Now().Add(time.Hour))
	}
	t.Fatalf("%s can't be taken", k.repo)
	return nil
}

const mib = 1 << 20

func blob(name string, size int64) content {
	return content{digest: digest.FromString(name), size: size}
}

// What a site owes: in bytes, in total, and for how long, by what came of it.
func TestBehind_ProgressAndETAOfASite(t *testing.T) {
	r, now, comes := owed()
	is := func(what string, want ...Behind) {
		t.Helper()
		got := r.Behind()
		if len(got) != len(want) {
			t.Fatalf("%s: %+v, want %+v", what, got, want)
		}
		for i := range got {
			if want[i].Oldest.IsZero() {
				want[i].Oldest = got[i].Oldest
			}
			if got[i] != want[i] {
				t.Errorf("%s: %+v, want %+v", what, got[i], want[i])
			}
		}
	}
	is("nothing is awaited")
	a, b := r.wantsFrom("nyc", "a"), r.wantsFrom("nyc", "b")
	pushed := now.Add(-time.Minute)
	is("before anything was looked at", Behind{Site: "nyc", Artifacts: 2, Unmeasured: 2, Oldest: pushed})
	big, next := blob("big", 100*mib), blob("next", 60*mib)
	ta := r.takes(t, a, big, next)
	tb := r.takes(t, b, blob("third", 40*mib))
	is("nothing came", Behind{Site: "nyc", Artifacts: 2, Bytes: 200 * mib, Total: 200 * mib, Oldest: pushed})

	*now = now.Add(10 * time.Second)
	ended := r.queue.comes(ta, big)
	comes[big.digest] = 20 * mib
	is("a part of a blob", Behind{Site: "nyc", Artifacts: 2, Bytes: 180 * mib, Total: 200 * mib, ETA: 90 * time.Second, Oldest: pushed})
	*now = now.Add(10 * time.Second)
	r.queue.came(ta, big.size)
	ended()
	delete(comes, big.digest)
	is("a blob", Behind{Site: "nyc", Artifacts: 2, Bytes: 100 * mib, Total: 200 * mib, ETA: 20 * time.Second, Oldest: pushed})
	r.queue.came(ta, next.size)
	r.queue.finish(ta, "", time.Time{})
	is("an artifact", Behind{Site: "nyc", Artifacts: 1, Bytes: 40 * mib, Total: 200 * mib, ETA: 5 * time.Second, Oldest: pushed})

	// It stalls: the mean over minutes falls, and what came long ago is forgotten.
	*now = now.Add(20 * time.Second)
	is("a stall", Behind{Site: "nyc", Artifacts: 1, Bytes: 40 * mib, Total: 200 * mib, ETA: 10 * time.Second, Oldest: pushed})
	for range 2 {
		*now = now.Add(rateOver)
		r.queue.came(tb, mib)
	}
	if got := r.Behind()[0]; got.ETA != 38*rateOver {
		t.Errorf("after two long stalls with a MiB each %s are left, want %s", got.ETA, 38*rateOver)
	}
	r.queue.finish(tb, "", time.Time{})
	is("all is here")
	if len(r.queue.owing.of) != 0 {
		t.Errorf("it is remembered: %+v", r.queue.owing.of)
	}
	c := r.wantsFrom("nyc", "c")
	r.takes(t, c, blob("fourth", 8*mib))
	is("what comes next begins anew", Behind{Site: "nyc", Artifacts: 1, Bytes: 8 * mib, Total: 8 * mib})
}

// A blob on its way is the site's that the artifact was from when it began to come, and
// no other one's.
func TestBehind_FromAnotherSiteMeanwhile(t *testing.T) {
	r, _, comes := owed()
	a, b := r.wantsFrom("nyc", "a"), r.wantsFrom("sgp", "b")
	big := blob("big", 100*mib)
	ta := r.takes(t, a, big)
	tb := r.takes(t, b, big)
	endedA, endedB := r.queue.comes(ta, big), r.queue.comes(tb, big)
	comes[big.digest] = 30 * mib
	r.queue.from(a, "sgp")
	endedA()
	if got := r.Behind(); len(got) != 1 || got[0].Site != "sgp" || got[0].Bytes != 170*mib {
		t.Errorf("one of two that wait for it gave up: %+v", got)
	}
	endedB()
	if d := r.queue.owing.of["sgp"]; len(d.flying) != 0 {
		t.Errorf("on their way: %v", d.flying)
	}
}

// What finds no place in the queue is not forgotten without a word.
func TestBehind_AFullQueue(t *testing.T) {
	r, now, _ := owed()
	r.queue.lanes[laneArtifacts].most = 2
	first, second := r.wantsFrom("nyc", "a"), r.wantsFrom("nyc", "b")
	r.wantsFrom("nyc", "c")
	r.wantsFrom("sgp", "d")
	pushed := now.Add(-time.Minute)
	got := r.Behind()
	if len(got) != 2 || got[0] != (Behind{Site: "nyc", Artifacts: 2, Unmeasured: 2, Partial: true, Oldest: pushed}) || got[1] != (Behind{Site: "sgp", Partial: true, Oldest: pushed}) {
		t.Fatalf("%+v", got)
	}
	for _, k := range []key{first, second} {
		r.queue.finish(r.takes(t, k), "", time.Time{})
	}
	if !r.queue.refill() {
		t.Fatal("no scan looks for what was refused")
	}
	if got := r.Behind(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// An artifact's own progress.
func TestPending_MissingTotalAndETA(t *testing.T) {
	r, now, _ := owed()
	a := r.wantsFrom("nyc", "a")
	one := func() Pending {
		t.Helper()
		list, _, _, _ := r.Pending(10)
		if len(list) != 1 {
			t.Fatalf("%+v", list)
		}
		return list[0]
	}
	if p := one(); p.State != "ready" || p.Total != 0 || p.Missing != 0 || p.ETA != 0 || p.Home != "nyc" {
		t.Errorf("before it is looked at: %+v", p)
	}
	x := r.takes(t, a, blob("big", 30*mib), blob("small", 10*mib))
	if p := one(); p.State != "running" || p.Total != 40*mib || p.Missing != 40*mib || p.ETA != 0 {
		t.Errorf("at the beginning: %+v", p)
	}
	*now = now.Add(5 * time.Second)
	r.queue.came(x, 10*mib)
	if p := one(); p.Total != 40*mib || p.Missing != 30*mib || p.ETA != 15*time.Second {
		t.Errorf("a quarter of it after 5 s: %+v", p)
	}
	r.queue.finish(x, "the link broke", time.Time{})
	if p := one(); p.State != "failed" || p.Missing != 30*mib || p.ETA != 0 || p.Reason != "the link broke" {
		t.Errorf("after a failure: %+v", p)
	}
	*now = now.Add(time.Hour)
	x = r.takes(t, a, blob("big", 30*mib))
	*now = now.Add(time.Second)
	r.queue.came(x, 15*mib)
	if p := one(); p.Total != 40*mib || p.Missing != 15*mib || p.ETA != time.Second {
		t.Errorf("the next attempt has a rate of its own: %+v", p)
	}
}
