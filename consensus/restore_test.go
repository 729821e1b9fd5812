package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
)

// TestBackup_RestoredWithoutAnyOldNode: a mesh of three is backed up and is gone;
// its state goes on in a mesh of one node that none of them was, through restarts
// and with a new member.
func TestBackup_RestoredWithoutAnyOldNode(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	for _, p := range []string{"prod", "stage"} {
		others[0].mustCreateProject(p)
	}
	place := secrets.Place{Object: "ldap", Field: "bind_password"}
	if err := leader.node.SetSecret(t.Context(), "user:admin", place, []byte("hunter2")); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := leader.node.Backup(t.Context(), &file, leader.name, "test"); !errors.Is(err, &command.Error{Code: command.CodeConflict}) || file.Len() > 0 {
		t.Fatalf("without a recovery key: %d bytes, %v", file.Len(), err)
	}
	private, public, err := backup.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leader.node.Propose(t.Context(), "user:admin", &command.RecoverySet{Recipient: public}); err != nil {
		t.Fatal(err)
	}
	if err := leader.node.Backup(t.Context(), &file, leader.name, "test"); err != nil {
		t.Fatal(err)
	}
	before := leader.view()
	for _, s := range all {
		s.kill()
	}

	b, err := backup.Read(bytes.NewReader(file.Bytes()), private)
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t)
	osl := m.site("osl")
	mesh, err := Restore(osl.dir, b, osl.id, "osl", osl.record, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(osl.dir, b, osl.id, "osl", osl.record, time.Now()); err == nil {
		t.Fatal("a second restore into the same directory")
	}
	osl.start(nil)
	await(t, "ready", osl.node.isReady)
	if got := osl.view().Mesh().ID; got != mesh || mesh == before.Mesh().ID {
		t.Fatalf("mesh %s, restored as %s", got, mesh)
	}
	osl.insist("after")
	await(t, "new keys", func() bool {
		return versions(osl.view().Keys(gossipKey)) == "1" && versions(osl.view().Keys(meshKey)) == "2"
	})
	check := func(s *site) {
		t.Helper()
		for _, name := range []string{"library", "prod", "stage"} {
			p, _ := s.view().Project(name)
			old, _ := before.Project(name)
			if p.ID != old.ID || p.PID != old.PID || p.Version != old.Version {
				t.Errorf("%s at %s: %+v, was %+v", name, s.name, p, old)
			}
		}
		if v, err := s.node.Secret(place); err != nil || string(v) != "hunter2" {
			t.Errorf("secret at %s: %q, %v", s.name, v, err)
		}
		if u, _ := s.view().User("admin"); u.PasswordHash == "" {
			t.Errorf("admin at %s: %+v", s.name, u)
		}
		for _, old := range all {
			if s.node.IsMember(old.id.ID) {
				t.Errorf("%s takes the old node of %s for a member", s.name, old.name)
			}
		}
	}
	check(osl)
	if err := osl.shutdown(); err != nil {
		t.Fatal(err)
	}
	osl.start(nil)
	await(t, "ready again", osl.node.isReady)
	check(osl)
	if !osl.has("after") {
		t.Error("what was made after the restore is gone")
	}
	await(t, "leads again", func() bool { return osl.node.Status().IsLeader })
	ams := m.site("ams") // under the name of a site of the old mesh
	ams.join(osl)
	await(t, "the joiner has it", func() bool { return ams.has("after") })
	check(ams)
	ams.mustCreateProject("later")
}

// TestRestore_LeavesWhatIsThere: a directory with anything in it is refused, and
// a node that the state refuses leaves nothing.
func TestRestore_LeavesWhatIsThere(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	ams := m.site("ams")
	ams.bootstrap()
	private, public, err := backup.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ams.node.Propose(t.Context(), "user:admin", &command.RecoverySet{Recipient: public}); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := ams.node.Backup(t.Context(), &file, "ams", "test"); err != nil {
		t.Fatal(err)
	}
	b, err := backup.Read(&file, private)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "raft")
	if _, err := Restore(dir, b, ams.id, "NOT A SITE", ams.record, time.Now()); err == nil {
		t.Error("a site name that is none")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused restore made the directory: %v", err)
	}
}
