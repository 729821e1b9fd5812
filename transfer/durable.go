package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

const (
	// holdWithin bounds how long a push waits for its blobs to be at other sites;
	// what has moved by then is there for the next try.
	holdWithin = 5 * time.Minute
	// coverWithin bounds the wait for its entry, which takes a round trip.
	coverWithin = 20 * time.Second
	// keepAskWithin bounds one question, and keepStall how long a site may fail to
	// get something before another one is asked.
	keepAskWithin = 5 * time.Second
	keepStall     = 5 * time.Second
	// keepFirst and keepMost are the pauses between two questions to one site.
	keepFirst, keepMost = 20 * time.Millisecond, time.Second
	// durableRetry is when a client may find more sites.
	durableRetry = 5 * time.Second
)

// pushExchange is what durable pushes need of the exchange.
type pushExchange interface {
	OnKeep(fn func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []syncer.Piece) (kept []bool, reason string, err error))
	Keep(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository string, want []syncer.Piece) (kept []bool, reason string, err error)
	OnHold(fn func(ctx context.Context) (underWay int))
	Hold(ctx context.Context, node identity.NodeID, pid identity.ProjectID) (underWay int, err error)
	Covers(ctx context.Context, node identity.NodeID, pid identity.ProjectID, dot catalog.Dot) (bool, error)
}

// keep answers another node that wants what is pushed there to be here too. What
// is not here yet is queued before all else: a client waits for it. Who asks is a
// member site, which could link the content to the project by an entry as well.
func (r *Reconciler) keep(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repo string, want []syncer.Piece) (have []bool, reason string, err error) {
	asker, _ := r.cfg.State.View().Node(from)
	have = make([]bool, len(want))
	for i, p := range want {
		row, err := r.cat.Blob(p.Digest)
		switch {
		case err == nil && row.State == catalog.Present:
			if err = r.promise(ctx, content{digest: p.Digest}, kept); err == nil {
				// Durable when it returns, as the blob is.
				err = r.cat.Lease(ctx, p.Digest, catalog.Lease{PID: pid, Repo: repo, Until: r.cfg.Now().Add(store.LeaseFor)})
			}
			if err == nil {
				have[i] = true
				continue
			}
			if !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, catalog.ErrDeleting) {
				return nil, "", err
			}
		case err != nil && !errors.Is(err, catalog.ErrNotFound):
			return nil, "", err
		}
		k := key{kept, pid, repo, p.Digest}
		if reason == "" || reason == onItsWay {
			reason = cmp.Or(r.queue.explain(k), onItsWay)
		}
		if from != r.cfg.Self {
			r.cfg.Sync.Expect(p.Digest, asker.Site)
		}
		if r.queue.explain(k) == "" && !r.queue.add(k, p.Size, time.Time{}, rules.Terms{}) {
			reason = "too much is on its way there"
		}
	}
	return have, reason, nil
}

// holder is one site that a push asks.
type holder struct {
	node state.Node
	err  error // why it has not got the push
}

// Hold implements tags.Copies.
func (r *Reconciler) Hold(ctx context.Context, p state.Project, repo string, blobs []syncer.Piece, n int) (tags.Held, error) {
	ctx, cancel := context.WithTimeout(ctx, holdWithin)
	defer cancel()
	view := r.cfg.State.View()
	left := r.candidates(view, p, repo)
	h := &pushHeld{r: r, p: p, want: n}
	if len(left) < n {
		err := &tags.NotDurable{Project: p.Name, Want: n, Have: len(left), RetryAfter: durableRetry,
			Away: []tags.Wait{{Site: "the mesh", Reason: fmt.Sprintf("%s in all may hold the project: add one, or lower its durability", sitesOf(len(left)))}}}
		return nil, err
	}
	answers := make(chan holder)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ask := func() {
		node := left[0]
		left = left[1:]
		wg.Go(func() {
			err := r.holdAt(ctx, node, p, repo, blobs)
			select {
			case answers <- holder{node, err}:
			case <-ctx.Done():
			}
		})
	}
	for range n {
		ask()
	}
	for asked := n; asked > 0; asked-- {
		var a holder
		select {
		case a = <-answers:
		case <-ctx.Done():
			return nil, h.short(ctx, false)
		}
		if a.err == nil {
			if h.nodes = append(h.nodes, a.node); len(h.nodes) == n {
				return h, nil
			}
			continue
		}
		h.away = append(h.away, tags.Wait{Site: a.node.Site, Reason: a.err.Error()})
		if len(left) > 0 {
			ask()
			asked++
		}
	}
	return nil, h.short(ctx, false)
}

