package swarm

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
)

// The answers of a batch, and how it ends.

// silence is for how long the stream may be silent: while all that is asked for may be
// waited for, as long as that.
func (b *batch) silence(quiet time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := time.Duration(0)
	for _, p := range b.asked {
		if p.way.wait == 0 {
			return quiet
		}
		most = max(most, p.way.wait)
	}
	return max(quiet, most+b.s.pipes.delay(b.node)+swapSlack)
}

// answered finds whom an answer is for: those in order have theirs in order, and none
// is passed over for ever.
func (b *batch) answered(id uint64) (*parcel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.at(id)
	if !ok {
		return nil, fmt.Errorf("%w: answer to request %d, which is not open", errProtocol, id)
	}
	p := b.asked[i]
	if p.way.wait == 0 {
		if k := slices.IndexFunc(b.asked, func(o *parcel) bool { return o.way.wait == 0 }); k < i {
			return nil, fmt.Errorf("%w: answer to request %d instead of %d", errProtocol, id, b.asked[k].id)
		}
	}
	if o := b.asked[0]; p.at.Sub(o.at) > o.way.wait+swapOverdue {
		return nil, fmt.Errorf("%w: request %d was passed over", errBatch, o.id)
	}
	return p, nil
}

// at is the place of a request in asked; mu is held.
func (b *batch) at(id uint64) (int, bool) {
	return slices.BinarySearchFunc(b.asked, id, func(p *parcel, id uint64) int { return cmp.Compare(p.id, id) })
}

// shift takes one off those asked for: it is answered.
func (b *batch) shift(p *parcel, lost bool) {
	b.mu.Lock()
	if i, ok := b.at(p.id); ok {
		b.asked = slices.Delete(b.asked, i, i+1)
	}
	b.mu.Unlock()
	if p.sole && !lost {
		b.s.pipes.answered(b.node, time.Since(p.at))
	}
	b.s.pipes.release(b.node, classReplication, max(1, p.size), lost)
}

// receive takes one answer. An error ends the stream.
func (b *batch) receive(ctx context.Context, from *batchReader, in *bufio.Reader) error {
	b.reads = nil
	var a Answer
	if err := peer.ReadMsg(in, &a, maxMessage); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // something was asked: this is no end
		}
		return err
	}
	p, err := b.answered(a.Id)
	if err != nil {
		return err
	}
	b.reads = p
	if a.Status != Status_STATUS_OK {
		b.shift(p, true)
		b.deliver(p, delivery{err: &refusedError{status: a.Status, reason: a.Reason, end: 1, coming: a.Coming && p.way.wait > 0 && a.Status == Status_STATUS_NOT_YET, elsewhere: a.Taken}})
		return nil
	}
	if a.Size != p.size && a.Size >= 0 && a.Size <= units.MaxSize {
		// It may as well be the manifest that is wrong: no blame. How much follows is
		// another blob's matter.
		return fmt.Errorf("%w: the holder's blob %s has %d bytes, not %d", errBatch, p.f.digest, a.Size, p.size)
	}
	if p.way.holder {
		if err := b.s.swaps.note(circleAt{b.node, p.pid}, &a, time.Now()); err != nil {
			return err
		}
	}
	if p.way.unless > 0 && a.Taken && !a.HasUnit && a.UnitBytes == 0 && a.ListBytes == 0 && a.Last && a.Size == p.size {
		by, err := identity.NodeIDFromBytes(a.TakenBy)
		if err != nil {
			return fmt.Errorf("%w: taken: %w", errProtocol, err)
		}
		b.shift(p, true)
		b.deliver(p, delivery{err: &takenError{by}})
		return nil
	}
	if a.Size != p.size || !a.HasUnit || a.Unit != 0 || int64(a.UnitBytes) != p.size || !a.Last || a.Taken || len(a.Record) > 0 || a.ListBytes > 0 {
		return fmt.Errorf("%w: %d bytes of unit %d of a blob of %d", errProtocol, a.UnitBytes, a.Unit, p.size)
	}
	// Room for it is this node's own time: no deadline runs.
	data, free, err := b.s.buffers.take(ctx, p.size, need{}) // of rules, as its bytes are
	if err != nil {
		return err
	}
	from.renew()
	if _, err := io.ReadFull(in, data); err != nil {
		free()
		return err
	}
	b.shift(p, false)
	b.s.received(b.node, len(data))
	b.deliver(p, delivery{data: data, free: free})
	return nil
}

// requeue puts back what was asked for.
func (b *batch) requeue() {
	b.mu.Lock()
	asked := b.asked
	b.asked, b.ss = nil, nil
	for _, p := range asked {
		b.line(p)
	}
	b.mu.Unlock()
	for _, p := range asked {
		b.s.pipes.release(b.node, classReplication, max(1, p.size), true)
	}
}

// fail lets all blobs go their own way, and those to come for a while. Only the one
// whose answer was read is told of a breach of the protocol, or the first.
func (b *batch) fail(err error) {
	b.mu.Lock()
	asked, queue := b.asked, b.queue
	if b.reads == nil && len(asked) > 0 {
		b.reads = asked[0]
	}
	b.asked, b.queue, b.running, b.ss = nil, nil, false, nil
	b.rest = time.Now().Add(restFor)
	b.mu.Unlock()
	b.s.pipes.forget(b.node, &b.waiter)
	b.s.log.Info("small blobs come one by one for a while", "node", b.node, "site", b.s.site(b.node), "blobs", len(asked)+len(queue), "error", err)
	for _, p := range asked {
		b.s.pipes.release(b.node, classReplication, max(1, p.size), true)
		why := errBatch
		if p == b.reads {
			why = err
		}
		b.deliver(p, delivery{err: why})
	}
	for _, p := range queue {
		b.deliver(p, delivery{err: errBatch})
	}
}

// batchReader gives a peer a quiet time for each read, and the stall time for each piece:
// the blobs of one that is silent or slow for longer are asked of all that have them.
type batchReader struct {
	ss    *session
	quiet time.Duration // the session's; longer for one that was asked to wait
	limit time.Time     // of the piece that is read
	came  int           // of that piece
	paid  int           // bytes that the pacer has let through, and that were not read yet
}

// answer begins another answer, before which the peer may be silent for so long.
func (r *batchReader) answer(quiet time.Duration) {
	r.quiet = quiet
	r.renew()
}

func (r *batchReader) renew() {
	r.limit, r.came = time.Now().Add(max(r.ss.stall, r.quiet)), 0
}

func (r *batchReader) Read(b []byte) (int, error) {
	if r.ss.pace != nil && len(b) > 0 {
		if r.paid == 0 {
			before := time.Now()
			n, err := r.ss.pace(len(b))
			if err != nil {
				return 0, err
			}
			r.paid = n
			r.limit = r.limit.Add(time.Since(before)) // it is not the holder that is slow
		}
		b = b[:min(len(b), r.paid)]
	}
	until := time.Now().Add(r.quiet)
	if r.limit.Before(until) {
		until = r.limit
	}
	if err := r.ss.st.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := r.ss.st.Read(b)
	if n > 0 && r.ss.heard != nil {
		r.ss.heard()
	}
	if r.ss.pace != nil {
		r.paid -= n
	}
	if r.came += n; r.came >= piece {
		r.renew()
	}
	return n, err
}
