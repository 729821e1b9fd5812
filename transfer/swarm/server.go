package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/peer"
)

const (
	// requestIdle is how long a stream may wait for its next request: longer than
	// clients keep idle ones (sessionIdle), so that the client closes first.
	requestIdle = 5 * time.Minute
	// sendIdle is how long a receiver may take nothing.
	sendIdle = 30 * time.Second
	// copyBuffer is what a stream that sends has in memory. The host bounds the
	// streams (32 a peer, 128 in all: 8 MiB); a bound here on those that send would
	// let a few slow receivers hold up all others.
	copyBuffer = 64 << 10
)

// source is what the server reads: the store.
type source interface {
	// Open opens what is a project's; what is here for others is not found.
	Open(ctx context.Context, d digest.Digest, pid identity.ProjectID) (store.Blob, error)
	// Damaged grows when a blob was found damaged and is here no longer, or anew.
	Damaged() uint64
	// Doubt has a blob that is here read and checked again. It reports whether the
	// doubt was heard: soon after another it is not.
	Doubt(d digest.Digest) bool
	// Record gives the record and list of a blob. verified: it was read from a
	// store that has, and verified, all of the blob.
	Record(ctx context.Context, d digest.Digest) (rec units.Record, l *units.List, verified bool, err error)
}

// part is a blob of which only some units are here.
type part interface {
	has(unit int) bool
	// ended: it is not arriving any more.
	ended() bool
}

// server answers the blob protocol.
type server struct {
	src     source
	access  func(ctx context.Context, from identity.NodeID, d digest.Digest, project identity.ProjectID) bool
	small   func(from identity.NodeID, d digest.Digest, project identity.ProjectID) ([]byte, bool) // nil: there is none
	known   func(identity.NodeID) bool                                                             // signers that other nodes accept
	self    identity.NodeID
	signer  units.Signer
	log     *slog.Logger
	metrics *metrics
	crowds  *crowds // who receives what at the same time; nil: nobody knows
	uplink  *uplink // measured; nil: not
	// circles, landings, soon and lively are for small blobs that receivers swap: who
	// takes them, who waits for those that come here, what of one is here before it is stored,
	// or where it is to come from, and whether any come. nil: nothing is swapped.
	circles  *circles
	landings *landings
	soon     func(d digest.Digest, pid identity.ProjectID) (body []byte, to bringing)
	lively   func(pid identity.ProjectID) bool
	pacer    Pacer         // nil: nothing is held back
	idle     time.Duration // requestIdle
	// split gives the sub-states of a unit, or none; nil: none ever.
	split func(ctx context.Context, d digest.Digest, b store.Blob, unit int) []byte

	buffers sync.Pool
}

func newServer(cfg Config, src source, m *metrics) *server {
	s := &server{
		src: src, access: cfg.Access, small: cfg.Small, known: cfg.KnownSigner, self: cfg.Host.ID(), signer: cfg.Signer,
		log: cfg.Logger, metrics: m, pacer: cfg.Pacer, idle: cmp.Or(cfg.requestIdle, requestIdle),
		buffers: sync.Pool{New: newBuffer},
	}
	s.split = newSplitter(s).of
	return s
}

func newBuffer() any { b := make([]byte, copyBuffer); return &b }

// openBlob is the blob that a stream reads from: runs of one blob follow one
// another.
type openBlob struct {
	d       digest.Digest
	pid     identity.ProjectID
	blob    store.Blob
	damaged uint64 // source.Damaged before it was opened

	// Of the stream, whatever is open:
	told toldCircles
	lot  *lot
}

func (o *openBlob) close() {
	if o.blob != nil {
		_ = o.blob.Close()
	}
	*o = openBlob{told: o.told, lot: o.lot}
}

// handle serves one stream until the peer closes it.
func (s *server) handle(ctx context.Context, from identity.NodeID, st stream) {
	g := newGatherer(st, s.idle)
	defer g.end()
	st = g
	st.SetIdle(sendIdle) // of writes; reads have requestIdle
	open := openBlob{lot: newLot(ctx, s, from, g)}
	defer open.close()
	defer open.lot.end()
	for {
		var req Request
		if err := peer.ReadMsg(st, &req, maxMessage); err != nil {
			if !errors.Is(err, io.EOF) || open.lot.drain() != nil {
				_ = st.Reset()
			}
			return
		}
		g.turn.Lock()
		err := s.answer(ctx, from, st, &req, &open)
		g.turn.Unlock()
		if err != nil {
			s.log.Debug("blob stream ended", "node", from, "digest", req.Digest, "error", err)
			_ = g.flush()
			_ = st.Reset()
			return
		}
	}
}

