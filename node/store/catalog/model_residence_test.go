package catalog

import (
	"fmt"
	"maps"

	"github.com/portolan/portolan/node/identity"
)

// This file is residency in the model's histories (rule 11), and nodes that are gone
// for good (rule 14). A site that is no member comes in and is syncing until it has
// what every site had that may hold the project when it began; one that leaves goes
// on giving what it has, takes no writes and is sent nothing, and is out when a
// full member covers its vector.

// takingIn is what a syncing site has to come to.
type takingIn struct {
	from map[int]bool // has not sent all that it had
	// want are the requests that it must know in the end, and who had them.
	want map[entryKey]map[Dot]map[int]bool
}

// full reports whether a site is a full member.
func (m *model) full(n int) bool { return !m.away[n] && !m.leaving[n] && m.syncing[n] == nil }

func (m *model) fulls() (count int) {
	for n := range modelNodes {
		if m.full(n) {
			count++
		}
	}
	return count
}

// comeIn begins a site's taking in.
func (m *model) comeIn(n int) error {
	t := &takingIn{from: map[int]bool{}, want: map[entryKey]map[Dot]map[int]bool{}}
	m.away[n], m.leaving[n] = false, false
	for o := range modelNodes {
		if o == n || m.away[o] {
			continue
		}
		t.from[o] = !m.bad.memberEarly
		for k, h := range m.seen[o] {
			for d := range h {
				if d == d.real() {
					if t.want[k] == nil {
						t.want[k] = map[Dot]map[int]bool{}
					}
					if t.want[k][d] == nil {
						t.want[k][d] = map[int]bool{}
					}
					t.want[k][d][o] = true
				}
			}
		}
	}
	m.syncing[n] = t
	return m.tookIn(n)
}

// sent notes that a site took over all that another one had.
func (m *model) sent(from, to int) error {
	if m.syncing[to] == nil {
		return nil
	}
	delete(m.syncing[to].from, from)
	return m.tookIn(to)
}

// tookIn ends a taking in when nobody is waited for. A site that is gone since is
// not, as one that was removed.
func (m *model) tookIn(n int) error {
	t := m.syncing[n]
	if t == nil {
		return nil
	}
	for o, waits := range t.from {
		if waits && !m.away[o] {
			return nil
		}
	}
	m.syncing[n] = nil
	mine, err := m.cats[n].Vector(m.pid)
	if err != nil {
		return err
	}
	// Rule 11: from now on it answers 404 for what it does not know.
	for k, dots := range t.want {
		for d := range dots {
			if m.seen[n][k][d] == nil && !mine.Covers(d) && m.owed[d] && m.hasOf(k, d) {
				return fmt.Errorf("rule 11: node %d is a member and has not seen %s of %s %q, which was there when it came in", n, d, k.repo, k.name)
			}
		}
	}
	return nil
}

// again begins a taking in anew at a site that lost what it had taken in. One that
// waits for a site can't come to what only that one had, and lost before it sent it:
// others may have had it from there since, after they sent what they had.
func (m *model) again(n int) error {
	for _, t := range m.syncing {
		if t == nil || !t.from[n] {
			continue
		}
		for k, dots := range t.want {
			for d, had := range dots {
				if m.seen[n][k][d] != nil {
					continue
				}
				if delete(had, n); len(had) == 0 {
					delete(dots, d)
				}
			}
		}
	}
	if m.syncing[n] == nil {
		return nil
	}
	return m.comeIn(n)
}

// hasOf reports whether a node still has a request's part in an entry: one that lost
// rows may have other parts of it.
func (m *model) hasOf(k entryKey, d Dot) bool {
	for o := range m.seen {
		if !m.away[o] && m.seen[o][k][d] != nil {
			return true
		}
	}
	return false
}

// askAgain has those that wait for a site that is out, or gone, ask all others once
// more: what only it had is at one that may have sent what it had before.
func (m *model) askAgain(n int) {
	for to, t := range m.syncing {
		if t == nil || !t.from[n] {
			continue
		}
		for o := range modelNodes {
			if o != to && !m.away[o] {
				t.from[o] = true
			}
		}
	}
}

