package consensus

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/durable"
)

// recoveredTwice gives a mesh of which ams is away with what it had at first,
// sgp was recovered, fra followed, sgp was lost, and fra was recovered in its
// turn. First is what ams would have heard of: the generation of sgp's recovery.
func recoveredTwice(t *testing.T) (ams, fra *site, first, second [16]byte) {
	t.Helper()
	_, all := three(t)
	mesh := all[0].node.State().View().Mesh().ID
	ams, fra, sgp := all[0], all[1], all[2]
	sgp.mustCreateProject("zero")
	for _, s := range all {
		await(t, "the edit is at "+s.name, func() bool { return s.has("zero") })
	}
	for _, s := range all {
		s.stop()
	}
	r := sgp.recover(mesh, "ams", "fra")
	sgp.start(nil)
	sgp.insist("one")
	fra.start(nil)
	fra.beginAnew()
	await(t, "fra has come back to sgp", func() bool { return fra.has("one") && fra.node.guard.is() == takesPart })
	fra.stop()
	sgp.stop()
	again := fra.recover(mesh, "ams", "sgp")
	if r.Generation == again.Generation {
		t.Fatal("two recoveries are of one generation")
	}
	fra.start(nil)
	fra.insist("two")
	return ams, fra, r.Generation, again.Generation
}

// outdate leaves the file of a node that has heard of a recovery, and of nothing
// later.
func outdate(t *testing.T, s *site, generation [16]byte, voters ...*site) {
	t.Helper()
	o := &Outdated{Reason: "the mesh was recovered at site sgp while this node was away", Generation: generation[:]}
	for _, v := range voters {
		o.Voters = append(o.Voters, v.id.ID[:])
	}
	b, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(s.dir, outdatedFile), b); err != nil {
		t.Fatal(err)
	}
}

func isBack(t *testing.T, s *site, generation [16]byte) {
	t.Helper()
	await(t, s.name+" is back", func() bool { return s.node.guard.is() == takesPart && s.has("two") })
	if got := s.node.State().View().Mesh().Generation; got != generation {
		t.Errorf("it is of generation %x, want %x", got, generation)
	}
}

// TestRecover_OnceMore_WhileANodeWaits: the node waits for a leader of the first
// recovery, which there is never again. A voter says that a later one ended it.
func TestRecover_OnceMore_WhileANodeWaits(t *testing.T) {
	t.Parallel()
	ams, fra, first, second := recoveredTwice(t)
	outdate(t, ams, first, fra)
	ams.start(nil)
	ams.beginAnew()
	if got := ams.node.generation(); !bytes.Equal(got, second[:]) {
		t.Errorf("it comes back to generation %x, want %x", got, second)
	}
	isBack(t, ams, second)
}

// TestRecover_OnceMore_WhileANodeComesBack: the same, after it has set its
// directory aside. It has no log any more that would say who voted.
func TestRecover_OnceMore_WhileANodeComesBack(t *testing.T) {
	t.Parallel()
	ams, fra, first, second := recoveredTwice(t)
	outdate(t, ams, first, fra)
	if _, err := SetAside(ams.dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	ams.start(nil)
	isBack(t, ams, second)
}

// TestRecover_OnceMore_AtALearner: whoever did not vote, as far as the node knew,
// is not believed; the log says what people can do, and that works.
func TestRecover_OnceMore_AtALearner(t *testing.T) {
	t.Parallel()
	for name, aside := range map[string]bool{"while it waits": false, "while it comes back": true} {
		t.Run(name, func(t *testing.T) {
			ams, _, first, second := recoveredTwice(t)
			outdate(t, ams, first)
			if aside {
				if _, err := SetAside(ams.dir, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			ams.start(nil)
			said := ""
			await(t, "it says what to do", func() bool {
				said += ams.lines.take()
				return strings.Contains(said, "portolan recover --follow fra")
			})
			if g := ams.node.guard.is(); g == takesPart {
				t.Fatal("it takes part all the same")
			}
			ams.stop()
			if err := Follow(ams.dir, ams.id.ID, "xyz"); err == nil || !strings.Contains(err.Error(), `no other site "xyz"`) {
				t.Errorf("a site that is not there: %v", err)
			}
			if err := Follow(ams.dir, ams.id.ID, "fra"); err != nil {
				t.Fatal(err)
			}
			ams.start(nil)
			if !aside {
				ams.beginAnew()
			}
			isBack(t, ams, second)
		})
	}
}

// TestIsAwaited: which answers a node that waits goes on from.
func TestIsAwaited(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	voter, learner := newIdentity(t).ID, newIdentity(t).ID
	gen := func(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }
	for name, c := range map[string]struct {
		waits      []byte
		rep        *PingReply
		by         [32]byte
		want       bool
		generation []byte // that it waits for afterwards
	}{
		"of the one":                       {gen(1), &PingReply{Generation: gen(1)}, learner, true, gen(1)},
		"any will do":                      {nil, &PingReply{Generation: gen(7)}, learner, true, nil},
		"an old one":                       {gen(2), &PingReply{Generation: gen(1)}, voter, false, gen(2)},
		"recovered apart":                  {gen(2), &PingReply{Generation: gen(3), Ended: [][]byte{gen(1)}}, voter, false, gen(2)},
		"a later one, by a voter":          {gen(2), &PingReply{Generation: gen(4), Ended: [][]byte{gen(1), gen(2), gen(3)}}, voter, true, gen(4)},
		"a later one, by one that did not": {gen(2), &PingReply{Generation: gen(4), Ended: [][]byte{gen(1), gen(2), gen(3)}}, learner, false, gen(2)},
		"nothing is said":                  {gen(2), &PingReply{}, voter, false, gen(2)},
	} {
		var moved []byte
		w := &awaited{generation: c.waits, voters: [][]byte{voter[:]}, moved: func(g []byte) { moved = g }}
		if got := a.node.isAwaited(w, c.by, c.rep); got != c.want || !bytes.Equal(w.generation, c.generation) {
			t.Errorf("%s: %v, and it waits for %x", name, got, w.generation)
		}
		if changed := !bytes.Equal(c.waits, c.generation); changed != (moved != nil) || (changed && !bytes.Equal(moved, c.generation)) {
			t.Errorf("%s: moved to %x", name, moved)
		}
	}
}

// TestOpen_TakesUnfinishedWritesAway: what a kill left of a write goes when the
// node is opened; the rest stays.
func TestOpen_TakesUnfinishedWritesAway(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	a.mustCreateProject("kept")
	a.stop()
	left := filepath.Join(a.dir, memoryFile+".tmp-77")
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(nil)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if !a.has("kept") {
		t.Error("an edit is gone")
	}
}
