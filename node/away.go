package node

import (
	"context"
	"time"

	"github.com/portolan/portolan/consensus/command"
)

const (
	// awayAfter is how long nobody hears of a site before rules that want a number
	// of copies count on others: longer than a restart, an upgrade, or most cuts of
	// a link, since whole repositories move for it.
	awayAfter = time.Hour
	// backAfter is how long it must be heard again before they count on it.
	backAfter = time.Minute
	// watchEvery is how often the leader looks.
	watchEvery = 5 * time.Second
)

// heardOf is one site as gossip and the control state have it.
type heardOf struct {
	id    int64
	name  string
	away  bool // the control state says so
	alive bool // a node of it is heard
}

// watch is what the leader remembers of the sites. A new leader begins anew: a
// site may be away for longer than awayAfter before it is called so.
type watch struct {
	since map[int64]time.Time // alive and called away, or silent and not
}

// look gives the sites of which the control state must say something else.
func (w *watch) look(now time.Time, sites []heardOf) []heardOf {
	since := make(map[int64]time.Time, len(sites))
	var out []heardOf
	for _, s := range sites {
		if s.alive != s.away {
			continue // as it is said
		}
		at, ok := w.since[s.id]
		if !ok {
			at = now
		}
		since[s.id] = at
		need := awayAfter
		if s.alive {
			need = backAfter
		}
		if now.Sub(at) >= need {
			out = append(out, s)
		}
	}
	w.since = since
	return out
}

// watchSites has the control state say which sites are away, while this node
// leads. All nodes choose copies by what it says, so that they choose the same.
func (n *node) watchSites(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var w watch
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n.raft.Status().Leader != n.id.ID {
			w = watch{}
			continue
		}
		for _, s := range w.look(n.cfg.Now(), n.heardSites()) {
			call, cancel := context.WithTimeout(ctx, watchEvery)
			_, err := n.raft.Propose(call, "node:"+n.id.ID.String(), &command.SiteAway{Id: s.id, Away: !s.alive})
			cancel()
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				n.log.Warn("the mesh could not be told whether rules count on a site: trying again", "site", s.name, "error", err)
			case s.alive:
				n.log.Info("a site is back: rules that want a number of copies count on it again", "site", s.name)
			default:
				n.log.Warn("a site has not been heard of for long: rules that want a number of copies count on others in its place", "site", s.name, "after", awayAfter)
			}
		}
	}
}

// heardSites gives the sites that hold content.
func (n *node) heardSites() []heardOf {
	view := n.view()
	var out []heardOf
	for _, s := range view.ContentSites() {
		h := heardOf{id: s.ID, name: s.Name, away: s.Away()}
		for _, m := range view.NodesOf(s.Name) {
			h.alive = h.alive || m.ID == n.id.ID || n.gossip.Alive(m.ID)
		}
		out = append(out, h)
	}
	return out
}
