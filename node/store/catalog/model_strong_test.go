package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// This file is strong tags in random histories: a project goes from eventual tags to
// strong ones and back, waiting for all sites or not, while sites are cut off, exchanges
// break off and the sites hear of the switches at any time. Beside it is a reference
// that knows who had heard of what when.

// strongView is the control state after one command.
type strongView struct {
	index     uint64
	strong    bool
	begun     uint64 // of a switch under way
	force     bool
	rows      map[entryKey]StrongTag
	base, seq uint64
	before    uint64
	seen      Vector
	taken     map[entryKey]Vector
}

func (v *strongView) ordered() Ordered {
	return Ordered{Before: v.before, Seen: v.seen, Taken: func(repo, tag string) Vector { return v.taken[entryKey{kindTag, repo, tag}] }}
}

// tagWrite is what a site wrote of a tag.
type tagWrite struct {
	dot    Dot
	key    entryKey
	node   int
	digest digest.Digest // empty: deleted
	acl    uint64
	heard  map[Dot]bool // what its site had heard of the tag
}

// switched is the end of a switch to strong tags, as the reference has it.
type switched struct {
	index uint64
	seen  Vector                    // of the importer
	whole map[entryKey]map[Dot]bool // where nothing was left of a tag within that: all that it had heard
}

func (s switched) ordered(w *tagWrite) bool { return s.seen.Covers(w.dot) || s.whole[w.key][w.dot] }

type strongModel struct {
	ctx    context.Context
	rng    *rand.Rand
	bad    mistakes
	cats   [modelNodes]*Catalog
	clocks [modelNodes]*clock
	pid    identity.ProjectID

	views  []*strongView
	at     [modelNodes]int  // the view that a node has
	cut    [modelNodes]bool // it hears nothing, neither of the state nor of entries
	heard  [modelNodes]map[entryKey]map[Dot]bool
	late   []strongPage
	writes []*tagWrite
	ends   []switched
	words  map[entryKey]map[digest.Digest]bool // all that the state ever said
	n      int
}

type strongPage struct {
	page  Page
	heard map[entryKey]map[Dot]bool
}

const strongTags = 8 // few enough that sites meet, and enough that they do not always

func (f *fleet) runStrong(ctx context.Context, seed uint64, steps int, bad mistakes) error {
	m := &strongModel{ctx: ctx, rng: rand.New(rand.NewPCG(seed, 2)), bad: bad, cats: f.cats, clocks: f.clocks, pid: identity.NewProjectID(), words: map[entryKey]map[digest.Digest]bool{}}
	m.views = []*strongView{{index: 10, rows: map[entryKey]StrongTag{}, taken: map[entryKey]Vector{}}}
	for n := range m.heard {
		m.heard[n] = map[entryKey]map[Dot]bool{}
		f.cats[n].OnlyOver(func(pid identity.ProjectID) uint64 {
			if pid != m.pid || bad.blind {
				return math.MaxUint64
			}
			return max(m.view(n).seq, m.view(n).base)
		}, func(identity.ProjectID) Ordered {
			if bad.ordered != nil {
				return bad.ordered(m.view(n), m.view(n).ordered())
			}
			return m.view(n).ordered()
		})
	}
	for step := range steps {
		if err := m.step(); err != nil {
			return fmt.Errorf("seed %d, strong tags, step %d: %w", seed, step, err)
		}
	}
	if err := m.settle(); err != nil {
		return fmt.Errorf("seed %d, strong tags, at the end: %w", seed, err)
	}
	return nil
}

func (m *strongModel) step() error {
	n := m.rng.IntN(modelNodes)
	m.clocks[n].at = m.clocks[n].at.Add(1_000_000)
	switch r := m.rng.IntN(100); {
	case r < 30:
		return m.set(n)
	case r < 36:
		return m.del(n)
	case r < 39:
		m.cut[n] = m.rng.IntN(3) == 0
		return nil
	case r < 41:
		return m.cats[n].restart(m.ctx)
	case r < 48:
		m.hear(n)
		return nil
	case r < 62:
		return m.project(n, m.rng.IntN(3) == 0)
	case r < 67:
		return m.change(n)
	case r < 77:
		return m.end(n)
	case r < 79:
		return m.deliverLate(n)
	default:
		return m.exchange(m.rng.IntN(modelNodes), n, m.rng.IntN(3) == 0)
	}
}

func (m *strongModel) now() *strongView       { return m.views[len(m.views)-1] }
func (m *strongModel) view(n int) *strongView { return m.views[m.at[n]] }
func (m *strongModel) key() entryKey {
	return entryKey{kindTag, "app", fmt.Sprint(m.rng.IntN(strongTags))}
}
func (v *strongView) eventual() bool { return !v.strong && v.begun == 0 }

// leads reports whether a node can have the state changed: then it has all of it.
func (m *strongModel) leads(n int) bool {
	if !m.cut[n] {
		m.at[n] = len(m.views) - 1
	}
	return !m.cut[n]
}

// dots is what a node has heard of a tag.
func (m *strongModel) dots(k entryKey, n int) map[Dot]bool { return maps.Clone(m.heard[n][k]) }

