package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is what goes wrong, and what comes and goes, in the model's histories:
// purged tombstones, lost rows, disks put back, nodes gone for ever, sites that
// leave a project and come back.

// nobody reports that a request lost whose writer's disk was put back.
const nobody = -1

// goneBit marks dots that no store gives: see gone.
const goneBit = 1 << 63

// gone names, in the reference, the knowledge that a request's effect is gone
// where nobody can say any more which request ended it: a list said so.
func (d Dot) gone() Dot { return Dot{d.Inc, d.Seq | goneBit} }

// real is the request that a dot speaks of.
func (d Dot) real() Dot { return Dot{d.Inc, d.Seq &^ goneBit} }

// member picks a node whose site is a member.
func (m *model) member() int {
	for {
		if n := m.rng.IntN(modelNodes); !m.away[n] {
			return n
		}
	}
}

func (m *model) members() int {
	n := 0
	for _, away := range m.away {
		if !away {
			n++
		}
	}
	return n
}

func (m *model) misfortune(n int) error {
	switch m.rng.IntN(10) {
	case 0, 1, 2, 3:
		return m.purge(n)
	case 4:
		return m.loseRows(n)
	case 5:
		return m.copyDisk(n)
	case 6:
		return m.putBack(n)
	case 7:
		if m.members() > 3 && (m.fulls() > 1 || !m.full(n)) && m.rng.IntN(4) == 0 {
			return m.goneForGood(n)
		}
		return nil
	case 8:
		return m.leave(n)
	default:
		return m.comeBack()
	}
}

// purge lets all tombstones of a node go, whatever their age.
func (m *model) purge(n int) error {
	m.purges++
	m.doing = byList
	if _, err := m.cats[n].Purge(m.ctx, m.pid, m.clocks[n].at.Add(time.Hour)); err != nil {
		return err
	}
	return m.compare(n)
}

// rows gives all rows of the project at a node, and those of incarnations.
func (m *model) rows(n int) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := m.cats[n].view(func(r reader) error {
		return r.scan(nil, nil, true, func(key, value []byte) (bool, error) {
			if key[0] == tabInc || bytes.Contains(key, m.pid[:]) && key[0] != tabLease && key[0] != tabPin {
				out[string(key)] = value
			}
			return true, nil
		})
	})
	return out, err
}

// diskCopy is a disk as it was, and what its node knew then.
type diskCopy struct {
	rows   map[string][]byte
	own    map[identity.Incarnation]bool
	seen   map[entryKey]history
	expect map[string]bool
}

func (m *model) copyDisk(n int) error {
	rows, err := m.rows(n)
	if err != nil {
		return err
	}
	c := &diskCopy{rows: rows, seen: map[entryKey]history{}, expect: maps.Clone(m.expect[n])}
	for k, h := range m.seen[n] {
		c.seen[k] = maps.Clone(h)
	}
	m.copies[n] = c
	return m.cats[n].submit(m.ctx, func(b *batch) error { c.own = maps.Clone(b.c.own); return nil })
}

// putBack puts a node's disk back to an older copy, and starts the node.
func (m *model) putBack(n int) error {
	old := m.copies[n]
	if old == nil {
		return nil
	}
	m.excuse(n)
	now, err := m.rows(n)
	if err != nil {
		return err
	}
	err = m.cats[n].submitAs(m.ctx, jobReceived, func(b *batch) error {
		for key := range now {
			if _, ok := old.rows[key]; !ok {
				b.del([]byte(key))
			}
		}
		for key, value := range old.rows {
			b.set([]byte(key), value)
		}
		b.c.own = maps.Clone(old.own)
		b.c.inc = 0
		return nil
	})
	if err != nil {
		return err
	}
	m.seen[n] = map[entryKey]history{}
	for k, h := range old.seen {
		m.seen[n][k] = maps.Clone(h)
	}
	m.expect[n] = maps.Clone(old.expect)
	m.restored[n] = true
	if err := m.again(n); err != nil {
		return err
	}
	// Writes that the copy knows nothing of are nobody's own any more.
	for d, owner := range m.owner {
		if _, own := old.own[d.Inc]; owner == n && !own {
			m.owner[d] = nobody
		}
	}
	m.doing = byCopy
	return m.compare(n)
}

// excuse: what only this node knows may be lost now.
func (m *model) excuse(n int) {
	for d := range m.owed {
		if !m.heard(d, n) {
			delete(m.owed, d)
		}
	}
}

// heard reports whether a member besides n knows a request.
func (m *model) heard(d Dot, besides int) bool {
	for o := range m.seen {
		if o == besides || m.away[o] {
			continue
		}
		for _, h := range m.seen[o] {
			if h[d] != nil {
				return true
			}
		}
	}
	return false
}

// checkOwed: no acknowledged request is lost.
func (m *model) checkOwed(all map[entryKey]history) error {
	for d := range m.owed {
		if !slices.ContainsFunc(slices.Collect(maps.Values(all)), func(h history) bool { return h[d] != nil }) {
			rule := byMerge
			if n, left := m.left[d]; left {
				return fmt.Errorf("%s: request %s was acknowledged, and node %d, which alone had it, left", byStay, d, n)
			} else if m.purged(d) {
				rule = byList
			}
			return fmt.Errorf("%s: request %s was acknowledged, and no member knows it", rule, d)
		}
	}
	return nil
}

func (m *model) knows(all map[entryKey]history, l lateDelivery) bool {
	for i, k := range l.keys {
		for d := range l.snap[i] {
			if all[k][d] == nil {
				return false
			}
		}
	}
	return true
}

