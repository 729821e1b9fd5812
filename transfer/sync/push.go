package sync

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// This file has the questions that pushes of projects with strong tags or with
// durability ask other nodes (transfer/tags).

// Piece is content that a push wants kept.
type Piece struct {
	Digest digest.Digest
	Size   int64
}

// pushHooks answer the questions here.
type pushHooks struct {
	ready func(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string)
	hold  func(ctx context.Context) (underWay int)
	keep  func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (kept []bool, reason string, err error)
}

// OnReady has fn called to tell other nodes whether this one has done its part in
// a switch of a project's tags; if not, why. Call it before Run.
func (s *Sync) OnReady(fn func(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string)) {
	s.pushes.ready = fn
}

// OnKeep has fn called when another node wants this one to keep what is pushed
// there. It answers within seconds. Call it before Run.
func (s *Sync) OnKeep(fn func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (kept []bool, reason string, err error)) {
	s.pushes.keep = fn
}

// OnHold has fn called when another node wants this one to take no pushes for a
// while; it returns how many did not end. Call it before Run.
func (s *Sync) OnHold(fn func(ctx context.Context) (underWay int)) { s.pushes.hold = fn }

// Hold asks a node to take no pushes for some minutes, and returns how many are
// still under way there. The project is one that both sites may have: it holds
// for all.
func (s *Sync) Hold(ctx context.Context, node identity.NodeID, pid identity.ProjectID) (underWay int, err error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Hold{Hold: &HoldRequest{}}})
	return int(a.GetHold().GetUnderWay()), err
}

func (s *Sync) replyHold(ctx context.Context) (*AskResponse, error) {
	out := &HoldResponse{}
	if s.pushes.hold != nil {
		out.UnderWay = uint32(s.pushes.hold(ctx))
	}
	return &AskResponse{Answer: &AskResponse_Hold{Hold: out}}, nil
}

// Ready is one node's answer about a switch.
type Ready struct {
	Ready  bool
	Reason string         // why not
	Vector catalog.Vector // of the project, once it is ready
}

// Ready asks a node whether it has done its part in the switch of a project's
// tags that began at the raft index.
func (s *Sync) Ready(ctx context.Context, node identity.NodeID, pid identity.ProjectID, index uint64) (Ready, error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Ready{Ready: &ReadyRequest{Index: index}}})
	if err != nil {
		return Ready{}, err
	}
	out := Ready{Ready: a.GetReady().GetReady(), Reason: a.GetReady().GetReason()}
	if err := out.Vector.UnmarshalBinary(a.GetReady().GetVector()); err != nil {
		return Ready{}, fmt.Errorf("node %s: %w", node.Short(), err)
	}
	return out, nil
}

func (s *Sync) replyReady(ctx context.Context, pid identity.ProjectID, q *ReadyRequest) (*AskResponse, error) {
	out := &ReadyResponse{Reason: "it does not take part in switches"}
	if s.pushes.ready != nil {
		out.Ready, out.Reason = s.pushes.ready(ctx, pid, q.GetIndex())
	}
	if out.GetReady() {
		// After it became ready nothing is added to what is in here.
		v, err := s.cat.Vector(pid)
		if err != nil {
			return nil, err
		}
		if out.Vector, err = v.MarshalBinary(); err != nil {
			return nil, err
		}
	}
	return &AskResponse{Answer: &AskResponse_Ready{Ready: out}}, nil
}

// Keep asks a node to have content that is pushed here, durably and for a day at
// least. It answers how far that is, in the order of want; ask again until it is
// done.
func (s *Sync) Keep(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (kept []bool, reason string, err error) {
	for len(want) > 0 {
		n := min(askBatch, len(want))
		q := &KeepRequest{Repository: repository}
		for _, p := range want[:n] {
			q.Blobs = append(q.Blobs, p.Digest.String())
			q.Sizes = append(q.Sizes, p.Size)
		}
		want = want[n:]
		a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Keep{Keep: q}})
		if err != nil {
			return nil, "", err
		}
		if len(a.GetKeep().GetKept()) != n {
			return nil, "", fmt.Errorf("node %s answered %d of %d blobs", node.Short(), len(a.GetKeep().GetKept()), n)
		}
		kept = append(kept, a.GetKeep().GetKept()...)
		if reason == "" {
			reason = a.GetKeep().GetReason()
		}
	}
	return kept, reason, nil
}

func (s *Sync) replyKeep(ctx context.Context, from identity.NodeID, pid identity.ProjectID, q *KeepRequest) (*AskResponse, error) {
	if s.pushes.keep == nil || len(q.GetBlobs()) != len(q.GetSizes()) || len(q.GetBlobs()) > askBatch || q.GetRepository() == "" {
		return nil, &refusedError{Refusal_CODE_INVALID, "a request to keep blobs that makes no sense to this version"}
	}
	want := make([]Piece, len(q.GetBlobs()))
	for i, text := range q.GetBlobs() {
		d, err := units.ParseDigest(text)
		if err != nil || q.GetSizes()[i] < 0 {
			return nil, &refusedError{Refusal_CODE_INVALID, fmt.Sprintf("%q of %d bytes is no blob", text, q.GetSizes()[i])}
		}
		want[i] = Piece{Digest: d, Size: q.GetSizes()[i]}
	}
	kept, reason, err := s.pushes.keep(ctx, from, pid, q.GetRepository(), want)
	if err != nil {
		return nil, err
	}
	return &AskResponse{Answer: &AskResponse_Keep{Keep: &KeepResponse{Kept: kept, Reason: reason}}}, nil
}

// Covers asks a node whether its catalogue has everything of a project up to a
// dot of this node's.
func (s *Sync) Covers(ctx context.Context, node identity.NodeID, pid identity.ProjectID, dot catalog.Dot) (bool, error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Cover{Cover: &CoverRequest{Inc: uint64(dot.Inc), Seq: dot.Seq}}})
	return a.GetCover().GetCovers(), err
}

func (s *Sync) replyCover(ctx context.Context, from identity.NodeID, pid identity.ProjectID, q *CoverRequest) (*AskResponse, error) {
	dot := catalog.Dot{Inc: identity.Incarnation(q.GetInc()), Seq: q.GetSeq()}
	v, err := s.cat.Vector(pid)
	if err == nil && !v.Covers(dot) {
		// The hint may have been lost. What the pull brings is synced.
		if l := s.link(from); l != nil {
			awaitLinks(ctx, pid, map[*link]*call{l: l.request(pid)})
		}
		v, err = s.cat.Vector(pid)
	}
	if err != nil {
		return nil, err
	}
	return &AskResponse{Answer: &AskResponse_Cover{Cover: &CoverResponse{Covers: v.Covers(dot)}}}, nil
}
