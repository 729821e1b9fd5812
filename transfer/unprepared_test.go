package transfer_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// asked notes for how many sites a push was prepared.
type asked struct {
	tags.Copies
	mu sync.Mutex
	n  []int
}

func (a *asked) Hold(ctx context.Context, p state.Project, repo string, blobs []syncer.Piece, n int) (tags.Held, error) {
	a.mu.Lock()
	a.n = append(a.n, n)
	a.mu.Unlock()
	return a.Copies.Hold(ctx, p, repo, blobs, n)
}

// A push is prepared for the project as it is when the push is written (D3): what
// people ask for meanwhile holds for it, too.
func TestPut_TheProjectWantsMoreMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b *bed, fra *site, id int64)
		want   []int
	}{
		"more copies":  {func(b *bed, _ *site, id int64) { b.propose(&command.ProjectUpdate{Id: id, Durability: proto32(3)}) }, []int{2, 3}},
		"fewer copies": {func(b *bed, _ *site, id int64) { b.propose(&command.ProjectUpdate{Id: id, Durability: proto32(1)}) }, []int{2}},
		"its tags strong": {func(b *bed, fra *site, id int64) {
			b.switchTo(id, command.TagMode_TAG_MODE_STRONG, false)
			p, _ := fra.state.View().ProjectByID(id)
			eventually(b.t, "the switch", func() bool {
				m := fra.mode(p.PID)
				return m.Mode == state.StrongTags && !m.Switching()
			})
		}, []int{2, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, []string{"fra", "nyc", "sgp"})
			fra := b.site("fra")
			pid, id := b.durable("prod", 2)
			put, err := fra.manifest(t.Context(), pid, "app", "one")
			must(t, err)
			put.Tags = []string{"1"}
			held := &asked{Copies: fra.rec}
			once := sync.OnceFunc(func() { c.change(b, fra, id) })
			door := fra.doorWith(control{fra}, cutAfter{held, once})
			must(t, door.Put(t.Context(), put, tags.Condition{}))
			if !slices.Equal(held.n, c.want) {
				t.Errorf("prepared for %v sites, want %v", held.n, c.want)
			}
			if n := b.have(pid, put); n < c.want[len(c.want)-1] {
				t.Errorf("%d sites have a push that was answered", n)
			}
			if fra.tag(pid, "app", "1") != put.Digest {
				t.Error("the tag is not to be read where it was set")
			}
		})
	}
}
