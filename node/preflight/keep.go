package preflight

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/portolan/portolan/node/store"
)

// keepFor is how long the store's word is waited for: a moment longer than it takes
// at most, so that it is the store that says so.
const keepFor = store.ProbeFor + time.Second

// keep has the store keep a little, as it would have to keep a blob.
func keep(ctx context.Context, s Store) *Kept {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keepFor)
	defer cancel()
	took, err := s.Probe(ctx)
	if err == nil {
		return &Kept{TookNs: took.Nanoseconds()}
	}
	k := &Kept{Error: clip(err.Error()), Fault: Kept_FAULT_DISK}
	var bucket *store.Unavailable
	switch {
	case errors.Is(err, store.ErrNoSpace):
		k.Fault = Kept_FAULT_FULL
	case errors.Is(err, context.DeadlineExceeded):
		k.Fault = Kept_FAULT_LATE
	case errors.As(err, &bucket) && bucket.Refused:
		k.Fault = Kept_FAULT_REFUSED
	case errors.As(err, &bucket):
		k.Fault = Kept_FAULT_BUCKET
	case errors.Is(err, context.Canceled), errors.Is(err, store.ErrProbeClosed):
		k.Fault = Kept_FAULT_UNSPECIFIED
	}
	return k
}

// storeLine tells of the checked node's store: bytes that arrive are worth nothing
// where they can't be kept.
func (k *check) storeLine() Line {
	l := Line{Test: TestStore, From: k.self.Site, To: k.to.Site, Result: Unknown, Detail: k.to.Site + " could not be asked"}
	if k.answer == nil {
		return l
	}
	kept := k.answer.GetKept()
	switch {
	case kept == nil:
		l.Detail, l.Advice = "it was not tried", "upgrade both nodes to one version"
	case kept.GetError() == "":
		l.Result, l.Value, l.Unit = OK, float64(time.Duration(kept.GetTookNs()).Microseconds())/1000, "ms"
		l.Detail = fmt.Sprintf("%d KiB were written, read back and removed at %s, as blobs are", store.ProbeBytes>>10, k.to.Site)
	default:
		l.Result, l.Detail = Failed, clip(kept.GetError())
		l.Advice = keepAdvice(k.to.Site, kept.GetFault()) + ": nothing can be brought there until then"
	}
	return l
}

func keepAdvice(site string, fault Kept_Fault) string {
	switch fault {
	case Kept_FAULT_FULL:
		return "free space on the disk of " + site
	case Kept_FAULT_REFUSED:
		return fmt.Sprintf("let the node of %s write, read and delete in its bucket: see the bucket's policy, or start it with other credentials (--store-parameters)", site)
	case Kept_FAULT_BUCKET:
		return fmt.Sprintf("see that the bucket of %s does its work and is reached from its node", site)
	case Kept_FAULT_LATE:
		return fmt.Sprintf("see what holds up the disk or the bucket of %s", site)
	case Kept_FAULT_UNSPECIFIED: // it stops, or is of a version that knows more faults
		return fmt.Sprintf("see that the node of %s runs, and check again", site)
	case Kept_FAULT_DISK:
	}
	return fmt.Sprintf("see that the node of %s may write to its data directory, and that the disk below it is sound and not mounted read-only", site)
}
