package sync

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// This file has what a site's coming into a project and leaving it asks of the
// exchange (transfer's residency).

// OnReason has fn called to tell other nodes what the step of this site in a
// project waits for; empty: nothing. Call it before Run.
func (s *Sync) OnReason(fn func(identity.ProjectID) string) { s.onReason = fn }

// Reason asks a node what the step of its site in a project waits for.
func (s *Sync) Reason(ctx context.Context, node identity.NodeID, pid identity.ProjectID) (string, error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Residence{Residence: &ResidenceRequest{}}})
	return a.GetResidence().GetReason(), err
}

func (s *Sync) replyResidence(pid identity.ProjectID) (*AskResponse, error) {
	out := &ResidenceResponse{}
	if s.onReason != nil {
		out.Reason = s.onReason(pid)
	}
	return &AskResponse{Answer: &AskResponse_Residence{Residence: out}}, nil
}

// Dominates asks a node whether its catalogue has all of a project that a vector
// covers, durably.
func (s *Sync) Dominates(ctx context.Context, node identity.NodeID, pid identity.ProjectID, v catalog.Vector) (bool, error) {
	b, err := v.MarshalBinary()
	if err != nil {
		return false, err
	}
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Dominate{Dominate: &DominateRequest{Vector: b}}})
	return a.GetDominate().GetDominates(), err
}

func (s *Sync) replyDominate(ctx context.Context, from identity.NodeID, pid identity.ProjectID, q *DominateRequest) (*AskResponse, error) {
	var want catalog.Vector
	if err := want.UnmarshalBinary(q.GetVector()); err != nil {
		return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
	}
	v, err := s.cat.Vector(pid)
	if err == nil && !v.Dominates(want) {
		if l := s.link(from); l != nil {
			awaitLinks(ctx, pid, map[*link]*call{l: l.request(pid)})
		}
		v, err = s.cat.Vector(pid)
	}
	if err != nil {
		return nil, err
	}
	return &AskResponse{Answer: &AskResponse_Dominate{Dominate: &DominateResponse{Dominates: v.Dominates(want)}}}, nil
}

// TakeIn pulls all that the sites have which hold a project, however long that
// takes. late are those that are in reach and did not give it; none: it is all
// here, as far as anybody in reach has it. err: none of them is in reach.
func (s *Sync) TakeIn(ctx context.Context, pid identity.ProjectID) (late []string, err error) {
	view := s.cfg.State.View()
	p, ok := view.ProjectByPID(pid)
	if !ok || !s.mayRestHere(view, pid) {
		return nil, ErrUnknownProject
	}
	var links []*link
	for _, l := range s.allLinks() {
		r := p.Residence(l.site())
		if (r == state.Resident || r == state.Leaving) && s.shared(view, pid, l.node) == nil {
			links = append(links, l)
		}
	}
	got := len(links) == 0 // nobody has anything
	for len(links) > 0 {
		calls := map[*link]*call{}
		for _, l := range links {
			calls[l] = l.request(pid)
		}
		gave := links[:0:0]
		for l, c := range calls {
			err := waitAll(ctx, []*call{c})
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err == nil {
				got = true
				gave = append(gave, l)
				continue
			}
			// One that answers and does not give it is waited for; it may not know yet that
			// the project may rest here.
			var no *refusedError
			if errors.As(err, &no) || s.nearness(l.node) < outOfReach {
				late = append(late, l.site())
			}
		}
		if len(late) > 0 || len(gave) == len(links) {
			break
		}
		// What one that went meanwhile gave to others first is at them, and may have come
		// there after they gave what they had.
		links = gave
	}
	if !got && len(late) == 0 {
		return nil, fmt.Errorf("no site that has project %s is in reach", p.Name)
	}
	slices.Sort(late)
	return late, nil
}

func (s *Sync) isDropping(pid identity.ProjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropping[pid]
}

// Drop removes all that the catalogue here has of a project. Meanwhile nothing of
// it is taken in: what a pull brings must not be dropped after its vector was
// taken over. The caller sees to it that nobody writes to the project. It is
// several transactions, and is repeated after a crash.
func (s *Sync) Drop(ctx context.Context, pid identity.ProjectID) error {
	s.mu.Lock()
	s.dropping[pid] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.dropping, pid)
		s.mu.Unlock()
	}()
	var calls []*call
	for _, l := range s.allLinks() {
		// It begins after the one that is under way, and is refused.
		calls = append(calls, l.request(pid))
	}
	for _, c := range calls {
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.cat.DropProject(ctx, pid); err != nil {
		return err
	}
	for _, l := range s.allLinks() {
		l.forget(pid)
	}
	return nil
}

// forget makes the link ask for all of a project at the next chance.
func (l *link) forget(pid identity.ProjectID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, pid)
	delete(l.suspect, pid)
	delete(l.times, pid)
}

// Seen asks a node how far it has seen the writes of a vector's incarnations.
func (s *Sync) Seen(ctx context.Context, node identity.NodeID, pid identity.ProjectID, of catalog.Vector) (v catalog.Vector, err error) {
	b, err := of.MarshalBinary()
	if err != nil {
		return nil, err
	}
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Seen{Seen: &SeenRequest{Vector: b}}})
	if err != nil {
		return nil, err
	}
	return v, v.UnmarshalBinary(a.GetSeen().GetVector())
}

func (s *Sync) replySeen(pid identity.ProjectID, q *SeenRequest) (*AskResponse, error) {
	var of catalog.Vector
	if err := of.UnmarshalBinary(q.GetVector()); err != nil {
		return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
	}
	v, err := s.cat.Vector(pid)
	if err != nil {
		return nil, err
	}
	for inc, seq := range of {
		if v[inc] == 0 {
			delete(of, inc)
			continue
		}
		of[inc] = min(seq, v[inc])
	}
	out := &SeenResponse{}
	if out.Vector, err = of.MarshalBinary(); err != nil {
		return nil, err
	}
	return &AskResponse{Answer: &AskResponse_Seen{Seen: out}}, nil
}
