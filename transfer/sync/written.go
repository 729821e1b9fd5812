package sync

import (
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

// Unseen counts the requests of a node, at most, of which it told this one and that
// this one has not seen: what never left it, when it is gone for good and the
// projects were pulled from all others. heard: it told of any.
func (s *Sync) Unseen(node identity.NodeID) (requests uint64, projects int, heard bool, err error) {
	s.mu.Lock()
	var pids []identity.ProjectID
	for pid := range s.unseen[node] {
		pids = append(pids, pid)
	}
	s.mu.Unlock()
	for _, pid := range pids {
		covers, err := s.cat.Vector(pid)
		if err != nil {
			return 0, 0, true, err
		}
		s.mu.Lock()
		u := s.unseen[node][pid]
		n := uint64(0)
		if u != nil { // the node was removed meanwhile
			n = u.Count(covers)
		}
		s.mu.Unlock()
		if n > 0 {
			requests, projects = requests+n, projects+1
		}
	}
	return requests, projects, len(pids) > 0, nil
}
