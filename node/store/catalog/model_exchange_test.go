package catalog

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func (m *model) snapshot(from int, p Page) (lateDelivery, error) {
	out := lateDelivery{page: p}
	checked, err := parsePage(p)
	if err != nil {
		return out, err
	}
	for _, a := range checked.entries {
		h := history{}
		for d, e := range m.seen[from][a.key] {
			h[d] = e
		}
		out.keys, out.snap = append(out.keys, a.key), append(out.snap, h)
	}
	return out, nil
}

func (m *model) deliver(to int, d lateDelivery) (Applied, error) {
	a, err := m.cats[to].ApplyPage(m.ctx, m.pid, d.page)
	if err != nil {
		return a, err
	}
	for i, k := range d.keys {
		h := m.seen[to][k]
		if h == nil {
			h = history{}
			m.seen[to][k] = h
		}
		for dot, e := range d.snap[i] {
			h[dot] = e
		}
		m.expectConflicts(to, k)
	}
	return a, nil
}

func (m *model) deliverLate() error {
	if len(m.late) == 0 {
		return nil
	}
	to := m.rng.IntN(modelNodes)
	if _, err := m.deliver(to, m.late[m.rng.IntN(len(m.late))]); err != nil {
		return err
	}
	return m.compare(to)
}

// exchange brings to node to what node from has, in one of the ways in which
// that can go.
func (m *model) exchange(from, to int) error {
	since, err := m.cats[to].Vector(m.pid)
	if err != nil {
		return err
	}
	mode := m.rng.IntN(10)
	busy := m.rng.IntN(3) == 0 // others write meanwhile
	var pages []lateDelivery
	noted, err := m.cats[from].Delta(m.ctx, m.pid, since, 1, func(p Page) error {
		d, err := m.snapshot(from, p)
		if err != nil {
			return err
		}
		pages = append(pages, d)
		if busy && m.rng.IntN(2) == 0 {
			if err := m.write(from); err != nil {
				return err
			}
			return m.write(to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if m.bad.noteLate {
		if noted, err = m.cats[from].Vector(m.pid); err != nil {
			return err
		}
	}
	if len(pages) > 0 && m.rng.IntN(8) == 0 {
		m.late = append(m.late, pages[m.rng.IntN(len(pages))])
	}
	complete := true
	switch {
	case mode < 6: // all in order
	case mode < 8: // broken off, or pages lost
		if len(pages) > 0 {
			i := m.rng.IntN(len(pages))
			if mode == 6 {
				pages = pages[:i]
			} else {
				pages = slices.Delete(pages, i, i+1)
			}
			complete = false
		}
	default: // twice and in any order
		pages = append(pages, pages...)
		m.rng.Shuffle(len(pages), func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
	}
	for _, p := range pages {
		if m.bad.adoptEarly {
			if err := m.cats[to].Adopt(m.ctx, m.pid, since, noted); err != nil {
				return err
			}
		}
		if _, err := m.deliver(to, p); err != nil {
			return err
		}
	}
	if complete {
		if err := m.cats[to].Adopt(m.ctx, m.pid, since, noted); err != nil {
			return err
		}
	}
	return m.compare(to)
}

// converge has everybody pull from everybody, and then wants one state.
func (m *model) converge() error {
	for range 3 {
		for from := range modelNodes {
			for to := range modelNodes {
				if from != to {
					if err := m.exchangeAll(from, to); err != nil {
						return err
					}
				}
			}
		}
	}
	all := map[entryKey]history{}
	for n := range modelNodes {
		for k, h := range m.seen[n] {
			if all[k] == nil {
				all[k] = history{}
			}
			for d, e := range h {
				all[k][d] = e
			}
		}
	}
	var first Check
	var vector Vector
	for n := range modelNodes {
		m.seen[n] = all // nobody may lack anything now
		if err := m.compare(n); err != nil {
			return err
		}
		stored, counted, err := m.cats[n].Recount(m.ctx, m.pid)
		if err != nil {
			return err
		}
		v, err := m.cats[n].Vector(m.pid)
		if err != nil {
			return err
		}
		if n == 0 {
			first, vector = stored, v
		}
		if stored != counted || stored != first {
			return fmt.Errorf("node %d has the check %v, recounted %v; node 0 has %v", n, stored, counted, first)
		}
		if !v.Equal(vector) {
			return fmt.Errorf("node %d has the vector %v, node 0 has %v", n, v, vector)
		}
		if err := m.checkConflicts(n); err != nil {
			return err
		}
		if err := auditDerived(m.cats[n], m.pid); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
	}
	for _, l := range m.late { // old state can't bring anything back
		a, err := m.cats[0].ApplyPage(m.ctx, m.pid, l.page)
		if err != nil {
			return err
		}
		if a.Changed != 0 {
			return fmt.Errorf("an old page changed %d entries at node 0, which had seen everything", a.Changed)
		}
	}
	return nil
}

func (m *model) exchangeAll(from, to int) error {
	since, err := m.cats[to].Vector(m.pid)
	if err != nil {
		return err
	}
	noted, err := m.cats[from].Delta(m.ctx, m.pid, since, 4<<10, func(p Page) error {
		d, err := m.snapshot(from, p)
		if err != nil {
			return err
		}
		_, err = m.deliver(to, d)
		return err
	})
	if err != nil {
		return err
	}
	if err := m.cats[to].Adopt(m.ctx, m.pid, since, noted); err != nil {
		return err
	}
	return m.compare(to)
}

func (m *model) checkConflicts(n int) error {
	got := map[string]bool{}
	err := m.cats[n].view(func(r reader) error {
		return r.scan(prefixPID(tabConflict, m.pid), nil, true, func(key, value []byte) (bool, error) {
			_, d, repo, tag, ok := parseConflict(key)
			if !ok {
				return false, damaged(key)
			}
			got[repo+" "+tag+" "+d.String()] = true
			return true, proto.Unmarshal(value, &rowpb.Conflict{})
		})
	})
	if err != nil {
		return err
	}
	for k := range m.expect[n] {
		if !got[k] {
			return fmt.Errorf("node %d did not report the conflict %s", n, k)
		}
	}
	for k := range got {
		if !m.expect[n][k] {
			return fmt.Errorf("node %d reported %s, which is no conflict", n, k)
		}
	}
	return nil
}