// candidates are the nodes that may hold a push: this one, then those in reach,
// in the order in which its copies are wanted anyway.
func (r *Reconciler) candidates(view *state.View, p state.Project, repo string) []state.Node {
	away := map[identity.NodeID]bool{}
	for _, peer := range r.cfg.Sync.Peers() {
		away[peer.Node] = peer.Error != ""
	}
	var near, far []state.Node
	sites := rules.Order(p, repo, r.cfg.Site, view.ContentSites())
	// The first copy is here, even at a site that the others think away.
	if i := slices.IndexFunc(sites, func(s state.Site) bool { return s.Name == r.cfg.Site }); i > 0 {
		sites = append([]state.Site{sites[i]}, slices.Delete(sites, i, i+1)...)
	}
	for _, site := range sites {
		for _, n := range view.NodesOf(site.Name) {
			if n.Witness {
				continue
			}
			if away[n.ID] {
				far = append(far, n)
			} else {
				near = append(near, n)
			}
			break // one store a site
		}
	}
	return append(near, far...)
}

// holdAt waits until a site has the blobs.
func (r *Reconciler) holdAt(ctx context.Context, n state.Node, p state.Project, repo string, blobs []syncer.Piece) error {
	var failing time.Time // since when it says why it cannot get something
	for pause := keepFirst; ; pause = min(2*pause, keepMost) {
		once, cancel := context.WithTimeout(ctx, keepAskWithin)
		kept, reason, err := r.cfg.Sync.Keep(once, n.ID, p.PID, repo, blobs)
		cancel()
		switch {
		case err != nil && errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("it did not answer within %s", keepAskWithin)
		case err != nil:
			return err
		case !slices.Contains(kept, false):
			return nil
		case reason == onItsWay:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > keepStall:
			return errors.New(reason)
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pushHeld implements tags.Held.
type pushHeld struct {
	r     *Reconciler
	p     state.Project
	want  int
	nodes []state.Node // that have the blobs
	away  []tags.Wait
}

// short is the error of a push that too few sites have.
func (h *pushHeld) short(ctx context.Context, visible bool) error {
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return err // nobody waits for it any more
	}
	slices.SortFunc(h.away, func(a, b tags.Wait) int { return cmp.Compare(a.Site, b.Site) })
	return &tags.NotDurable{Project: h.p.Name, Want: h.want, Have: len(h.nodes), Away: h.away, Visible: visible, RetryAfter: durableRetry}
}

// Covered implements tags.Held.
func (h *pushHeld) Covered(ctx context.Context, dot catalog.Dot) error {
	wait, cancel := context.WithTimeout(ctx, coverWithin)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		have []state.Node
	)
	for _, n := range h.nodes {
		wg.Go(func() {
			err := h.r.coveredAt(wait, n, h.p.PID, dot)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				have = append(have, n)
				return
			}
			h.away = append(h.away, tags.Wait{Site: n.Site, Reason: err.Error()})
		})
	}
	wg.Wait()
	if len(have) >= h.want {
		return nil
	}
	h.nodes = have
	return h.short(ctx, true)
}

func (r *Reconciler) coveredAt(ctx context.Context, n state.Node, pid identity.ProjectID, dot catalog.Dot) error {
	if n.ID == r.cfg.Self {
		return nil // the commit was synced
	}
	var last error
	for pause := keepFirst; ; pause = min(2*pause, keepMost) {
		once, cancel := context.WithTimeout(ctx, keepAskWithin)
		covers, err := r.cfg.Sync.Covers(once, n.ID, pid, dot)
		cancel()
		if err == nil && covers {
			return nil
		}
		last = cmp.Or(err, errors.New("it has not got the manifest yet"))
		if !sleep(ctx, pause) {
			return last
		}
	}
}

func sitesOf(n int) string {
	if n == 1 {
		return "1 site"
	}
	return fmt.Sprintf("%d sites", n)
}
