package catalog

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// A list that leaves out more than one exchange may drop is taken over by several:
// each leaves less to the next.
func TestPurge_MoreThanOneListMayDrop(t *testing.T) {
	ctx, clock, pid := t.Context(), newClock(), identity.NewProjectID()
	fra, sgp := openMemory(t, Options{Now: clock.now}), openMemory(t, Options{Now: clock.now})
	const tags, most = 25, 10
	sgp.maxDrops = most
	for i := range tags {
		mustPut(t, fra, put(pid, "app", "image", fmt.Sprint("v", i)))
	}
	mustPut(t, fra, put(pid, "app", "image", "stays"))
	mustPull(t, sgp, fra, pid)
	for i := range tags {
		if err := fra.DeleteTag(ctx, pid, "app", fmt.Sprint("v", i), "ann", 1); err != nil {
			t.Fatal(err)
		}
	}
	clock.at = clock.at.Add(2 * TombstonesKeptFor)
	if err := fra.purgeOld(ctx); err != nil {
		t.Fatal(err)
	}
	rounds := 1
	for ; ; rounds++ {
		_, err := pull(ctx, sgp, fra, pid)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrAgain) || rounds > tags {
			t.Fatalf("round %d: %v", rounds, err)
		}
	}
	if rounds != (tags+most-1)/most {
		t.Errorf("%d tags went in %d rounds", tags, rounds)
	}
	for i := range tags {
		if _, err := sgp.Tag(pid, "app", fmt.Sprint("v", i)); !errors.Is(err, ErrNotFound) {
			t.Errorf("tag %d, which was deleted: %v", i, err)
		}
	}
	if _, err := sgp.Tag(pid, "app", "stays"); err != nil {
		t.Error(err)
	}
	a, _ := fra.Check(pid)
	b, _ := sgp.Check(pid)
	if a != b {
		t.Errorf("checks of what lives: %v and %v", a, b)
	}
	x, _ := fra.Vector(pid)
	y, _ := sgp.Vector(pid)
	if !y.Dominates(x) {
		t.Errorf("the vector was not taken over: %v, want %v", y, x)
	}
	if err := auditDerived(sgp, pid); err != nil {
		t.Error(err)
	}
}

// TestStrong_DropBetweenReadAndWrite: a store that lost rows never says that it has
// what was not written again.
func TestStrong_DropBetweenReadAndWrite(t *testing.T) {
	ctx, pid := t.Context(), identity.NewProjectID()
	c := openMemory(t, Options{})
	tag := StrongTag{Repo: "app", Name: "v1", Digest: digest.FromString("one"), Seq: 5, Stamp: 1}
	if _, err := c.PutStrong(ctx, pid, []StrongTag{tag}, Ordered{}, 0, 5); err != nil {
		t.Fatal(err)
	}
	from, err := c.StrongSeen(pid)
	if err != nil || from != 5 {
		t.Fatal(from, err)
	}
	if err := c.DropVector(ctx, pid); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutStrong(ctx, pid, nil, Ordered{}, from, 9); !errors.Is(err, ErrVectorDropped) {
		t.Errorf("rows up to 9 over a vector that was dropped: %v", err)
	}
	if seen, err := c.StrongSeen(pid); err != nil || seen != 0 {
		t.Errorf("it says that it has all up to %d, %v", seen, err)
	}
}
