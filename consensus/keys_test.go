package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
)

// rings are the gossip keys that the nodes of a test have installed, as gossip
// would have them.
type rings struct {
	t *testing.T

	mu    sync.Mutex
	of    map[string][]string        // site -> keys, the one that encrypts first
	hold  map[string]<-chan struct{} // site -> its install waits for this
	stops map[string]func()
	// apart are sites that no step waits for: they may be behind.
	apart map[string]bool
}

func newRings(t *testing.T) *rings {
	t.Helper()
	return &rings{t: t, of: make(map[string][]string), hold: make(map[string]<-chan struct{}), stops: make(map[string]func()), apart: make(map[string]bool)}
}

// follow has a site's gossip take the keys, as package node does.
func (r *rings) follow(sites ...*site) {
	for _, s := range sites {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		node := s.node
		go func() {
			defer close(done)
			if err := node.FollowGossipKeys(ctx, func(keys [][]byte) error { return r.install(ctx, s.name, keys) }); err != nil && ctx.Err() == nil {
				r.t.Errorf("%s: %v", s.name, err)
			}
		}()
		stop := sync.OnceFunc(func() { cancel(); <-done })
		r.mu.Lock()
		r.stops[s.name] = stop
		r.mu.Unlock()
		r.t.Cleanup(stop)
	}
}

// leave is a site's gossip that ends.
func (r *rings) leave(s *site) {
	r.mu.Lock()
	stop := r.stops[s.name]
	delete(r.of, s.name)
	r.mu.Unlock()
	stop()
	r.mu.Lock()
	delete(r.of, s.name)
	r.mu.Unlock()
}

func (r *rings) install(ctx context.Context, site string, keys [][]byte) error {
	r.mu.Lock()
	hold := r.hold[site]
	r.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var ring []string
	for _, k := range keys {
		ring = append(ring, string(k))
	}
	// What this one encrypts with from now on, all others must be able to read.
	for other, has := range r.of {
		if other != site && !r.apart[other] && !r.apart[site] && !slices.Contains(has, ring[0]) {
			r.t.Errorf("%s encrypts with a key that %s has not got", site, other)
		}
	}
	r.of[site] = ring
	return nil
}

func (r *rings) ring(site string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[site]
}

// one reports whether all sites have exactly the same single key, and not old.
func (r *rings) one(old string, sites ...*site) func() bool {
	return func() bool {
		want := r.ring(sites[0].name)
		if len(want) != 1 || want[0] == old {
			return false
		}
		for _, s := range sites {
			if !slices.Equal(r.ring(s.name), want) {
				return false
			}
		}
		return true
	}
}

func (s *site) view() *state.View { return s.node.State().View() }

func versions(keys []state.Key) string {
	var out []string
	for _, k := range keys {
		out = append(out, fmt.Sprint(k.Version))
	}
	return strings.Join(out, " ")
}

