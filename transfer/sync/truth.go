package sync

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// bucketsPerQuestion keeps an answer well below maxAnswer in a store of ten
	// million blobs.
	bucketsPerQuestion = 4
	// mostBuckets is up to how many buckets that differ are repaired; beyond it the
	// feed is read anew, which is cheaper.
	mostBuckets = catalog.FeedBuckets / 8
	// truthTries is how often in a row a feed that moves puts the comparison off.
	truthTries = 10
	// sumsKeptFor is how long what this store's feed adds up to is kept for other
	// readers, if the feed has not moved.
	sumsKeptFor = 10 * time.Minute
	// bucketBytes is the count in 4 and the xor in 16 bytes.
	bucketBytes = 20
)

// truthCheck is when hints about one store are next compared with what it holds.
type truthCheck struct {
	due   time.Time
	tries int
}

// checkTruth compares, when it is due, what the store is thought to hold with what
// it says that it holds, and puts right what is wrong: hints that are wrong for
// whatever reason must not be so for ever.
func (l *link) checkTruth(ctx context.Context, t *talk, c *truthCheck) error {
	now := l.s.cfg.Now()
	if now.Before(c.due) && c.due.Sub(now) <= 2*l.s.cfg.Truth { // further off: the clock was set
		return nil
	}
	n, ok := l.s.cfg.State.View().Node(l.node)
	if !ok || n.Witness {
		return ErrNotContent
	}
	a, err := l.askFeed(ctx, t, &FeedRequest{Hello: l.s.hello(), Sums: true})
	if err != nil {
		return err
	}
	if len(a.GetSums()) != bucketBytes*catalog.FeedBuckets {
		return fmt.Errorf("site %s sent %d bytes for the sums of its feed", l.site(), len(a.GetSums()))
	}
	at, err := l.s.cat.FeedCursor(n.Store)
	if err != nil {
		return err
	}
	if (at != catalog.FeedCursor{Epoch: a.GetEpoch(), N: a.GetEnd()}) && c.tries < truthTries {
		c.tries++
		return nil // there is more to read, and then this again
	}
	ours, err := l.s.cat.HintSums(ctx, n.Store)
	if err != nil {
		return err
	}
	var differ []uint16
	for b := range ours {
		if bucketSum(&ours[b]) != [bucketBytes]byte(a.GetSums()[bucketBytes*b:]) {
			differ = append(differ, uint16(b))
		}
	}
	if err := l.repair(ctx, t, n.Store, differ); err != nil {
		return err
	}
	*c = truthCheck{due: now.Add(jitter(l.s.cfg.Truth))}
	return nil
}

func (l *link) repair(ctx context.Context, t *talk, store identity.StoreID, differ []uint16) error {
	if len(differ) > mostBuckets {
		l.s.log.Warn("much of what a store is thought to hold is wrong: reading its feed anew", "node", l.node, "site", l.site(), "store", store)
		l.s.metrics.repaired.Inc()
		if err := l.s.cat.DropStore(ctx, store); err != nil {
			return err
		}
		return l.pullFeed(ctx, t)
	}
	wrong := 0
	for len(differ) > 0 {
		part := differ[:min(len(differ), bucketsPerQuestion)]
		differ = differ[len(part):]
		q := &FeedRequest{Hello: l.s.hello()}
		for _, b := range part {
			q.Buckets = binary.BigEndian.AppendUint16(q.Buckets, b)
		}
		a, err := l.askFeed(ctx, t, q)
		if err != nil {
			return err
		}
		var holds []catalog.FeedEntry
		for _, e := range a.GetEntries() {
			d, err := units.ParseDigest(e.GetDigest())
			if err != nil {
				return fmt.Errorf("feed of store %s: %w", store, err)
			}
			holds = append(holds, catalog.FeedEntry{Digest: d, State: catalog.Class(e.GetState())})
		}
		n, err := l.s.cat.RepairHints(ctx, store, part, holds)
		if err != nil {
			return err
		}
		wrong += n
	}
	if wrong > 0 {
		l.s.log.Warn("hints about what a store holds were wrong, and are right now", "node", l.node, "site", l.site(), "store", store, "hints", wrong)
		l.s.metrics.repaired.Add(float64(wrong))
		l.s.holdersChanged()
	}
	return nil
}

// askFeed puts one question about a peer's feed.
func (l *link) askFeed(ctx context.Context, t *talk, q *FeedRequest) (*FeedResponse, error) {
	var a *FeedResponse
	err := t.ask(ctx, q, func(st plane.Stream) error {
		a = new(FeedResponse)
		if err := peer.ReadMsg(st, a, maxAnswer); err != nil {
			return err
		}
		if a.GetRefusal() != nil {
			return refused(a.GetRefusal())
		}
		return nil
	})
	return a, err
}

// ownSums keeps what this store's feed adds up to: all peers ask for it.
type ownSums struct {
	mu     sync.Mutex
	at     catalog.FeedCursor
	made   time.Time
	answer []byte
}

func bucketSum(c *catalog.Check) (b [bucketBytes]byte) {
	binary.BigEndian.PutUint32(b[:], uint32(c.Count))
	copy(b[4:], c.Xor[:])
	return b
}

func (s *Sync) feedSums(ctx context.Context) *FeedResponse {
	s.sums.mu.Lock()
	defer s.sums.mu.Unlock()
	if s.sums.answer == nil || s.cfg.Now().Sub(s.sums.made).Abs() > sumsKeptFor || !s.atFeedEnd(s.sums.at) {
		sums, at, err := s.cat.FeedSums(ctx)
		if err != nil {
			s.log.Error("this store's feed can't be added up", "error", err)
			return &FeedResponse{Refusal: refusal(Refusal_CODE_FAILED, err.Error())}
		}
		b := make([]byte, 0, bucketBytes*catalog.FeedBuckets)
		for i := range sums {
			one := bucketSum(&sums[i])
			b = append(b, one[:]...)
		}
		s.sums.at, s.sums.made, s.sums.answer = at, s.cfg.Now(), b
	}
	return &FeedResponse{Epoch: s.sums.at.Epoch, End: s.sums.at.N, Sums: s.sums.answer, Last: true}
}

func (s *Sync) atFeedEnd(at catalog.FeedCursor) bool {
	more, epoch, known, err := s.cat.FeedFrom(at, 1)
	return err == nil && known && len(more) == 0 && epoch == at.Epoch
}

func (s *Sync) feedBuckets(asked []byte) *FeedResponse {
	if len(asked)%2 != 0 || len(asked) > 2*bucketsPerQuestion {
		return &FeedResponse{Refusal: refusal(Refusal_CODE_INVALID, fmt.Sprintf("%d bytes of bucket numbers", len(asked)))}
	}
	var buckets []uint16
	for ; len(asked) > 0; asked = asked[2:] {
		b := binary.BigEndian.Uint16(asked)
		if b >= catalog.FeedBuckets {
			return &FeedResponse{Refusal: refusal(Refusal_CODE_INVALID, fmt.Sprintf("there is no bucket %d", b))}
		}
		buckets = append(buckets, b)
	}
	entries, err := s.cat.FeedBucket(buckets)
	if err != nil {
		s.log.Error("this store's feed can't be read", "error", err)
		return &FeedResponse{Refusal: refusal(Refusal_CODE_FAILED, err.Error())}
	}
	a := &FeedResponse{Last: true}
	for _, e := range entries {
		a.Entries = append(a.Entries, &FeedEntry{Digest: e.Digest.String(), State: uint32(e.State)})
	}
	return a
}
