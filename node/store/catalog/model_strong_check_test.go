package catalog

import (
	"fmt"
	"slices"
)

// settle lets everybody hear of everything, and looks at what became of it.
func (m *strongModel) settle() error {
	for n := range modelNodes {
		m.cut[n] = false
	}
	if m.now().begun != 0 {
		m.command(0, func(v *strongView) { v.begun = 0 }) // called off
	}
	for range 4 {
		for n := range modelNodes {
			m.at[n] = len(m.views) - 1
			if err := m.project(n, true); err != nil {
				return err
			}
			for o := range modelNodes {
				if err := m.exchange(o, n, false); err != nil {
					return err
				}
			}
		}
	}
	var first Check
	for n, c := range m.cats {
		sum, err := c.Check(m.pid)
		if err != nil {
			return err
		}
		if n == 0 {
			first = sum
		}
		if sum != first {
			return fmt.Errorf("invariant 20: nodes 0 and %d do not come to the same", n)
		}
		if err := auditDerived(c, m.pid); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
	}
	if err := m.checkTags(); err != nil {
		return err
	}
	return m.checkLosses()
}

// live reports whether no site wrote over a write, knowing it.
func (m *strongModel) live(w *tagWrite) bool {
	return !slices.ContainsFunc(m.writes, func(o *tagWrite) bool { return o.key == w.key && o.heard[w.dot] })
}

// checkTags: tags say what the state says, and if they are the sites' own again all
// that these wrote since, and nothing wrote over, is there.
func (m *strongModel) checkTags() error {
	for i := range strongTags {
		k := entryKey{kindTag, "app", fmt.Sprint(i)}
		e, err := m.entry(0, k)
		if err != nil {
			return err
		}
		if v := m.now(); v.strong {
			if want := v.rows[k].Digest; digestOrEmpty(e.says()) != want {
				return fmt.Errorf("invariant 20: tag %s says %s, the state says %s", k.name, digestOrEmpty(e.says()), want)
			}
			continue
		}
		for _, w := range m.writes {
			if w.key == k && w.digest != "" && w.acl >= m.now().before && m.live(w) && !e.has(w.dot) {
				return fmt.Errorf("invariant 20: what node %d wrote of tag %s as %s, after the mode was over, is gone", w.node, k.name, w.dot)
			}
		}
	}
	return nil
}

func (m *strongModel) entry(n int, k entryKey) (*entry, error) {
	var e *entry
	err := m.cats[n].view(func(r reader) (err error) { e, err = r.entry(m.pid, k); return err })
	if e == nil {
		e = &entry{}
	}
	return e, err
}

// isLate reports whether there was a switch that did not order a write of before it,
// and none before that which did. never: none after it did, either.
func (m *strongModel) isLate(w *tagWrite) (late, never bool) {
	never = true
	for _, s := range m.ends {
		if w.acl >= s.index {
			continue
		}
		if s.ordered(w) {
			return late, false
		}
		late = true
	}
	return late, late && never
}

// checkLosses: a write is reported as lost only if something that did not know it was
// written beside it, or if a switch did not order it; and in that case it is.
func (m *strongModel) checkLosses() error {
	for n, c := range m.cats {
		reported := map[string]bool{}
		err := c.view(func(r reader) error {
			return r.scan(prefixPID(tabConflict, m.pid), nil, false, func(key, _ []byte) (bool, error) {
				_, d, _, tag, ok := parseConflict(key)
				if !ok {
					return false, damaged(key)
				}
				reported[tag+" "+d.String()] = true
				return true, nil
			})
		})
		if err != nil {
			return err
		}
		for _, w := range m.writes {
			if w.node != n || w.digest == "" {
				continue
			}
			late, never := m.isLate(w)
			rival := slices.ContainsFunc(m.writes, func(o *tagWrite) bool {
				return o.key == w.key && o.digest != w.digest && o.dot != w.dot && !o.heard[w.dot] && !w.heard[o.dot]
			})
			got := reported[w.key.name+" "+w.dot.String()]
			if got && !late && !rival {
				return fmt.Errorf("invariant 20: node %d reports that its write %s of tag %s lost, and it was ordered: words came after it", n, w.dot, w.key.name)
			}
			e, err := m.entry(n, w.key)
			if err != nil {
				return err
			}
			same := m.words[w.key][w.digest] || slices.ContainsFunc(m.writes, func(o *tagWrite) bool { return o != w && o.key == w.key && o.digest == w.digest })
			if !got && never && m.live(w) && !e.has(w.dot) && !same {
				return fmt.Errorf("invariant 20: node %d does not report that its write %s of tag %s lost, which no switch ordered", n, w.dot, w.key.name)
			}
		}
	}
	return nil
}
