package transfer

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// leavePage is how many manifests are looked at together: with their blobs they
	// fit into one or two questions to each site.
	leavePage = 256
	// maxLeaveCopies bounds the copies of one answer, and with them its size.
	maxLeaveCopies = 200
)

// LeaveQuestion asks what only one site holds.
type LeaveQuestion struct {
	Site string
	// Lost: the site does not answer any more. What it had is told by its feed, as
	// far as it was read, and by the manifests that it accepted.
	Lost bool
	// After is where the last answer ended; empty: begin.
	After string
	// For bounds the answer's time, about.
	For time.Duration
	// Project is the only one to look at, which the site leaves; empty: all. The site
	// goes on taking pushes to others, and, until it leaves, to this one.
	Project string
	// Announced is the raft index at which this removal was announced. Not for a lost
	// site, nor for one project.
	Announced uint64
}

// LastCopy is an image of which the site holds something that no other site
// durably has.
type LastCopy struct {
	Repository string // in full
	Digest     digest.Digest
	Tags       []string // some of them
	// Content is what no other site has: the image's manifest, its blobs.
	Content []digest.Digest
	Bytes   int64
	// Cached are other sites that hold some of it, only because it was pulled
	// there; Silent are sites that may hold some of it and did not answer.
	Cached, Silent []string
	// Deleted: its project is, and can be restored until its content goes.
	Deleted bool
}

// Unseen is a project that may not rest at this site: what the leaving site
// holds of it can be told at Sites alone.
type Unseen struct {
	Project string
	Sites   []string
}

// NeverLeft is what a lost site said that it wrote and that no other site has, as far
// as they could be asked: pushes and deletes, of content that is unknown.
type NeverLeft struct {
	Requests uint64 // at most, of those that it told of
	Projects int
	// Heard are the sites that it told of any, since they were started; none: whether
	// something is lost is not known.
	Heard []string
	// Silent did not answer: it may have told them of more.
	Silent []string
}

// LeaveAnswer is one part of the answer.
type LeaveAnswer struct {
	Copies    []LastCopy
	Manifests int        // looked at for this part
	NeverLeft *NeverLeft // with the last part about a lost site
	Unseen    []Unseen
	// Next continues; empty: this was the last part.
	Next string
	// Anew: the leaving site took pushes since the part before, so that the walk
	// began again, and this is its first part: what came before it is void.
	Anew bool
}

// leaveCursor is where a walk over projects, repositories and manifests is.
type leaveCursor struct {
	Project    string        `json:"p"`
	Repository string        `json:"r,omitempty"`
	Digest     digest.Digest `json:"d,omitempty"`
	Epoch      uint64        `json:"e,omitempty"` // of the hold of pushes
}

func (c leaveCursor) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		return "" // three strings always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ErrCursor is returned for a LeaveQuestion.After that was not answered before.
var ErrCursor = errors.New("this is not where an answer ended: begin anew")

