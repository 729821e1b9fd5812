package transfer_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
)

func (n *site) preview(r *command.Rule, replaces int64) transfer.PreviewAnswer {
	n.t.Helper()
	rule := state.RuleOf(r)
	rule.ID = replaces
	a, err := n.rec.Preview(context.Background(), transfer.PreviewQuestion{Rule: rule, Names: 2, For: time.Minute})
	must(n.t, err)
	return a
}

func TestPreview(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, closed, hidden := b.project("prod"), b.project("closed", "fra", "nyc"), b.project("hidden", "nyc")
	base := make([]byte, 100_000)
	one := fra.pushLayers(pid, "app", "", []string{"v1"}, base, make([]byte, 10_000))
	two := fra.pushLayers(pid, "app", "", []string{"v2"}, base, make([]byte, 20_000))
	fra.pushLayers(pid, "app", "", []string{"latest"}, []byte("no version"))
	fra.pushLayers(closed, "app", "", []string{"v1"}, []byte("restricted"))
	nyc.pushLayers(hidden, "app", "", []string{"v1"}, []byte("of nyc"))
	config := int64(len(`{"os":"linux","r":""}`) + 26)
	eventually(t, "catalogues that agree", func() bool {
		return equal(pid, fra, nyc, sgp) && equal(closed, fra, nyc)
	})

	versions := &command.Rule{Name: "versions", Projects: []string{"*"}, Tags: []string{"v*"}, Sites: []string{"fra", "sgp"}}
	a := fra.preview(versions, 0)
	want := transfer.PreviewAnswer{
		Matched: 3, Artifacts: 3, Looked: 4, Names: []string{"closed/app:v1", a.Names[1]},
		// What fra accepted is there, and no rule wants it yet.
		Sites: []transfer.PreviewSite{
			{Site: "fra", Artifacts: 3, HeldBlobs: 7, HeldBytes: 3*config + 100_000 + 10_000 + 20_000 + int64(len("restricted"))},
			{Site: "sgp", Artifacts: 2, Blobs: 5, Bytes: 2*config + 100_000 + 10_000 + 20_000, Refused: 1},
		},
		Unseen: []transfer.Unseen{{Project: "hidden", Sites: []string{"nyc"}}},
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("a new rule (-want +got):\n%s", diff)
	}
	if v := sgp.state.View().Rules(); len(v) != 0 || sgp.class(one.blobs[0]) != 0 {
		t.Fatalf("a preview changed something: %v", v)
	}

	// What somebody pulled at sgp is there, once fra has heard of it.
	must(t, sgp.swarm.Fetch(context.Background(), swarm.Want{Digest: one.blobs[1], PID: pid, Class: catalog.Cached}))
	eventually(t, "the pulled layer counts as held", func() bool {
		s := fra.preview(versions, 0).Sites[1]
		return s.Blobs == 4 && s.HeldBlobs == 1 && s.HeldBytes == 100_000
	})

	// A change: only the difference counts.
	id := b.rule(versions)
	eventually(t, "versions at sgp", func() bool { return sgp.holds(one) && sgp.holds(two) })
	wider := &command.Rule{Name: "versions", Projects: []string{"prod"}, Sites: []string{"nyc", "sgp"}}
	a = fra.preview(wider, id)
	at := map[string]transfer.PreviewSite{}
	for _, s := range a.Sites {
		at[s.Site] = s
	}
	if a.Matched != 3 || a.Artifacts != 3 || at["sgp"].Artifacts != 1 || at["sgp"].Blobs != 2 || at["nyc"].Artifacts != 3 || at["nyc"].Blobs != 7 {
		t.Errorf("a change that adds: %+v", a)
	}
	if at["fra"].Dropped != 3 || at["sgp"].Dropped != 0 {
		t.Errorf("fra is named no more: %+v", a)
	}
	// The same rule is no change.
	if a := fra.preview(versions, id); a.Artifacts != 0 || a.Matched != 3 {
		t.Errorf("no change: %+v", a)
	}
}

func TestPreview_IsBoundedByTime(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid := b.project("prod")
	fra.push(pid, "app", "v1")
	rule := state.RuleOf(everywhere("prod"))
	a, err := fra.rec.Preview(context.Background(), transfer.PreviewQuestion{Rule: rule, For: -time.Second})
	must(t, err)
	if !a.Partial || a.Looked != 0 {
		t.Errorf("without time it looks at all: %+v", a)
	}
}