// answer answers one request. An error means that the stream can't go on.
func (s *server) answer(ctx context.Context, from identity.NodeID, st stream, req *Request, open *openBlob) error {
	refuse := func(status Status, reason string) error {
		return s.refuse(st, &Answer{Id: req.Id, Status: status, Reason: reason})
	}
	d := digest.Digest(req.Digest)
	project, err := identity.ProjectIDFromBytes(req.Project)
	if err == nil {
		err = units.CheckDigest(d)
	}
	if err != nil || req.Units > maxRun {
		if werr := refuse(Status_STATUS_INVALID, "request is malformed"); werr != nil {
			return werr
		}
		return fmt.Errorf("malformed request: %d units, %w", req.Units, err)
	}
	if sent, err := s.answerSmall(ctx, from, st, req, d, project, open); sent || err != nil {
		return err
	}
	// Access before existence: a refusal tells nothing of the blob.
	if !s.access(ctx, from, d, project) {
		return refuse(Status_STATUS_DENIED, deniedReason)
	}
	if p, ok := open.blob.(part); ok && p.ended() {
		open.close() // it is in the store now, or gone
	}
	if req.Doubt {
		open.close() // what is open is not checked again
		if s.src.Doubt(d) {
			s.log.Warn("a node was sent a unit that is not the blob's: the blob is read again", "digest", d, "node", from)
		}
	}
	damaged := s.src.Damaged()
	if damaged != open.damaged {
		open.close() // the file may be the one that was put aside
	}
	if open.d != d || open.pid != project || open.blob == nil {
		open.close()
		b, err := s.src.Open(ctx, d, project)
		if err != nil {
			if errors.Is(err, store.ErrNotFound) {
				return refuse(Status_STATUS_NOT_FOUND, "no such blob here")
			}
			s.log.Error("blob can't be read", "digest", d, "error", err)
			return refuse(Status_STATUS_UNREADABLE, "the blob can't be read here")
		}
		open.d, open.pid, open.blob, open.damaged = d, project, b, damaged
	}
	some, _ := open.blob.(part)
	l := layoutOf(open.blob.Size())
	end := min(int(req.FirstUnit)+int(req.Units), l.units())
	if req.Units > 0 && int64(req.FirstUnit) >= int64(l.units()) {
		return refuse(Status_STATUS_OUT_OF_RANGE, fmt.Sprintf("the blob has %d units", l.units()))
	}
	head := &Answer{Id: req.Id, Size: l.size}
	var list []byte
	if req.WantRecord && l.units() > 1 {
		var rec units.Record
		if rec, list, err = s.record(ctx, d); err == nil {
			head.Record, err = rec.MarshalBinary()
		}
		if err != nil {
			if errors.Is(err, store.ErrNoRecord) || errors.Is(err, units.ErrUnavailable) {
				return refuse(Status_STATUS_NO_LIST, "the blob has no unit list here")
			}
			s.log.Error("unit list can't be read", "digest", d, "error", err)
			return refuse(Status_STATUS_UNREADABLE, "the unit list can't be read here")
		}
		head.ListBytes = uint32(len(list))
	}
	if req.Units == 0 {
		head.Last = true
		return s.send(st, head, list)
	}
	within := time.Duration(req.UnlessGivenMs) * time.Millisecond
	for i := int(req.FirstUnit); i < end; i++ {
		_, n := l.span(i)
		head.Unit, head.Last = uint32(i), i == end-1
		switch {
		case some != nil && !some.has(i):
			if list != nil {
				head.Unit, head.Last = 0, false
				if err := s.send(st, head, list); err != nil {
					return err
				}
			}
			return refuse(Status_STATUS_NOT_YET, "the unit is not here yet")
		case s.crowds != nil && !s.crowds.claim(d, project, i, from, within):
			head.Taken = true
			if err := s.send(st, head, list); err != nil {
				return err
			}
			s.metrics.unitsSpared.Inc()
		default:
			if i == int(req.FirstUnit) && req.WantSubStates && s.split != nil {
				if list != nil { // it goes on its way while the unit is hashed
					head.Unit, head.Last = 0, false
					if err := s.send(st, head, list); err != nil {
						return err
					}
					head = &Answer{Id: req.Id, Unit: uint32(i), Last: i == end-1}
				}
				// In the place of the list: before the unit's bytes.
				list = s.split(ctx, d, open.blob, i)
				head.SubBytes = uint32(len(list))
			}
			head.HasUnit, head.UnitBytes = true, uint32(n)
			if err := s.sendUnit(ctx, st, from, sentAs(req.Class), head, list, open.blob, l, i); err != nil {
				return err
			}
			s.metrics.unitsSent.Inc()
			s.metrics.bytesSent.Add(float64(n))
		}
		head, list = &Answer{Id: req.Id}, nil
	}
	return nil
}

