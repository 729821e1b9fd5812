package catalog

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

func (m *model) snapshot(from int, p Page) (lateDelivery, error) {
	p, err := m.spoil(p)
	if err != nil {
		return lateDelivery{}, err
	}
	out := lateDelivery{page: p}
	checked, err := parsePage(p)
	if err != nil {
		return out, err
	}
	for _, a := range checked.entries {
		h := history{}
		for d, e := range m.seen[from][a.key] {
			if a.e.ctx.Covers(d.real()) { // else it was purged, and the list tells of it
				h[d] = e.within(a.e.ctx)
			}
		}
		h.bury(m.seen[from][a.key].live())
		out.keys, out.snap = append(out.keys, a.key), append(out.snap, h)
	}
	return out, m.checkPage(from, p)
}

// deliver gives a page to a node, in an exchange or (nil) outside of any.
func (m *model) deliver(to int, x *Receiving, d lateDelivery) (a Applied, err error) {
	if m.bad.dropUnseen {
		d.page = m.overstate(d.page)
	}
	listed := x != nil && x.listed
	m.doing = byMerge
	if x != nil && (x.list != nil || x.listed) {
		m.doing = byList
	}
	for _, k := range d.keys {
		m.remember(to, k)
	}
	if x != nil {
		a, err = x.Page(m.ctx, d.page)
	} else {
		a, err = m.cats[to].ApplyPage(m.ctx, m.pid, d.page)
	}
	if err != nil {
		return a, fmt.Errorf("rule 4: node %d takes in no page: %w", to, err)
	}
	if err := m.fetchMissing(to, a); err != nil {
		return a, err
	}
	if x != nil && x.listed {
		if !listed { // it is whole now, and was compared with what is here
			m.compared = map[entryKey][]*event{}
			for k, h := range m.seen[to] {
				m.compared[k] = h.live()
			}
		}
		// What another page brought since stays until the end, which it prevents.
		m.dropListed(to, m.teller, func(k entryKey, e *event) bool {
			return slices.Contains(d.keys, k) && slices.ContainsFunc(m.compared[k], func(o *event) bool { return o.dot == e.dot })
		})
	}
	for i, k := range d.keys {
		h := m.seen[to][k]
		if h == nil {
			h = history{}
			m.seen[to][k] = h
		}
		for dot, e := range d.snap[i] {
			h.learn(dot, e)
		}
		m.expectConflicts(to, k)
	}
	return a, nil
}

func (m *model) deliverLate() error {
	if len(m.late) == 0 {
		return nil
	}
	to := m.member()
	if _, err := m.deliver(to, nil, m.late[m.rng.IntN(len(m.late))]); err != nil {
		return err
	}
	return m.compare(to)
}

// told is what a sender knew when an exchange began.
type told struct {
	from   int
	seen   map[entryKey]history
	vector Vector
}

func (m *model) told(from int) (told, error) {
	t := told{from: from, seen: map[entryKey]history{}}
	for k, h := range m.seen[from] {
		t.seen[k] = maps.Clone(h)
	}
	var err error
	t.vector, err = m.cats[from].Vector(m.pid)
	m.teller = t
	return t, err
}

// dropListed does in the reference what a whole list does: what the sender has
// seen and does not have is gone. What comes with it comes at once: who lost is
// the caller's question, after all of it.
func (m *model) dropListed(to int, t told, of func(entryKey, *event) bool) {
	for k, h := range m.seen[to] {
		there := t.seen[k].live()
		for _, e := range h.live() {
			if of(k, e) && t.vector.Covers(e.dot) && !slices.ContainsFunc(there, func(o *event) bool { return o.dot == e.dot }) {
				h[e.dot.gone()] = &event{dot: e.dot.gone(), kills: map[Dot]bool{e.dot: true}}
			}
		}
	}
}

// adoptListed: with what the sender purged the receiver knows all that it knew.
func (m *model) adoptListed(to int, t told) {
	for k, h := range t.seen {
		if m.seen[to][k] == nil {
			m.seen[to][k] = history{}
		}
		for d, e := range h {
			if t.vector.Covers(d.real()) {
				m.seen[to][k].learn(d, e)
			}
		}
	}
	for k := range m.seen[to] {
		m.expectConflicts(to, k)
	}
}

