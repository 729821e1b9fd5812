package transfer

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// neverLeft asks all sites what the lost one told them of its writes. Whoever was
// started last has heard least, and of a project only those hear where it may rest:
// one site's word is not enough. All projects that may rest here were pulled from the
// others before, so what is not here of them is nowhere in reach.
func (l *leaving) neverLeft(ctx context.Context) (*NeverLeft, error) {
	var (
		out   NeverLeft
		words = map[identity.ProjectID][]catalog.Word{}
		mu    sync.Mutex
		wg    sync.WaitGroup
	)
	for _, n := range l.view.Nodes() {
		if n.Witness || n.Site == l.q.Site {
			continue
		}
		wg.Go(func() {
			once, cancel := context.WithTimeout(ctx, askSiteWithin)
			defer cancel()
			heard, err := l.r.cfg.Sync.Words(once, n.ID, l.node.ID)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				l.r.log.Info("a site does not say what a lost one told it", "asked", n.Site, "about", l.q.Site, "error", err)
				out.Silent = append(out.Silent, n.Site)
				return
			}
			if len(heard) > 0 {
				out.Heard = append(out.Heard, n.Site)
			}
			for _, w := range heard {
				words[w.PID] = append(words[w.PID], w.Word)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for pid, of := range words {
		covers, err := l.r.cat.Vector(pid)
		if err != nil {
			return nil, fmt.Errorf("what never left site %s: %w", l.q.Site, err)
		}
		if n := catalog.NeverSeen(of, covers); n > 0 {
			out.Requests, out.Projects = out.Requests+n, out.Projects+1
		}
	}
	slices.Sort(out.Heard)
	slices.Sort(out.Silent)
	return &out, nil
}
