package preflight

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// maxBurst and burstFor bound what a check sends each way.
	maxBurst = 64 << 20
	burstFor = 3 * time.Second
	// burstMost ends a burst that stalls: both ends, for all of it.
	burstMost = 10 * time.Second
	// burstPiece is what is written and paid for at a time, as the swarm does.
	burstPiece = 64 << 10
)

// burst is what came of one.
type burst struct {
	bytes int64
	took  time.Duration // from the first byte to the last, where they arrived
	err   error
	// closed: err is that no stream could be opened.
	closed bool
}

// mbit is 1,000,000 bits a second.
func (b burst) mbit() float64 {
	if b.took <= 0 {
		return 0
	}
	return float64(b.bytes) * 8 / 1e6 / b.took.Seconds()
}

// burstTo has the other side take bytes from here, as it does for replication, and
// tell of it.
func (c *Checker) burstTo(ctx context.Context, p *Parts, to identity.NodeID) burst {
	ctx, cancel := context.WithTimeout(ctx, burstMost)
	defer cancel()
	st, err := openBurst(ctx, p.Host, to, false)
	if err != nil {
		return burst{err: err, closed: true}
	}
	st.SetIdle(burstMost)
	end := new(BurstEnd)
	err = peer.ReadMsg(st, end, maxMessage)
	return finishBurst(ctx, st, burst{bytes: end.GetBytes(), took: time.Duration(end.GetTookNs()), err: err})
}

// burstFrom has bytes sent here as replication has: on a line of this node's, where
// there is one.
func (c *Checker) burstFrom(ctx context.Context, p *Parts, from identity.NodeID) burst {
	ctx, cancel := context.WithTimeout(ctx, burstMost)
	defer cancel()
	st, err := openBurst(ctx, p.Host, from, true)
	if err != nil {
		return burst{err: err}
	}
	return finishBurst(ctx, st, c.takeBurst(ctx, p, st))
}

func openBurst(ctx context.Context, host Host, node identity.NodeID, toMe bool) (plane.Stream, error) {
	open := host.Open
	if toMe {
		open = host.OpenBulk
	}
	st, err := open(ctx, node, streamProtocol)
	if err != nil {
		return nil, err
	}
	q := &StreamRequest{Kind: &StreamRequest_Burst{Burst: &Burst{ToMe: toMe, Bytes: maxBurst, Milliseconds: burstFor.Milliseconds()}}}
	if err := peer.WriteMsg(st, q, maxMessage); err != nil {
		_ = st.Reset()
		return nil, err
	}
	return st, nil
}

func finishBurst(ctx context.Context, st plane.Stream, b burst) burst {
	if b.err == nil && b.bytes == 0 {
		b.err = errors.New("too little came to tell")
	}
	if b.err != nil {
		_ = st.Reset()
		if ctx.Err() != nil {
			b.err = ctx.Err()
		}
		return b
	}
	_ = st.Close()
	return b
}

func (c *Checker) serveBurst(ctx context.Context, p *Parts, from identity.NodeID, st plane.Stream, q *Burst) error {
	select {
	case c.answers <- struct{}{}:
		defer func() { <-c.answers }()
	default:
		return errors.New("too many checks are under way here")
	}
	ctx, cancel := context.WithTimeout(ctx, burstMost)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	if q.GetToMe() {
		return c.sendBurst(ctx, p, from, st, min(q.GetBytes(), maxBurst), min(time.Duration(q.GetMilliseconds())*time.Millisecond, burstFor))
	}
	b := c.burstFrom(ctx, p, from)
	if b.err != nil {
		return b.err
	}
	return peer.WriteMsg(st, &BurstEnd{Bytes: b.bytes, TookNs: b.took.Nanoseconds()}, maxMessage)
}

// sendBurst sends at most so much for so long, and ends its side of the stream.
func (c *Checker) sendBurst(ctx context.Context, p *Parts, to identity.NodeID, st plane.Stream, bytes int64, most time.Duration) error {
	piece := make([]byte, burstPiece)
	_, _ = rand.Read(piece) // never fails; nothing on the way may make it smaller
	for begun := time.Now(); bytes > 0 && time.Since(begun) < most; {
		may, err := p.Pacer.Send(ctx, to, budget.Replication, int(min(bytes, burstPiece)))
		if err != nil {
			return err
		}
		n, err := st.Write(piece[:may])
		if err != nil {
			return err
		}
		bytes -= int64(n)
	}
	return st.CloseWrite()
}

// takeBurst reads until the sender ends. What came with the first piece is not
// counted: nobody knows how long it took.
func (c *Checker) takeBurst(ctx context.Context, p *Parts, st plane.Stream) burst {
	piece := make([]byte, burstPiece)
	var first time.Time
	var b burst
	for whole := int64(0); ; {
		may, err := p.Pacer.Receive(ctx, budget.Replication, len(piece))
		if err != nil {
			return burst{err: err}
		}
		n, err := io.ReadFull(st, piece[:may])
		now := time.Now()
		if whole += int64(n); whole > maxBurst {
			return burst{err: errors.New("more bytes came than a check sends")}
		}
		switch {
		case n == 0:
		case first.IsZero():
			first = now
		default:
			b.bytes += int64(n)
			b.took = now.Sub(first)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return b
		case err != nil:
			return burst{err: err}
		}
	}
}
