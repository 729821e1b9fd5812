package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

const (
	// holdStill ends a push's wait for its blobs to be at other sites: at none of those
	// that are asked has anything moved for so long. Pieces of 64 KiB are counted: over
	// a link of 1 Mbit/s each of 64 blobs at once gets one in half a minute. As long as
	// something moves the wait is bounded by the client and by holdMost.
	holdStill = 2 * time.Minute
	// holdMost ends it whatever moves: what was kept for the push first is kept for so
	// long and a bit, in which its entry is written, and its claims came before it. A
	// push that is answered relies on all of that.
	holdMost = min(store.LeaseFor, claimFor) - time.Hour
	// coverWithin bounds the wait for its entry, which takes a round trip.
	coverWithin = 20 * time.Second
	// coverAskWithin bounds one question for it.
	coverAskWithin = 5 * time.Second
	// keepStall is how long a site may fail to get something, or get nothing of it,
	// before another one is asked.
	keepStall = 5 * time.Second
	// leasesAtOnce are the rows that one question writes at a time: they share
	// their syncs.
	leasesAtOnce = 64
	// keepFirst and keepMost are the pauses between two questions to one site.
	keepFirst, keepMost = 20 * time.Millisecond, time.Second
	// durableRetry is when a client may find more sites.
	durableRetry = 5 * time.Second
)

// pushExchange is what durable pushes need of the exchange.
type pushExchange interface {
	OnKeep(fn func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []syncer.Piece) (syncer.Kept, error))
	Keep(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository string, want []syncer.Piece) (syncer.Kept, error)
	OnHold(fn func(ctx context.Context, from identity.NodeID, announced uint64) (syncer.Holds, error))
	OnPin(fn func() (end func(), wait time.Duration))
	Hold(ctx context.Context, node identity.NodeID, pid identity.ProjectID, announced uint64) (syncer.Holds, error)
	Words(ctx context.Context, node, about identity.NodeID) ([]syncer.Word, error)
	Dominates(ctx context.Context, node identity.NodeID, pid identity.ProjectID, v catalog.Vector) (bool, error)
	Covers(ctx context.Context, node identity.NodeID, pid identity.ProjectID, dot catalog.Dot) (bool, error)
}