// TestKeys_AreInBoxesOnly: a mesh has both keys from its first command on, a
// joiner opens them at once, and no file of any node has one in the clear.
func TestKeys_AreInBoxesOnly(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	var keys [2]secrets.Key
	for i, kind := range []command.KeyKind{gossipKey, meshKey} {
		for _, s := range all {
			view := s.view()
			if got := versions(view.Keys(kind)); got != "1" {
				t.Fatalf("%s has versions %q of the %s key", s.name, got, state.KeyName(kind))
			}
			key, ok := s.node.keys.get(view, kind, 1)
			if !ok || key == (secrets.Key{}) || (keys[i] != secrets.Key{} && key != keys[i]) {
				t.Fatalf("%s does not open the %s key of the others", s.name, state.KeyName(kind))
			}
			keys[i] = key
		}
		if st := all[0].view().KeyState(); st.GossipDue || st.MeshDue {
			t.Fatalf("keys are due: %+v", st)
		}
	}
	all[0].mustCreateProject("prod") // raft takes no snapshot before a command came after its last configuration
	if err := all[0].node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, s := range all {
		err := filepath.WalkDir(filepath.Dir(s.dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			for i, key := range keys {
				if bytes.Contains(b, key[:]) {
					t.Errorf("%s has key %d in the clear", path, i)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 6 {
		t.Fatalf("%d files were looked at", files)
	}
}

// TestRotate_AllTogether: through a rotation of both keys, nobody ever encrypts
// with a key that another has not got, and what was sealed stays readable.
func TestRotate_AllTogether(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	r := newRings(t)
	r.follow(all...)
	await(t, "gossip keys installed", r.one("", all...))
	old := r.ring(all[0].name)[0]
	leader, others := leaderOf(t, all)
	place := secrets.Place{Object: "ldap", Field: "bind_password"}
	if err := others[0].node.SetSecret(t.Context(), "user:admin", place, []byte("hunter2")); err != nil {
		t.Fatal(err)
	}
	if err := others[1].node.RotateKeys(t.Context(), "user:admin", true, true); err != nil {
		t.Fatal(err)
	}
	await(t, "one new gossip key everywhere", r.one(old, all...))
	await(t, "one new mesh key", func() bool { return versions(leader.view().Keys(meshKey)) == "2" })
	for _, s := range all {
		await(t, s.name+" has the secret, sealed anew", func() bool {
			row, ok := s.view().Secret(place)
			return ok && row.KeyVer == 2 && versions(s.view().Keys(meshKey)) == "2"
		})
		if v, err := s.node.Secret(place); err != nil || string(v) != "hunter2" {
			t.Errorf("%s: %q, %v", s.name, v, err)
		}
	}
	if st := leader.view().KeyState(); st.GossipDue || st.MeshDue || st.GossipPrimary != 2 {
		t.Errorf("%+v", st)
	}
	// A sealed value that is moved to another place does not open there.
	row, _ := leader.view().Secret(place)
	moved := secrets.Place{Object: "ldap", Field: "url"}
	if _, err := leader.node.Propose(t.Context(), "user:admin", &command.SecretSet{Object: moved.Object, Field: moved.Field, Sealed: row.Sealed}); err != nil {
		t.Fatal(err)
	}
	if v, err := leader.node.Secret(moved); !errors.Is(err, secrets.ErrSealed) {
		t.Errorf("moved: %q, %v", v, err)
	}
	if err := leader.node.SetSecret(t.Context(), "user:admin", moved, nil); err != nil {
		t.Fatal(err)
	}
	if v, err := leader.node.Secret(moved); v != nil || err != nil {
		t.Errorf("forgotten: %q, %v", v, err)
	}
}

// TestRotate_LeaderKilledInEachStep: the rotation stands still in a step because
// one node does not take it; the leader is killed there, and the next one goes on.
func TestRotate_LeaderKilledInEachStep(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name string
		in   func(*state.View) bool
	}{
		{"asked for", func(v *state.View) bool { return v.KeyState().GossipDue || len(v.Keys(gossipKey)) > 1 }},
		{"installed", func(v *state.View) bool {
			return versions(v.Keys(gossipKey)) == "1 2" && v.KeyState().GossipPrimary == 1
		}},
		{"used", func(v *state.View) bool {
			return versions(v.Keys(gossipKey)) == "1 2" && v.KeyState().GossipPrimary == 2
		}},
	}
	for i, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			m := newMesh(t)
			all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
			for _, s := range all {
				s.keyAway, s.keyBehind = 2*time.Second, time.Hour
			}
			all[0].bootstrap()
			all[1].join(all[0])
			all[2].join(all[1])
			await(t, "three voters", func() bool { return len(all[0].node.Status().Voters) == 3 && len(all[2].node.Status().Voters) == 3 })
			r := newRings(t)
			r.follow(all...)
			await(t, "gossip keys installed", r.one("", all...))
			old := r.ring(all[0].name)[0]
			leader, others := leaderOf(t, all)
			slow := others[0]
			// It takes as many steps as come before the one to stop in.
			release := make(chan struct{})
			held := make(chan struct{})
			r.mu.Lock()
			if i < 2 {
				r.hold[slow.name] = release
			}
			r.mu.Unlock()
			if i == 2 {
				// The first step is taken; the second is held.
				go func() {
					defer close(held)
					await(t, "the first step at "+slow.name, func() bool { return len(r.ring(slow.name)) == 2 })
					r.mu.Lock()
					defer r.mu.Unlock()
					r.hold[slow.name] = release
				}()
			} else {
				close(held)
			}
			if err := leader.node.RotateKeys(t.Context(), "user:admin", true, false); err != nil {
				t.Fatal(err)
			}
			await(t, "the step at all", func() bool { return step.in(others[0].view()) && step.in(others[1].view()) })
			<-held
			r.leave(leader)
			leader.kill()
			close(release)
			await(t, "the others finish", r.one(old, others...))
			if got := versions(others[1].view().Keys(gossipKey)); got != "2" {
				t.Errorf("versions %q", got)
			}
			// Who led comes back with what it knew, and takes what was done meanwhile.
			r.mu.Lock()
			r.apart[leader.name] = true
			r.mu.Unlock()
			leader.start(nil)
			r.follow(leader)
			await(t, "the old leader has the new key", r.one(old, all...))
		})
	}
}

// TestRotate_AwayThroughAllOfIt: a node that is down during two whole rotations
// has none of its old keys left when it is back, and learns the new ones by raft.
func TestRotate_AwayThroughAllOfIt(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
	for _, s := range all {
		s.keyAway, s.keyBehind = 2*time.Second, time.Hour
	}
	all[0].bootstrap()
	all[1].join(all[0])
	all[2].join(all[1])
	await(t, "three voters", func() bool { return len(all[0].node.Status().Voters) == 3 })
	r := newRings(t)
	r.follow(all...)
	await(t, "gossip keys installed", r.one("", all...))
	first := r.ring(all[0].name)[0]
	_, others := leaderOf(t, all)
	away := others[0]
	rest := slices.DeleteFunc(slices.Clone(all), func(s *site) bool { return s == away })
	r.leave(away)
	if err := away.shutdown(); err != nil {
		t.Fatal(err)
	}
	old := first
	for range 2 {
		await(t, "rotation asked for", func() bool { return rest[0].node.RotateKeys(t.Context(), "user:admin", true, true) == nil })
		await(t, "rotated without it", r.one(old, rest...))
		old = r.ring(rest[0].name)[0]
	}
	r.mu.Lock()
	r.apart[away.name] = true
	r.mu.Unlock()
	away.start(nil)
	r.follow(away)
	await(t, "it starts with what it knew, or has the new one", func() bool { return len(r.ring(away.name)) > 0 })
	await(t, "it has the new key", r.one(first, all...))
	if r.ring(away.name)[0] != old {
		t.Error("it has another key than the rest")
	}
	if got := versions(away.view().Keys(gossipKey)); got != "3" {
		t.Errorf("versions %q", got)
	}
}

// TestKeys_WitnessLeads: a witness has the gossip key and no mesh key. While it
// leads, another node gives joiners their box, rotates, and seals anew.
func TestKeys_WitnessLeads(t *testing.T) {
	m := newMesh(t)
	all := []*site{m.site("ams"), m.site("fra"), m.site("sgp")}
	all[1].record.Witness, all[1].record.StoreId, all[1].record.DataPort = true, nil, 0
	all[0].bootstrap()
	all[1].join(all[0])
	all[2].join(all[1])
	await(t, "three voters everywhere", func() bool {
		for _, s := range all {
			if len(s.node.Status().Voters) != 3 {
				return false
			}
		}
		return true
	})
	r := newRings(t)
	r.follow(all...)
	await(t, "gossip keys installed", r.one("", all...))
	old := r.ring(all[0].name)[0]
	leader, _ := leaderOf(t, all)
	place := secrets.Place{Object: "webhook/9", Field: "secret"}
	if err := all[2].node.SetSecret(t.Context(), "user:admin", place, []byte("s3cret")); err != nil {
		t.Fatal(err)
	}
	witness := all[1]
	if leader != witness {
		id := witness.id.ID.String()
		if err := leader.node.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)).Error(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the witness leads", func() bool { return witness.node.Status().IsLeader })
	late := m.site("osl")
	late.join(witness)
	r.follow(late)
	await(t, "the joiner opens the mesh key", func() bool { _, ok := late.node.keys.get(late.view(), meshKey, 1); return ok })
	await(t, "the secret arrives", func() bool { _, ok := late.view().Secret(place); return ok })
	if v, err := late.node.Secret(place); err != nil || string(v) != "s3cret" {
		t.Errorf("joiner: %q, %v", v, err)
	}
	if err := witness.node.RotateKeys(t.Context(), "user:admin", true, true); err != nil {
		t.Fatal(err)
	}
	everybody := append(slices.Clone(all), late)
	await(t, "one new gossip key everywhere, the witness included", r.one(old, everybody...))
	await(t, "one new mesh key", func() bool { return versions(late.view().Keys(meshKey)) == "2" })
	for _, s := range everybody {
		await(t, "the state at "+s.name, func() bool { return versions(s.view().Keys(meshKey)) == "2" })
		key, _ := s.view().NewestKey(meshKey)
		if _, has := key.Box(s.id.ID); has == (s == witness) {
			t.Errorf("%s has a box of the mesh key: %v", s.name, has)
		}
		v, err := s.node.Secret(place)
		if s == witness && !errors.Is(err, secrets.ErrSealed) {
			t.Errorf("the witness reads a secret: %q, %v", v, err)
		}
		if s != witness && (err != nil || string(v) != "s3cret") {
			t.Errorf("%s: %q, %v", s.name, v, err)
		}
	}
	if err := witness.node.SetSecret(t.Context(), "user:admin", place, []byte("x")); err == nil {
		t.Error("the witness seals")
	}
}
