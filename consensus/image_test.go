package consensus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOldImage: a voter's directory is copied, the mesh goes on, the copy is put
// back: the voter is recognised, begins anew as a learner, and votes again.
func TestOldImage_IsRecognised(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	s, other := others[0], others[1]
	leader.mustCreateProject("in-image")
	await(t, "the edit is there", func() bool { return s.has("in-image") })
	image := takeImage(t, s)
	for _, name := range []string{"a", "b", "c"} {
		leader.insist(name)
	}
	await(t, "the edits are there", func() bool { return s.has("c") })
	putBack(t, s, image)
	s.beginAnew()
	awaitVoters(t, all, 3)
	await(t, "what it had acknowledged is there", func() bool { return s.has("c") })
	s.mustCreateProject("after")
	if st := other.node.Status(); len(st.Voters) != 3 {
		t.Fatalf("%+v", st)
	}
}

// TestOldImage_OfALearner: the image is of before the node voted. By its own log
// it has promised nothing; the others know better.
func TestOldImage_OfALearner_IsRecognised(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
	all[0].bootstrap()
	all[1].join(all[0])
	image := takeImage(t, all[1])
	all[2].join(all[0])
	awaitVoters(t, all, 3)
	all[0].insist("later")
	s := all[1]
	await(t, "the edit is there", func() bool { return s.has("later") })
	putBack(t, s, image)
	s.beginAnew()
	awaitVoters(t, all, 3)
	await(t, "what it had acknowledged is there", func() bool { return s.has("later") })
}

// TestOldImage_LeaderDown: the vote of an old image must not make a majority
// with a node that was far behind. It knows from its leader what the image had.
func TestOldImage_LeaderDown_NoMajority(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	s, other := others[0], others[1]
	leader.mustCreateProject("in-image")
	await(t, "the edit is there", func() bool { return s.has("in-image") && other.has("in-image") })
	image := takeImage(t, s)
	leader.insist("maybe-lost")
	await(t, "the edit is there", func() bool { return s.has("maybe-lost") })
	want := leader.node.memory.of(s.id.ID)
	await(t, "the other voter knows what was acknowledged", func() bool { return !want.after(other.node.memory.of(s.id.ID)) })
	leader.stop()
	putBack(t, s, image)
	await(t, "the image is recognised", func() bool { return s.node.isOutdated() != nil })
	if _, err := s.createProject("x"); err == nil || !strings.Contains(err.Error(), reasonOutdated) {
		t.Fatalf("said %v", err)
	}
	// Also over a restart: what it found is kept.
	s.stop()
	s.start(nil)
	if s.node.isOutdated() == nil || !s.has("in-image") {
		t.Fatal("a restart made it forget")
	}
	leader.start(nil)
	s.beginAnew()
	awaitVoters(t, all, 3)
	await(t, "nothing is lost", func() bool { return s.has("maybe-lost") && other.has("maybe-lost") })
}

// TestOldImage_OnlyVoter: nobody else votes, but the learner knows.
func TestOldImage_OnlyVoter_StopsEdits(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	mesh := a.node.State().View().Mesh().ID
	a.mustCreateProject("in-image")
	image := takeImage(t, a)
	a.insist("later")
	await(t, "the edit is at the learner", func() bool { return b.has("later") })
	putBack(t, a, image)
	await(t, "the image is recognised", func() bool { return a.node.isOutdated() != nil })
	if _, err := a.createProject("x"); err == nil || !strings.Contains(err.Error(), reasonOutdated) {
		t.Fatalf("said %v", err)
	}
	a.stop()
	b.stop()
	// Whoever would rather give the newer edits up can recover the voter.
	c := a.recoverConfig(mesh, "fra")
	c.Dir = filepath.Join(t.TempDir(), "raft")
	if err := copyTree(a.dir, c.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	// The learner has more: it is recovered, and the voter follows it.
	b.recover(mesh, "ams")
	b.start(nil)
	b.insist("recovered")
	if !b.has("later") {
		t.Fatal("an edit is lost")
	}
	if err := Follow(a.dir, a.id.ID, "fra"); err != nil {
		t.Fatal(err)
	}
	a.start(nil)
	a.beginAnew()
	await(t, "the first voter learns", func() bool { return a.node.isReady() && a.has("recovered") })
}

// TestRestart_IsNoImage: restarts and kills of all kinds are not taken for it.
func TestRestart_IsNoImage(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	for round := range 3 {
		leader, others := leaderOf(t, all)
		for _, s := range []*site{others[round%2], leader} {
			others[0].insist("p" + string(rune('a'+round)) + s.name)
			s.kill()
			s.start(nil)
			leaderOf(t, all)
		}
	}
	for _, s := range all {
		if o := s.node.isOutdated(); o != nil {
			t.Errorf("%s: %s", s.name, o.GetReason())
		}
	}
	awaitVoters(t, all, 3)
}

// takeImage copies a node's raft directory while it stands still.
func takeImage(t *testing.T, s *site) string {
	t.Helper()
	s.stop()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(image, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.start(nil)
	return image
}

func putBack(t *testing.T, s *site, image string) {
	t.Helper()
	s.stop()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(image)); err != nil {
		t.Fatal(err)
	}
	s.start(nil)
}