// keep answers another node that wants what is pushed there to be here too. What
// is not here yet is queued where only pushes are: a client waits for it.
func (r *Reconciler) keep(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repo string, want []syncer.Piece) (syncer.Kept, error) {
	if from != r.cfg.Self && r.takesNone() {
		return syncer.Kept{}, errors.New("the site is about to be removed and takes no pushes at the moment")
	}
	out := syncer.Kept{Kept: make([]bool, len(want))}
	g, once := errgroup.WithContext(ctx)
	g.SetLimit(leasesAtOnce)
	for i, p := range want {
		g.Go(func() (err error) {
			out.Kept[i], err = r.keepHere(once, pid, repo, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return syncer.Kept{}, err
	}
	asker, _ := r.cfg.State.View().Node(from)
	for i, p := range want {
		if out.Kept[i] {
			continue
		}
		k := key{kept, pid, repo, p.Digest}
		if out.Reason == "" || out.Reason == onItsWay {
			out.Reason = cmp.Or(r.queue.explain(k), onItsWay)
		}
		out.Done += r.cfg.Swarm.CameIn(p.Digest, pid)
		if from != r.cfg.Self {
			r.cfg.Sync.Expect(p.Digest, asker.Site)
		}
		switch {
		case r.queue.renew(k, from):
		case !r.shares.take(k, from):
			out.Reason = "too much of your site's is on its way there"
		case !r.queue.keep(k, p.Size, from):
			r.shares.end(k)
			out.Reason = "too much is on its way there"
		}
	}
	return out, nil
}

// keepHere promises and leases a blob that is here.
func (r *Reconciler) keepHere(ctx context.Context, pid identity.ProjectID, repo string, p syncer.Piece) (bool, error) {
	// What is here for another project alone is not kept for this one: the asker has
	// to show it, see fetch.
	_, err := r.cat.BlobIn(pid, p.Digest)
	if err == nil {
		// Durable when it returns, as the blob is. Before the promise: what has a lease
		// is not let go of any more.
		err = r.cat.Lease(ctx, p.Digest, catalog.Lease{PID: pid, Repo: repo, Until: r.cfg.Now().Add(store.LeaseFor)})
	}
	if err == nil {
		err = r.promise(ctx, content{digest: p.Digest}, kept)
	}
	if errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrDeleting) {
		return false, nil
	}
	return err == nil, err
}

// holder is one site that a push asks.
type holder struct {
	node state.Node
	news news
	err  error // of toldEnd: why it has not got the push; nil: it has
}

// news is what a holder says.
type news uint8

const (
	toldEnd   news = iota // it has all, or never will
	toldMoves             // something came there
	toldSlow              // it goes on, but nothing, or not all, has come there for a while
)

// Hold implements tags.Copies.
func (r *Reconciler) Hold(ctx context.Context, p state.Project, repo string, blobs []syncer.Piece, n int) (tags.Held, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	still := time.NewTimer(holdStill)
	defer still.Stop()
	most := time.NewTimer(holdMost)
	defer most.Stop()
	view := r.cfg.State.View()
	left := r.candidates(view, p, repo)
	h := &pushHeld{r: r, p: p, want: n}
	if len(left) < n {
		err := &tags.NotDurable{Project: p.Name, Want: n, Have: len(left), RetryAfter: durableRetry,
			Away: []tags.Wait{{Site: "the mesh", Reason: fmt.Sprintf("%s in all may hold the project: add one, or lower its durability", sitesOf(len(left)))}}}
		return nil, err
	}
	var (
		told    = make(chan holder)
		wg      sync.WaitGroup
		asked   = map[identity.NodeID]state.Node{} // and have not answered
		instead = map[identity.NodeID]bool{}       // for whom another one was asked
	)
	defer wg.Wait()
	defer cancel()
	ask := func() {
		if len(left) == 0 {
			return
		}
		node := left[0]
		left = left[1:]
		asked[node.ID] = node
		tell := func(a holder) {
			select {
			case told <- a:
			case <-ctx.Done():
			}
		}
		wg.Go(func() {
			err := r.holdAt(ctx, node, p, repo, blobs, func(n news) { tell(holder{node: node, news: n}) })
			tell(holder{node: node, err: err})
		})
	}
	for range n {
		ask()
	}
	// ended names those that are still at it as well.
	ended := func(why string) (tags.Held, error) {
		for _, node := range asked {
			h.away = append(h.away, tags.Wait{Site: node.Site, Reason: why})
		}
		return nil, h.short(ctx, false)
	}
	for len(asked) > 0 {
		var a holder
		select {
		case a = <-told:
		case <-still.C:
			return ended("nothing of it came there for " + holdStill.String())
		case <-most.C:
			return ended("it has not got all of it after " + holdMost.String() + ", and the blobs of a push are kept for no longer")
		case <-ctx.Done():
			return ended("it has not got all of it yet")
		}
		if a.news != toldSlow {
			still.Reset(holdStill)
		}
		if a.news == toldMoves {
			continue
		}
		if a.news == toldEnd {
			delete(asked, a.node.ID)
		}
		if a.news == toldEnd && a.err == nil {
			if h.nodes = append(h.nodes, a.node); len(h.nodes) == n {
				return h, nil
			}
			continue
		}
		if a.err != nil {
			h.away = append(h.away, tags.Wait{Site: a.node.Site, Reason: a.err.Error()})
		}
		if !instead[a.node.ID] {
			instead[a.node.ID] = true
			ask()
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

// holdAt waits until a site has the blobs. It tells of what moves there, and once when
// nothing has come for a while, or one blob has failed for as long while others move:
// another site may be faster.
func (r *Reconciler) holdAt(ctx context.Context, n state.Node, p state.Project, repo string, blobs []syncer.Piece, tell func(news)) error {
	var (
		failing time.Time // since when it says why it cannot get something
		moved   = time.Now()
		done    int64 // of what is left there
		told    bool
	)
	slow := func() {
		if !told {
			told = true
			tell(toldSlow)
		}
	}
	for pause := keepFirst; ; pause = min(2*pause, keepMost) {
		now, err := r.cfg.Sync.Keep(ctx, n.ID, p.PID, repo, blobs)
		if err != nil {
			return err
		}
		var left []syncer.Piece
		for i, have := range now.Kept {
			if !have {
				left = append(left, blobs[i])
			}
		}
		if len(left) == 0 {
			return nil
		}
		if len(left) < len(blobs) || now.Done > done {
			moved = time.Now()
			tell(toldMoves)
		}
		done = now.Done // less than before if an attempt failed: it counts anew from there
		blobs = left    // what it has it keeps for a day
		switch {
		case now.Reason == onItsWay:
			failing = time.Time{}
			if time.Since(moved) > keepStall {
				slow()
			}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) <= keepStall:
		case time.Since(moved) > keepStall:
			return errors.New(now.Reason)
		default:
			slow() // what waits for one blob does not keep the others
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
		once, cancel := context.WithTimeout(ctx, coverAskWithin)
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
