package blobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

const (
	ownerKey    = "/owner"
	ownerHeader = "portolan store 1\n"
)

// provenFor is how long a proof that the bucket is ours holds. A bucket that takes
// the place of ours without an error or a miss is written to for this long at
// most. A tenth of a request a second is nothing beside the writes that it is for.
const provenFor = 10 * time.Second

// proof is what is known of whose the bucket is.
type proof struct {
	now func() time.Time
	// doubted: since it was asked the bucket failed, or lacked what ours has.
	doubted atomic.Bool

	proving chan struct{} // room for one; whoever asks the bucket has it, and what is below
	proven  time.Time     // when it was ours; zero: not known
	failure error         // of the last attempt to prove it; nil: it did not fail
	failed  time.Time     // when
}

// owned checks that the bucket is this store's.
func (o *objects) owned(ctx context.Context) error {
	b, err := o.content(ctx, ownerKey)
	if errors.Is(err, errNoObject) {
		return &Unavailable{Place: o.Name, Refused: true,
			Cause: "the object " + strings.TrimPrefix(ownerKey, "/") + ", which says that it belongs to store " + o.id + ", is gone: put the bucket's content back, or name the right bucket"}
	}
	if err != nil {
		return err
	}
	if string(b) != ownerHeader+o.id+"\n" {
		owner := oneLine(strings.TrimPrefix(string(b), ownerHeader))
		return &Unavailable{Place: o.Name, Refused: true,
			Cause: fmt.Sprintf("it belongs to store %.40s, not to %s: name another bucket or root directory", owner, o.id)}
	}
	return nil
}

// prove makes sure that the bucket is this store's and can be written, read and
// deleted from, which lists: for starts. With claim a bucket without owner becomes
// this store's.
func (o *objects) prove(ctx context.Context, claim bool) error {
	return o.provenBy(ctx, func(ctx context.Context) error { return o.proveOnce(ctx, claim) })
}

// ours makes sure that the bucket is still this store's: before anything is
// written to it or deleted from it, so that nothing is acknowledged that went into
// another one. It costs one GET each provenFor, and one after any trouble.
func (o *objects) ours(ctx context.Context) error { return o.provenBy(ctx, o.owned) }

func (o *objects) provenBy(ctx context.Context, ask func(context.Context) error) error {
	p := &o.proof
	came := time.Now()
	select {
	case p.proving <- struct{}{}:
		defer func() { <-p.proving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !p.proven.IsZero() && !p.doubted.Load() && p.now().Sub(p.proven) < provenFor {
		return nil
	}
	if p.failure != nil && p.failed.After(came) {
		return p.failure // those that waited while one asked take its answer
	}
	// From before the question: what happens while it is asked counts.
	p.doubted.Store(false)
	asked := p.now()
	if err := ask(ctx); err != nil {
		p.proven = time.Time{}
		if ctx.Err() == nil {
			p.failure, p.failed = err, time.Now()
		}
		return err
	}
	if p.failure != nil {
		o.log.Info("the store's bucket answers again", "bucket", o.Name)
	}
	p.proven, p.failure = asked, nil
	return nil
}

func (o *objects) proveOnce(ctx context.Context, claim bool) error {
	if claim {
		_, err := o.content(ctx, ownerKey)
		if errors.Is(err, errNoObject) {
			err = o.call(ctx, callWrite, "write to it", o.stall, func(ctx context.Context) error {
				return o.Driver.PutContent(ctx, ownerKey, []byte(ownerHeader+o.id+"\n"))
			})
		}
		if err != nil {
			return err
		}
		o.log.Info("blobs are kept in a bucket", "bucket", o.Name, "store", o.id)
	}
	// Also after a claim: of two that claim at once, one finds the other's.
	if err := o.owned(ctx); err != nil {
		return err
	}
	// What a crash may leave of it the next start replaces, and deletes.
	_, err := o.tryOut(ctx, []byte("written, read and deleted at each start of store "+o.id+"\n"))
	return err
}
