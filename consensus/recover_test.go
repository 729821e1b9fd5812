package consensus

import (
	"crypto/sha256"
	"errors"
	"fmt"
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
