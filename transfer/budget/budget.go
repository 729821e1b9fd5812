package budget

import (
	"context"
	"sync"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// bytesPerMbit is a second's bytes at one Mbit/s.
const bytesPerMbit = 1e6 / 8

// Budgets holds back what one node sends and takes. Run keeps it at what the
// control state says; until then nothing is held back.
type Budgets struct {
	site   string
	siteOf func(identity.NodeID) string

	up, down link

	mu sync.RWMutex
	to map[string]*link // by the site that takes; those with a cap alone
}

// New makes the budgets of a site's node. siteOf answers from memory.
func New(site string, siteOf func(identity.NodeID) string) *Budgets {
	return &Budgets{site: site, siteOf: siteOf, to: map[string]*link{}}
}

// Run follows the control state until ctx ends: a cap that changed there is in
// force at once, for transfers under way too.
func (b *Budgets) Run(ctx context.Context, s *state.State) error {
	for {
		changed := s.Changed()
		b.Apply(s.View())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// Apply takes the caps of a view.
func (b *Budgets) Apply(v *state.View) {
	up, down := 0.0, 0.0
	pairs := map[string]float64{}
	for x := range v.Budgets() {
		rate := float64(x.Mbit) * bytesPerMbit
		switch {
		case x.From == b.site && x.To == "":
			up = rate
		case x.From == "" && x.To == b.site:
			down = rate
		case x.From == b.site:
			pairs[x.To] = rate
		}
	}
	b.up.set(up)
	b.down.set(down)
	b.mu.Lock()
	defer b.mu.Unlock()
	for site, l := range b.to {
		if pairs[site] == 0 {
			l.set(0) // whoever waits goes on
			delete(b.to, site)
		}
	}
	for site, rate := range pairs {
		l := b.to[site]
		if l == nil {
			l = new(link)
			b.to[site] = l
		}
		l.set(rate)
	}
}

// Send waits until some of n bytes may be sent to a node, at least one, and says
// how many.
func (b *Budgets) Send(ctx context.Context, to identity.NodeID, c Class, n int) (int, error) {
	b.mu.RLock()
	pair := b.to[b.siteOf(to)]
	b.mu.RUnlock()
	n = b.up.least(n)
	if pair != nil {
		n = pair.least(n)
		// The narrower link first: what waits here takes nothing of the wider one.
		if err := pair.wait(ctx, c, n); err != nil {
			return 0, err
		}
	}
	return n, b.up.wait(ctx, c, n)
}

// Receive waits until some of n bytes may be taken, at least one, and says how
// many.
func (b *Budgets) Receive(ctx context.Context, c Class, n int) (int, error) {
	n = b.down.least(n)
	return n, b.down.wait(ctx, c, n)
}
