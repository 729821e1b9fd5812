package catalog

import (
	"errors"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// A site that was away for longer than tombstones stay learns of deletes by the
// full list, and keeps what it took meanwhile.
func TestPurge_AwayForLong(t *testing.T) {
	ctx, clock, pid := t.Context(), newClock(), identity.NewProjectID()
	fra, sgp := openMemory(t, Options{Now: clock.now}), openMemory(t, Options{Now: clock.now})
	mustPut(t, fra, put(pid, "app", "old", "latest", "1.0"))
	mustPull(t, sgp, fra, pid)
	if err := fra.DeleteTag(ctx, pid, "app", "latest", "ann", 1); err != nil {
		t.Fatal(err)
	}
	mustPut(t, sgp, put(pid, "app", "meanwhile", "2.0"))

	clock.at = clock.at.Add(TombstonesKeptFor - time.Minute)
	if err := fra.purgeOld(ctx); err != nil {
		t.Fatal(err)
	}
	if v, err := fra.purgedVector(pid); err != nil || len(v) > 0 {
		t.Fatalf("purged before its time: %v, %v", v, err)
	}
	clock.at = clock.at.Add(2 * time.Minute)
	if err := fra.purgeOld(ctx); err != nil {
		t.Fatal(err)
	}
	purged, err := fra.purgedVector(pid)
	if err != nil || len(purged) != 1 {
		t.Fatalf("purged: %v, %v", purged, err)
	}

	since, err := sgp.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	end, err := fra.Delta(ctx, pid, since, 1<<20, func(Page) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := sgp.Adopt(ctx, pid, since, end); !errors.Is(err, ErrListNeeded) {
		t.Errorf("the vector without the list: %v, want ErrListNeeded", err)
	}
	mustPull(t, sgp, fra, pid)
	mustPull(t, fra, sgp, pid)
	for name, c := range map[string]*Catalog{"fra": fra, "sgp": sgp} {
		if _, err := c.Tag(pid, "app", "latest"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: the deleted tag: %v, want ErrNotFound", name, err)
		}
		for _, tag := range []string{"1.0", "2.0"} {
			if _, err := c.Tag(pid, "app", tag); err != nil {
				t.Errorf("%s: tag %s: %v", name, tag, err)
			}
		}
		if err := auditDerived(c, pid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, _ := fra.Check(pid)
	b, _ := sgp.Check(pid)
	if a != b {
		t.Errorf("checks of what lives: %v and %v", a, b)
	}
}

// Losers of a conflict are roots for as long as they are kept: so is what keeps them.
func TestPurge_KeepsLosers(t *testing.T) {
	ctx, clock, pid := t.Context(), newClock(), identity.NewProjectID()
	fra, sgp := openMemory(t, Options{Now: clock.now}), openMemory(t, Options{Now: clock.now})
	mustPut(t, fra, put(pid, "app", "a", "latest"))
	mustPut(t, sgp, put(pid, "app", "b", "latest"))
	mustPull(t, fra, sgp, pid)
	if err := fra.DeleteTag(ctx, pid, "app", "latest", "ann", 1); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		after time.Duration
		want  int
	}{{LoserKeptFor - time.Hour, 0}, {2 * time.Hour, 1}, {0, 0}} {
		clock.at = clock.at.Add(tc.after)
		if n, err := fra.Purge(ctx, pid, clock.at); err != nil || n != tc.want {
			t.Errorf("purged %d after %s (%v), want %d", n, tc.after, err, tc.want)
		}
	}
}

// A store with a hole sends no list, and one that lost rows forgets what it purged.
func TestPurge_ThenRowsLost(t *testing.T) {
	ctx, clock, pid := t.Context(), newClock(), identity.NewProjectID()
	fra := openMemory(t, Options{Now: clock.now})
	mustPut(t, fra, put(pid, "app", "a", "latest", "1.0"))
	if err := fra.DeleteTag(ctx, pid, "app", "latest", "ann", 1); err != nil {
		t.Fatal(err)
	}
	if n, err := fra.Purge(ctx, pid, clock.at.Add(time.Hour)); err != nil || n != 1 {
		t.Fatalf("purged %d: %v", n, err)
	}
	err := fra.submit(ctx, func(b *batch) error { b.del(keyEntry(pid, entryKey{kindTag, "app", "1.0"})); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fra.Delta(ctx, pid, nil, 1<<20, func(Page) error { return nil }); !errors.Is(err, ErrRowsLost) {
		t.Errorf("a list with a hole: %v, want ErrRowsLost", err)
	}
	if err := fra.DropVector(ctx, pid); err != nil {
		t.Fatal(err)
	}
	if v, err := fra.purgedVector(pid); err != nil || len(v) > 0 {
		t.Errorf("purged after the loss: %v, %v", v, err)
	}
}
