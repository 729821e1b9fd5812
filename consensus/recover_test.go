package consensus

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// beginAnew does what node.Run does with an OutdatedError.
func (s *site) beginAnew() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s does not end: outdated %v", s.name, s.node.isOutdated())
	}
	var old *OutdatedError
	if err := s.shutdownErr(); !errors.As(err, &old) {
		s.t.Fatalf("%s ended with %v", s.name, err)
	}
	s.t.Logf("%s: %s", s.name, old.Reason)
	kept, err := SetAside(s.dir, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	if d, err := readDirectory(kept, true); err != nil || d.state.View().Index() == 0 {
		s.t.Fatalf("what was set aside cannot be read: %v", err)
	}
	s.start(nil)
}

func (s *site) stop() {
	s.t.Helper()
	if err := s.shutdown(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) recoverConfig(mesh identity.MeshID, lost ...string) RecoverConfig {
	return RecoverConfig{Dir: s.dir, Identity: s.id, Mesh: mesh, Lost: lost, Stopped: true, Dial: s.dial}
}

func (s *site) recover(mesh identity.MeshID, lost ...string) *Recovered {
	s.t.Helper()
	r, err := Recover(s.t.Context(), s.recoverConfig(mesh, lost...))
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func awaitVoters(t *testing.T, all []*site, count int) {
	t.Helper()
	await(t, "voters everywhere", func() bool {
		for _, s := range all {
			if st := s.node.Status(); len(st.Voters) != count || s.node.guard.is() != takesPart {
				return false
			}
		}
		return true
	})
}

// TestRecover: two of three are lost for ever, the third goes on alone; one that
// comes back after all, and then the other, begin anew.
func TestRecover_MajorityLost_LostOnesComeBack(t *testing.T) {
	_, all := three(t)
	mesh := all[0].node.State().View().Mesh().ID
	last, gone := all[2], all[:2]
	last.mustCreateProject("one")
	for _, s := range all {
		await(t, "the edit is at "+s.name, func() bool { return s.has("one") })
	}
	last.stop()
	_, err := Recover(t.Context(), last.recoverConfig(mesh, "ams", "fra"))
	if err == nil || !strings.Contains(err.Error(), "nothing is lost") {
		t.Fatalf("recovered beside a mesh that lives: %v", err)
	}
	// A member that was removed is no more than a stranger to those who live.
	removed := last.recoverConfig(mesh)
	removed.Identity = newIdentity(t)
	view := gone[0].node.State().View()
	row, _ := view.Node(gone[0].id.ID)
	if err := removed.askOne(t.Context(), view, row); err == nil || !strings.Contains(err.Error(), "no member") {
		t.Errorf("a removed node may recover: %v", err)
	}
	for _, s := range gone {
		s.stop()
	}
	r := last.recover(mesh, "ams", "fra")
	if again := last.recover(mesh, "ams", "fra"); *again != *r {
		t.Fatalf("the same recovery again made %+v after %+v", again, r)
	}
	if d, err := readDirectory(r.Kept, false); err != nil || d.last.index+1 != r.Index {
		t.Fatalf("what was replaced cannot be read: %v", err)
	}
	last.start(nil)
	await(t, "the recovered node leads", func() bool { return last.node.Status().IsLeader })
	if !last.has("one") {
		t.Fatal("an edit that the survivor had is lost")
	}
	last.mustCreateProject("two")
	for _, s := range gone {
		s.start(nil)
		if !s.has("one") {
			t.Fatalf("%s cannot be read while it waits", s.name)
		}
		s.beginAnew()
		await(t, s.name+" has what it missed", func() bool { return s.node.isReady() && s.has("two") })
	}
	awaitVoters(t, all, 3)
	for _, s := range all {
		if s.node.State().View().Mesh().Generation != r.Generation {
			t.Errorf("%s is of another generation", s.name)
		}
		s.mustCreateProject("at-" + s.name)
	}
}

// TestRecover_BothLostComeBackTogether: they were a majority, and must not be one
// again beside the recovered node.
func TestRecover_BothLostComeBackTogether(t *testing.T) {
	_, all := three(t)
	mesh := all[0].node.State().View().Mesh().ID
	for _, s := range all {
		s.stop()
	}
	last, gone := all[2], all[:2]
	last.recover(mesh, "ams", "fra")
	last.start(nil)
	last.insist("two")
	for _, s := range gone {
		s.start(nil)
	}
	for _, s := range gone {
		s.beginAnew()
	}
	awaitVoters(t, all, 3)
	for _, s := range all {
		await(t, "the edit is at "+s.name, func() bool { return s.has("two") })
	}
}

// TestRecover_CutShort: a kill between any two steps leaves the old directory or
// the new one, and the same command comes to the same end.
func TestRecover_CutShort(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	mesh := a.node.State().View().Mesh().ID
	b.mustCreateProject("one")
	await(t, "the edit is at ams", func() bool { return a.has("one") })
	b.stop()
	a.stop()
	// Killed while it writes the new directory.
	if err := os.MkdirAll(filepath.Join(b.dir+nextSuffix, walDirName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(b.dir, b.id.ID); err != nil {
		t.Fatalf("the old directory is not what it was: %v", err)
	}
	r := b.recover(mesh, "ams")
	// Killed between the two renames: the old one is kept, the new one is whole.
	if err := os.Rename(b.dir, b.dir+nextSuffix); err != nil {
		t.Fatal(err)
	}
	if again := b.recover(mesh, "ams"); *again != *r {
		t.Fatalf("%+v, then %+v", r, again)
	}
	// And started before it was recovered again.
	if err := os.Rename(b.dir, b.dir+nextSuffix); err != nil {
		t.Fatal(err)
	}
	b.start(nil)
	b.insist("two")
	if !b.has("one") {
		t.Fatal("an edit is lost")
	}
}

func TestRecover_Refuses(t *testing.T) {
	_, all := three(t)
	mesh := all[0].node.State().View().Mesh().ID
	leader, others := leaderOf(t, all)
	leader.mustCreateProject("one")
	s := others[0]
	await(t, "the edit is there", func() bool { return s.has("one") })
	for _, o := range all {
		o.stop()
	}
	names := func(of []*site) (out []string) {
		for _, o := range of {
			out = append(out, o.name)
		}
		return out
	}
	lost := slices.DeleteFunc(names(all), func(n string) bool { return n == s.name })
	copied := func(t *testing.T) RecoverConfig {
		t.Helper()
		c := s.recoverConfig(mesh, lost...)
		c.Dir = filepath.Join(t.TempDir(), "raft")
		if err := os.CopyFS(c.Dir, os.DirFS(s.dir)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, c *RecoverConfig)
		says   string
	}{
		"not said that all are stopped":  {func(_ *testing.T, c *RecoverConfig) { c.Stopped = false }, "--i-have-stopped-all-others"},
		"none is said to be lost":        {func(_ *testing.T, c *RecoverConfig) { c.Lost = nil }, "they are a majority"},
		"one of three is said to be":     {func(_ *testing.T, c *RecoverConfig) { c.Lost = lost[:1] }, "they are a majority"},
		"it is said to be lost itself":   {func(_ *testing.T, c *RecoverConfig) { c.Lost = []string{s.name} }, "this one"},
		"a site that is not there":       {func(_ *testing.T, c *RecoverConfig) { c.Lost = []string{"xyz"} }, `no other site "xyz"`},
		"of another mesh":                {func(_ *testing.T, c *RecoverConfig) { c.Mesh = identity.NewMeshID() }, "of mesh"},
		"another node's":                 {func(t *testing.T, c *RecoverConfig) { c.Identity = newIdentity(t) }, "no member"},
		"no raft directory":              {func(_ *testing.T, c *RecoverConfig) { c.Dir += "x" }, "no raft log"},
		"the end of the log is cut off":  {func(t *testing.T, c *RecoverConfig) { damage(t, c.Dir, cutShort) }, "its end is lost"},
		"bytes of the log are different": {func(t *testing.T, c *RecoverConfig) { damage(t, c.Dir, garble) }, ""},
		"a snapshot of a newer version":  {func(t *testing.T, c *RecoverConfig) { newerSnapshot(t, c.Dir) }, "start a newer version"},
	} {
		t.Run(name, func(t *testing.T) {
			c := copied(t)
			test.change(t, &c)
			before := listed(t, c.Dir)
			_, err := Recover(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v, want %q", err, test.says)
			}
			t.Log(err)
			if after := listed(t, c.Dir); !slices.Equal(before, after) {
				t.Errorf("a refused recovery changed %v to %v", before, after)
			}
		})
	}
	t.Run("another is left that had more", func(t *testing.T) {
		c := copied(t)
		m, err := openMemory(c.Dir, func() []byte { return generationIn(t, c) })
		if err != nil {
			t.Fatal(err)
		}
		ahead := all[slices.IndexFunc(all, func(o *site) bool { return o.name == lost[0] })]
		m.note(ahead.id.ID, position{99, 9999})
		if err := m.keep(); err != nil {
			t.Fatal(err)
		}
		// Three voters of five would be needed for one that is left to say no: with
		// three the majority is lost only if both others are, so it is asked directly.
		sv, err := Inspect(c.Dir, c.Identity.ID)
		if err != nil {
			t.Fatal(err)
		}
		for i := range sv.Members {
			sv.Members[i].Voter = sv.Members[i].Site != lost[0]
		}
		c.Lost = lost[1:]
		if err := sv.checkLost(c); err == nil || !strings.Contains(err.Error(), lost[0]+" had more") {
			t.Errorf("%v", err)
		}
	})
}

func generationIn(t *testing.T, c RecoverConfig) []byte {
	t.Helper()
	s, err := Inspect(c.Dir, c.Identity.ID)
	if err != nil {
		t.Fatal(err)
	}
	return s.Generation[:]
}

func newIdentity(t *testing.T) *identity.Identity {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// listed gives what is beside and in a raft directory.
func listed(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, glob := range []string{dir + "*", filepath.Join(dir, "snapshots", "*"), filepath.Join(dir, walDirName, "*")} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			b, _ := os.ReadFile(path) // nothing of a directory
			out = append(out, fmt.Sprintf("%s %x", path, sha256.Sum256(b)))
		}
	}
	return out
}

func cutShort(b []byte) []byte {
	clear(b[len(bytesUsed(b))*2/3:])
	return b
}

func garble(b []byte) []byte {
	used := bytesUsed(b)
	for i := len(used) / 3; i < len(used)*2/3; i++ {
		b[i] ^= 0x55
	}
	return b
}

// bytesUsed: segments are preallocated with zeros.
func bytesUsed(b []byte) []byte { return []byte(strings.TrimRight(string(b), "\x00")) }

func damage(t *testing.T, dir string, how func([]byte) []byte) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, walDirName, "*.wal"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no segment of the log: %v", err)
	}
	b, err := os.ReadFile(list[len(list)-1])
	if err == nil {
		err = os.WriteFile(list[len(list)-1], how(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newerSnapshot(t *testing.T, dir string) {
	t.Helper()
	snaps, err := openSnapshots(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := readDirectory(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("x")
	sink, err := snaps.Create(1, d.last.index, d.last.term, raft.Configuration{Servers: d.config}, d.last.index, trans)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := protodelim.MarshalTo(sink, &command.SnapshotHeader{Format: 99, Level: 1, Index: d.last.index}); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOldImage: a voter's directory is copied, the mesh goes on, the copy is put
// back: the voter is recognised, begins anew as a learner, and votes again.
func TestOldImage_IsRecognised(t *testing.T) {
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

// TestRaft212_RefusedSnapshot_IsReadToItsEnd: what follows it on the connection
// is not taken for a part of it.
func TestRaft212_RefusedSnapshot_IsReadToItsEnd(t *testing.T) {
	g := &guard{node: &Node{}}
	data := strings.NewReader("a snapshot")
	answered := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: &raft.InstallSnapshotRequest{Term: 9}, Reader: data, RespChan: answered}
	if g.admits(rpc) {
		t.Fatal("a node that takes no part takes a snapshot")
	}
	refuseRPC(rpc)
	if resp := <-answered; resp.Error == nil || data.Len() != 0 {
		t.Fatalf("answered %v with %d bytes left", resp.Error, data.Len())
	}
}

// TestGuard_Learns: who comes back takes nothing of a leader before the one that
// took its vote away, and gives no votes.
func TestGuard_Learns_FromThatLeaderOn(t *testing.T) {
	g := &guard{node: &Node{}}
	g.set(learns, 5)
	for name, test := range map[string]struct {
		command any
		want    bool
	}{
		"entries of an older leader":      {&raft.AppendEntriesRequest{Term: 4}, false},
		"entries of that leader":          {&raft.AppendEntriesRequest{Term: 5}, true},
		"entries of a later one":          {&raft.AppendEntriesRequest{Term: 6}, true},
		"a snapshot of an older one":      {&raft.InstallSnapshotRequest{Term: 4}, false},
		"a snapshot of that leader":       {&raft.InstallSnapshotRequest{Term: 5}, true},
		"a vote is asked for":             {&raft.RequestVoteRequest{Term: 9}, false},
		"a pre-vote is asked for":         {&raft.RequestPreVoteRequest{Term: 9}, false},
		"it is asked to stand (raft#476)": {&raft.TimeoutNowRequest{}, false},
	} {
		if got := g.admits(raft.RPC{Command: test.command}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	g.shutDoor()
	g.set(takesPart, 0)
	if g.admits(raft.RPC{Command: &raft.AppendEntriesRequest{Term: 9}}) {
		t.Error("a door that was shut for ever opened")
	}
}

// TestOldImage_LeaderDown: the vote of an old image must not make a majority
// with a node that was far behind. It knows from its leader what the image had.
func TestOldImage_LeaderDown_NoMajority(t *testing.T) {
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

func FuzzGreeting(f *testing.F) {
	f.Add([]byte{0, 2, 0x18, 1})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		var g Greeting
		if err := readGreeting(r, &g); err == nil && len(b)-r.Len() != 2+int(b[0])<<8+int(b[1]) {
			t.Fatalf("took %d bytes", len(b)-r.Len())
		}
	})
}

func TestKin(t *testing.T) {
	a, b, c := []byte("a"), []byte("b"), []byte("c")
	for name, test := range map[string]struct {
		own   []byte
		ended [][]byte
		other *Greeting
		want  kinship
	}{
		"one generation":             {a, nil, &Greeting{Generation: a}, same},
		"this one has no log":        {nil, nil, &Greeting{Generation: a}, same},
		"the other one has none":     {a, nil, &Greeting{}, same},
		"recovered there":            {a, nil, &Greeting{Generation: b, Ended: [][]byte{a}}, older},
		"recovered there twice":      {a, nil, &Greeting{Generation: c, Ended: [][]byte{a, b}}, older},
		"recovered here":             {b, [][]byte{a}, &Greeting{Generation: a}, newer},
		"recovered at both":          {b, [][]byte{a}, &Greeting{Generation: c, Ended: [][]byte{a}}, strange},
		"nothing is known of either": {a, nil, &Greeting{Generation: b}, strange},
	} {
		if got := kin(test.own, test.ended, test.other); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

// TestGreeting_Stranger: a raft connection that does not greet gets nowhere, and
// one that greets with nonsense neither.
func TestGreeting_Garbage_EndsTheConnection(t *testing.T) {
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	for name, b := range map[string][]byte{"nothing": nil, "too long": {0xff, 0xff}, "no message": {0, 2, 0xff, 0xff}} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write(b)
			_ = theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := a.node.greet(ctx, ours, m.site("x"+name[:2]).id.ID, false); err == nil {
			t.Errorf("%s: greeted", name)
		}
		cancel()
		_ = ours.Close()
	}
}
