package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// claimFor is how long a push that relies on a blob elsewhere may take to be answered,
	// and for how long the blob is fetched without a manifest that wants it. A holder asks
	// after that whether its promise is still needed, and keeps it until it hears (T13e).
	claimFor = 24 * time.Hour
	// claimAskWithin bounds the question who has the blobs, claimPinWithin the
	// promises: a client's push waits for both.
	claimAskWithin = 2 * time.Second
	claimPinWithin = 5 * time.Second
)

// Descriptor names content that a manifest relies on.
type Descriptor struct {
	Digest digest.Digest
	Size   int64
}

// Claim is what became of it.
type Claim struct {
	// Claimed are here, or at a holder that durably promised to keep them until
	// this site has them.
	Claimed []digest.Digest
	// Missing are those that no site in reach has for this project.
	Missing []digest.Digest
	// Unreachable names the sites that could not be asked.
	Unreachable []string
}

// Claim makes sure, before a manifest is accepted, that content which is not
// here exists and stays: the project's entries are pulled once, the holders
// asked, and one of them pins each blob before this returns. The blobs are then
// fetched in the background: this site is their new home. Content that another
// project has is not found.
func (r *Reconciler) Claim(ctx context.Context, pid identity.ProjectID, repo string, want []Descriptor) (Claim, error) {
	var c Claim
	left, err := r.claimHere(ctx, pid, repo, want, &c)
	if err != nil || len(left) == 0 {
		return c, err
	}
	if c.Unreachable, err = r.cfg.Sync.PullProject(ctx, pid); err != nil {
		return c, err
	}
	// The entries that came may name manifests that were asked for as content.
	if left, err = r.claimHere(ctx, pid, repo, left, &c); err != nil || len(left) == 0 {
		return c, err
	}
	holders, silent := r.holdersOf(ctx, pid, left)
	for _, site := range silent {
		if !slices.Contains(c.Unreachable, site) {
			c.Unreachable = append(c.Unreachable, site)
		}
	}
	slices.Sort(c.Unreachable)
	left = r.pin(ctx, pid, repo, left, holders, &c)
	for _, d := range left {
		c.Missing = append(c.Missing, d.Digest)
	}
	return c, ctx.Err()
}

// claimHere takes what this store has of the project: manifests of the repository, and blobs
// that the project refers to, which are leased to the repository.
func (r *Reconciler) claimHere(ctx context.Context, pid identity.ProjectID, repo string, want []Descriptor, c *Claim) (left []Descriptor, err error) {
	for _, d := range want {
		_, err := r.cat.Manifest(pid, repo, d.Digest)
		if err == nil {
			c.Claimed = append(c.Claimed, d.Digest)
			continue
		}
		if !errors.Is(err, catalog.ErrNotFound) {
			return nil, err
		}
		_, _, linked, err := r.cat.LinkedIn(pid, d.Digest)
		if err != nil {
			return nil, err
		}
		if linked {
			// Not what is here for another project alone: a holder has to show it.
			err := r.cat.Mount(ctx, d.Digest, pid, catalog.Lease{PID: pid, Repo: repo, Until: r.cfg.Now().Add(store.LeaseFor)})
			if err == nil {
				c.Claimed = append(c.Claimed, d.Digest)
				continue
			}
			if !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, catalog.ErrDeleting) {
				return nil, fmt.Errorf("lease %s: %w", d.Digest, err)
			}
		}
		left = append(left, d)
	}
	return left, nil
}

// holding is one node that has a digest.
type holding struct {
	node identity.NodeID
	site string
}

// holdersOf asks all peers which of the blobs they hold. Responsible holders
// come first.
func (r *Reconciler) holdersOf(ctx context.Context, pid identity.ProjectID, want []Descriptor) (map[digest.Digest][]holding, []string) {
	ctx, cancel := context.WithTimeout(ctx, claimAskWithin)
	defer cancel()
	q := syncer.Question{PID: pid}
	for _, d := range want {
		q.Blobs = append(q.Blobs, d.Digest)
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		found  = map[digest.Digest][]holding{}
		silent []string
	)
	view := r.cfg.State.View()
	p, _ := view.ProjectByPID(pid)
	for _, peer := range r.cfg.Sync.Peers() {
		if !view.MayRest(p, peer.Site) {
			continue
		}
		wg.Go(func() {
			a, err := r.cfg.Sync.Has(ctx, peer.Node, q)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, peer.Site)
				return
			}
			for i, h := range a.Blobs {
				d := q.Blobs[i]
				switch h {
				case syncer.Placed:
					found[d] = slices.Insert(found[d], 0, holding{peer.Node, peer.Site})
				case syncer.Cached:
					found[d] = append(found[d], holding{peer.Node, peer.Site})
				}
			}
		})
	}
	wg.Wait()
	return found, silent
}

// pin gets a durable promise for each blob, from its next holder if one does not
// give it, and queues the blobs that were promised. It returns those for which
// nobody gave it.
func (r *Reconciler) pin(ctx context.Context, pid identity.ProjectID, repo string, left []Descriptor, holders map[digest.Digest][]holding, c *Claim) []Descriptor {
	ctx, cancel := context.WithTimeout(ctx, claimPinWithin)
	defer cancel()
	now := r.cfg.Now()
	for try := 0; ; try++ {
		ask := map[holding][]Descriptor{}
		var lost []Descriptor
		for _, d := range left {
			if try >= len(holders[d.Digest]) {
				lost = append(lost, d)
				continue
			}
			h := holders[d.Digest][try]
			ask[h] = append(ask[h], d)
		}
		if len(ask) == 0 {
			return left
		}
		left = lost
		for h, ds := range ask {
			digests := make([]digest.Digest, len(ds))
			for i, d := range ds {
				digests[i] = d.Digest
			}
			pinned, err := r.cfg.Sync.Pin(ctx, h.node, pid, digests, now.Add(claimFor))
			if err != nil {
				r.log.Warn("a holder gave no promise to keep blobs that a push relies on", "node", h.node, "site", h.site, "blobs", len(ds), "error", err)
				left = append(left, ds...)
				continue
			}
			for i, d := range ds {
				if !pinned[i] {
					left = append(left, d)
					continue
				}
				c.Claimed = append(c.Claimed, d.Digest)
				r.cfg.Sync.Expect(d.Digest, h.site)
				// After a restart the manifest, whose home is here, wants them.
				r.queue.add(key{claimed, pid, repo, d.Digest}, d.Size, now, rules.Terms{})
			}
		}
	}
}
