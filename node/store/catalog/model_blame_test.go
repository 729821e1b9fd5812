package catalog

import (
	"fmt"
	"maps"
	"slices"
)

// This file says which rule of the catalogue is broken where a node and its reference
// differ: what was done last to the node says it, and whether what they differ in was
// purged anywhere. A check that proves one rule names it where it stands.

// What was done last to a node that is compared.
const (
	byWrite    = "rule 1"
	byMerge    = "rule 2"
	byExchange = "rule 4"
	byOldPage  = "rule 5"
	byList     = "rule 6"
	byLoss     = "rule 7"
	byStay     = "rule 11" // it came in
	byDeletion = "rule 12" // it heard of the project
	byClock    = "rule 13"
	byCopy     = "the model" // it put a disk back
)

// blame is the rule that is broken where a node has not of these requests what it
// should.
func (m *model) blame(n int, k entryKey, dots ...Dot) string {
	if m.doing != byMerge && m.doing != byExchange && m.doing != byOldPage {
		return m.doing
	}
	if slices.ContainsFunc(dots, m.purged) {
		return byList
	}
	// It was here, and ended, before the page came.
	if prior := m.prior[n][k]; m.doing == byMerge && slices.ContainsFunc(dots, func(d Dot) bool {
		return prior[d] != nil && !slices.ContainsFunc(prior.live(), func(e *event) bool { return e.dot == d }) && m.there(n, k, d)
	}) {
		return byOldPage
	}
	return m.doing
}

// purged reports whether a node let tombstones go that cover a request.
func (m *model) purged(d Dot) bool {
	for _, c := range m.cats {
		if v, err := c.purgedVector(m.pid); err == nil && v.Covers(d.real()) {
			return true
		}
	}
	return false
}

// there reports whether a request is among an entry's siblings.
func (m *model) there(n int, k entryKey, d Dot) bool {
	e, err := m.entry(n, k)
	return err == nil && e.has(d)
}

// remember keeps what a node knew of a key before a page came, until it is compared.
func (m *model) remember(n int, k entryKey) {
	if m.prior[n] == nil {
		m.prior[n] = map[entryKey]history{}
	}
	if _, ok := m.prior[n][k]; !ok {
		m.prior[n][k] = maps.Clone(m.seen[n][k])
	}
}

// compare holds a node's entries against its reference.
func (m *model) compare(n int) error {
	purged, err := m.cats[n].purgedVector(m.pid)
	if err != nil {
		return err
	}
	for k, h := range m.seen[n] {
		e, err := m.entry(n, k)
		if err != nil {
			return err
		}
		if err := m.compareEntry(n, k, h, e, purged); err != nil {
			return err
		}
	}
	if err := m.checkRules(n); err != nil {
		return err
	}
	if err := m.checkVector(n, purged); err != nil {
		return err
	}
	m.prior[n] = nil
	return nil
}

func (m *model) compareEntry(n int, k entryKey, h history, e *entry, purged Vector) error {
	live := h.live()
	var want, got []Dot
	for _, l := range live {
		want = append(want, l.dot)
	}
	for _, s := range e.sibs {
		got = append(got, s.dot)
	}
	if !slices.Equal(want, got) {
		differ := func(a, b []Dot) (out []Dot) {
			for _, d := range a {
				if !slices.Contains(b, d) {
					out = append(out, d)
				}
			}
			return out
		}
		return fmt.Errorf("%s: node %d has of %s %q: %v, want %v", m.blame(n, k, append(differ(want, got), differ(got, want)...)...), n, k.repo, k.name, got, want)
	}
	for d := range h {
		if d = d.real(); !e.ctx.Covers(d) && !purged.Covers(d) {
			return fmt.Errorf("%s: node %d has heard of %s of %s %q, and its context %v does not say so", m.blame(n, k, d), n, d, k.repo, k.name, e.ctx)
		}
	}
	for _, l := range live {
		for _, d := range l.carried {
			if !slices.ContainsFunc(e.losers, func(o loser) bool { return o.dot == d.real() }) {
				return fmt.Errorf("rule 8: node %d has %s of %s %q, and not %s, which lost to it", n, l.dot, k.repo, k.name, d)
			}
		}
	}
	return nil
}

// checkVector: a node that claims to have seen a dot has heard of its request. What it
// purged it had seen.
func (m *model) checkVector(n int, purged Vector) error {
	v, err := m.cats[n].Vector(m.pid)
	if err != nil {
		return err
	}
	if !v.Dominates(purged) {
		return fmt.Errorf("rule 6: node %d purged %v, and has seen %v", n, purged, v)
	}
	for o := range m.seen {
		for k, h := range m.seen[o] {
			for d := range h {
				if !v.Covers(d) || m.seen[n][k][d] != nil {
					continue
				}
				rule := byExchange
				switch {
				case m.doing == byLoss:
					rule = byLoss
				case m.purged(d):
					rule = byList
				}
				return fmt.Errorf("%s: node %d claims to have seen %s of %s %q, and has not", rule, n, d, k.repo, k.name)
			}
		}
	}
	return nil
}

// given: the numbers that a node gives requests go up.
func (m *model) given(n int, d Dot) error {
	if last := m.highest[d.Inc]; d.Seq <= last {
		return fmt.Errorf("rule 1: node %d gave dot %s, and its last one was %d", n, d, last)
	}
	m.highest[d.Inc] = d.Seq
	return nil
}
