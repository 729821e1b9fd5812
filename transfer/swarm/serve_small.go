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
	body, ok := s.small(from, d, project)
	if !ok && req.WaitMs > 0 {
		// Access before existence, and before a wait that would tell of it.
		if !s.access(ctx, from, d, project) {
			return false, nil
		}
		var coming bool
		if body, ok, coming = s.awaitSmall(ctx, from, d, project, time.Duration(req.WaitMs)*time.Millisecond, open); !ok {
			s.metrics.refused.WithLabelValues(Status_STATUS_NOT_YET.String()).Inc()
			return true, peer.WriteMsg(st, &Answer{Id: req.Id, Status: Status_STATUS_NOT_YET, Reason: "the blob is not here yet", Last: true, Coming: coming}, maxMessage)
		}
	}
	if !ok || len(body) == 0 || len(body) > SmallBytes {
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

// awaitSmall waits for a small blob that is to come here, from a holder. coming: it
// is not here, and being brought, or others of the project are. A stream's answers come
// in order, so after swapWaits that were in vain in a row, or one where nothing is
// brought, it is not waited on again for as long: else what lies behind it would take
// that long each.
func (s *server) awaitSmall(ctx context.Context, from identity.NodeID, d digest.Digest, project identity.ProjectID, most time.Duration, open *openBlob) (body []byte, ok, coming bool) {
	most = min(most, swapPatienceMost)
	if s.landings == nil || time.Now().Before(open.hasty) {
		return nil, false, false
	}
	end := time.NewTimer(most)
	defer end.Stop()
	for {
		landed := s.landings.of(d) // before the look: what lands after it is heard of
		if body, ok := s.small(from, d, project); ok {
			s.landings.news(d)
			open.vain = 0
			return body, true, false
		}
		body, to := s.soon(d, project)
		if body != nil {
			s.landings.news(d)
			open.vain = 0
			return body, true, false
		}
		if to == toOther { // two that wait for one another would wait in vain
			return nil, false, false
		}
		select {
		case <-landed:
		case <-end.C:
			s.landings.news(d)
			if open.vain++; to == toHolder && open.vain < swapWaits {
				return nil, false, true
			}
			open.vain, open.hasty = 0, time.Now().Add(most)
			return nil, false, false
		case <-ctx.Done():
			s.landings.news(d)
			return nil, false, false
		}
	}
}

// smallBody is a small blob as sendUnit reads it.
type smallBody struct{ *bytes.Reader }

// Close has nothing to let go of.
func (smallBody) Close() error { return nil }

// File is nil: the bytes are in memory.
func (smallBody) File() *os.File { return nil }
