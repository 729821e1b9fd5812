package transfer

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/rules"
)

// What an artifact waits for goes with it: for each way in which it leaves the queue.
func TestWaiting_EndsWithTheArtifact(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q, w := newQueue(func() time.Time { return now }), newWaiting()
	q.gone = w.drop
	q.lanes[laneArtifacts].most = 2
	absent := []digest.Digest{digest.FromString("child"), digest.FromString("other")}
	begin := func(name string) *task {
		t.Helper()
		q.add(named(name), 0, now, rules.Terms{})
		x, _ := q.take(laneArtifacts)
		if x == nil || !w.note(x.key, absent) {
			t.Fatalf("%s: %v", name, x)
		}
		return x
	}
	manifest := key{artifact, identity.ProjectID{}, "done", absent[0]}
	done := begin("done")
	if !w.isFor(manifest) || len(w.roots(manifest)) != 1 || w.n != 2 {
		t.Fatalf("nothing waits: %d pairs", w.n)
	}
	// It is looked at again, and one of the two has come.
	if !w.note(done.key, absent[:1]) || w.n != 1 {
		t.Errorf("%d pairs", w.n)
	}
	q.finish(done, "1 manifest is not known", time.Time{})
	if !w.isFor(manifest) {
		t.Error("a failed attempt waits no more")
	}
	now = now.Add(time.Hour)
	done, _ = q.take(laneArtifacts)
	q.finish(done, "", time.Time{}) // as for one that was deleted, or whose project left
	// One that people hold back makes room for another.
	held := begin("held")
	q.hold(held, "people")
	begin("another")
	q.add(named("more"), 0, now, rules.Terms{})
	if w.n != len(absent) || len(w.by) != 1 || len(w.of) != len(absent) {
		t.Errorf("%d pairs of %d artifacts for %d manifests; one artifact waits for %d", w.n, len(w.by), len(w.of), len(absent))
	}
}

func TestWaiting_IsBounded(t *testing.T) {
	w := newWaiting()
	absent := make([]digest.Digest, 1000)
	for i := range absent {
		absent[i] = digest.FromBytes([]byte{byte(i), byte(i >> 8)})
	}
	full := false
	for i := 0; !full && i <= maxWaits/len(absent); i++ {
		full = !w.note(key{kind: artifact, repo: string(rune(i + 1))}, absent)
	}
	if !full || w.n != maxWaits {
		t.Errorf("%d pairs, full: %v", w.n, full)
	}
}
