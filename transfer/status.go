package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// askSiteWithin bounds the questions to one site: an image of some thousand
	// blobs over the longest link is answered in a second.
	askSiteWithin = 4 * time.Second
	// askSitesAtOnce bounds the sites that are asked at a time.
	askSitesAtOnce = 32
)

// Question asks where an artifact is.
type Question struct {
	PID        identity.ProjectID
	Repository string // below the project
	// Digest of the artifact: whoever asks resolved it, once.
	Digest digest.Digest
	// Tag that must give Digest at each site; empty: only content is asked for.
	Tag string
	// Sites to ask, by name.
	Sites []string
}

// SiteStatus is what one site has of an artifact.
type SiteStatus struct {
	Site string
	// Reachable: the site answered.
	Reachable bool
	// Error says why there is no answer, or why the site will never hold it.
	Error string
	// TagDigest is where the tag points there; empty: no such tag there.
	TagDigest digest.Digest
	// Total is the number of manifests and blobs that belong to the artifact, as
	// the asking site knows it.
	Total int
	// Missing are those that the site does not hold. At a covered site a cached
	// copy counts as missing until the site has promised to keep it.
	Missing []digest.Digest
	// Evictable: the site holds some of it only because it was pulled there.
	Evictable bool
	// Complete: the tag is right and nothing is missing.
	Complete bool
	// Covered: rules, or that it was accepted there, make the site expected to
	// hold all of it.
	Covered bool
	// Spare: a rule that wants a number of copies could have chosen the site, and
	// chose others.
	Spare bool
	// Reason is why the site's last attempt to get it ended early, as it says.
	Reason string
}

// Status asks each site, at once, for its own durable word. It returns
// catalog.ErrNotFound for an artifact that the catalogue here does not know.
func (r *Reconciler) Status(ctx context.Context, q Question) ([]SiteStatus, error) {
	view := r.cfg.State.View()
	p, ok := view.ProjectByPID(q.PID)
	if !ok {
		return nil, fmt.Errorf("project %s: %w", q.PID, catalog.ErrNotFound)
	}
	c, err := r.closure(q.PID, q.Repository, q.Digest, false)
	if err != nil {
		return nil, err
	}
	covered, err := r.coverage(view, p, q, c)
	if err != nil {
		return nil, err
	}
	ask := syncer.Question{PID: q.PID, Repository: q.Repository, Root: q.Digest, Manifests: c.absent}
	for _, m := range c.manifests {
		ask.Manifests = append(ask.Manifests, m.Digest)
	}
	for _, b := range c.blobs {
		ask.Blobs = append(ask.Blobs, b.digest)
	}
	out := make([]SiteStatus, len(q.Sites))
	var g errgroup.Group
	g.SetLimit(askSitesAtOnce)
	for i, site := range q.Sites {
		is, spare := covered(site)
		out[i] = SiteStatus{Site: site, Covered: is, Spare: spare, Total: len(ask.Manifests) + len(ask.Blobs)}
		if !view.MayRest(p, site) {
			out[i].Error = fmt.Sprintf("project %s may not rest at site %s", p.Name, site)
			continue
		}
		g.Go(func() error {
			r.askSite(ctx, view, q, ask, &out[i])
			return nil
		})
	}
	_ = g.Wait() // they return nothing
	return out, ctx.Err()
}

// coverage says for a site whether it is expected to hold the whole closure: a
// rule wants the artifact there, or each manifest of it was accepted there; and
// whether it is one of those that a rule left out because it has its copies.
func (r *Reconciler) coverage(view *state.View, p state.Project, q Question, c *closure) (func(site string) (covered, spare bool), error) {
	wanted := r.book(view).set.Project(p)
	a, err := r.artifact(wanted, c.manifests[0])
	if err != nil {
		return nil, err
	}
	if q.Tag != "" && !slices.Contains(a.Tags, q.Tag) {
		a.Tags = append(a.Tags, q.Tag)
	}
	home := ""
	for i, m := range c.manifests {
		if i == 0 {
			home = m.Home
		} else if m.Home != home {
			home = ""
			break
		}
	}
	return func(site string) (covered, spare bool) {
		covered = wanted.Wants(a, site) || home == site && len(c.absent) == 0 && view.MayRest(p, site)
		return covered, !covered && wanted.Spares(a, site)
	}, nil
}

// askSite asks the nodes of one site until one answers.
func (r *Reconciler) askSite(ctx context.Context, view *state.View, q Question, ask syncer.Question, s *SiteStatus) {
	ctx, cancel := context.WithTimeout(ctx, askSiteWithin)
	defer cancel()
	err := fmt.Errorf("there is no site %s", s.Site)
	if _, ok := view.Site(s.Site); ok {
		err = fmt.Errorf("site %s stores no content", s.Site)
	}
	nodes := view.NodesOf(s.Site)
	slices.SortStableFunc(nodes, func(a, b state.Node) int {
		switch r.cfg.Self { // which answers without the network
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	for _, n := range nodes {
		if n.Witness {
			continue
		}
		if err = r.askNode(ctx, n.ID, q, ask, s); err == nil {
			s.Reachable = true
			return
		}
		if errors.Is(err, syncer.ErrUnknownProject) {
			s.Reachable = true // it answered: it is behind with the control state
			break
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("site %s did not answer within %s", s.Site, askSiteWithin)
	}
	s.Error = err.Error()
	s.Missing = nil
}

// askNode asks for content and tag together.
func (r *Reconciler) askNode(ctx context.Context, node identity.NodeID, q Question, ask syncer.Question, s *SiteStatus) error {
	var (
		wg     sync.WaitGroup
		tagErr error
		tag    digest.Digest
	)
	if q.Tag != "" {
		wg.Go(func() { tag, _, tagErr = r.cfg.Sync.TagAt(ctx, node, q.PID, q.Repository, q.Tag) })
	}
	a, err := r.cfg.Sync.Has(ctx, node, ask)
	wg.Wait()
	if err := cmp.Or(err, tagErr); err != nil {
		return err
	}
	s.TagDigest, s.Reason = tag, a.Reason
	note := func(d digest.Digest, h syncer.Holding) {
		s.Evictable = s.Evictable || h == syncer.Cached
		if h == syncer.Absent || h == syncer.Cached && s.Covered {
			s.Missing = append(s.Missing, d)
		}
	}
	for i, d := range ask.Manifests {
		note(d, a.Manifests[i])
	}
	for i, d := range ask.Blobs {
		note(d, a.Blobs[i])
	}
	s.Complete = len(s.Missing) == 0 && (q.Tag == "" || tag == q.Digest)
	return nil
}
