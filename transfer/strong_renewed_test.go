package transfer_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/tags"
)

// TestStrong_ABackupOfBeforeTheModeEnded: a mesh is restored to a moment at which the
// tags were strong. What the site wrote once they were not goes: the state does not know
// it, and would delete none of it.
func TestStrong_ABackupOfBeforeTheModeEnded(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid, id := b.strong("prod")
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	backup := fra.state.View()
	b.switchTo(id, command.TagMode_TAG_MODE_EVENTUAL, false)
	eventually(t, "the mode ends", switched(pid, state.EventualTags, fra))
	for _, tag := range []string{"1", "2"} {
		d, err := fra.tagged(t.Context(), pid, "app", "lost", tag)
		must(t, err)
		if fra.tag(pid, "app", tag) != d {
			t.Fatalf("tag %s is not set", tag)
		}
	}

	renewed, err := state.Renew(backup.Lasting, state.Renewal{Mesh: identity.NewMeshID(), Generation: [16]byte{1}, Index: backup.Index(), Now: time.Now(),
		Site: "fra", Node: fra.record()})
	must(t, err)
	var snapshot bytes.Buffer
	must(t, renewed.View().Snapshot(&snapshot))
	b.raft.Lock()
	must(t, fra.state.Restore(&snapshot))
	fra.index = fra.state.View().Index()
	b.raft.Unlock()
	eventually(t, "the tags say what the state says", func() bool {
		return fra.tag(pid, "app", "1") == one && fra.tag(pid, "app", "2") == ""
	})
	must(t, fra.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", fra.state.View().Index()))
	if got := fra.tag(pid, "app", "1"); got != "" {
		t.Errorf("deleted, and it says %s", got)
	}
	two, err := fra.tagged(t.Context(), pid, "app", "two", "2")
	must(t, err)
	if got := fra.tag(pid, "app", "2"); got != two {
		t.Errorf("set to %s, and it says %s", two, got)
	}
}

// TestStrong_ARecoveryOfBeforeTheModeEnded: the same, where the state lost the end of
// its log: sites wrote under indexes that the recovered state gives out anew.
func TestStrong_ARecoveryOfBeforeTheModeEnded(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	const behind, ahead = 1, 3 // of the recovery
	for name, above := range map[string]uint64{"1": behind, "2": behind, "3": ahead} {
		put, err := nyc.manifest(t.Context(), pid, "app", "lost "+name)
		must(t, err)
		put.Tags, put.ACLIndex = []string{name}, nyc.index+above
		_, err = nyc.store.Catalog().PutManifest(t.Context(), put)
		must(t, err)
	}
	eventually(t, "fra heard of them", func() bool { return fra.tag(pid, "app", "2") != "" && fra.tag(pid, "app", "3") != "" })
	b.propose(&command.MeshRecovered{Generation: []byte("another one here"), NodeId: fra.id.ID[:]})
	gone := func(names ...string) func() bool {
		return func() bool {
			for _, n := range b.nodes {
				for _, name := range names {
					if n.tag(pid, "app", name) != "" {
						return false
					}
				}
				if n.tag(pid, "app", "1") != one {
					return false
				}
			}
			return equal(pid, fra, nyc)
		}
	}
	eventually(t, "the recovered state holds", gone("2"))
	for _, n := range b.nodes {
		n.ahead.Add(int64(time.Minute)) // it looks at all tags now and then
	}
	for _, name := range []string{"other", "another"} {
		b.project(name)
	}
	eventually(t, "also where it had to come so far first", gone("2", "3"))
	must(t, nyc.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", nyc.state.View().Index()))
	eventually(t, "it is deleted", func() bool { return fra.tag(pid, "app", "1") == "" && nyc.tag(pid, "app", "1") == "" })
}

// TestSwitch_APushThatBeganBeforeTheModeEnded is no late one: a site whose state is
// behind takes nothing of it away.
func TestSwitch_APushThatBeganBeforeTheModeEnded(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid, id := b.strong("prod")
	_, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	put, err := fra.manifest(t.Context(), pid, "app", "two")
	must(t, err)
	put.Tags = []string{"1"}
	b.switchTo(id, command.TagMode_TAG_MODE_EVENTUAL, false)
	eventually(t, "the mode ends", switched(pid, state.EventualTags, fra))
	must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
	var under uint64
	must(t, fra.store.Catalog().EachTag(pid, nil, func(s catalog.TagState) error { under = s.ACLIndex; return nil }))
	if under != fra.state.View().Index() || under == put.ACLIndex {
		t.Errorf("written under rights of %d; asked at %d, and the mode was over at %d", under, put.ACLIndex, fra.state.View().Index())
	}
}