// exchange brings to node to what node from has, in one of the ways in which
// that can go.
func (m *model) exchange(from, to int) error {
	if !m.mayGive(to) {
		return nil
	}
	x, err := m.cats[to].Receive(m.pid)
	if err != nil {
		return err
	}
	defer x.End()
	t, err := m.told(from)
	if err != nil {
		return err
	}
	mode := m.rng.IntN(10)
	busy := m.rng.IntN(3) == 0 // others write meanwhile
	var pages []lateDelivery
	noted, err := m.cats[from].Delta(m.ctx, m.pid, m.since(x), 1, func(p Page) error {
		d, err := m.snapshot(from, p)
		if err != nil {
			return err
		}
		pages = append(pages, d)
		if busy && m.rng.IntN(2) == 0 {
			if err := m.write(from); err != nil {
				return err
			}
			if m.trouble && m.rng.IntN(4) == 0 {
				if err := m.purge(from); err != nil {
					return err
				}
			}
			return m.write(to)
		}
		return nil
	})
	complete := true
	if errors.Is(err, ErrAgain) {
		complete, err = false, nil // what came is used all the same
	}
	if err != nil {
		return err
	}
	if m.bad.noteLate {
		if noted.Vector, err = m.cats[from].Vector(m.pid); err != nil {
			return err
		}
	}
	listed := 0 // parts of a list come first
	for listed < len(pages) && len(pages[listed].keys) == 0 {
		listed++
	}
	lists, pages := pages[:listed], pages[listed:]
	if len(pages) > 0 && m.rng.IntN(8) == 0 {
		m.late = append(m.late, pages[m.rng.IntN(len(pages))])
	}
	switch {
	case mode < 6: // all in order
	case mode < 8: // broken off, or pages lost
		if mode == 7 && len(lists) > 0 && m.rng.IntN(2) == 0 {
			lists, pages, complete = lists[:m.rng.IntN(len(lists))], nil, false
			break
		}
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
	for _, p := range lists {
		if _, err := m.deliver(to, x, p); err != nil {
			return err
		}
		if m.bad.dropBegun && x.list != nil {
			for k := range m.seen[to] {
				if err := m.dropRow(to, k, x); err != nil {
					return err
				}
			}
		}
	}
	meanwhile := len(pages)
	if m.trouble && x.listed && m.rng.IntN(3) == 0 {
		meanwhile = m.rng.IntN(len(pages) + 1)
	}
	for i, p := range pages {
		if i == meanwhile { // another site brings something old
			if err := m.deliverTo(to); err != nil {
				return err
			}
		}
		if m.bad.adoptEarly {
			if err := m.adopt(to, x, noted, t); err != nil {
				return err
			}
		}
		if _, err := m.deliver(to, x, p); err != nil {
			return err
		}
	}
	if complete {
		if err := m.adopt(to, x, noted, t); err != nil {
			return err
		}
	}
	return m.compareAfter(to, x)
}

// compareAfter compares the receiver of an exchange, whatever happened meanwhile.
func (m *model) compareAfter(to int, x *Receiving) error {
	m.doing = byMerge
	if x.list != nil || x.listed {
		m.doing = byList
	}
	return m.compare(to)
}

// since is what the receiver says of itself.
func (m *model) since(x *Receiving) Vector {
	v := x.Since().Clone()
	if m.bad.noList { // claims all that was purged anywhere
		x.listed = true
		for n := range m.cats {
			purged, err := m.cats[n].purgedVector(m.pid)
			if err != nil {
				break
			}
			for inc, seq := range purged {
				v[inc] = max(v[inc], seq)
			}
		}
	}
	m.sendTo(v)
	return v
}

func (m *model) adopt(to int, x *Receiving, noted Noted, t told) error {
	if m.bad.forgetPurged {
		noted.Purged = nil
	}
	listed := x.listed && !m.bad.noList
	switch err := x.Adopt(m.ctx, noted); {
	case errors.Is(err, ErrAgain):
		return nil
	case err != nil:
		return err
	}
	if listed {
		m.dropListed(to, t, func(entryKey, *event) bool { return true })
		m.adoptListed(to, t)
	}
	return m.sent(t.from, to)
}

// converge has everybody pull from everybody, and then wants one state.
func (m *model) converge() error {
	if n := m.member(); m.trouble && !m.leaving[n] && m.rng.IntN(2) == 0 {
		// Nothing that happens later tells others of it by chance.
		if err := errors.Join(m.write(n), m.loseRows(n)); err != nil {
			return err
		}
	}
	if err := m.hearAll(); err != nil {
		return err
	}
	if err := m.settleResidence(); err != nil {
		return err
	}
	if err := m.repair(); err != nil {
		return err
	}
	all := map[entryKey]history{}
	for n := range modelNodes {
		if m.away[n] {
			continue
		}
		for k, h := range m.seen[n] {
			if all[k] == nil {
				all[k] = history{}
			}
			for d, e := range h {
				all[k].learn(d, e)
			}
		}
	}
	if err := m.checkOwed(all); err != nil {
		return err
	}
	var first Check
	var vector Vector
	for n := range modelNodes {
		if m.away[n] {
			continue
		}
		m.seen[n], m.doing = all, byExchange // nobody may lack anything now
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
		live, err := m.cats[n].Check(m.pid)
		if err != nil {
			return err
		}
		if vector == nil {
			first, vector = live, v
		}
		if stored != counted || live != first {
			return fmt.Errorf("rule 7: node %d has the check %v, recounted %v, and %v of what lives; the first node has %v", n, stored, counted, live, first)
		}
		if !v.Equal(vector) {
			return fmt.Errorf("rule 4: node %d has the vector %v, the first node has %v", n, v, vector)
		}
		if err := m.checkConflicts(n); err != nil {
			return err
		}
		if err := auditDerived(m.cats[n], m.pid); err != nil {
			return fmt.Errorf("invariant 17: node %d: %w", n, err)
		}
	}
	m.doing = byOldPage
	for _, l := range m.late { // old state can't bring anything back
		if m.away[0] || !m.knows(all, l) {
			continue // something in it is news: its writer is gone
		}
		a, err := m.cats[0].ApplyPage(m.ctx, m.pid, l.page)
		if err != nil {
			return err
		}
		if m.purges > 0 { // contexts may grow again by what was purged
			if err := m.compare(0); err != nil {
				return fmt.Errorf("after an old page: %w", err)
			}
		} else if a.Changed != 0 {
			return fmt.Errorf("rule 5: an old page changed %d entries at node 0, which had seen everything", a.Changed)
		}
	}
	return nil
}

func (m *model) exchangeRounds() error {
	for range 4 {
		for from := range modelNodes {
			for to := range modelNodes {
				if from != to && !m.away[from] && !m.away[to] {
					if err := m.exchangeAll(from, to); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// exchangeAll pulls if the vectors show that there may be something to pull: who has
// seen the same does not ask, unless what lives is not the same (rule 7).
func (m *model) exchangeAll(from, to int) error {
	asks, err := m.asks(from, to)
	if err == nil && !asks {
		if err = m.announce(from, to); err == nil {
			asks, err = m.asks(from, to)
		}
	}
	if err != nil {
		return err
	}
	if !asks {
		if err := m.saysAll(from, to); err != nil {
			return err
		}
		return m.sent(from, to)
	}
	x, err := m.cats[to].Receive(m.pid)
	if err != nil {
		return err
	}
	defer x.End()
	t, err := m.told(from)
	if err != nil {
		return err
	}
	var wrong error // with a page
	noted, err := m.cats[from].Delta(m.ctx, m.pid, m.since(x), 4<<10, func(p Page) error {
		var d lateDelivery
		if d, wrong = m.snapshot(from, p); wrong == nil {
			_, wrong = m.deliver(to, x, d)
		}
		return wrong
	})
	if wrong != nil {
		return wrong
	}
	if err != nil {
		rule := byExchange
		if errors.Is(err, ErrAgain) || errors.Is(err, ErrRowsLost) {
			rule = byList
		}
		return fmt.Errorf("%s: node %d has an exchange with node %d, and nothing happens meanwhile: %w", rule, to, from, err)
	}
	if err := m.adopt(to, x, noted, t); err != nil {
		return err
	}
	return m.compareAfter(to, x)
}

// asks reports whether a node has not seen what another one has.
func (m *model) asks(from, to int) (bool, error) {
	there, err := m.cats[from].Vector(m.pid)
	if err != nil {
		return false, err
	}
	here, err := m.cats[to].Vector(m.pid)
	return !here.Equal(there), err
}

// differ reports whether what lives at two nodes is not the same.
func (m *model) differ(from, to int) (bool, error) {
	there, err := m.cats[from].Check(m.pid)
	if err != nil {
		return false, err
	}
	here, err := m.cats[to].Check(m.pid)
	return here != there, err
}

// announce is what a node does that has all its rows, and has seen the same as another
// one and something else.
func (m *model) announce(from, to int) error {
	if differ, err := m.differ(from, to); err != nil || !differ || m.bad.dropSilently {
		return err
	}
	_, err := m.cats[from].Announce(m.ctx, m.pid)
	return err
}

// saysAll: what a node has, and its vector does not say, another one that has seen the
// same has as well.
func (m *model) saysAll(from, to int) error {
	if differ, err := m.differ(from, to); err != nil || !differ {
		return err
	}
	v, err := m.cats[from].Vector(m.pid)
	if err != nil {
		return err
	}
	for k := range m.seen[from] {
		has, err := m.entry(from, k)
		if err != nil {
			return err
		}
		lacks, err := m.entry(to, k)
		if err != nil {
			return err
		}
		for inc, seq := range has.ctx {
			if d := (Dot{inc, seq}); inc != 0 && !v.Covers(d) && !lacks.ctx.Covers(d) {
				return fmt.Errorf("rule 7: node %d has %s of %s %q, which its vector does not say, and node %d never asks for it", from, d, k.repo, k.name, to)
			}
		}
	}
	return nil
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
			return fmt.Errorf("rule 8: node %d did not report the conflict %s", n, k)
		}
	}
	for k := range got {
		if !m.expect[n][k] {
			return fmt.Errorf("rule 8: node %d reported %s, which is no conflict", n, k)
		}
	}
	return nil
}
