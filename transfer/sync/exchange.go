package sync

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// maxHeads bounds what a peer may list: more projects than a mesh can have.
const maxHeads = 1 << 20

// vectorHash is equal for equal vectors.
func vectorHash(v catalog.Vector) uint64 {
	b, _ := v.MarshalBinary() // never fails
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// suspect is a project whose vector is equal here and at the peer while the
// checks are not.
type suspect struct{ ours, theirs catalog.Check }

const (
	// stubborn is after how many equal comparisons of unequal checks, one a poll, a
	// side that lost nothing itself pulls the project anew all the same: what the
	// other lost may have been missing from what came from it, too.
	stubborn = 5
	// anewEvery bounds how often that is done for one project.
	anewEvery = 12 * time.Hour
)

// exchangeHeads asks the peer how far it is with each project and asks for pulls
// of those in which it may be ahead.
func (l *link) exchangeHeads(ctx context.Context, t *talk) ([]*call, error) {
	var heads []*Head
	q := &CatalogueRequest{Hello: l.s.hello(), Question: &CatalogueRequest_Heads{Heads: &HeadsRequest{}}}
	err := t.ask(ctx, q, func(st plane.Stream) error {
		heads = nil
		for first := true; ; first = false {
			a := new(CatalogueResponse)
			if err := peer.ReadMsg(st, a, maxAnswer); err != nil {
				return err
			}
			if first {
				l.measured(q.GetHello(), a.GetHello())
			}
			if r := a.GetRefusal(); r != nil {
				return refused(r)
			}
			if a.GetHeads() == nil {
				return errors.New("the peer answered something else than heads")
			}
			heads = append(heads, a.GetHeads().GetHeads()...)
			if a.GetHeads().GetLast() {
				return nil
			}
			if len(heads) > maxHeads {
				return &localError{fmt.Errorf("the peer lists more than %d projects", maxHeads)}
			}
		}
	})
	if err != nil {
		return nil, err
	}
	view := l.s.cfg.State.View()
	var calls []*call
	for _, h := range heads {
		pid, err := identity.ProjectIDFromBytes(h.GetProjectId())
		if err != nil {
			return nil, err
		}
		if _, known := view.ProjectByPID(pid); !known {
			l.s.park(pid)
			continue
		}
		if l.s.takesFrom(pid, l.node) != nil {
			continue
		}
		l.s.hearWritten(l.node, pid, h)
		if c := l.compare(ctx, pid, h); c != nil {
			calls = append(calls, c)
		}
	}
	return calls, nil
}

// compare asks for a pull unless the head shows that there is nothing to pull.
func (l *link) compare(ctx context.Context, pid identity.ProjectID, h *Head) *call {
	vector, check, err := l.s.head(pid)
	if err != nil {
		l.s.log.Warn("a project's head can't be read", "pid", pid, "error", err)
		return nil
	}
	theirs := catalog.Check{Count: h.GetCheckCount()}
	copy(theirs.Xor[:], h.GetCheckXor())
	l.mu.Lock()
	seen, pulled := l.seen[pid]
	before, suspected := l.suspect[pid]
	now := suspect{ours: check, theirs: theirs}
	equal := vectorHash(vector) == h.GetVectorHash()
	unequalChecks := equal && check != theirs
	if unequalChecks {
		if before != now {
			l.times[pid] = 0
		}
		l.suspect[pid] = now
		l.times[pid]++
	} else {
		delete(l.suspect, pid)
		delete(l.times, pid)
	}
	times := l.times[pid]
	l.mu.Unlock()
	switch {
	case unequalChecks && suspected && before == now:
		// Twice the same: no exchange under way explains it.
		return l.recount(ctx, pid, now, times)
	case equal, pulled && seen == h.GetVectorHash():
		return nil
	}
	return l.request(pid)
}

// recount finds out which side lost rows (rule 7). The peer does the same by its
// own exchange.
func (l *link) recount(ctx context.Context, pid identity.ProjectID, sus suspect, times int) *call {
	l.s.metrics.mismatch.Inc()
	stored, counted, err := l.s.cat.Recount(ctx, pid)
	if err != nil {
		l.s.log.Error("a project could not be recounted", "pid", pid, "error", err)
		return nil
	}
	attrs := []any{
		"pid", pid, "node", l.node, "site", l.site(),
		"entries_here", sus.ours.Count, "entries_there", sus.theirs.Count,
		"check_here", hex.EncodeToString(sus.ours.Xor[:4]), "check_there", hex.EncodeToString(sus.theirs.Xor[:4]),
	}
	if stored == counted {
		given, err := l.s.cat.Announce(ctx, pid)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			l.s.log.Error("peers can't be told to come for entries of a project: trying again when they are compared again", "pid", pid, "error", err)
			return nil
		case given:
			l.s.log.Info("this catalogue has entries of a project that its vector does not say: peers are told to come for them", attrs...)
			return nil
		}
		if times < stubborn || !l.s.mayPullAnew(pid) {
			l.s.log.Warn("a peer's catalogue differs although both have seen the same writes: the peer lost rows, or is about to find out that it did not", attrs...)
			return nil
		}
	}
	if !l.s.lostRows(ctx, pid, append(attrs, "counted", counted.Count)) {
		return nil
	}
	return l.request(pid)
}

