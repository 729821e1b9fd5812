package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
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
	r := &Residency{cfg: cfg, log: cfg.Logger, cat: cfg.Store.Catalog(), ended: make(chan struct{}, 1),
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
// news, at once. One that takes long holds up no other project's.
func (r *Residency) begin(ctx context.Context, news bool) (waits bool) {
	view := r.cfg.State.View()
	here, err := r.cat.Projects()
	if err != nil {
		if !errors.Is(err, catalog.ErrClosed) {
			r.log.Error("the catalogue's projects can't be listed", "error", err)
		}
		return true
	}
	todo := map[identity.ProjectID]bool{}
	for _, pid := range here {
		if p, ok := view.ProjectByPID(pid); ok && p.Residence(r.cfg.Site) == state.Out {
			todo[pid] = true
		}
	}
	for p := range view.Projects() {
		if slices.Contains(p.Leaving, r.cfg.Site) || slices.Contains(p.Syncing, r.cfg.Site) || slices.Contains(p.Expelled, r.cfg.Site) {
			todo[p.PID] = true
		}
	}
	for p := range view.DeletedProjects() {
		if view.PurgeDue(p, r.cfg.Now()) {
			todo[p.PID] = true
		}
	}
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

// purge ends the time in which a deletion can be taken back. The state judges by
// its own time whether it is over: a clock here that is ahead asks in vain, and
// not often.
func (r *Residency) purge(ctx context.Context, p state.Project) error {
	r.mu.Lock()
	x := r.tries[p.PID]
	early := r.cfg.Now().Sub(x.purged).Abs() < tidyEvery
	if !early {
		x.purged = r.cfg.Now()
		r.tries[p.PID] = x
	}
	r.mu.Unlock()
	if early {
		return nil
	}
	why, err := r.refused(r.propose(ctx, &command.ProjectPurge{Id: p.ID}))
	if why != "" {
		r.log.Debug("a deleted project is not purged", "project", p.Name, "because", why)
	}
	return err
}

func (r *Residency) propose(ctx context.Context, body proto.Message) error {
	_, err := r.cfg.Control.Propose(ctx, "node:"+r.cfg.Self.String(), body)
	return err
}

// refused makes a refusal of the state a reason to look again: another node was
// faster, or the project was edited meanwhile.
func (r *Residency) refused(err error) (string, error) {
	var no *command.Error
	if errors.As(err, &no) {
		return no.Message, nil
	}
	return "", err
}

func (r *Residency) done(ctx context.Context, p state.Project, left bool) (string, error) {
	err := r.propose(ctx, &command.ProjectSiteDone{Id: p.ID, Site: r.cfg.Site, Left: left, IfVersion: p.Version})
	if err == nil {
		r.log.Info("a project's step at this site is done", "project", p.Name, "left", left)
	}
	return r.refused(err)
}

// takeIn brings all that others have of a project here.
func (r *Residency) takeIn(ctx context.Context, p state.Project) (string, error) {
	late, err := r.cfg.Sync.TakeIn(ctx, p.PID)
	switch {
	case err != nil:
		return "", err
	case len(late) > 0:
		return "site " + strings.Join(late, ", ") + " has not yet sent all that it has", nil
	}
	return r.done(ctx, p, false)
}

// leave ends when another site has seen all that this one has, and nothing of it
// is durably here alone.
func (r *Residency) leave(ctx context.Context, p state.Project) (string, error) {
	r.settle(p)
	vector, err := r.cat.Vector(p.PID)
	if err != nil {
		return "", err
	}
	if why := r.covered(ctx, p, vector); why != "" {
		return why, nil
	}
	if why, err := r.lastCopies(ctx, p); why != "" || err != nil {
		return why, err
	}
	if why, err := r.promised(ctx, p); why != "" || err != nil {
		return why, err
	}
	return r.done(ctx, p, true)
}

// settle returns when no write to the project is under way that began before this
// version of it. Once is enough, and it holds up the site's pushes.
func (r *Residency) settle(p state.Project) {
	r.mu.Lock()
	done := r.tries[p.PID].settled == p.Version
	r.mu.Unlock()
	if done {
		return
	}
	r.cfg.Settle()
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.tries[p.PID]
	x.settled = p.Version
	r.tries[p.PID] = x
}

// covered asks the members whether one of them has seen all; else why not.
func (r *Residency) covered(ctx context.Context, p state.Project, vector catalog.Vector) string {
	ctx, cancel := context.WithTimeout(ctx, stepAskWithin)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		yes  bool
		away []string
		more []string
	)
	for _, n := range r.cfg.State.View().Nodes() {
		if n.Witness || n.ID == r.cfg.Self || p.Residence(n.Site) != state.Resident {
			continue
		}
		wg.Go(func() {
			ok, err := r.cfg.Sync.Dominates(ctx, n.ID, p.PID, vector)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				away = append(away, n.Site)
				r.log.Debug("a member does not say whether it has all of a project", "site", n.Site, "project", p.Name, "error", err)
			case ok:
				yes = true
			default:
				more = append(more, n.Site)
			}
		})
	}
	wg.Wait()
	slices.Sort(away)
	slices.Sort(more)
	switch {
	case yes:
		return ""
	case len(more) > 0:
		return "site " + strings.Join(more, ", ") + " has not yet all entries"
	case len(away) > 0:
		return "site " + strings.Join(away, ", ") + " does not answer"
	}
	return "no site has taken the project in yet"
}

