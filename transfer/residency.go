package transfer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// stepEvery is how often a step that waits for something is tried again.
	stepEvery = time.Second
	// stepAskWithin bounds the question to the other sites whether they have all.
	stepAskWithin = 5 * time.Second
	// stepsAtOnce bounds the projects in work: one whose step takes long must not
	// hold up the others.
	stepsAtOnce = 4
	// tidyEvery is how often what should not be here is looked for: leases of pushes
	// that ended after their project had gone, blobs that a promise has kept.
	tidyEvery = 10 * time.Minute
	// letGoFor is how long a blob of a dropped project is looked out for after it was
	// not here: a transfer that was under way may still bring it.
	letGoFor = time.Hour
	// letGoPage is how many of them are looked at together.
	letGoPage = 1000
	// collectAtOnce blobs are collected together: their rows share transactions, each
	// of which is synced.
	collectAtOnce = 32
)

// ResidencyExchange is what a Residency needs of the catalogue exchange
// (*sync.Sync).
type ResidencyExchange interface {
	TakeIn(ctx context.Context, pid identity.ProjectID) (late []string, err error)
	Dominates(ctx context.Context, node identity.NodeID, pid identity.ProjectID, v catalog.Vector) (bool, error)
	Drop(ctx context.Context, pid identity.ProjectID) error
	OnReason(fn func(identity.ProjectID) string)
}

// Control is the control plane (*consensus.Node).
type Control interface {
	// Propose makes an edit; it returns when this node has applied it.
	Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error)
	// CatchUp returns when the state here has every edit that was answered before.
	CatchUp(ctx context.Context) (uint64, error)
}

// ResidencyConfig is what a Residency needs.
type ResidencyConfig struct {
	Self    identity.NodeID
	Site    string
	State   *state.State
	Store   *store.Store
	Sync    ResidencyExchange
	Control Control
	// Copies tells what only this site holds.
	Copies *Reconciler
	// Settle returns when no write to the catalogue is under way that began under an
	// older state.
	Settle func()
	// Abandon ends what is being fetched here on behalf of the project alone.
	Abandon func(ctx context.Context, pid identity.ProjectID)
	Now     func() time.Time
	Logger  *slog.Logger
}

// Residency carries out what the control state says about where projects may rest:
// it takes in those that this site came into, hands over and lets go of those that
// it leaves, and lets go of those that were deleted for good.
type Residency struct {
	cfg ResidencyConfig
	log *slog.Logger
	cat *catalog.Catalog

	ended chan struct{} // capacity 1: a step ended

	// What Run knows: the raft index up to which it has followed the state, the projects
	// that have a step here, those that are deleted and since when, and since when
	// the first of them is.
	followed  uint64
	todo      map[identity.ProjectID]bool
	deleted   map[identity.ProjectID]time.Time
	purgeFrom time.Time

	steps sync.WaitGroup

	mu      sync.Mutex
	reasons map[identity.ProjectID]string // what a step waits for
	at      map[identity.ProjectID]string // where the last look for last copies stopped
	running map[identity.ProjectID]bool
	tries   map[identity.ProjectID]tries
}

// tries are what was tried in a project; guarded by Residency.mu.
type tries struct {
	again   time.Time // a step that waits is not tried before, but for news
	purged  time.Time // when its purge was last asked for
	settled uint64    // the version of the project for which Settle has returned
}

// NewResidency makes a Residency and hooks it to the exchange; Run starts it.
func NewResidency(cfg ResidencyConfig) *Residency {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Residency{todo: map[identity.ProjectID]bool{}, deleted: map[identity.ProjectID]time.Time{}, cfg: cfg, log: cfg.Logger, cat: cfg.Store.Catalog(), ended: make(chan struct{}, 1),
		reasons: map[identity.ProjectID]string{}, at: map[identity.ProjectID]string{}, running: map[identity.ProjectID]bool{}, tries: map[identity.ProjectID]tries{}}
	cfg.Sync.OnReason(r.Reason)
	return r
}

// Reason says what this site's step in a project waits for; empty: nothing, or it
// has none.
func (r *Residency) Reason(pid identity.ProjectID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reasons[pid]
}

// Run works until ctx ends.
func (r *Residency) Run(ctx context.Context) error {
	defer r.steps.Wait()
	news := true
	for tidied := (time.Time{}); ; {
		changed := r.cfg.State.Changed()
		due := tidyEvery
		if r.begin(ctx, news) {
			due = stepEvery
		}
		news = false
		if now := r.cfg.Now(); now.Sub(tidied).Abs() >= tidyEvery {
			tidied = now
			r.followed = 0 // whatever came of projects that have no step here
			if err := r.tidy(ctx); err != nil && ctx.Err() == nil {
				r.log.Error("what should not be kept at this site could not all be let go: trying again", "error", err)
			}
		}
		t := time.NewTimer(due)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-changed:
			t.Stop()
			news = true
		case <-r.ended:
			t.Stop()
		case <-t.C:
		}
	}
}

