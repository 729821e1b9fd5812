package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/rules"
	"github.com/portolan/portolan/transfer/swarm"
)

// work takes a lane's tasks, oldest first, until ctx ends.
func (r *Reconciler) work(ctx context.Context, from lane) {
	for ctx.Err() == nil {
		t, wait := r.queue.take(from)
		if t == nil {
			if r.queue.missed(false) {
				r.scans.everything(r.cfg.State.View(), r.cfg.Site)
			}
			if !r.idle(ctx, from, wait) {
				return
			}
			continue
		}
		err := r.attempt(ctx, t, from)
		reason := ""
		var paused *pausedError
		var shut *shutError
		var held *heldError
		var notBefore time.Time
		switch {
		case err == nil, errors.Is(err, errUnwanted):
		case errors.Is(err, errBulk):
			r.queue.toBulk(t)
			continue
		case errors.As(err, &held):
			r.measure(t)
			r.queue.hold(t, err.Error())
			continue
		case errors.As(err, &shut):
			r.measure(t)
			reason, notBefore = err.Error(), shut.opens
		case ctx.Err() != nil:
			reason = "the node is stopping"
		case errors.As(err, &paused):
			r.measure(t)
			reason = err.Error()
		default:
			reason = err.Error()
			r.metrics.failures.Inc()
			if t.attempts == 0 || t.reason != reason {
				r.log.Info("content that is wanted here could not be brought here: trying again", "repository", r.fullName(t.key), "digest", t.digest, "error", err)
			}
		}
		r.queue.finish(t, reason, notBefore)
		if r.queue.refill() || r.queue.missed(false) {
			r.scans.everything(r.cfg.State.View(), r.cfg.Site)
		}
	}
}

// idleMost bounds a wait: who sets the clock of a machine must not make a window
// open hours late.
const idleMost = time.Minute

// idle waits for something to do; false when ctx ended.
func (r *Reconciler) idle(ctx context.Context, from lane, wait time.Duration) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(min(wait, idleMost))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-due:
	case <-r.queue.lanes[from].wake:
	}
	return true
}

// attempt brings all that a task lacks and that can be had now.
func (r *Reconciler) attempt(ctx context.Context, t *task, from lane) error {
	p, ok := r.relevant(t.pid)
	if !ok {
		return nil // the project went, or left this site
	}
	if t.kind == claimed || t.kind == large || t.kind == kept {
		fetch, promote, err := r.lacking(t.pid, &closure{blobs: []content{{digest: t.digest, size: t.size}}})
		if err != nil {
			return err
		}
		if err := r.bring(ctx, t, fetch, promote, always); err != nil {
			return err
		}
		if t.kind == claimed {
			return r.leaseClaimed(ctx, t)
		}
		if t.kind == large && p.NeedLabels() {
			// Now its annotations can be read.
			return r.arrived(arrival{t.pid, catalog.ManifestRef{Repo: t.repo, Digest: t.digest}})
		}
		return nil
	}
	open := always
	if t.kind == artifact {
		within, end := r.running.begin(ctx, t.key)
		defer end()
		ctx = within
		view, now := r.cfg.State.View(), r.cfg.Now() // before the look, which may see more
		demand, err := r.demandNow(t.key)
		if err != nil || demand.None() {
			return err
		}
		if demand, err = r.unheld(t.key, demand); err != nil {
			return err
		}
		open = (&opening{r: r, k: t.key, view: view, at: now, demand: demand}).ask
		within, stop, err := r.gate.pass(ctx)
		if err != nil {
			return err
		}
		defer stop()
		ctx = within
	}
	fetch, promote, absent, err := r.look(ctx, t.key)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // deleted: nothing is wanted any more
	}
	if err != nil {
		return err
	}
	if from == laneArtifacts && slices.ContainsFunc(fetch, func(b content) bool { return !isSmall(b) }) {
		return errBulk
	}
	begun := r.cfg.Now()
	r.queue.lacks(t, fetch)
	if err := r.bring(ctx, t, fetch, promote, open); err != nil {
		if why := whyHeld(ctx); why != nil {
			return why
		}
		if why := r.gate.why(); why != nil && t.kind == artifact {
			return why
		}
		return err
	}
	if len(absent) > 0 {
		r.waitFor(t.key, absent)
		return fmt.Errorf("%d manifests that it names, %s first, are not known at this site yet", len(absent), absent[0])
	}
	if len(fetch)+len(promote) > 0 {
		r.metrics.artifacts.Inc()
		r.log.Info("brought here", "repository", r.fullName(t.key), "digest", t.digest, "blobs", len(fetch), "took", r.cfg.Now().Sub(begun).Round(time.Millisecond))
	}
	return nil
}

// look finds what of an artifact lacks here: blobs to be fetched, cached copies to be
// promised, and manifests that are not known. catalog.ErrNotFound: it is none any more.
func (r *Reconciler) look(ctx context.Context, k key) (fetch, promote []content, absent []digest.Digest, err error) {
	if err := r.looks.Acquire(ctx, 1); err != nil {
		return nil, nil, nil, err
	}
	defer r.looks.Release(1)
	c, err := r.closure(k.pid, k.repo, k.digest, k.kind == own)
	if err != nil {
		return nil, nil, nil, err
	}
	fetch, promote, err = r.lacking(k.pid, c)
	return fetch, promote, c.absent, err
}

// shutError says that rules want something, and that bytes may not move for them
// now.
type shutError struct {
	rules []string
	opens time.Time
}