func parseLeaveCursor(s string) (c leaveCursor, err error) {
	if s == "" {
		return c, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || json.Unmarshal(b, &c) != nil {
		return c, ErrCursor
	}
	return c, nil
}

// leaving is one LastCopies.
type leaving struct {
	r     *Reconciler
	q     LeaveQuestion
	view  *state.View
	node  state.Node // of the leaving site
	end   time.Time
	out   LeaveAnswer
	mu    sync.Mutex
	held  bool            // the leaving site takes no pushes
	epoch uint64          // since when; 0: it is not asked
	quiet map[string]bool // sites that did not answer: they are not waited for again
}

// LastCopies goes through all that the catalogue here knows, in parts, and asks
// every other site for its durable word about what the leaving site holds. Until
// some minutes after the last part the leaving site takes no pushes. A
// copy that is only cached elsewhere does not count: it may go at any moment.
// What no manifest names (uploads under way) is not content yet, and left out.
func (r *Reconciler) LastCopies(ctx context.Context, q LeaveQuestion) (LeaveAnswer, error) {
	at, err := parseLeaveCursor(q.After)
	if err != nil {
		return LeaveAnswer{}, err
	}
	l := &leaving{r: r, q: q, view: r.cfg.State.View(), end: r.cfg.Now().Add(q.For), quiet: map[string]bool{}}
	for _, n := range l.view.NodesOf(q.Site) {
		if !n.Witness {
			l.node = n
		}
	}
	if l.node.ID.IsZero() {
		return l.out, nil // it holds no content
	}
	again, err := l.walk(ctx, at)
	if again {
		l.out = LeaveAnswer{Anew: true}
		_, err = l.walk(ctx, leaveCursor{})
	}
	if err == nil && q.Lost && q.Project == "" && l.out.Next == "" {
		l.out.NeverLeft, err = l.neverLeft(ctx)
	}
	return l.out, err
}

// walk goes on where another part ended. again: not so, for the leaving site took
// pushes meanwhile, of anything.
func (l *leaving) walk(ctx context.Context, at leaveCursor) (again bool, err error) {
	r, q := l.r, l.q
	for _, p := range l.projects() {
		if p.Name < at.Project || !p.Residence(q.Site).Holds() || q.Project != "" && p.Name != q.Project {
			continue
		}
		if q.Site != r.cfg.Site && !l.view.MayRest(p, r.cfg.Site) {
			others := slices.DeleteFunc(slices.Clone(p.Sites), func(s string) bool { return s == q.Site })
			l.out.Unseen = append(l.out.Unseen, Unseen{Project: p.Name, Sites: others})
			continue
		}
		from := leaveCursor{Project: p.Name}
		if p.Name == at.Project {
			from = at
		}
		// Before anything is looked at, and anew in each part.
		if err := l.hold(ctx, p); err != nil {
			return false, err
		}
		if at.Epoch != 0 && at.Epoch != l.epoch {
			return true, nil
		}
		more, err := l.project(ctx, p, from)
		if err != nil || more != nil {
			if more != nil {
				more.Epoch = l.epoch
				l.out.Next = more.String()
			}
			return false, err
		}
	}
	// The project in which the last part ended is gone, and with it the question.
	return at.Epoch != 0 && !l.held, nil
}

// projects lists all whose content is there, by name: also those that are deleted
// and can be restored still. Of images that were deleted nothing can come back, so
// nobody looks for what they alone referred to.
func (l *leaving) projects() []state.Project {
	all := slices.Collect(l.view.Projects())
	all = slices.AppendSeq(all, l.view.DeletedProjects())
	slices.SortFunc(all, func(a, b state.Project) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// hold has the leaving site take no pushes from now on, so that what is found
// here is still true when the site is removed.
func (l *leaving) hold(ctx context.Context, p state.Project) error {
	if l.q.Lost || l.held || l.q.Project != "" {
		return nil
	}
	if site, _ := l.view.Site(l.q.Site); !site.Announces(l.q.Announced, l.r.cfg.Now()) {
		return ErrNotAnnounced
	}
	once, cancel := context.WithTimeout(ctx, askSiteWithin)
	defer cancel()
	h, err := l.r.cfg.Sync.Hold(once, l.node.ID, p.PID, l.q.Announced)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // whoever asked is gone: it says nothing of the site
	case err != nil:
		return l.noAnswer(err)
	case h.Refused == syncer.NotHeard:
		return &UnheardError{l.q.Site}
	case h.Refused == syncer.ClockOff:
		return &ClockError{l.q.Site, h.Off}
	case h.Refused != syncer.HoldsNone:
		return ErrNotAnnounced
	case h.UnderWay > 0:
		return &PushingError{l.q.Site, h.UnderWay}
	}
	l.held, l.epoch = true, h.Epoch
	return nil
}

// notSent says what it means that the leaving site did not send its newest entries.
func (l *leaving) notSent(ctx context.Context, p state.Project) error {
	once, cancel := context.WithTimeout(ctx, askSiteWithin)
	defer cancel()
	_, err := l.r.cfg.Sync.Hold(once, l.node.ID, p.PID, l.q.Announced) // which anybody answers who is there
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return l.noAnswer(err)
	}
	return &UnwillingError{l.q.Site, fmt.Errorf("it did not send its newest entries of project %s in time", p.Name)}
}

// shared returns once another site has all that was written here of a project, which
// leaves: nobody pulls from here after the site is gone. What only this site may hold
// is nobody else's to have.
func (l *leaving) shared(ctx context.Context, p state.Project) error {
	if _, err := l.r.cat.Announce(ctx, p.PID); err != nil { // what is covered is all that is here
		return err
	}
	mine, err := l.r.cat.Vector(p.PID)
	if err != nil {
		return fmt.Errorf("vector of %s: %w", p.Name, err)
	}
	once, cancel := context.WithTimeout(ctx, askSiteWithin)
	defer cancel()
	var (
		wg     sync.WaitGroup
		others int
		has    atomic.Bool
	)
	for _, n := range l.view.Nodes() {
		if n.Witness || n.Site == l.q.Site || !l.view.MayRest(p, n.Site) || len(mine) == 0 {
			continue
		}
		others++
		wg.Go(func() {
			if all, err := l.r.cfg.Sync.Dominates(once, n.ID, p.PID, mine); err == nil && all {
				has.Store(true)
				cancel() // one is enough
			}
		})
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case others > 0 && !has.Load():
		return &UnsharedError{l.q.Site, p.Name}
	}
	return nil
}

// project goes through one project; more is where it stopped, nil at its end.
func (l *leaving) project(ctx context.Context, p state.Project, at leaveCursor) (more *leaveCursor, err error) {
	if at.Repository == "" && l.q.Site != l.r.cfg.Site {
		// What the leaving site accepted a moment ago counts, too.
		silent, err := l.r.cfg.Sync.PullProject(ctx, p.PID)
		if err != nil {
			return nil, err
		}
		if !l.q.Lost && slices.Contains(silent, l.q.Site) {
			return nil, l.notSent(ctx, p)
		}
	}
	if at.Repository == "" && l.q.Site == l.r.cfg.Site && l.q.Project == "" {
		if err := l.shared(ctx, p); err != nil {
			return nil, err
		}
	}
	repos, err := l.repositories(p, at.Repository)
	if err != nil {
		return nil, err
	}
	for _, repo := range repos {
		after := digest.Digest("")
		if repo == at.Repository {
			after = at.Digest
		}
		for {
			page, err := l.r.cat.Manifests(p.PID, repo, after, leavePage)
			if err != nil {
				return nil, fmt.Errorf("manifests of %s/%s: %w", p.Name, repo, err)
			}
			if len(page) == 0 {
				break
			}
			if err := l.look(ctx, p, repo, page); err != nil {
				return nil, err
			}
			after = page[len(page)-1].Digest
			if len(l.out.Copies) >= maxLeaveCopies || !l.r.cfg.Now().Before(l.end) {
				return &leaveCursor{Project: p.Name, Repository: repo, Digest: after}, nil
			}
			if len(page) < leavePage {
				break
			}
		}
	}
	return nil, nil
}

// repositories lists a project's, from one on.
func (l *leaving) repositories(p state.Project, from string) ([]string, error) {
	var all []string
	if from != "" {
		all = append(all, from)
	}
	for after := from; ; {
		part, err := l.r.cat.Repositories(p.PID, after, scanPage)
		if err != nil {
			return nil, fmt.Errorf("repositories of %s: %w", p.Name, err)
		}
		all = append(all, part...)
		if len(part) < scanPage {
			return all, nil
		}
		after = part[len(part)-1]
	}
}
