package swarm

import (
	"bytes"
	"context"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer"
)

// answerSmall answers a request for the whole of a small blob, as batches send it,
// by one look into the catalogue. If that gives none, for whatever reason, nothing
// was sent: the request is answered as any.
func (s *server) answerSmall(ctx context.Context, from identity.NodeID, st stream, req *Request, d digest.Digest, project identity.ProjectID, open *openBlob) (sent bool, err error) {
	if s.small == nil || req.Units != 1 || req.FirstUnit != 0 || req.WantRecord || req.UnlessGivenMs != 0 && !req.Swap {
		return false, nil
	}
	var body []byte
	if req.WaitMs == 0 || s.landings == nil {
		body, _ = s.small(from, d, project)
	} else {
		var allowed bool
		var to bringing
		body, allowed, to = s.awaitSmall(ctx, from, d, project, time.Duration(req.WaitMs)*time.Millisecond, open)
		if body == nil && allowed {
			s.metrics.refused.WithLabelValues(Status_STATUS_NOT_YET.String()).Inc()
			return true, peer.WriteMsg(st, &Answer{Id: req.Id, Status: Status_STATUS_NOT_YET, Reason: "the blob is not here yet", Last: true, Coming: to == toHolder, Taken: to == toOther}, maxMessage)
		}
	}
	if len(body) == 0 || len(body) > SmallBytes {
		return false, nil
	}
	l := layoutOf(int64(len(body)))
	head := &Answer{Id: req.Id, Size: l.size, HasUnit: true, UnitBytes: uint32(len(body)), Last: true}
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
	if err := s.sendUnit(ctx, st, from, sentAs(req.Class), head, nil, smallBody{bytes.NewReader(body)}, l, 0); err != nil {
		return true, err
	}
	s.metrics.unitsSent.Inc()
	s.metrics.bytesSent.Add(float64(len(body)))
	return true, nil
}

// awaitSmall waits for a small blob that is to come here, from a holder, if the peer
// may have it. If it is not here, to says whether it, or others of the project, are brought.
// A stream's answers come in order, so after swapWaits that were in vain in a row, or
// one where nothing is brought, none is waited for as long again: else what lies behind
// it would take that long each.
//
// A look into the catalogue costs more than all else here. A blob that is on its way
// is in no store yet, and its bytes, once they were checked, are given from memory.
func (s *server) awaitSmall(ctx context.Context, from identity.NodeID, d digest.Digest, project identity.ProjectID, most time.Duration, open *openBlob) (body []byte, allowed bool, to bringing) {
	most = min(most, swapPatienceMost)
	now := time.Now()
	var end <-chan time.Time
	defer s.landings.news(d)
	for {
		landed := s.landings.of(d) // before the look: what lands after it is heard of
		if body, to = s.soon(d, project); to == toNobody {
			var ok bool
			body, ok = s.small(from, d, project)
			allowed = allowed || ok
		}
		// Access before existence, and before a wait that would tell of it.
		if allowed = allowed || s.access(ctx, from, d, project); !allowed {
			return nil, false, toNobody
		}
		if body != nil {
			open.vain = 0
			return body, true, to
		}
		if to == toOther { // two that wait for one another would wait in vain
			return nil, true, to
		}
		if now.Before(open.hasty) {
			return nil, true, toNobody
		}
		if end == nil {
			t := time.NewTimer(most)
			defer t.Stop()
			end = t.C
		}
		select {
		case <-landed:
		case <-end:
			if open.vain++; open.vain < swapWaits && (to == toHolder || s.lively != nil && s.lively(project)) {
				return nil, true, toHolder
			}
			open.vain, open.hasty = 0, time.Now().Add(most)
			return nil, true, toNobody
		case <-ctx.Done():
			return nil, true, toNobody
		}
	}
}

// smallBody is a small blob as sendUnit reads it.
type smallBody struct{ *bytes.Reader }

// Close has nothing to let go of.
func (smallBody) Close() error { return nil }

// File is nil: the bytes are in memory.
func (smallBody) File() *os.File { return nil }
