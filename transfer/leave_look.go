package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// copyOf is what is known of one digest.
type copyOf struct {
	size           int64
	manifest       bool
	cached, silent []string
	elsewhere      bool
}

// look finds what of some manifests and their blobs is held at the leaving site
// alone.
func (l *leaving) look(ctx context.Context, p state.Project, repo string, page []catalog.ManifestInfo) error {
	l.out.Manifests += len(page)
	all := map[digest.Digest]*copyOf{}
	of := make([][]digest.Digest, len(page))
	accepted := map[digest.Digest]bool{} // named by a manifest whose home leaves
	for i, m := range page {
		refs, err := l.r.cat.Refs(p.PID, repo, m.Digest)
		if errors.Is(err, catalog.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		all[m.Digest] = &copyOf{size: m.Size, manifest: true}
		of[i] = append(of[i], m.Digest)
		for _, ref := range refs {
			if ref.Kind == catalog.RefManifest {
				continue // it has a row of its own
			}
			if all[ref.Digest] == nil {
				all[ref.Digest] = &copyOf{size: ref.Size}
			}
			of[i] = append(of[i], ref.Digest)
		}
		for _, d := range of[i] {
			accepted[d] = accepted[d] || m.Home == l.q.Site
		}
	}
	if err := l.keepHeld(ctx, p, repo, all, accepted); err != nil {
		return err
	}
	if err := l.askOthers(ctx, p, repo, all); err != nil {
		return err
	}
	for i, m := range page {
		c := LastCopy{Repository: p.Name + "/" + repo, Digest: m.Digest, Deleted: p.Deleted()}
		for _, d := range of[i] {
			x := all[d]
			if x == nil || x.elsewhere {
				continue
			}
			c.Content = append(c.Content, d)
			c.Bytes += x.size
			c.Cached = append(c.Cached, x.cached...)
			c.Silent = append(c.Silent, x.silent...)
		}
		if len(c.Content) == 0 {
			continue
		}
		for _, list := range []*[]string{&c.Cached, &c.Silent} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		var err error
		if c.Tags, err = l.r.cat.TagsOf(p.PID, repo, m.Digest, maxCopyTags); err != nil {
			return err
		}
		l.out.Copies = append(l.out.Copies, c)
	}
	return nil
}

// maxCopyTags is how many tags of an image are named.
const maxCopyTags = 3

// keepHeld drops what the leaving site does not hold.
func (l *leaving) keepHeld(ctx context.Context, p state.Project, repo string, all map[digest.Digest]*copyOf, accepted map[digest.Digest]bool) error {
	if !l.q.Lost {
		held, err := l.has(ctx, l.node.ID, p, repo, all)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return l.noAnswer(err)
		}
		for d := range all {
			if held[d] == syncer.Absent {
				delete(all, d)
			}
		}
		return nil
	}
	for d := range all {
		stores, err := l.r.cat.Holders(d)
		if err != nil {
			return fmt.Errorf("holders of %s: %w", d, err)
		}
		if !accepted[d] && !slices.Contains(stores, l.node.Store) {
			delete(all, d)
		}
	}
	return nil
}

// askOthers notes what is held elsewhere: this node first, which costs nothing,
// then all other sites at once for what is left.
func (l *leaving) askOthers(ctx context.Context, p state.Project, repo string, all map[digest.Digest]*copyOf) error {
	if l.q.Site != l.r.cfg.Site {
		if err := l.askOther(ctx, l.r.cfg.Self, l.r.cfg.Site, p, repo, all); err != nil {
			return err
		}
	}
	left := map[digest.Digest]*copyOf{}
	for d, x := range all {
		if !x.elsewhere {
			left[d] = x
		}
	}
	if len(left) == 0 {
		return nil
	}
	var wg sync.WaitGroup
	for _, n := range l.view.Nodes() {
		if n.Witness || n.Site == l.q.Site || n.ID == l.r.cfg.Self || !l.view.MayRest(p, n.Site) {
			continue
		}
		wg.Go(func() {
			if l.isQuiet(n.Site) || l.askOther(ctx, n.ID, n.Site, p, repo, left) != nil {
				l.silent(n, left)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// askOther notes what one node holds.
func (l *leaving) askOther(ctx context.Context, node identity.NodeID, site string, p state.Project, repo string, of map[digest.Digest]*copyOf) error {
	held, err := l.has(ctx, node, p, repo, of)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, h := range held {
		switch h {
		case syncer.Placed:
			of[d].elsewhere = true
		case syncer.Cached:
			of[d].cached = append(of[d].cached, site)
		}
	}
	return nil
}

func (l *leaving) isQuiet(site string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quiet[site]
}

// silent notes a site that did not answer at what its feed says that it has.
func (l *leaving) silent(n state.Node, of map[digest.Digest]*copyOf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet[n.Site] = true
	for d, x := range of {
		if stores, err := l.r.cat.Holders(d); err == nil && slices.Contains(stores, n.Store) {
			x.silent = append(x.silent, n.Site)
		}
	}
}

// has asks one node within the bounds of Status.
func (l *leaving) has(ctx context.Context, node identity.NodeID, p state.Project, repo string, of map[digest.Digest]*copyOf) (map[digest.Digest]syncer.Holding, error) {
	ctx, cancel := context.WithTimeout(ctx, askSiteWithin)
	defer cancel()
	ask := syncer.Question{PID: p.PID, Repository: repo}
	for d, x := range of {
		if x.manifest {
			ask.Manifests = append(ask.Manifests, d)
		} else {
			ask.Blobs = append(ask.Blobs, d)
		}
	}
	a, err := l.r.cfg.Sync.Has(ctx, node, ask)
	if err != nil {
		return nil, err
	}
	out := make(map[digest.Digest]syncer.Holding, len(of))
	for i, d := range ask.Manifests {
		out[d] = a.Manifests[i]
	}
	for i, d := range ask.Blobs {
		out[d] = a.Blobs[i]
	}
	return out, nil
}