func (m *strongModel) hearOf(n int, k entryKey, dots map[Dot]bool) {
	if m.heard[n][k] == nil {
		m.heard[n][k] = map[Dot]bool{}
	}
	maps.Copy(m.heard[n][k], dots)
}

// command makes the next view.
func (m *strongModel) command(n int, change func(*strongView)) {
	next := *m.now()
	next.index++
	next.rows, next.taken = maps.Clone(next.rows), maps.Clone(next.taken)
	change(&next)
	m.views = append(m.views, &next)
	m.at[n] = len(m.views) - 1
}

// hear lets a node apply some of the commands that it has not.
func (m *strongModel) hear(n int) {
	if behind := len(m.views) - 1 - m.at[n]; behind > 0 && !m.cut[n] {
		m.at[n] += 1 + m.rng.IntN(behind)
	}
}

// takes reports whether a site takes eventual writes.
func (m *strongModel) takes(n int) (bool, error) {
	if !m.view(n).eventual() {
		return false, nil
	}
	seen, err := m.cats[n].StrongSeen(m.pid)
	return seen >= m.view(n).seq, err
}

func (m *strongModel) set(n int) error {
	m.n++
	name := fmt.Sprint(m.n)
	if m.rng.IntN(8) == 0 {
		name = "again"
	}
	if ok, err := m.takes(n); err != nil {
		return err
	} else if ok {
		var tags []string
		for range 1 + m.rng.IntN(2) {
			if k := m.key(); !slices.Contains(tags, k.name) {
				tags = append(tags, k.name)
			}
		}
		p := put(m.pid, "app", name, tags...)
		p.ACLIndex = m.view(n).index
		dot, err := m.cats[n].PutManifest(m.ctx, p)
		if errors.Is(err, ErrUnheard) {
			return nil
		} else if err != nil {
			return err
		}
		for _, tag := range tags {
			m.wrote(n, entryKey{kindTag, "app", tag}, dot, p.Digest)
		}
		return nil
	}
	if v := m.now(); !v.strong || v.begun != 0 || m.rng.IntN(2) == 0 || !m.leads(n) {
		return nil
	}
	k := m.key()
	m.command(n, func(v *strongView) {
		m.say(v, k, StrongTag{Digest: digest.FromBytes(body(name)), Stamp: m.stamp(v, k)})
		v.seq = v.index
	})
	return nil
}

// stamp is the state's own.
func (m *strongModel) stamp(v *strongView, k entryKey) uint64 { return v.rows[k].Stamp + 1 }

func (m *strongModel) say(v *strongView, k entryKey, t StrongTag) {
	t.Repo, t.Name, t.Seq, t.ACLIndex = k.repo, k.name, v.index, v.index
	v.rows[k] = t
	if m.words[k] == nil {
		m.words[k] = map[digest.Digest]bool{}
	}
	m.words[k][t.Digest] = true
}

func (m *strongModel) wrote(n int, k entryKey, dot Dot, d digest.Digest) {
	m.writes = append(m.writes, &tagWrite{dot: dot, key: k, node: n, digest: d, acl: m.view(n).index, heard: m.dots(k, n)})
	m.hearOf(n, k, map[Dot]bool{dot: true})
}

func (m *strongModel) del(n int) error {
	k := m.key()
	if ok, err := m.takes(n); err != nil {
		return err
	} else if ok {
		dot, err := m.cats[n].deleteTag(m.ctx, m.pid, k.repo, k.name, "")
		if err == nil {
			m.wrote(n, k, dot, "")
		} else if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnheard) {
			err = nil
		}
		return err
	}
	if v := m.now(); v.strong && v.begun == 0 && m.leads(n) && v.rows[k].Digest != "" {
		m.command(n, func(v *strongView) {
			m.say(v, k, StrongTag{Stamp: m.stamp(v, k)})
			v.seq = v.index
		})
	}
	return nil
}

