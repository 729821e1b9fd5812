package mesh

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/apitest"
)

// losing is a catalogue that found conflicts.
type losing struct {
	Catalog
	found []catalog.FoundConflict
}

func (l losing) Conflicts(identity.ProjectID, int) ([]catalog.FoundConflict, error) {
	return l.found, nil
}

// TestConflicts_OfADeletedProject have its id once another project may have its name.
func TestConflicts_OfADeletedProject(t *testing.T) {
	f := newFixture(t)
	p, _ := f.mesh.State.View().Project("library")
	f.api.cfg.Catalog = losing{apitest.Tags{Catalog: f.catalog}, []catalog.FoundConflict{{Conflict: catalog.Conflict{PID: p.PID, Repo: "app", Tag: "1", Loser: digest.FromString("lost")}}}}
	is := func(want string) {
		t.Helper()
		if got := decode[[]Conflict](f, f.want(200, "admin", "GET", "/conflicts", "")); len(got) != 1 || got[0].Repository != want {
			t.Errorf("%+v, want %s", got, want)
		}
	}
	is("library/app")
	f.mesh.Must(&command.ProjectDelete{Id: p.ID})
	is("library/app")
	env, err := command.New("system", time.Now().Add(state.DeletedKeptFor+time.Hour), &command.ProjectPurge{Id: p.ID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.mesh.State.Apply(f.mesh.State.View().Index()+1, env); err != nil {
		t.Fatal(err)
	}
	is(p.PID.String() + "/app")
}
