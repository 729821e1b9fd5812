package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// This file is what clients ask for in the model's histories, and what the reference
// makes of the answers.

// request is one call and what came of it.
type request struct {
	put      *Put
	repo     string
	tag      string        // delete this tag
	manifest digest.Digest // or this manifest
	dot      Dot
	err      error
}

func (m *model) request() *request {
	repo := m.pick(modelRepos)
	switch r := m.rng.IntN(10); {
	case r < 6:
		var tags []string
		for range m.rng.IntN(3) {
			tags = append(tags, m.pick(modelTags))
		}
		p := m.put(repo, m.pick(modelNames), tags...)
		return &request{put: &p, repo: repo}
	case r < 8:
		return &request{repo: repo, tag: m.pick(modelTags)}
	default:
		return &request{repo: repo, manifest: m.put(repo, m.pick(modelNames)).Digest}
	}
}

func (r *request) do(ctx context.Context, c *Catalog, pid identity.ProjectID) {
	switch {
	case r.put != nil:
		r.dot, r.err = c.PutManifest(ctx, *r.put)
	case r.tag != "":
		r.dot, r.err = c.deleteTag(ctx, pid, r.repo, r.tag, "")
	default:
		r.dot, r.err = c.deleteManifest(ctx, pid, r.repo, r.manifest)
	}
}

func (m *model) write(n int) error {
	if m.leaving[n] {
		return nil // it refuses them
	}
	r, before := m.request(), m.cats[n].Written(m.pid)
	m.doing = byWrite
	m.bad.do(m.ctx, r, m.cats[n], m.pid)
	if r.err == nil {
		if err := m.oneRequest(n, before, r); err != nil {
			return err
		}
	}
	if err := m.account(n, r); err != nil {
		return err
	}
	return m.compare(n)
}

// burst has several clients write at one node at once; the dots say in which
// order they were committed.
func (m *model) burst(n int) error {
	m.doing = byWrite
	rs := make([]*request, 3+m.rng.IntN(4))
	var wg sync.WaitGroup
	for i := range rs {
		rs[i] = m.request()
	}
	for _, r := range rs {
		wg.Go(func() { r.do(m.ctx, m.cats[n], m.pid) })
	}
	wg.Wait()
	slices.SortFunc(rs, func(a, b *request) int { return compareDots(a.dot, b.dot) })
	for _, r := range rs {
		if r.err != nil { // what it did not find may have been there before or after
			if !errors.Is(r.err, ErrNotFound) {
				return r.err
			}
			continue
		}
		if err := m.account(n, r); err != nil {
			return err
		}
	}
	return m.compare(n)
}

// account notes an acknowledged request in the reference of its node.
func (m *model) account(n int, r *request) error {
	m.requests++
	manifestKey := func(d digest.Digest) entryKey {
		raw, _ := rawDigest(d)
		return entryKey{kindManifest, r.repo, string(raw)}
	}
	type change struct {
		key    entryKey
		put    bool
		digest string
		only   string // kill only siblings with this digest
	}
	var changes []change
	switch {
	case r.put != nil:
		for _, ref := range r.put.Refs {
			if k := manifestKey(ref.Digest); ref.Kind == RefManifest && len(m.seen[n][k].live()) > 0 {
				changes = append(changes, change{key: k, put: true})
			}
		}
		changes = append(changes, change{key: manifestKey(r.put.Digest), put: true})
		for _, t := range r.put.Tags {
			k := entryKey{kindTag, r.repo, t}
			if !slices.ContainsFunc(changes, func(c change) bool { return c.key == k }) {
				changes = append(changes, change{key: k, put: true, digest: manifestKey(r.put.Digest).name})
			}
		}
	case r.tag != "":
		if k := (entryKey{kindTag, r.repo, r.tag}); len(m.seen[n][k].live()) > 0 {
			changes = append(changes, change{key: k})
		}
	default:
		if mk := manifestKey(r.manifest); len(m.seen[n][mk].live()) > 0 {
			changes = append(changes, change{key: mk})
			for _, t := range modelTags {
				k := entryKey{kindTag, r.repo, t}
				if slices.ContainsFunc(m.seen[n][k].live(), func(e *event) bool { return e.digest == mk.name }) {
					changes = append(changes, change{key: k, only: mk.name})
				}
			}
		}
	}
	if len(changes) == 0 {
		if !errors.Is(r.err, ErrNotFound) {
			return fmt.Errorf("rule 1: delete of what node %d does not have: %s, want ErrNotFound", n, fmt.Sprint(r.err))
		}
		return nil
	}
	if r.err != nil {
		return fmt.Errorf("rule 1: request at node %d: %w", n, r.err)
	}
	if err := m.given(n, r.dot); err != nil {
		return err
	}
	keys := make([]entryKey, len(changes))
	for i, ch := range changes {
		keys[i] = ch.key
	}
	if err := m.changedAll(n, r.dot, keys); err != nil {
		return err
	}
	for _, ch := range changes {
		h := m.seen[n][ch.key]
		if h == nil {
			h = history{}
			m.seen[n][ch.key] = h
		}
		m.owner[r.dot] = n
		e := &event{dot: r.dot, put: ch.put, digest: ch.digest, kills: map[Dot]bool{}}
		if ch.only == "" {
			e.carried = h.losing()
			impl, err := m.entry(n, ch.key)
			if err != nil {
				return err
			}
			live := h.live()
			for d := range h {
				// What was purged here is known to be gone here, and not told by new writes.
				alive := slices.ContainsFunc(live, func(l *event) bool { return l.dot == d })
				e.kills[d] = alive || impl.ctx.Covers(d.real())
			}
		} else {
			for _, l := range h.live() {
				if l.digest == ch.only {
					e.kills[l.dot] = true
				}
			}
		}
		if ch.put {
			impl, err := m.entry(n, ch.key)
			if err != nil {
				return err
			}
			// In a burst a later write may have replaced it: then its stamp decides nothing.
			if i := slices.IndexFunc(impl.sibs, func(s sibling) bool { return s.dot == r.dot }); i >= 0 {
				e.stamp = impl.sibs[i].stamp
			}
			for _, o := range h.live() {
				if e.stamp != 0 && e.stamp <= o.stamp {
					return fmt.Errorf("rule 3: stamp %d of %s is not above what it had seen", e.stamp, r.dot)
				}
			}
		}
		h[r.dot] = e
		m.owed[r.dot] = true
		m.expectConflicts(n, ch.key)
	}
	return nil
}

func (m *model) expectConflicts(n int, k entryKey) {
	if k.kind != kindTag {
		return
	}
	h := m.seen[n][k]
	lost := h.losing()
	for _, e := range h {
		lost = append(lost, e.carried...)
	}
	for _, d := range lost {
		if e := h[d]; e != nil && d == d.real() && m.owner[d] == n {
			m.expect[n][k.repo+" "+k.name+" "+d.String()] = true
		}
	}
}