// project puts down what a node's view says, or, where the mode is over, notes what
// lost to it.
func (m *strongModel) project(n int, whole bool) error {
	v, c := m.view(n), m.cats[n]
	sw := v.ordered()
	if m.bad.ordered != nil {
		sw = m.bad.ordered(v, sw)
	}
	if !v.strong {
		if v.begun != 0 || v.base == 0 || !m.leads(n) {
			return nil
		}
		return c.NoteOverruled(m.ctx, m.pid, sw)
	}
	from, err := c.StrongSeen(m.pid)
	if err != nil {
		return err
	}
	var rows []StrongTag
	for _, k := range slices.SortedFunc(maps.Keys(v.rows), func(a, b entryKey) int { return strings.Compare(a.name, b.name) }) {
		if whole || from < v.base || v.rows[k].Seq > from {
			rows = append(rows, v.rows[k])
		}
	}
	if whole || from < v.base {
		err := c.EachTag(m.pid, nil, func(t TagState) error {
			if _, ok := v.rows[entryKey{kindTag, t.Repo, t.Name}]; !ok {
				rows = append(rows, StrongTag{Repo: t.Repo, Name: t.Name, Seq: v.base})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if _, err := c.PutStrong(m.ctx, m.pid, rows, sw, from, v.seq); err != nil && !errors.Is(err, ErrVectorDropped) {
		return err
	}
	return nil
}

// change begins a switch, or forces the one under way.
func (m *strongModel) change(n int) error {
	if !m.leads(n) {
		return nil
	}
	force := m.rng.IntN(2) == 0
	m.command(n, func(v *strongView) {
		if v.begun == 0 {
			v.begun, v.force = v.index, false
		}
		v.force = v.force || force
	})
	return nil
}

// ready reports whether a node has done its part in the switch under way.
func (m *strongModel) ready(n int) (bool, error) {
	if m.cut[n] || m.view(n).begun != m.now().begun {
		return false, nil
	}
	seen, err := m.cats[n].StrongSeen(m.pid)
	return seen >= m.now().seq, err
}

// end has a node end the switch under way, if it may.
func (m *strongModel) end(n int) error {
	if m.now().begun == 0 {
		return nil
	}
	if ok, err := m.ready(n); err != nil || !ok {
		return err
	}
	var from, late []int
	for o := range modelNodes {
		ok, err := m.ready(o)
		switch {
		case err != nil:
			return err
		case ok && o != n:
			from = append(from, o)
		case !ok && !m.now().force:
			return nil
		case !ok:
			late = append(late, o)
		}
	}
	if m.now().strong {
		m.command(n, func(v *strongView) { v.strong, v.begun, v.rows = false, 0, map[entryKey]StrongTag{} })
		return nil
	}
	for _, o := range from {
		if err := m.exchange(o, n, false); err != nil {
			return err
		}
	}
	some := func() error { // sites that are not waited for send as others do
		for _, o := range late {
			if m.rng.IntN(2) == 0 {
				if err := m.exchange(o, n, true); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := some(); err != nil {
		return err
	}
	seen, err := m.cats[n].Vector(m.pid)
	if err != nil {
		return err
	}
	delete(seen, strongInc)
	if err := some(); err != nil {
		return err
	}
	s := switched{seen: seen, whole: map[entryKey]map[Dot]bool{}}
	var tags []TagState
	if err := m.cats[n].EachTag(m.pid, seen, func(t TagState) error { tags = append(tags, t); return nil }); err != nil {
		return err
	}
	m.command(n, func(v *strongView) {
		s.index = v.index
		v.strong, v.begun, v.base, v.seq, v.before = true, 0, v.index, v.index, v.index
		said := seen.Clone()
		for inc, seq := range v.seen {
			said[inc] = max(said[inc], seq)
		}
		v.seen, v.rows = said, map[entryKey]StrongTag{}
		for _, t := range tags {
			k := entryKey{kindTag, t.Repo, t.Name}
			m.say(v, k, StrongTag{Digest: t.Digest, Stamp: t.Stamp})
			more := maps.Clone(v.taken[k])
			for inc, seq := range t.From {
				if said[inc] < seq {
					if more == nil {
						more = Vector{}
					}
					more[inc] = max(more[inc], seq)
				}
			}
			v.taken[k] = more
			if !seen.Covers(t.Dot) && t.Dot.Inc != strongInc {
				s.whole[k] = m.dots(k, n)
			}
		}
	})
	m.ends = append(m.ends, s)
	return nil
}

// exchange brings to one node what another has, all of it or a part.
func (m *strongModel) exchange(from, to int, part bool) error {
	if from == to || m.cut[from] || m.cut[to] {
		return nil
	}
	x, err := m.cats[to].Receive(m.pid)
	if err != nil {
		return err
	}
	defer x.End()
	var pages []strongPage
	noted, err := m.cats[from].Delta(m.ctx, m.pid, x.Since(), 1, func(p Page) error {
		checked, err := parsePage(p)
		if err != nil {
			return err
		}
		sp := strongPage{page: p, heard: map[entryKey]map[Dot]bool{}}
		for _, a := range checked.entries {
			sp.heard[a.key] = m.dots(a.key, from)
		}
		pages = append(pages, sp)
		return nil
	})
	if errors.Is(err, ErrAgain) {
		return nil
	} else if err != nil {
		return err
	}
	if len(pages) > 0 && m.rng.IntN(4) == 0 {
		m.late = append(m.late, pages[m.rng.IntN(len(pages))])
	}
	if part {
		pages = pages[:m.rng.IntN(len(pages)+1)]
	}
	for _, p := range pages {
		if _, err := x.Page(m.ctx, p.page); err != nil {
			return err
		}
		for k, dots := range p.heard {
			m.hearOf(to, k, dots)
		}
	}
	if part {
		return nil
	}
	if err := x.Adopt(m.ctx, noted); err != nil && !errors.Is(err, ErrAgain) {
		return err
	}
	return nil
}

func (m *strongModel) deliverLate(to int) error {
	if len(m.late) == 0 || m.cut[to] {
		return nil
	}
	p := m.late[m.rng.IntN(len(m.late))]
	for k, dots := range p.heard {
		m.hearOf(to, k, dots)
	}
	_, err := m.cats[to].ApplyPage(m.ctx, m.pid, p.page)
	return err
}