func (e *shutError) Error() string {
	return fmt.Sprintf("it waits for the window of rule %s, which opens at %s", strings.Join(e.rules, ", "), e.opens.UTC().Format(time.RFC3339))
}

// errBulk ends an attempt that belongs to another lane.
var errBulk = errors.New("more than small blobs are missing")

// errUnwanted ends an attempt whose artifact nobody wants any more.
var errUnwanted = errors.New("no rule wants it here any more")

// demandNow says at which terms an artifact is wanted here at this moment; none:
// it was deleted, or rules changed.
func (r *Reconciler) demandNow(k key) (rules.Demand, error) {
	p, ok := r.relevant(k.pid)
	if !ok {
		return rules.Demand{}, nil
	}
	m, err := r.cat.Manifest(k.pid, k.repo, k.digest)
	if errors.Is(err, catalog.ErrNotFound) {
		return rules.Demand{}, nil
	}
	if err != nil {
		return rules.Demand{}, err
	}
	return r.demand(p, m)
}

// demandFor is for how long an answer of the rules holds while neither the control
// state nor the time changes it: what changes then is the artifact's entry. It is
// asked for each of its blobs, which may be thousands.
const demandFor = time.Second

// opening says whether bytes may move for one artifact. It is for one goroutine.
type opening struct {
	r    *Reconciler
	k    key
	view *state.View // of which demand is; nil: of none yet
	at   time.Time   // when it was found
	// demand is what people let go on of what rules want.
	demand rules.Demand
}

// ask gives what holds at this moment: *shutError outside of the rules' windows, errUnwanted if
// nobody wants the artifact any more. The limit is that of the rule whose bandwidth
// counts.
func (o *opening) ask() (*swarm.Limit, error) {
	now := o.r.cfg.Now()
	view := o.r.cfg.State.View()
	if age := now.Sub(o.at); o.view != view || age < 0 || age >= demandFor {
		d, err := o.r.demandNow(o.k)
		if err != nil {
			return nil, err
		}
		if d.None() {
			return nil, errUnwanted
		}
		if o.demand, err = o.r.unheld(o.k, d); err != nil {
			return nil, err
		}
		o.view, o.at = view, now
	}
	terms, open, until := o.demand.At(now)
	if !open {
		return nil, &shutError{rules: o.demand.Rules(), opens: until}
	}
	return o.r.limits.of(terms, o.r.cfg.State), nil
}

func always() (*swarm.Limit, error) { return nil, nil }

// bring fetches and promises blobs. It does all that it can before it gives the
// first error: what is here need not come again. Before each blob it asks whether
// bytes may move: when a window closes, those under way come to their end.
func (r *Reconciler) bring(ctx context.Context, t *task, fetch, promote []content, open func() (*swarm.Limit, error)) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed int
		first  error
	)
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed++
		if first == nil {
			first = err
		}
	}
	for _, b := range promote {
		if err := r.promise(ctx, b, t.kind); err != nil {
			note(err)
		}
	}
	larger, small := r.active, r.small
	switch {
	case t.kind.lane() != laneArtifacts: // one blob: its worker is its place
		larger, small = places.New(1, 0, 1), places.New(1, 0, 1)
	case t.lane == laneSlow:
		larger, small = places.New(1, 0, 1), places.New(slowSmall, 0, slowSmall)
	}
	for _, b := range fetch {
		r.cfg.Sync.Expect(b.digest, b.home)
		// Blobs of the artifact that goes first begin first.
		of := larger
		if isSmall(b) {
			of = small
		}
		place, err := of.Take(ctx, t.goes)
		if err != nil {
			note(err)
			break
		}
		limit, err := open()
		if err != nil {
			of.Leave(place)
			wg.Wait()
			return err
		}
		wg.Go(func() {
			defer of.Leave(place)
			defer r.queue.comes(t, b)()
			if err := r.fetch(ctx, t, b, limit); err != nil {
				note(err)
				return
			}
			r.queue.came(t, b.size)
		})
	}
	wg.Wait()
	if failed > 1 {
		return fmt.Errorf("%d blobs are missing; the first: %w", failed, first)
	}
	return first
}

// isSmall: it comes in a batch with others.
func isSmall(b content) bool { return b.size > 0 && b.size <= swarm.SmallBytes }

func (r *Reconciler) fetch(ctx context.Context, t *task, b content, limit *swarm.Limit) error {
	k := t.kind
	err := r.cfg.Swarm.Fetch(ctx, swarm.Want{
		Digest: b.digest, Size: b.size, PID: t.pid, Class: catalog.Placed, Limit: limit,
		Hurry: k.lane() != laneArtifacts, Order: t.goes,
	})
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("blob %s: no site in reach has it", b.digest)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	if k != own && k != claimed {
		return nil // Fetch has made it a placed copy, whoever began
	}
	return r.promise(ctx, b, k)
}

// promise makes a copy one that is kept: placed by a rule, or, for what this
// site accepted, home.
func (r *Reconciler) promise(ctx context.Context, b content, k kind) error {
	class := catalog.Placed
	if k == own || k == claimed {
		class = catalog.Home
	}
	row, err := r.cat.Blob(b.digest)
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	if row.Class == class || row.Class == catalog.Home {
		return nil
	}
	if err := r.cat.SetClass(ctx, b.digest, class); err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	return nil
}

// fullName is how people call a task's repository.
func (r *Reconciler) fullName(k key) string {
	if p, ok := r.cfg.State.View().ProjectByPID(k.pid); ok {
		return p.Name + "/" + k.repo
	}
	return k.pid.String() + "/" + k.repo
}
