package sync

import (
	"context"
	"fmt"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// feedBatch is how many entries of a feed travel in one answer: about 90 bytes
// each.
const feedBatch = 2000

// followFeed keeps the hints about one store's blobs up to date.
func (l *link) followFeed(ctx context.Context) {
	t := &talk{host: l.s.cfg.Host, to: l.node, protocol: feedProtocol, life: ctx}
	defer t.close()
	wait := retryFirst
	truth := truthCheck{due: l.s.cfg.Now().Add(jitter(l.s.cfg.Truth))}
	for {
		err := l.pullFeed(ctx, t)
		if err == nil {
			err = l.checkTruth(ctx, t, &truth)
		}
		t.rest()
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		before := l.status.feedErr
		l.status.feedErr = err
		reached := l.status.err == nil
		l.mu.Unlock()
		next := l.s.poll
		if err == nil {
			wait = retryFirst
		} else {
			// A peer that is out of reach was named by its exchange of heads.
			if before == nil && reached {
				l.s.log.Warn("a store's feed of blobs could not be read: trying again until it can", "node", l.node, "site", l.site(), "error", err)
			}
			next, wait = wait, min(2*wait, retryMost)
		}
		if !pause(ctx, jitter(next), l.feedDue) {
			return
		}
	}
}

// pullFeed takes in the feed from this store's cursor to its end.
func (l *link) pullFeed(ctx context.Context, t *talk) error {
	n, ok := l.s.cfg.State.View().Node(l.node)
	if !ok || n.Witness {
		return ErrNotContent
	}
	for {
		after, err := l.s.cat.FeedCursor(n.Store)
		if err != nil {
			return err
		}
		q := &FeedRequest{Hello: l.s.hello(), After: after.N, Epoch: after.Epoch, Limit: feedBatch}
		a, err := l.askFeed(ctx, t, q)
		if err != nil {
			return err
		}
		l.measured(q.GetHello(), a.GetHello())
		if id, err := identity.StoreIDFromBytes(a.GetHello().GetStoreId()); err != nil || id != n.Store {
			return fmt.Errorf("the node serves store %x, the mesh knows it with store %s", a.GetHello().GetStoreId(), n.Store)
		}
		if a.GetReset_() {
			l.s.log.Warn("a store was put back to an older state: forgetting what it said", "node", l.node, "site", l.site(), "store", n.Store)
			if err := l.s.cat.DropStore(ctx, n.Store); err != nil {
				return err
			}
			continue
		}
		if len(a.GetEntries()) > 0 {
			if err := l.applyFeed(ctx, n.Store, catalog.FeedCursor{Epoch: a.GetEpoch(), N: after.N}, a.GetEntries()); err != nil {
				return err
			}
		}
		if a.GetLast() || len(a.GetEntries()) == 0 {
			return nil
		}
	}
}

func (l *link) applyFeed(ctx context.Context, from identity.StoreID, after catalog.FeedCursor, in []*FeedEntry) error {
	entries := make([]catalog.FeedEntry, 0, len(in))
	cursor := after
	for _, e := range in {
		d, err := units.ParseDigest(e.GetDigest())
		if err != nil {
			return fmt.Errorf("feed of store %s: %w", from, err)
		}
		state := catalog.Class(e.GetState())
		if e.GetN() <= cursor.N || state < catalog.Home || state > catalog.Gone {
			return fmt.Errorf("feed of store %s: entry %d after %d in state %d makes no sense", from, e.GetN(), cursor.N, e.GetState())
		}
		cursor.N = e.GetN()
		entries = append(entries, catalog.FeedEntry{N: e.GetN(), Digest: d, State: state})
	}
	if err := l.s.cat.ApplyFeed(ctx, from, entries, cursor); err != nil {
		return err
	}
	l.s.metrics.feed.Add(float64(len(entries)))
	l.s.holdersChanged()
	return nil
}

// serveFeed answers a peer's questions for this store's feed until the peer is
// done.
func (s *Sync) serveFeed(ctx context.Context, from identity.NodeID, st plane.Stream) {
	for {
		st.SetIdle(s.cfg.keepStream)
		q := new(FeedRequest)
		if peer.ReadMsg(st, q, maxQuestion) != nil {
			return
		}
		cameAt := s.cfg.Now()
		st.SetIdle(answerWithin)
		a := s.feedAnswer(ctx, from, q)
		a.Hello = s.answer(cameAt)
		if peer.WriteMsg(st, a, maxAnswer) != nil {
			_ = st.Reset()
			return
		}
	}
}

func (s *Sync) feedAnswer(ctx context.Context, from identity.NodeID, q *FeedRequest) *FeedResponse {
	if n, ok := s.cfg.State.View().Node(from); !ok || n.Witness {
		return &FeedResponse{Refusal: refusal(Refusal_CODE_NOT_A_PEER, "the asking node is no content node of this mesh, or not yet known at site "+s.cfg.Site)}
	}
	switch {
	case len(q.GetBuckets()) > 0:
		return s.feedBuckets(q.GetBuckets())
	case q.GetSums():
		return s.feedSums(ctx)
	}
	n := min(int(q.GetLimit()), feedBatch)
	entries, epoch, known, err := s.cat.FeedFrom(catalog.FeedCursor{Epoch: q.GetEpoch(), N: q.GetAfter()}, n+1)
	if err != nil {
		s.log.Error("this store's feed can't be read", "error", err)
		return &FeedResponse{Refusal: refusal(Refusal_CODE_FAILED, err.Error())}
	}
	if !known {
		return &FeedResponse{Reset_: true}
	}
	a := &FeedResponse{Last: len(entries) <= n, Epoch: epoch}
	for _, e := range entries[:min(len(entries), n)] {
		a.Entries = append(a.Entries, &FeedEntry{N: e.N, Digest: e.Digest.String(), State: uint32(e.State)})
	}
	return a
}
