package sync

import (
	"context"
	"errors"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// headsPerPage keeps a page of heads near 64 KiB.
	headsPerPage = 1024
	// pageMost and pageLeast bound what a peer may ask pages to be aimed at.
	pageMost, pageLeast = 4 << 20, 16 << 10
)

// serveCatalogue answers a peer's questions about the catalogue until the peer
// is done. A stream has one page in memory.
func (s *Sync) serveCatalogue(ctx context.Context, from identity.NodeID, st plane.Stream) {
	for {
		st.SetIdle(s.cfg.keepStream)
		q := new(CatalogueRequest)
		if peer.ReadMsg(st, q, maxQuestion) != nil {
			return
		}
		cameAt := s.cfg.Now()
		st.SetIdle(answerWithin)
		if q.GetPull() != nil {
			if r := s.agreesWith(q.GetHello()); r != nil {
				if s.refuse(st, cameAt, r) != nil {
					return
				}
				continue
			}
		}
		var err error
		switch q := q.GetQuestion().(type) {
		case *CatalogueRequest_Heads:
			err = s.sendHeads(from, st, cameAt)
		case *CatalogueRequest_Pull:
			err = s.sendDelta(ctx, from, st, cameAt, q.Pull)
		default:
			err = s.refuse(st, cameAt, refusal(Refusal_CODE_INVALID, "a question that this version does not know"))
		}
		if err != nil {
			s.log.Debug("an answer to a peer ended early", "node", from, "error", err)
			_ = st.Reset()
			return
		}
	}
}

func (s *Sync) refuse(st plane.Stream, cameAt time.Time, r *Refusal) error {
	return peer.WriteMsg(st, &CatalogueResponse{Hello: s.answer(cameAt), Answer: &CatalogueResponse_Refusal{Refusal: r}}, maxAnswer)
}

// sendHeads lists the projects that both sites may hold.
func (s *Sync) sendHeads(from identity.NodeID, st plane.Stream, cameAt time.Time) error {
	view := s.cfg.State.View()
	if n, ok := view.Node(from); !ok || n.Witness {
		return s.refuse(st, cameAt, refusal(Refusal_CODE_NOT_A_PEER, "the asking node is no content node of this mesh, or not yet known at site "+s.cfg.Site))
	}
	pids, err := s.cat.Projects()
	if err != nil {
		s.log.Error("the catalogue's projects can't be listed", "error", err)
		return s.refuse(st, cameAt, refusal(Refusal_CODE_FAILED, err.Error()))
	}
	page := &HeadsPage{}
	hello := s.answer(cameAt)
	send := func() error {
		err := peer.WriteMsg(st, &CatalogueResponse{Hello: hello, Answer: &CatalogueResponse_Heads{Heads: page}}, maxAnswer)
		page, hello = &HeadsPage{}, nil
		return err
	}
	for _, pid := range pids {
		if s.takes(view, pid, from) != nil {
			continue
		}
		vector, check, err := s.head(pid)
		if err != nil {
			return err
		}
		h := &Head{ProjectId: pid[:], VectorHash: vectorHash(vector), CheckCount: check.Count, CheckXor: check.Xor[:]}
		s.sayWritten(h, pid)
		page.Heads = append(page.Heads, h)
		if len(page.GetHeads()) == headsPerPage {
			if err := send(); err != nil {
				return err
			}
		}
	}
	page.Last = true
	return send()
}

// sendDelta streams what the asker's vector lacks, then the vector noted before.
func (s *Sync) sendDelta(ctx context.Context, from identity.NodeID, st plane.Stream, cameAt time.Time, q *PullRequest) error {
	pid, err := identity.ProjectIDFromBytes(q.GetProjectId())
	if err != nil {
		return s.refuse(st, cameAt, refusal(Refusal_CODE_INVALID, err.Error()))
	}
	var since catalog.Vector
	if err := since.UnmarshalBinary(q.GetVector()); err != nil {
		return s.refuse(st, cameAt, refusal(Refusal_CODE_INVALID, err.Error()))
	}
	if r := s.takes(s.cfg.State.View(), pid, from); r != nil {
		return s.refuse(st, cameAt, r)
	}
	aim := min(max(int(q.GetPageBytes()), pageLeast), pageMost)
	noted, err := s.cat.Delta(ctx, pid, since, aim, func(page catalog.Page) error {
		// A node that was removed, or whose site left the project, gets no more.
		if r := s.takes(s.cfg.State.View(), pid, from); r != nil {
			return refused(r)
		}
		s.metrics.pages.WithLabelValues("out").Inc()
		s.metrics.bytes.WithLabelValues("out").Add(float64(len(page)))
		return peer.WriteMsg(st, &CatalogueResponse{Answer: &CatalogueResponse_Page{Page: &Page{Data: page}}}, maxAnswer)
	})
	var stopped *refusedError
	switch {
	case errors.As(err, &stopped):
		return s.refuse(st, cameAt, refusal(stopped.code, stopped.message))
	case errors.Is(err, catalog.ErrRowsLost):
		s.lostRows(ctx, pid, []any{"pid", pid, "error", err})
		return s.refuse(st, cameAt, refusal(Refusal_CODE_FAILED, err.Error()))
	case errors.Is(err, catalog.ErrAgain):
		return s.refuse(st, cameAt, refusal(Refusal_CODE_FAILED, err.Error()))
	case err != nil:
		return err
	}
	end := &PullEnd{}
	if end.Vector, err = noted.Vector.MarshalBinary(); err != nil {
		return err
	}
	if end.Purged, err = noted.Purged.MarshalBinary(); err != nil {
		return err
	}
	return peer.WriteMsg(st, &CatalogueResponse{Hello: s.answer(cameAt), Answer: &CatalogueResponse_End{End: end}}, maxAnswer)
}
