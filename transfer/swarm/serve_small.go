package swarm

import (
	"bytes"
	"context"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// answerSmall answers a request for the whole of a small blob, as batches send it,
// by one look into the catalogue. If that gives none, for whatever reason, nothing
// was sent: the request is answered as any.
func (s *server) answerSmall(ctx context.Context, from identity.NodeID, st stream, req *Request, d digest.Digest, project identity.ProjectID) (sent bool, err error) {
	if s.small == nil || req.Units != 1 || req.FirstUnit != 0 || req.WantRecord || req.UnlessGivenMs != 0 {
		return false, nil
	}
	body, ok := s.small(from, d, project)
	if !ok || len(body) == 0 || len(body) > SmallBytes {
		return false, nil
	}
	l := layoutOf(int64(len(body)))
	head := &Answer{Id: req.Id, Size: l.size, HasUnit: true, UnitBytes: uint32(len(body)), Last: true}
	if err := s.sendUnit(ctx, st, from, sentAs(req.Class), head, nil, smallBody{bytes.NewReader(body)}, l, 0); err != nil {
		return true, err
	}
	s.metrics.unitsSent.Inc()
	s.metrics.bytesSent.Add(float64(len(body)))
	return true, nil
}

// smallBody is a small blob as sendUnit reads it.
type smallBody struct{ *bytes.Reader }

// Close has nothing to let go of.
func (smallBody) Close() error { return nil }

// File is nil: the bytes are in memory.
func (smallBody) File() *os.File { return nil }
