package sync

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// maxUnseen bounds the projects of which a node's word is kept, for each node.
const maxUnseen = maxHeads

// sayWritten puts into a head what this site wrote itself, so that others can tell,
// when it is gone for good, how much of it they never saw.
func (s *Sync) sayWritten(h *Head, pid identity.ProjectID) {
	if w := s.cat.Written(pid); w.Count > 0 {
		h.WrittenInc, h.WrittenSeq, h.Written = uint64(w.Dot.Inc), w.Dot.Seq, w.Count
	}
}

// hearWritten notes what a node says in a head.
func (s *Sync) hearWritten(from identity.NodeID, pid identity.ProjectID, h *Head) {
	if h.GetWritten() == 0 {
		return
	}
	covers, err := s.cat.Vector(pid)
	if err != nil {
		return // it says so again with the next head
	}
	w := catalog.Written{Dot: catalog.Dot{Inc: identity.Incarnation(h.GetWrittenInc()), Seq: h.GetWrittenSeq()}, Count: h.GetWritten()}
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.unseen[from]
	if of == nil {
		of = map[identity.ProjectID]*catalog.Unseen{}
		s.unseen[from] = of
	}
	u := of[pid]
	if u == nil {
		if len(of) >= maxUnseen {
			return
		}
		u = new(catalog.Unseen)
		of[pid] = u
	}
	u.Hear(w, covers)
}

// Word is what a node heard of another one's requests in a project.
type Word struct {
	PID identity.ProjectID
	catalog.Word
}

// wordsPerAnswer bounds one answer to about 200 KiB. All words of a project are in one
// answer, so that it may be more by those of a project (catalog.Unseen bounds them).
const wordsPerAnswer = 4096

// Words asks a node what it heard of the requests of another one, that is lost, since
// it was started. It keeps what concerns projects that may rest at its site.
func (s *Sync) Words(ctx context.Context, node, about identity.NodeID) (out []Word, err error) {
	for q := (&WordsRequest{NodeId: about[:]}); ; {
		a, err := s.ask(ctx, node, &AskRequest{Question: &AskRequest_Words{Words: q}})
		if err != nil {
			return nil, err
		}
		words := a.GetWords().GetWords()
		for _, w := range words {
			pid, err := identity.ProjectIDFromBytes(w.GetProjectId())
			if err != nil {
				return nil, fmt.Errorf("node %s: %w", node.Short(), err)
			}
			out = append(out, Word{pid, catalog.Word{Inc: identity.Incarnation(w.GetInc()), Seq: w.GetSeq(), Count: w.GetCount(), Seen: w.GetSeen()}})
		}
		if !a.GetWords().GetMore() {
			return out, nil
		}
		if len(words) == 0 || bytes.Compare(words[len(words)-1].GetProjectId(), q.GetAfter()) <= 0 || len(out) > maxUnseen {
			return nil, fmt.Errorf("node %s goes on without an end", node.Short())
		}
		q.After = words[len(words)-1].GetProjectId()
	}
}

// replyWords tells any content node: they are numbers of projects whose names all know.
func (s *Sync) replyWords(view *state.View, from identity.NodeID, q *WordsRequest) (*AskResponse, error) {
	if n, ok := view.Node(from); !ok || n.Witness {
		return nil, &refusedError{Refusal_CODE_NOT_A_PEER, "the asking node is no content node of this mesh"}
	}
	about, err := identity.NodeIDFromBytes(q.GetNodeId())
	if err != nil {
		return nil, &refusedError{Refusal_CODE_INVALID, err.Error()}
	}
	s.mu.Lock()
	var pids []identity.ProjectID
	for pid := range s.unseen[about] {
		if bytes.Compare(pid[:], q.GetAfter()) > 0 {
			pids = append(pids, pid)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(pids, func(x, y identity.ProjectID) int { return bytes.Compare(x[:], y[:]) })
	out := new(WordsResponse)
	for _, pid := range pids {
		if len(out.GetWords()) >= wordsPerAnswer {
			out.More = true
			break
		}
		covers, err := s.cat.Vector(pid)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		if u := s.unseen[about][pid]; u != nil { // the node may have been removed meanwhile
			for _, w := range u.Words(covers) {
				out.Words = append(out.Words, &HeardWord{ProjectId: pid[:], Inc: uint64(w.Inc), Seq: w.Seq, Count: w.Count, Seen: w.Seen})
			}
		}
		s.mu.Unlock()
	}
	return &AskResponse{Answer: &AskResponse_Words{Words: out}}, nil
}
