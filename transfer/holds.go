package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
)

// heldFor is how long a paused artifact is left alone if nobody resumes it: then
// it is looked at again, in case it is not wanted any more.
const heldFor = 24 * time.Hour

// heldError is why an artifact waits for people. It is no failure.
type heldError struct{ reason string }

func (e *heldError) Error() string { return e.reason }

// cancelledError ends the attempts at an artifact that people do not wait for.
type cancelledError struct{ reason string }

func (e *cancelledError) Error() string { return e.reason }
func (e *cancelledError) Unwrap() error { return errUnwanted }

// heldBack gives what people said of an artifact, or of one that takes it along:
// what belongs to a paused index does not come by itself.
func (r *Reconciler) heldBack(v *state.View, k key) (state.Hold, bool, error) {
	if k.kind != artifact || !v.HasHolds(k.pid) {
		return state.Hold{}, false, nil
	}
	seen := map[digest.Digest]bool{k.digest: true}
	for todo := []digest.Digest{k.digest}; len(todo) > 0; todo = todo[1:] {
		d := todo[0]
		if h, ok := v.Hold(k.pid, k.repo, d.String(), r.cfg.Site); ok {
			return h, true, nil
		}
		info, err := r.cat.Manifest(k.pid, k.repo, d)
		if errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return state.Hold{}, false, err
		}
		above := []digest.Digest{info.Subject}
		parents, err := r.cat.ParentsIn(k.pid, k.repo, d, maxRoots)
		if err != nil {
			return state.Hold{}, false, err
		}
		for _, up := range parents {
			above = append(above, up.Digest)
		}
		for _, d := range above {
			if d != "" && !seen[d] && len(seen) < maxRoots {
				seen[d] = true
				todo = append(todo, d)
			}
		}
	}
	return state.Hold{}, false, nil
}

// unheld gives what of a demand people let go on; *heldError or *cancelledError if
// nothing.
func (r *Reconciler) unheld(k key, d rules.Demand) (rules.Demand, error) {
	v := r.cfg.State.View()
	h, held, err := r.heldBack(v, k)
	if err != nil {
		return d, err
	}
	if held {
		return d, r.sayHeld(h)
	}
	var by state.RulePause
	left := d.Without(func(id int64) bool {
		p, paused := v.RulePaused(id, r.cfg.Site)
		if paused {
			by = p
		}
		return paused
	})
	if left.None() && !d.None() {
		name := fmt.Sprint(by.RuleID)
		if rule, ok := v.RuleByID(by.RuleID); ok {
			name = rule.Name
		}
		return d, &heldError{fmt.Sprintf("rule %s is paused%s since %s by %s: let it go on with: portolan transfer resume%s --rule %s",
			name, at(by.Site), by.At.UTC().Format(time.RFC3339), by.By, argument(by.Site), name)}
	}
	return left, nil
}

func (r *Reconciler) sayHeld(h state.Hold) error {
	how := "paused"
	if h.Cancelled {
		how = "cancelled"
	}
	project := h.PID.String()
	if p, ok := r.cfg.State.View().ProjectByPID(h.PID); ok {
		project = p.Name
	}
	text := fmt.Sprintf("it was %s%s at %s by %s: bring it with: portolan transfer resume%s --image %s/%s@%s",
		how, at(h.Site), h.At.UTC().Format(time.RFC3339), h.By, argument(h.Site), project, h.Repository, h.Digest)
	if h.Cancelled {
		return &cancelledError{text}
	}
	return &heldError{text}
}

// at and argument name a site in a sentence and in a command; empty: all.
func at(site string) string {
	if site == "" {
		return " everywhere"
	}
	return " for site " + site
}

func argument(site string) string {
	if site == "" {
		return ""
	}
	return " " + site
}

// running are the artifacts in work, which people may hold back meanwhile.
type running struct {
	mu sync.Mutex
	of map[key]context.CancelCauseFunc
}

// begin gives a context that ends when people hold the artifact back; why is the
// reason then. end must be called.
func (x *running) begin(ctx context.Context, k key) (within context.Context, end func()) {
	within, cancel := context.WithCancelCause(ctx)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.of == nil {
		x.of = map[key]context.CancelCauseFunc{}
	}
	x.of[k] = cancel // a task runs once at a time
	return within, func() {
		x.mu.Lock()
		delete(x.of, k)
		x.mu.Unlock()
		cancel(nil)
	}
}

func (x *running) all() map[key]context.CancelCauseFunc {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make(map[key]context.CancelCauseFunc, len(x.of))
	for k, cancel := range x.of {
		out[k] = cancel
	}
	return out
}

// whyHeld gives the reason for which a context ended, if that is what people said.
func whyHeld(ctx context.Context) error {
	cause := context.Cause(ctx)
	var held *heldError
	var cancelled *cancelledError
	if errors.As(cause, &held) || errors.As(cause, &cancelled) {
		return cause
	}
	return nil
}

// followHolds does what changed in what people hold back. It is called by Run
// alone.
func (r *Reconciler) followHolds() {
	v, old := r.cfg.State.View(), r.holdsSeen
	if old != nil && v.SameHolds(old) {
		return
	}
	r.holdsSeen = v
	if old == nil {
		return // the scan at the start finds what is wanted
	}
	for k, cancel := range r.running.all() {
		d, err := r.demandNow(k)
		if err == nil {
			_, err = r.unheld(k, d)
		}
		var held *heldError
		var cancelled *cancelledError
		if errors.As(err, &held) || errors.As(err, &cancelled) {
			cancel(err)
		}
	}
	r.queue.resume()
	if r.queue.missed(true) {
		r.scans.everything(v, r.cfg.Site)
	}
	for h := range v.Holds() { // so that it is said why they wait, or that they do not
		r.queue.again(key{artifact, h.PID, h.Repository, digest.Digest(h.Digest)})
	}
	for h := range old.Holds() {
		if !h.Cancelled || h.Site != "" && h.Site != r.cfg.Site {
			continue
		}
		if now, ok := v.Hold(h.PID, h.Repository, h.Digest, r.cfg.Site); ok && now.Cancelled {
			continue
		}
		r.scans.ask(h.PID, whole) // what belongs to it left the queue as well
	}
}
