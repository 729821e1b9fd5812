package swarm

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestOrphans_AreBoundedForEachSubjectAndInAll(t *testing.T) {
	o := orphans{of: map[string]int{}}
	for i := range orphansEach {
		if !o.add("greedy") {
			t.Fatalf("no room for the %d. of one subject", i+1)
		}
	}
	if o.add("greedy") {
		t.Error("one subject has more than its bound")
	}
	for i := orphansEach; i < maxOrphans; i++ {
		if !o.add("subject " + itoa(i)) {
			t.Fatalf("no room for the %d. in all", i+1)
		}
	}
	if o.add("one more") {
		t.Error("there are more than the bound in all")
	}
	o.drop("greedy")
	if o.add("one more"); o.all != maxOrphans || o.of["one more"] != 1 || o.of["greedy"] != orphansEach-1 {
		t.Errorf("%+v", o)
	}
	for s, n := range o.of {
		for range n {
			o.drop(s)
		}
	}
	if o.all != 0 || len(o.of) != 0 {
		t.Errorf("something is left: %+v", o)
	}
}

// TestOpenBlob_OneSubjectLeavesMany: as many as one subject may leave go on, and what
// came of the others is kept: the next flight brings the rest alone.
func TestOpenBlob_OneSubjectLeavesMany(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	g := newGate(3 * mib)
	a.bend(&faulty{read: g.read})
	var left []Want
	var readers []Blob
	each := 0
	for i := range orphansEach + 2 {
		w := a.put(content(odd + i))
		if w.Subject = "user:greedy"; i == orphansEach+1 {
			w.Subject = "user:other"
		}
		each = layoutOf(w.Size).units()
		r, err := b.swarm.OpenBlob(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		left, readers = append(left, w), append(readers, r)
	}
	eventually(t, "a third of each is here", func() bool { return b.got() == 3*len(left) })
	for _, r := range readers {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	dropped := left[orphansEach]
	eventually(t, "one flight ends", func() bool { return b.swarm.flight(dropped) == nil })
	var on []digest.Digest
	for _, p := range b.swarm.Progress() {
		on = append(on, p.Digest)
	}
	if len(on) != orphansEach+1 || !b.store.FetchBegan(dropped.Digest) {
		t.Fatalf("%d go on, and what came of the other one is kept: %v", len(on), b.store.FetchBegan(dropped.Digest))
	}
	g.open(1 << 40)
	eventually(t, "those go to their end", func() bool { return len(b.swarm.Progress()) == 0 })
	for i, w := range left {
		if _, err := b.store.Stat(t.Context(), w.Digest); (err == nil) != (w != dropped) {
			t.Errorf("blob %d is stored: %v", i, err)
		}
	}
	if n := b.swarm.orphans.all; n != 0 {
		t.Errorf("%d orphans are still counted", n)
	}
	if err := b.swarm.Fetch(within(t), dropped); err != nil {
		t.Fatal(err)
	}
	if n := b.got(); n != each*len(left) {
		t.Errorf("%d units came for %d blobs of %d: some came twice", n, len(left), each)
	}
}
