package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
)

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
	if _, err := r.cat.Announce(ctx, p.PID); err != nil { // what is covered is all that is here
		return "", err
	}
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