// begin starts what is to be done in each project, and reports whether something
// is to be done. A step that waits is tried again when its time has come or, with
// news, at once. One that takes long holds up no other project's. It looks at the
// projects that changed since it was last called, and at those that it knows to
// have a step here.
func (r *Residency) begin(ctx context.Context, news bool) (waits bool) {
	view := r.cfg.State.View()
	if err := r.follow(view); err != nil {
		if !errors.Is(err, catalog.ErrClosed) {
			r.log.Error("what the catalogue has of a project can't be told", "error", err)
		}
		return true
	}
	todo := r.todo
	r.mu.Lock()
	defer r.mu.Unlock()
	over := func(pid identity.ProjectID) bool { return !todo[pid] && !r.running[pid] }
	maps.DeleteFunc(r.reasons, func(pid identity.ProjectID, _ string) bool { return over(pid) })
	maps.DeleteFunc(r.at, func(pid identity.ProjectID, _ string) bool { return over(pid) })
	maps.DeleteFunc(r.tries, func(pid identity.ProjectID, _ tries) bool { return over(pid) })
	now := r.cfg.Now()
	for pid := range todo {
		if again := r.tries[pid].again; r.running[pid] || len(r.running) >= stepsAtOnce || !news && now.Before(again) && again.Sub(now) <= stepEvery {
			continue
		}
		r.running[pid] = true
		r.steps.Go(func() { r.try(ctx, pid) })
	}
	return len(todo) > 0
}

// follow brings todo to what a view says.
func (r *Residency) follow(view *state.View) error {
	for p := range view.ProjectsChangedSince(r.followed) {
		r.todo[p.PID] = true // until it is looked at below
		delete(r.deleted, p.PID)
		if p.Deleted() && !p.Purged() {
			r.deleted[p.PID] = p.DeletedAt
			if r.purgeFrom.IsZero() || p.DeletedAt.Before(r.purgeFrom) {
				r.purgeFrom = p.DeletedAt
			}
		}
	}
	r.followed = view.Index()
	if now := r.cfg.Now(); len(r.deleted) > 0 && now.Sub(r.purgeFrom) >= state.DeletedKeptFor {
		r.purgeFrom = now
		for pid, at := range r.deleted {
			r.todo[pid] = true
			if at.Before(r.purgeFrom) {
				r.purgeFrom = at
			}
		}
	}
	for pid := range r.todo {
		due, err := r.concerned(view, pid)
		if err != nil {
			r.followed = 0 // all of them again
			return err
		}
		if !due {
			delete(r.todo, pid)
		}
	}
	return nil
}

// concerned reports whether a project has a step here.
func (r *Residency) concerned(view *state.View, pid identity.ProjectID) (bool, error) {
	p, ok := view.ProjectByPID(pid)
	if !ok {
		return false, nil
	}
	if view.PurgeDue(p, r.cfg.Now()) || !p.Deleted() && slices.Contains(p.Expelled, r.cfg.Site) {
		return true, nil
	}
	switch p.Residence(r.cfg.Site) {
	case state.Out:
		return r.cat.HasProject(pid)
	case state.Leaving, state.Syncing:
		return !p.Deleted(), nil
	}
	return false, nil
}

// try does a project's step as far as it goes, and keeps why it waits.
func (r *Residency) try(ctx context.Context, pid identity.ProjectID) {
	why, err := r.step(ctx, pid)
	if err != nil {
		why = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, pid)
	switch {
	case why == "" || ctx.Err() != nil:
		delete(r.reasons, pid)
	case why != r.reasons[pid]:
		p, _ := r.cfg.State.View().ProjectByPID(pid)
		r.log.Info("a project's step at this site waits", "project", p.Name, "for", why)
		r.reasons[pid] = why
	}
	x := r.tries[pid]
	x.again = r.cfg.Now().Add(stepEvery)
	r.tries[pid] = x
	select {
	case r.ended <- struct{}{}:
	default:
	}
}

// step does what is to be done in one project; why is what it waits for.
func (r *Residency) step(ctx context.Context, pid identity.ProjectID) (why string, err error) {
	view := r.cfg.State.View()
	p, ok := view.ProjectByPID(pid)
	if !ok {
		return "", nil
	}
	switch {
	case view.PurgeDue(p, r.cfg.Now()):
		return "", r.purge(ctx, p)
	case p.Residence(r.cfg.Site) == state.Out:
		return r.out(ctx, p)
	case p.Deleted():
		return "", nil
	case p.Residence(r.cfg.Site) == state.Leaving:
		return r.leave(ctx, p)
	case p.Residence(r.cfg.Site) == state.Syncing:
		return r.takeIn(ctx, p)
	}
	return "", nil
}