// mayPullAnew says whether a project that goes on differing from a peer's may be
// pulled anew now, and notes that it is.
func (s *Sync) mayPullAnew(pid identity.ProjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for old, at := range s.anew {
		if now.Sub(at) > anewEvery {
			delete(s.anew, old)
		}
	}
	if _, lately := s.anew[pid]; lately {
		return false
	}
	s.anew[pid] = now
	return true
}

// head reads a vector and the check that goes with it.
func (s *Sync) head(pid identity.ProjectID) (catalog.Vector, catalog.Check, error) {
	v, err := s.cat.Vector(pid)
	if err != nil {
		return nil, catalog.Check{}, err
	}
	// A write in between gives a check that is newer than the vector; a mismatch
	// counts only when it is seen twice.
	c, err := s.cat.Check(pid)
	return v, c, err
}

// pull takes in what the peer has of a project beyond this catalogue's vector.
func (l *link) pull(ctx context.Context, t *talk, pid identity.ProjectID) (err error) {
	s := l.s
	if r := s.takesFrom(pid, l.node); r != nil {
		return refused(r)
	}
	if err := l.clocksAgree(); err != nil {
		return fmt.Errorf("pull project %s: %w", pid, err)
	}
	defer s.courteous(ctx, pid)()
	defer func() {
		for _, fn := range s.onPulled {
			fn(pid)
		}
	}()
	defer func() { s.metrics.pulls.WithLabelValues(outcome(err)).Inc() }()
	x, err := s.cat.Receive(pid)
	if err != nil {
		return fmt.Errorf("pull project %s: %w", pid, err)
	}
	defer x.End()
	encoded, err := x.Since().MarshalBinary()
	if err != nil {
		return err
	}
	q := &CatalogueRequest{Hello: s.hello(), Question: &CatalogueRequest_Pull{Pull: &PullRequest{
		ProjectId: pid[:], Vector: encoded, PageBytes: pageBytes,
	}}}
	err = t.ask(ctx, q, func(st plane.Stream) error {
		end, err := l.takeAll(ctx, st, pid, x)
		if err != nil {
			return err
		}
		return l.adopt(ctx, pid, x, end)
	})
	if err != nil {
		return fmt.Errorf("pull project %s from site %s: %w", pid, l.site(), err)
	}
	return nil
}

// takeAll takes in all pages of an answer and gives its end. While one page
// becomes durable the next one comes and is checked: more is not read ahead, so
// that no more than three pages of a pull are in memory.
func (l *link) takeAll(ctx context.Context, st plane.Stream, pid identity.ProjectID, x *catalog.Receiving) (*PullEnd, error) {
	ahead := make(chan readPage)
	var taking errgroup.Group
	failed := make(chan struct{})
	taking.Go(func() error {
		for p := range ahead {
			if err := l.take(ctx, pid, x, p); err != nil {
				close(failed)
				_ = st.Reset() // whoever reads has to hear of it
				return &localError{err}
			}
		}
		return nil
	})
	end, err := readPages(st, x, func(p readPage) bool {
		select {
		case ahead <- p:
			return true
		case <-failed:
			return false
		}
	})
	close(ahead)
	// A page that could not be taken in is why nothing could be read any more.
	if failure := taking.Wait(); failure != nil {
		return nil, failure
	}
	return end, err
}

