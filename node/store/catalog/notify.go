package catalog

import (
	"maps"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// watcher is one registered callback; one of its functions is set.
type watcher struct {
	commit func(identity.ProjectID)
	local  func(identity.ProjectID)
	feed   func()
	ruled  func(pid identity.ProjectID, beside bool)

	dropped func([]Dropped)
}

// OnCommit has fn called after entries of a project changed, by writes here or
// by merging. Calls are coalesced and come one at a time.
func (c *Catalog) OnCommit(fn func(identity.ProjectID)) (cancel func()) {
	return c.watch(&watcher{commit: fn})
}

// OnLocalWrite is OnCommit for writes made here only: what peers can't have yet.
func (c *Catalog) OnLocalWrite(fn func(identity.ProjectID)) (cancel func()) {
	return c.watch(&watcher{local: fn})
}

// OnOverruled has fn called after a tag got siblings of sites although the control
// state has spoken of it: who knows the state says whether they are newer. beside: they
// may not have been written over its word, which is there still, or is newer than their rights.
func (c *Catalog) OnOverruled(fn func(pid identity.ProjectID, beside bool)) (cancel func()) {
	return c.watch(&watcher{ruled: fn})
}

// OnFeed has fn called, coalesced, after this store's feed grew.
func (c *Catalog) OnFeed(fn func()) (cancel func()) { return c.watch(&watcher{feed: fn}) }

func (c *Catalog) watch(w *watcher) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[w] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, w)
	}
}

// notify hands what a group changed to the notifier. It never waits.
func (c *Catalog) notify(g *group) {
	c.mu.Lock()
	for _, b := range g.batches {
		for pid, ch := range b.projects {
			if ch.wrote > 0 {
				c.wroteIn(pid, Dot{b.inc, ch.last}, ch.wrote)
			}
			old := c.dirty[pid]
			c.dirty[pid] = old.and(ch)
		}
		c.feedNew = c.feedNew || b.feed
		c.conflict = c.conflict || b.lost > 0
		c.dropped = append(c.dropped, b.dropped[:min(len(b.dropped), maxDropped-len(c.dropped))]...)
	}
	c.mu.Unlock()
	c.poke()
}

func (c *Catalog) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Catalog) notifyLoop() {
	for {
		select {
		case <-c.stop:
			return
		case <-c.wake:
		}
		c.mu.Lock()
		dirty, feed, conflict, dropped := c.dirty, c.feedNew, c.conflict, c.dropped
		watchers := maps.Clone(c.watchers)
		c.dirty, c.feedNew, c.conflict, c.dropped = map[identity.ProjectID]change{}, false, false, nil
		c.mu.Unlock()
		for w := range watchers {
			for pid, ch := range dirty {
				if w.commit != nil {
					w.commit(pid)
				}
				if w.local != nil && ch.local {
					w.local(pid)
				}
				if w.ruled != nil && ch.overruled {
					w.ruled(pid, ch.beside)
				}
			}
			if w.feed != nil && feed {
				w.feed()
			}
			if w.dropped != nil && len(dropped) > 0 {
				w.dropped(dropped)
			}
		}
		if conflict && c.onConflict != nil {
			if err := c.report(); err != nil && c.life.Err() == nil {
				c.log.Error("tag conflicts could not be reported; they will be at the next change or start", "error", err)
			}
		}
	}
}

// maxReports bounds the conflicts reported in one go.
const maxReports = 256

// report delivers the conflicts whose rows are not marked yet, and marks them.
func (c *Catalog) report() error {
	for {
		var keys [][]byte
		var found []Conflict
		err := c.view(func(r reader) error {
			return r.scan([]byte{tabConflict}, nil, true, func(key, value []byte) (bool, error) {
				f, reported, err := readConflict(key, value)
				if err != nil || reported {
					return err == nil, err
				}
				keys, found = append(keys, key), append(found, f.Conflict)
				return len(keys) < maxReports, nil
			})
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, f := range found {
			c.onConflict(f)
		}
		err = c.submitAs(c.life, jobFreeing, func(b *batch) error {
			for _, key := range keys {
				pb := &rowpb.Conflict{}
				if ok, err := b.message(key, pb); err != nil || !ok {
					return err
				}
				pb.Reported = true
				if err := b.setMessage(key, pb); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(keys) < maxReports {
			return err
		}
	}
}