// leave has a site leave, or ends that: a full member's vector covers its own.
func (m *model) leave(n int) error {
	if !m.leaving[n] {
		if m.fulls() < 3 || !m.full(n) {
			return nil
		}
		m.leaving[n] = true
		if m.rng.IntN(2) == 0 {
			return nil
		}
	}
	if !m.bad.dropSilently {
		if _, err := m.cats[n].Announce(m.ctx, m.pid); err != nil {
			return err
		}
	}
	v, err := m.cats[n].Vector(m.pid)
	if err != nil {
		return err
	}
	covered := m.bad.leaveEarly
	for o := range modelNodes {
		if o == n || m.away[o] || m.leaving[o] {
			continue
		}
		w, err := m.cats[o].Vector(m.pid)
		if err != nil {
			return err
		}
		covered = covered || w.Dominates(v) || m.bad.leaveToNew && m.syncing[o] != nil
	}
	if !covered {
		return nil
	}
	m.leaving[n], m.away[n] = false, true
	for d := range m.owed {
		if m.knowsOf(n, d) && !m.heard(d, n) {
			m.left[d] = n
		}
	}
	m.askAgain(n)
	for d := range dotsOf(m.seen[n]) {
		m.letGo[n][d] = true
	}
	m.seen[n], m.expect[n], m.copies[n] = map[entryKey]history{}, map[string]bool{}, nil
	if err := m.cats[n].DropProject(m.ctx, m.pid); err != nil {
		return err
	}
	// A pin or lease is the site's own business; its writes are nobody's own here.
	return m.wantNothing("rule 11", n)
}

// dotsOf gives all requests that a node knows.
func dotsOf(seen map[entryKey]history) map[Dot]bool {
	dots := map[Dot]bool{}
	for _, h := range seen {
		for d := range h {
			dots[d.real()] = true
		}
	}
	return dots
}

// knowsOf reports whether a node knows a request.
func (m *model) knowsOf(n int, d Dot) bool {
	for _, h := range m.seen[n] {
		if h[d] != nil {
			return true
		}
	}
	return false
}

// comeBack lets a site that left be named again: it begins with nothing, or goes on
// with what it has.
func (m *model) comeBack() error {
	for n := range modelNodes {
		if m.away[n] && !m.gone[n] && !m.rules.unknown[n] || m.leaving[n] && m.rng.IntN(3) == 0 {
			m.doing = byStay
			if err := m.comeIn(n); err != nil {
				return err
			}
			return m.compare(n)
		}
	}
	return nil
}

// mayGive reports whether residency lets one node send entries to another.
func (m *model) mayGive(to int) bool { return !m.leaving[to] }

// settleResidence lets all that may hold the project be members, for the end.
func (m *model) settleResidence() error {
	for n := range modelNodes {
		if m.leaving[n] {
			if err := m.comeIn(n); err != nil {
				return err
			}
		}
	}
	if err := m.exchangeRounds(); err != nil {
		return err
	}
	for n := range modelNodes {
		if m.away[n] {
			continue
		}
		if err := m.tookIn(n); err != nil {
			return err
		}
		if m.syncing[n] != nil {
			return fmt.Errorf("rule 11: node %d has exchanged with everybody, and is not a member yet", n)
		}
	}
	return nil
}

// tell lets nodes say to some others how much they wrote, as heads do.
func (m *model) tell() error {
	for n := range modelNodes {
		if m.away[n] || m.rng.IntN(3) > 0 {
			continue
		}
		w := m.cats[n].Written(m.pid)
		for o := range modelNodes {
			if o == n || m.away[o] || m.rng.IntN(3) == 0 {
				continue // not heard
			}
			v, err := m.cats[o].Vector(m.pid)
			if err != nil {
				return err
			}
			m.words[o][n].Hear(w, v)
		}
	}
	return nil
}

// goneForGood takes a node out of the mesh, and counts what never left it.
func (m *model) goneForGood(n int) error {
	m.excuse(n)
	m.away[n], m.gone[n], m.leaving[n], m.syncing[n] = true, true, false, nil
	m.askAgain(n)
	for o := range modelNodes {
		if m.away[o] {
			continue
		}
		covers, err := m.cats[o].Vector(m.pid)
		if err != nil {
			return err
		}
		u := m.words[o][n]
		count := u.Count(covers)
		if m.bad.countLow {
			count = 0
		}
		// Rule 14: no fewer than it told of and are not here, and none if all are.
		var missing uint64
		told := map[identity.Incarnation]uint64{}
		for _, w := range u.words {
			told[w.last.Dot.Inc] = w.last.Dot.Seq
		}
		dots := dotsOf(m.seen[n])
		maps.Copy(dots, m.letGo[n]) // of which it told before it left, and came back
		for d := range dots {
			if d.Seq <= told[d.Inc] && !covers.Covers(d) {
				missing++
			}
		}
		if count < missing {
			return fmt.Errorf("rule 14: node %d is gone, %d requests of which it told never came to node %d, which counts %d", n, missing, o, count)
		}
		if count > 0 && missing == 0 && !m.restored[n] {
			return fmt.Errorf("rule 14: node %d is gone, node %d has all that it told of, and counts %d", n, o, count)
		}
	}
	return nil
}