// record gives the blob's record, signed anew if nobody would know its signer
// any more: that only a store may do that verified the whole blob.
func (s *server) record(ctx context.Context, d digest.Digest) (units.Record, []byte, error) {
	rec, list, verified, err := s.src.Record(ctx, d)
	if err != nil {
		return rec, nil, err
	}
	if !s.known(rec.Signer) {
		if !verified {
			return rec, nil, store.ErrNoRecord
		}
		if rec, err = units.Sign(list, s.self, s.signer); err != nil {
			return rec, nil, err
		}
	}
	b, err := list.MarshalBinary()
	return rec, b, err
}

// deniedReason tells nothing of the blob.
const deniedReason = "this node gives the project's content to its members only"

// refuse ends a request with a status that is not OK.
func (s *server) refuse(st stream, a *Answer) error {
	s.metrics.refused.WithLabelValues(a.Status.String()).Inc()
	a.Last = true
	return peer.WriteMsg(st, a, maxMessage)
}

func (s *server) send(st stream, head *Answer, list []byte) error {
	if err := peer.WriteMsg(st, head, maxMessage); err != nil || len(list) == 0 {
		return err
	}
	_, err := st.Write(list)
	return err
}

// sentAs is the class that a request names.
func sentAs(class uint32) budget.Class {
	if class == 0 || class > uint32(budget.Classes) {
		return budget.Replication
	}
	return budget.Class(class - 1)
}

func (s *server) sendUnit(ctx context.Context, st stream, to identity.NodeID, c budget.Class, head *Answer, list []byte, b store.Blob, l layout, i int) (err error) {
	off, n := l.span(i)
	if s.uplink != nil {
		s.uplink.begin(time.Now())
		defer func() {
			if err != nil {
				n = 0
			}
			s.uplink.end(to, n, time.Now())
		}()
	}
	if _, err := b.Seek(off, io.SeekStart); err != nil {
		return err
	}
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	out, piece := appender((*buf)[:0]), units.SubUnit
	if list == nil {
		// In equal parts that fill their frames, the head in the first: a small frame
		// costs as much as a large one. (With sub-states a receiver can use each
		// SubUnit by itself, and each ends with a frame.)
		if err := peer.WriteMsg(&out, head, maxMessage); err != nil {
			return err
		}
		all := int64(len(out)) + n
		frames := (all + peer.MaxFrame - 1) / peer.MaxFrame
		piece = (all + frames - 1) / frames
	} else if err := s.send(st, head, list); err != nil {
		return err
	}
	for left := n; left > 0; {
		before := len(out)
		part := (*buf)[before : before+int(min(left, piece-int64(before)))]
		if s.pacer != nil {
			may, err := s.pacer.Send(ctx, to, c, len(part))
			if err != nil {
				return err
			}
			part = part[:may]
		}
		if _, err := io.ReadFull(b, part); err != nil {
			s.log.Error("blob can't be read", "unit", i, "error", err)
			return err
		}
		if _, err := st.Write((*buf)[:before+len(part)]); err != nil {
			return err
		}
		out = out[:0]
		left -= int64(len(part))
	}
	if len(out) > 0 { // of an empty unit
		_, err = st.Write(out)
	}
	return err
}

// appender is what is written to it. It must have the room.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
