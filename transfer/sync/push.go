package sync

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// This file has the questions that pushes of projects with strong tags or with
// durability ask other nodes (transfer/tags).

const (
	// keepBatch is how many blobs go into one question to keep them, each of which
	// may be a row to write; keepWithin is how long a node may take for one.
	keepBatch  = 500
	keepWithin = 5 * time.Second
)

// Piece is content that a push wants kept.
type Piece struct {
	Digest digest.Digest
	Size   int64
}

// Kept is how far a node is with content that a push wants kept.
type Kept struct {
	Kept   []bool // in the order of the question; each is durable
	Reason string // why something is not there yet, if that is known
	Done   int64  // bytes that came of blobs which are on their way there
}

// pushHooks answer the questions here.
type pushHooks struct {
	ready func(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string)
	hold  func(ctx context.Context, from identity.NodeID, announced uint64) (Holds, error)
	pin   func() (end func(), wait time.Duration)
	keep  func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (Kept, error)
}

// OnReady has fn called to tell other nodes whether this one has done its part in
// a switch of a project's tags; if not, why. Call it before Run.
func (s *Sync) OnReady(fn func(ctx context.Context, pid identity.ProjectID, index uint64) (bool, string)) {
	s.pushes.ready = fn
}

// OnKeep has fn called when another node wants this one to keep what is pushed
// there. It answers within seconds. Call it before Run.
func (s *Sync) OnKeep(fn func(ctx context.Context, from identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (Kept, error)) {
	s.pushes.keep = fn
}

// OnHold has fn called when another node wants this one to take no pushes for a
// while, by a removal that the control state announces. Call it before Run.
func (s *Sync) OnHold(fn func(ctx context.Context, from identity.NodeID, announced uint64) (Holds, error)) {
	s.pushes.hold = fn
}

// Why a node goes on taking pushes, see Holds.
const (
	HoldsNone    = HoldResponse_REFUSED_NO
	NotAnnounced = HoldResponse_REFUSED_NOT_ANNOUNCED
	NotHeard     = HoldResponse_REFUSED_NOT_HEARD
	ClockOff     = HoldResponse_REFUSED_CLOCK
)

// Holds is a node's answer when it is asked to take no pushes.
type Holds struct {
	UnderWay int    // pushes that began before, and did not end
	Epoch    uint64 // tells one such while from the next
	// Refused is why it goes on taking pushes; HoldsNone: it takes none.
	Refused HoldResponse_Refused
	Off     time.Duration // with ClockOff: its clock, minus the time of the announcement
}

// OnPin has fn called before this node promises blobs to another: end is called
// after it, or there is none for so long. Call it before Run.
func (s *Sync) OnPin(fn func() (end func(), wait time.Duration)) { s.pushes.pin = fn }

// Hold asks a node to take no pushes for some minutes, and returns how many are
// still under way there. The project is one that both sites may have: it holds
// for all. Announced is the raft index at which the removal of its site was; it
// refuses without. If the epoch is another one than an earlier answer's, it took pushes in
// between.
func (s *Sync) Hold(ctx context.Context, node identity.NodeID, pid identity.ProjectID, announced uint64) (Holds, error) {
	a, err := s.ask(ctx, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Hold{Hold: &HoldRequest{Announced: announced}}})
	h := a.GetHold()
	return Holds{UnderWay: int(h.GetUnderWay()), Epoch: h.GetEpoch(), Refused: h.GetRefused(), Off: time.Duration(h.GetOffNs())}, err
}

func (s *Sync) replyHold(ctx context.Context, from identity.NodeID, q *HoldRequest) (*AskResponse, error) {
	out := &HoldResponse{}
	if s.pushes.hold != nil {
		h, err := s.pushes.hold(ctx, from, q.GetAnnounced())
		if err != nil {
			return nil, &refusedError{Refusal_CODE_FAILED, err.Error()}
		}
		out.UnderWay, out.Epoch, out.Refused, out.OffNs = uint32(h.UnderWay), h.Epoch, h.Refused, int64(h.Off)
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
func (s *Sync) Keep(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository string, want []Piece) (out Kept, err error) {
	// Nothing is asked for, too: whether the node is there and takes the project.
	for first := true; first || len(want) > 0; first = false {
		n := min(keepBatch, len(want))
		q := &KeepRequest{Repository: repository}
		for _, p := range want[:n] {
			q.Blobs = append(q.Blobs, p.Digest.String())
			q.Sizes = append(q.Sizes, p.Size)
		}
		want = want[n:]
		once, cancel := context.WithTimeout(ctx, keepWithin)
		a, err := s.ask(once, node, &AskRequest{ProjectId: pid[:], Question: &AskRequest_Keep{Keep: q}})
		late := once.Err() != nil && ctx.Err() == nil
		cancel()
		if late && err != nil {
			return Kept{}, fmt.Errorf("it did not answer within %s", keepWithin)
		}
		if err != nil {
			return Kept{}, err
		}
		if len(a.GetKeep().GetKept()) != n {
			return Kept{}, fmt.Errorf("node %s answered %d of %d blobs", node.Short(), len(a.GetKeep().GetKept()), n)
		}
		out.Kept = append(out.Kept, a.GetKeep().GetKept()...)
		out.Done += a.GetKeep().GetDone()
		if out.Reason == "" {
			out.Reason = a.GetKeep().GetReason()
		}
	}
	return out, nil
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
	k, err := s.pushes.keep(ctx, from, pid, q.GetRepository(), want)
	if err != nil {
		return nil, err
	}
	return &AskResponse{Answer: &AskResponse_Keep{Keep: &KeepResponse{Kept: k.Kept, Reason: k.Reason, Done: k.Done}}}, nil
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
