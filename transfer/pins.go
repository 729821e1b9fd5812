package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// maxPinsCounted bounds what one question counts of promises that are not
	// fetched: how many there are beyond that changes nothing.
	maxPinsCounted = 10_000
	// maxPinsAsked bounds the promises that are held in memory, to ask the sites
	// that they were made to.
	maxPinsAsked = 10_000
	// pinQuestions is how many questions a site is asked at a time: there is one for
	// each project, and a site takes some tens of streams from another, for all that it
	// is asked. One that it does not take counts as a site that does not answer.
	pinQuestions = 4
)

// asker is what a site relies on for one project.
type asker struct {
	node identity.NodeID
	pid  identity.ProjectID
}

// pinsNotFetched counts, up to maxPinsCounted, the blobs that this node promised to
// keep for pushes elsewhere and that their sites have not got yet, for the project
// that was pushed to (T13e). What the catalogue here knows is not asked: a store whose
// feed does not say that it has a blob has not got it. A feed says nothing of projects,
// so where it does say so the site is asked, if ask is set; one that does not answer has
// not got it.
func (r *Reconciler) pinsNotFetched(ctx context.Context, ask bool) (n int, err error) {
	view := r.cfg.State.View()
	unsure := map[asker][]digest.Digest{}
	asked := 0
	enough := errors.New("enough are counted")
	flush := func() {
		n += r.notFetchedAt(ctx, unsure)
		clear(unsure)
		asked = 0
	}
	err = r.cat.EachPin(func(p catalog.Pin, placed bool) error {
		k, relied := r.reliedOn(view, p)
		switch {
		case !relied:
		case !placed:
			n++
		case ask:
			unsure[k] = append(unsure[k], p.Digest)
			if asked++; asked == maxPinsAsked {
				flush()
			}
		}
		if n >= maxPinsCounted {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return 0, err
	}
	if n < maxPinsCounted {
		flush()
	}
	return min(n, maxPinsCounted), nil
}

// reliedOn says who relies on a promise; false: nobody does any more. The site is gone,
// or let go of the project, or this one did, which it may only when others have all
// (T26).
func (r *Reconciler) reliedOn(view *state.View, p catalog.Pin) (asker, bool) {
	to, member := view.NodeOfStore(p.For)
	project, known := view.ProjectByPID(p.PID)
	relied := member && known && project.Residence(to.Site).Holds() && project.Residence(r.cfg.Site).Holds()
	return asker{to.ID, p.PID}, relied
}

// notFetchedAt asks the sites, all at once, each pinQuestions at a time, and counts what
// they do not hold for good.
func (r *Reconciler) notFetchedAt(ctx context.Context, unsure map[asker][]digest.Digest) (n int) {
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	at := map[identity.NodeID][]asker{}
	for of := range unsure {
		at[of.node] = append(at[of.node], of)
	}
	for _, projects := range at {
		wg.Go(func() {
			var g errgroup.Group
			g.SetLimit(pinQuestions)
			for _, of := range projects {
				g.Go(func() error {
					lacks := r.lacksAt(ctx, of, unsure[of])
					mu.Lock()
					defer mu.Unlock()
					n += lacks
					return nil
				})
			}
			_ = g.Wait() // what is not answered is counted
		})
	}
	wg.Wait()
	return n
}

// lacksAt asks a site about one project.
func (r *Reconciler) lacksAt(ctx context.Context, of asker, blobs []digest.Digest) int {
	lacks := len(blobs)
	a, err := r.cfg.Sync.Has(ctx, of.node, syncer.Question{PID: of.pid, Blobs: blobs})
	if err != nil {
		to, _ := r.cfg.State.View().Node(of.node)
		r.log.Warn("a site does not say whether it has what this one keeps for its pushes: it counts as not fetched", "node", of.node, "site", to.Site, "project", of.pid, "blobs", len(blobs), "error", err)
	}
	for _, h := range a.Blobs {
		if h == syncer.Placed {
			lacks--
		}
	}
	return lacks
}

// leaseClaimed gives a claimed blob, which is here now, to the repository whose push
// relies on it, as claimHere does with what was here before. Until the manifest names
// it nothing else of the project would: it could be collected, and who asks whether it is
// the project's here would hear no. It is durable when it returns.
func (r *Reconciler) leaseClaimed(ctx context.Context, t *task) error {
	err := r.cat.Lease(ctx, t.digest, catalog.Lease{PID: t.pid, Repo: t.repo, Until: r.cfg.Now().Add(store.LeaseFor)})
	if err != nil {
		return fmt.Errorf("lease blob %s: %w", t.digest, err)
	}
	return nil
}