// lastCopies looks for what is durably held here alone. It goes on where it last
// found something, and from the beginning once it got to the end from there.
func (r *Residency) lastCopies(ctx context.Context, p state.Project) (string, error) {
	r.mu.Lock()
	at := r.at[p.PID]
	r.mu.Unlock()
	for begun := at; ; {
		a, err := r.cfg.Copies.LastCopies(ctx, LeaveQuestion{Site: r.cfg.Site, Project: p.Name, After: at, For: stepAskWithin})
		switch {
		case errors.Is(err, ErrCursor):
			at, begun = "", ""
			continue
		case err != nil:
			return "", err
		case len(a.Unseen) > 0:
			return "", fmt.Errorf("site %s cannot tell what it holds of project %s", r.cfg.Site, p.Name)
		case len(a.Copies) > 0:
			r.mu.Lock()
			r.at[p.PID] = at
			r.mu.Unlock()
			c := a.Copies[0]
			why := fmt.Sprintf("%s@%s is durably held here alone", c.Repository, c.Digest)
			if n := len(a.Copies) - 1; n > 0 {
				why = fmt.Sprintf("%s@%s and %d more are durably held here alone", c.Repository, c.Digest, n)
			}
			return why, nil
		case a.Next != "":
			at = a.Next
		case begun == "":
			return "", nil
		default:
			at, begun = "", ""
		}
	}
}

// promised: another site accepted a manifest that relies on a blob here, and has
// not fetched it yet.
func (r *Residency) promised(ctx context.Context, p state.Project) (string, error) {
	rows, err := r.cat.PinnedIn(p.PID)
	if err != nil || len(rows) == 0 {
		return "", err
	}
	l := &leaving{r: r.cfg.Copies, q: LeaveQuestion{Site: r.cfg.Site, Project: p.Name}, view: r.cfg.State.View(), quiet: map[string]bool{}}
	all := map[digest.Digest]*copyOf{}
	for _, row := range rows {
		all[row.Digest] = &copyOf{size: row.Size}
	}
	if err := l.askOthers(ctx, p, "", all); err != nil {
		return "", err
	}
	for _, row := range rows {
		if !all[row.Digest].elsewhere {
			return fmt.Sprintf("another site relies on blob %s, and has not fetched it yet", row.Digest), nil
		}
	}
	return "", nil
}

// out lets go of all that is here of a project. The state that says so may be an
// old one: this node may have started a moment ago, and be about to hear that the
// project came back.
func (r *Residency) out(ctx context.Context, p state.Project) (string, error) {
	if _, err := r.cfg.Control.CatchUp(ctx); err != nil {
		return "", err
	}
	p, ok := r.cfg.State.View().ProjectByPID(p.PID)
	if !ok || p.Residence(r.cfg.Site) != state.Out {
		return "", nil
	}
	if err := r.drop(ctx, p); err != nil {
		return "", err
	}
	if slices.Contains(p.Expelled, r.cfg.Site) {
		return r.done(ctx, p, true)
	}
	return "", nil
}

func (r *Residency) drop(ctx context.Context, p state.Project) error {
	r.cfg.Settle()
	if r.cfg.Abandon != nil {
		r.cfg.Abandon(ctx, p.PID)
	}
	if err := r.cfg.Sync.Drop(ctx, p.PID); err != nil {
		return err
	}
	n, err := r.collect(ctx)
	if err == nil {
		r.log.Info("let go of a project that may not rest at this site", "project", p.Name, "blobs", n)
	}
	return err
}

// tidy drops what came of projects after they had gone, and collects what was
// kept by something else.
func (r *Residency) tidy(ctx context.Context) error {
	leased, err := r.cat.LeasedProjects()
	if err != nil {
		return err
	}
	for pid := range leased {
		p, ok := r.cfg.State.View().ProjectByPID(pid)
		r.mu.Lock()
		busy := r.running[pid]
		r.mu.Unlock()
		if !ok || p.Residence(r.cfg.Site) != state.Out || busy {
			continue
		}
		if _, err := r.out(ctx, p); err != nil {
			return err
		}
	}
	_, err = r.collect(ctx)
	return err
}

// collect removes the blobs of dropped projects that nothing else here needs.
func (r *Residency) collect(ctx context.Context) (collected int, err error) {
	after := digest.Digest("")
	for {
		page, err := r.cat.LetGos(after, letGoPage)
		if err != nil || len(page) == 0 {
			return collected, err
		}
		after = page[len(page)-1].Digest
		var over []digest.Digest
		var mu sync.Mutex
		var g errgroup.Group
		g.SetLimit(collectAtOnce)
		for _, l := range page {
			g.Go(func() error {
				ended, took, err := r.collectOne(ctx, l)
				mu.Lock()
				defer mu.Unlock()
				if ended {
					over = append(over, l.Digest)
				}
				if took {
					collected++
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return collected, err
		}
		if err := r.cat.EndLetGo(ctx, over); err != nil {
			return collected, err
		}
	}
}

func (r *Residency) collectOne(ctx context.Context, l catalog.LetGo) (ended, took bool, err error) {
	old := r.cfg.Now().Sub(l.Since).Abs() >= letGoFor
	err = r.cfg.Store.Collect(ctx, l.Digest)
	switch {
	case err == nil:
		return old, true, nil
	case errors.Is(err, store.ErrNotFound):
		return old, false, nil
	case errors.Is(err, catalog.ErrInUse):
		// A reference keeps it as any other blob from now on; a lease or a promise ends.
		named, err := r.cat.Named(l.Digest)
		return named, false, err
	}
	return false, false, err
}
