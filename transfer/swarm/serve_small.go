package swarm

import (
	"bytes"
	"context"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
)

// answerSmall answers a request for the whole of a small blob, as batches send it,
// by one look into the catalogue. If that gives none, for whatever reason, nothing
// was sent: the request is answered as any.
func (s *server) answerSmall(ctx context.Context, from identity.NodeID, st stream, req *Request, d digest.Digest, project identity.ProjectID, open *openBlob) (sent bool, err error) {
	if s.small == nil || req.Units != 1 || req.FirstUnit != 0 || req.WantRecord || req.UnlessGivenMs != 0 && !req.Swap {
		return false, nil
	}
	if req.WaitMs > 0 && req.AnyOrder && s.landings != nil {
		return s.answerParked(ctx, from, st, req, d, project, open.lot)
	}
	body, _ := s.small(from, d, project)
	if !fitsBatch(body) {
		return false, nil
	}
	head := smallHead(req.Id, body)
	if req.Swap && s.circles != nil {
		now := time.Now()
		s.circles.tell(&open.told, head, project, from, s.circles.enter(project, from, req.Share, now))
		within := time.Duration(req.UnlessGivenMs) * time.Millisecond
		if by, taken := s.circles.claim(project, d, from, within, now); taken {
			head.HasUnit, head.UnitBytes, head.Taken, head.TakenBy = false, 0, true, by[:]
			s.metrics.unitsSpared.Inc()
			return true, s.send(st, head, nil)
		}
	}
	return true, s.sendSmall(ctx, from, st, sentAs(req.Class), head, body)
}

// answerParked answers a request that has patience: at once if the blob is here, or is
// not waited for here; else the stream's lot does.
func (s *server) answerParked(ctx context.Context, from identity.NodeID, st stream, req *Request, d digest.Digest, pid identity.ProjectID, in *lot) (sent bool, err error) {
	wait := min(time.Duration(req.WaitMs)*time.Millisecond, swapPatienceMost)
	p := &parked{id: req.Id, class: sentAs(req.Class), d: d, pid: pid, until: time.Now().Add(wait)}
	waits := in.park(p) // before the look: what lands after it is heard of
	body, allowed, to := s.lookSmall(ctx, from, p)
	if waits {
		if body == nil && allowed && to != toOther {
			return true, nil
		}
		in.take(p)
	}
	switch {
	case fitsBatch(body):
		return true, s.sendSmall(ctx, from, st, p.class, smallHead(p.id, body), body)
	case body != nil || !allowed:
		return false, nil // as any
	}
	return true, s.notYet(st, p, to)
}

// lookSmall looks for a small blob that another receiver waits for. If it is not here,
// to says whether it is brought; nothing is said to who may not have it.
//
// A look into the catalogue costs more than all else here. A blob that is on its way
// is in no store yet, and its bytes, once they were checked, are given from memory.
func (s *server) lookSmall(ctx context.Context, from identity.NodeID, p *parked) (body []byte, allowed bool, to bringing) {
	allowed = p.allowed.Load()
	if body, to = s.soon(p.d, p.pid); to == toNobody {
		var ok bool
		body, ok = s.small(from, p.d, p.pid)
		allowed = allowed || ok
	}
	// Access before existence, and before a wait that would tell of it.
	if !allowed && !s.access(ctx, from, p.d, p.pid) {
		return nil, false, toNobody
	}
	p.allowed.Store(true)
	return body, true, to
}

// notYet ends a wait in vain. It says whether to ask again: the blob, or others of its
// project, are brought here from a holder; or whether it comes from another receiver,
// as two that wait for one another would wait in vain.
func (s *server) notYet(st stream, p *parked, to bringing) error {
	coming := to == toHolder || to == toNobody && s.lively != nil && s.lively(p.pid)
	return s.refuse(st, &Answer{Id: p.id, Status: Status_STATUS_NOT_YET, Reason: "the blob is not here yet", Coming: coming, Taken: to == toOther})
}

// fitsBatch says whether a blob goes whole into one answer.
func fitsBatch(body []byte) bool { return len(body) > 0 && len(body) <= SmallBytes }

// smallHead says that all of a small blob follows.
func smallHead(id uint64, body []byte) *Answer {
	return &Answer{Id: id, Size: int64(len(body)), HasUnit: true, UnitBytes: uint32(len(body)), Last: true}
}

func (s *server) sendSmall(ctx context.Context, to identity.NodeID, st stream, c budget.Class, head *Answer, body []byte) error {
	if err := s.sendUnit(ctx, st, to, c, head, nil, smallBody{bytes.NewReader(body)}, layoutOf(head.Size), 0); err != nil {
		return err
	}
	s.metrics.unitsSent.Inc()
	s.metrics.bytesSent.Add(float64(len(body)))
	return nil
}

// smallBody is a small blob as sendUnit reads it.
type smallBody struct{ *bytes.Reader }

// Close has nothing to let go of.
func (smallBody) Close() error { return nil }

// File is nil: the bytes are in memory.
func (smallBody) File() *os.File { return nil }
