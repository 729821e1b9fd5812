package transfer

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/transfer/rules"
)

var projects = flag.Int("edit.projects", 10_000, "projects of BenchmarkEdit")

// nothingToMove is an exchange that a Residency has nothing to ask.
type nothingToMove struct{ ResidencyExchange }

func (nothingToMove) OnReason(func(identity.ProjectID) string) {}

// BenchmarkEdit is what one edit of one project costs a site that follows the control
// state, with 10,000 projects in it. The edit itself is not in it.
func BenchmarkEdit(b *testing.B) {
	id, _, err := identity.LoadOrCreate(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(b.Context(), store.Config{Dir: b.TempDir(), Identity: id, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	s, err := meshOfOne(id, st.ID(), identity.NewProjectID())
	if err != nil {
		b.Fatal(err)
	}
	index := s.View().Index()
	edit := func(body command.Body) int64 {
		env, err := command.New("user:admin", time.Now(), body)
		if err != nil {
			b.Fatal(err)
		}
		index++
		r, err := s.Apply(index, env)
		if err != nil {
			b.Fatal(err)
		}
		return r.ID
	}
	ids := make([]int64, *projects)
	for i := range ids {
		pid := identity.NewProjectID()
		ids[i] = edit(&command.ProjectCreate{ProjectId: pid[:], Name: fmt.Sprint("p", i)})
	}
	rec, err := New(Config{Self: id.ID, Site: "fra", Store: st, State: s, Sync: alone{}, PushesTold: true})
	if err != nil {
		b.Fatal(err)
	}
	home := NewResidency(ResidencyConfig{Self: id.ID, Site: "fra", State: s, Store: st, Sync: nothingToMove{}, Copies: rec})
	f := followed{here: map[identity.ProjectID]*rules.Project{}}
	rec.followRules(&f)
	home.begin(context.Background(), true)
	public := false
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		public = !public
		edit(&command.ProjectUpdate{Id: ids[i%len(ids)], Public: &public})
		b.StartTimer()
		rec.followRules(&f)
		home.begin(context.Background(), true)
	}
}