// dropRow does for a list what only its end may do.
func (m *model) dropRow(n int, k entryKey, x *Receiving) error {
	i := slices.IndexFunc(x.list.drops, func(d drop) bool { return d.key == k })
	if i < 0 {
		return nil
	}
	early := &Receiving{pid: m.pid, pending: map[string]drop{string(k.suffix()): x.list.drops[i]}}
	return m.cats[n].submitAs(m.ctx, jobReceived, func(b *batch) error {
		_, err := b.applyDrops(early, x.list.drops[i:i+1])
		return err
	})
}

// deliverTo gives a node a page that was under way for long.
func (m *model) deliverTo(to int) error {
	if len(m.late) == 0 {
		return nil
	}
	_, err := m.deliver(to, nil, m.late[m.rng.IntN(len(m.late))])
	return err
}

// loseRows has a node lose an entry with all that follows from it, ask and be
// asked, and find out.
func (m *model) loseRows(n int) error {
	c := m.cats[n]
	var keys []entryKey
	for k := range m.seen[n] {
		if e, err := m.entry(n, k); err != nil {
			return err
		} else if len(e.ctx) > 0 {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.SortFunc(keys, func(a, b entryKey) int { return bytes.Compare(a.suffix(), b.suffix()) })
	lost := keys[m.rng.IntN(len(keys))]
	m.excuse(n)
	err := c.submitAs(m.ctx, jobReceived, func(b *batch) error {
		sum, err := b.sums(m.pid)
		if err != nil {
			return err
		}
		e, err := b.entry(m.pid, lost)
		if err != nil {
			return err
		}
		if err := b.remove(m.pid, lost, e); err != nil {
			return err
		}
		b.setSums(m.pid, sum) // it still speaks of it
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.listFromLoser(n); err != nil {
		return err
	}
	stored, counted, err := c.Recount(m.ctx, m.pid)
	if err != nil {
		return err
	}
	if stored == counted {
		return fmt.Errorf("rule 7: node %d lost an entry, and still adds up", n)
	}
	m.lost++
	return m.dropVector(n)
}

// dropVector is what a node does that lost rows.
func (m *model) dropVector(n int) error {
	c := m.cats[n]
	m.restored[n], m.doing = true, byLoss
	if !m.bad.keepVector {
		if err := c.DropVector(m.ctx, m.pid); err != nil {
			return err
		}
	}
	if m.bad.dropSilently {
		err := c.submitAs(m.ctx, jobReceived, func(b *batch) error {
			b.del(keyVector(tabVector, m.pid, c.inc))
			return nil
		})
		if err != nil {
			return err
		}
	}
	// It knows what its entries say, and nothing else.
	for k, h := range m.seen[n] {
		e, err := m.entry(n, k)
		if err != nil {
			return err
		}
		live := h.live()
		for d := range h {
			if !e.ctx.Covers(d.real()) {
				delete(h, d)
			} else {
				h[d] = h[d].within(e.ctx)
			}
		}
		h.bury(live)
	}
	if err := m.again(n); err != nil {
		return err
	}
	if err := m.compare(n); err != nil {
		return err
	}
	if err := auditDerived(c, m.pid); err != nil {
		return fmt.Errorf("invariant 17: node %d: %w", n, err)
	}
	return nil
}

// listFromLoser asks a store that lost rows for lists: it must not give any.
func (m *model) listFromLoser(n int) error {
	purged, err := m.cats[n].purgedVector(m.pid)
	if err != nil {
		return err
	}
	for to := range modelNodes {
		if to == n || m.away[to] {
			continue
		}
		x, err := m.cats[to].Receive(m.pid)
		if err != nil {
			return err
		}
		if x.Since().Dominates(purged) {
			continue
		}
		noted, err := m.cats[n].Delta(m.ctx, m.pid, x.Since(), 1<<20, func(p Page) error {
			_, err := x.Page(m.ctx, p)
			return err
		})
		if err == nil {
			err = x.Adopt(m.ctx, noted)
		}
		x.End()
		m.doing = byList
		if before := m.compare(to); before != nil {
			return before
		}
		if !errors.Is(err, ErrRowsLost) {
			return fmt.Errorf("rule 6: a list of node %d, which lost rows: %s", n, fmt.Sprint(err))
		}
	}
	return nil
}

// overstate makes a part of a list claim that its sender has seen everything.
func (m *model) overstate(p Page) Page {
	pb := &rowpb.Page{}
	if proto.Unmarshal(p, pb) != nil || pb.List == nil {
		return p
	}
	pb.List.Vector = nil
	for _, c := range m.cats {
		for inc := range c.own {
			pb.List.Vector = append(pb.List.Vector, &rowpb.Seen{Inc: uint64(inc), Seq: goneBit - 1})
		}
	}
	out, err := deterministic.Marshal(pb)
	if err != nil {
		return p
	}
	return out
}

// repair: after a loss all may have seen the same and still differ, since what a
// list left out has no dot that would tell others. Then all pull anew (rule 7).
func (m *model) repair() error {
	sums := map[Check]bool{}
	for n := range modelNodes {
		if m.away[n] {
			continue
		}
		sum, err := m.cats[n].Check(m.pid)
		if err != nil {
			return err
		}
		sums[sum] = true
	}
	if len(sums) == 1 || m.lost == 0 || m.purges == 0 {
		return nil
	}
	for n := range modelNodes {
		if !m.away[n] {
			if err := m.dropVector(n); err != nil {
				return err
			}
		}
	}
	return m.exchangeRounds()
}