// readPage is a page that came and was checked, and its length.
type readPage struct {
	page  catalog.Checked
	bytes int
}

// readPages reads an answer to a pull until its end, or until a page is not taken.
func readPages(st plane.Stream, x *catalog.Receiving, taken func(readPage) bool) (*PullEnd, error) {
	for {
		a := new(CatalogueResponse)
		if err := peer.ReadMsg(st, a, maxAnswer); err != nil {
			return nil, err
		}
		switch a := a.GetAnswer().(type) {
		case *CatalogueResponse_Refusal:
			return nil, refused(a.Refusal)
		case *CatalogueResponse_Page:
			p, err := x.Check(a.Page.GetData())
			if err != nil {
				return nil, &localError{err}
			}
			if !taken(readPage{p, len(a.Page.GetData())}) {
				return nil, errNotTaken
			}
		case *CatalogueResponse_End:
			return a.End, nil
		default:
			return nil, errors.New("the peer answered something else than pages")
		}
	}
}

// errNotTaken ends the reading of an answer of which a page failed.
var errNotTaken = errors.New("a page could not be taken in")

// takesFrom says whether this site may be sent what a node has of a project.
func (s *Sync) takesFrom(pid identity.ProjectID, node identity.NodeID) *Refusal {
	view := s.cfg.State.View()
	if r := s.shared(view, pid, node); r != nil {
		return r
	}
	if !s.mayRestHere(view, pid) {
		return refusal(Refusal_CODE_RESIDENCY, "the project leaves this site")
	}
	if s.isDropping(pid) {
		return refusal(Refusal_CODE_RESIDENCY, "this site lets go of what it had of the project before")
	}
	return nil
}

// take applies one page. Rights to hold the project are checked again for each:
// a long pull may outlive them.
func (l *link) take(ctx context.Context, pid identity.ProjectID, x *catalog.Receiving, p readPage) error {
	s := l.s
	if r := s.takesFrom(pid, l.node); r != nil {
		return refused(r)
	}
	s.metrics.pages.WithLabelValues("in").Inc()
	s.metrics.bytes.WithLabelValues("in").Add(float64(p.bytes))
	applied, err := x.Take(ctx, p.page)
	if err != nil {
		return err
	}
	for _, fn := range s.onApplied {
		fn(pid, applied)
	}
	return nil
}

// adopt takes the sender's vector over: all that it covers is here now.
func (l *link) adopt(ctx context.Context, pid identity.ProjectID, x *catalog.Receiving, end *PullEnd) error {
	var noted catalog.Noted
	if err := errors.Join(noted.Vector.UnmarshalBinary(end.GetVector()), noted.Purged.UnmarshalBinary(end.GetPurged())); err != nil {
		return &localError{err}
	}
	err := x.Adopt(ctx, noted)
	// Also when the exchange has to be repeated: what a part of a list left out is gone.
	if retagged := x.Retagged(); len(retagged) > 0 {
		for _, fn := range l.s.onApplied {
			fn(pid, catalog.Applied{Retagged: retagged})
		}
	}
	if err != nil {
		return &localError{err}
	}
	l.mu.Lock()
	l.seen[pid] = vectorHash(noted.Vector)
	l.mu.Unlock()
	return nil
}

// courteous waits, a little, while the same project is pulled from another peer,
// and holds the others up, a little, until the function it returns is called.
func (s *Sync) courteous(ctx context.Context, pid identity.ProjectID) (done func()) {
	mine := make(chan struct{})
	most := time.NewTimer(courtesy)
	defer most.Stop()
	for {
		s.mu.Lock()
		other := s.pulling[pid]
		if other == nil {
			s.pulling[pid] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.pulling, pid)
				s.mu.Unlock()
				close(mine)
			}
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-most.C:
			return func() {}
		case <-ctx.Done():
			return func() {}
		}
	}
}
