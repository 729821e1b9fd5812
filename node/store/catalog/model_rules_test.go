package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is what the model checks of rules that no comparison of entries with the
// reference can tell apart by name: reads (3), requests (9), bytes (10), clocks (13) and
// trust (15). Deleted and unknown projects (12) are in model_deletion_test.go.

// ruleState is what the checks remember of a history.
type ruleState struct {
	since    Vector            // what the receiver of the exchange under way said
	sent     map[entryKey]bool // in it
	wrong    map[Dot]bool      // tags that were set by a wrong clock, and are to be stamped anew
	shut     identity.ProjectID
	secret   digest.Digest // content of shut, which has nothing to do with the model's project
	requests int           // of the model when that exchange began
	unheard
}

// beginRules prepares a history: some nodes have content of another project, and some
// have not heard of the model's yet.
func (m *model) beginRules() error {
	content := []byte("content of another project than " + m.pid.String())
	m.rules = ruleState{wrong: map[Dot]bool{}, shut: identity.NewProjectID(), secret: digest.FromBytes(content)}
	for n := range m.cats {
		if n%2 > 0 {
			continue
		}
		row := BlobRow{Digest: m.rules.secret, Size: int64(len(content)), Class: Home, For: m.rules.shut}
		if err := m.cats[n].PutBlob(m.ctx, row, content, nil); err != nil {
			return err
		}
	}
	m.beginUnheard()
	return nil
}

// checkRules is asked of a node after each thing that happened to it.
func (m *model) checkRules(n int) error {
	for _, check := range []func(int) error{m.checkReads, m.checkBytes, m.checkTrust} {
		if err := check(n); err != nil {
			return err
		}
	}
	return nil
}

// read is what a client sees of a tag; empty: it is not there.
func (m *model) read(n int, k entryKey) (digest.Digest, error) {
	if m.bad.readOldest {
		e, err := m.entry(n, k)
		if err != nil || !e.live() {
			return "", err
		}
		first := slices.MinFunc(e.sibs, func(a, b sibling) int { return int(int64(a.stamp) - int64(b.stamp)) })
		return digestOrEmpty(tagDigest(&first)), nil
	}
	info, err := m.cats[n].Tag(m.pid, k.repo, k.name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return info.Digest, err
}

// over: readers see this one of two that did not see one another. What the control
// state says stands above all.
func (e *event) over(o *event) bool {
	if said := e.dot.Inc == strongInc; said != (o.dot.Inc == strongInc) {
		return said
	}
	return e.stamp > o.stamp || e.stamp == o.stamp && compareDots(e.dot, o.dot) > 0
}

// checkReads: of writes that did not see one another readers see the one with the
// highest stamp, at each node.
func (m *model) checkReads(n int) error {
	for k, h := range m.seen[n] {
		if k.kind != kindTag {
			continue
		}
		var want *event
		unknown := false
		for _, e := range h.live() {
			unknown = unknown || e.stamp == 0 // a burst replaced it, and a node was put back since
			if want == nil || e.over(want) {
				want = e
			}
		}
		if unknown {
			continue
		}
		text := digest.Digest("")
		if want != nil {
			text = digestOrEmpty([]byte(want.digest))
		}
		got, err := m.read(n, k)
		if err != nil {
			return err
		}
		if got != text {
			return fmt.Errorf("rule 3: node %d reads %s:%s as %q, want %q", n, k.repo, k.name, got, text)
		}
	}
	return nil
}

// oneRequest: what was answered as one request was one, whatever it changed.
func (m *model) oneRequest(n int, before Written, r *request) error {
	after := m.cats[n].Written(m.pid)
	want := uint64(1)
	if after.Dot.Inc == before.Dot.Inc {
		want += before.Count
	}
	if after.Count != want || after.Dot != r.dot {
		return fmt.Errorf("rule 9: one request at node %d, %s, was %d by the node's count, the last one %s", n, r.dot, int64(after.Count-want)+1, after.Dot)
	}
	return nil
}

// changedAll: a request's dot is in all entries that it is to change.
func (m *model) changedAll(n int, dot Dot, keys []entryKey) error {
	for _, k := range keys {
		e, err := m.entry(n, k)
		if err != nil {
			return err
		}
		if !e.ctx.Covers(dot) { // a later one of a burst covers it as well
			return fmt.Errorf("rule 9: request %s at node %d did not change %s %q", dot, n, k.repo, k.name)
		}
	}
	return nil
}

// sendTo begins the checks of an exchange's pages.
func (m *model) sendTo(since Vector) {
	m.rules.since, m.rules.sent, m.rules.requests = since.Clone(), map[entryKey]bool{}, m.requests
}

// spoil is a wrong carrier of pages.
func (m *model) spoil(p Page) (Page, error) {
	pb := &rowpb.Page{}
	if !m.bad.tear && !m.bad.noBytes {
		return p, nil
	}
	if err := proto.Unmarshal(p, pb); err != nil || pb.List != nil {
		return p, err
	}
	if m.bad.tear {
		page, err := parsePage(p)
		if err != nil {
			return nil, err
		}
		dot := m.requestOf(page.entries[0])
		for i, a := range page.entries {
			if i > 0 && !dot.IsZero() && a.e.ctx[dot.Inc] == dot.Seq {
				pb.Entries = slices.Delete(pb.Entries, i, i+1)
				break
			}
		}
	}
	if m.bad.noBytes {
		pb.Contents = nil
	}
	return deterministic.Marshal(pb)
}

// checkPage looks at a page before it leaves its sender.
func (m *model) checkPage(from int, p Page) error {
	page, err := parsePage(p)
	if err != nil {
		return err
	}
	for _, a := range page.entries {
		m.rules.sent[a.key] = true
	}
	for i, a := range page.entries {
		for _, s := range a.e.sibs {
			if a.key.kind == kindTag && m.rules.wrong[s.dot] {
				return fmt.Errorf("rule 13: node %d sends %s of %s:%s, which was set by a wrong clock", from, s.dot, a.key.repo, a.key.name)
			}
		}
		// Other manifests may be there because a tag or an index needs them.
		if i == 0 || a.key.kind == kindTag {
			if err := m.checkWhole(from, a); err != nil {
				return err
			}
		}
		if a.key.kind == kindManifest && a.e.live() {
			if err := m.checkSent(from, a.key, page); err != nil {
				return err
			}
		}
	}
	return nil
}

// requestOf is the request with which an entry of a page comes; zero: of none, or
// nobody can say any more, since writes meanwhile move entries to other requests.
func (m *model) requestOf(a arrival) Dot {
	if m.requests != m.rules.requests {
		return Dot{}
	}
	for _, inc := range a.e.ctx.incs() {
		if seq := a.e.ctx[inc]; seq > m.rules.since[inc] {
			return Dot{inc, seq}
		}
	}
	return Dot{}
}

// checkWhole: an entry comes with, or after, all that its request changed and that
// nothing changed since. Of several requests for which the receiver lacks an entry it comes
// with that of the first incarnation.
func (m *model) checkWhole(from int, a arrival) error {
	dot := m.requestOf(a)
	if dot.IsZero() {
		return nil
	}
	for k := range m.seen[from] {
		e, err := m.entry(from, k)
		if err != nil {
			return err
		}
		if e.ctx[dot.Inc] == dot.Seq && !m.rules.sent[k] {
			return fmt.Errorf("rule 9: node %d sends %s:%s of request %s, and not %s %q of it", from, a.key.repo, a.key.name, dot, k.repo, k.name)
		}
	}
	return nil
}

// checkSent: a small manifest's bytes come with its entry.
func (m *model) checkSent(from int, k entryKey, p *page) error {
	have, ok, err := m.cats[from].ContentIn(m.pid, k.digest())
	if err != nil {
		return err
	}
	if got, there := p.contents[k.name]; there != ok || !bytes.Equal(got, have) {
		return fmt.Errorf("rule 10: node %d has %d bytes of manifest %s and sends %d with its entry", from, len(have), k.digest(), len(got))
	}
	return nil
}

// checkBytes: the bytes of a small manifest are where its entry is, and they are its
// bytes.
func (m *model) checkBytes(n int) error {
	for k, h := range m.seen[n] {
		if k.kind != kindManifest || len(h.live()) == 0 {
			continue
		}
		b, ok, err := m.cats[n].ContentIn(m.pid, k.digest())
		if err != nil {
			return err
		}
		if !ok || digest.FromBytes(b) != k.digest() {
			return fmt.Errorf("rule 10: node %d has manifest %s, and %d bytes that are not its", n, k.digest(), len(b))
		}
	}
	return nil
}

// fetchMissing is what a node does that has manifests and not their bytes, because the
// page was lost that had them.
func (m *model) fetchMissing(n int, a Applied) error {
	for _, ref := range a.MissingBytes {
		for o := range m.cats {
			b, ok, err := m.cats[o].ContentIn(m.pid, ref.Digest)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			row := BlobRow{Digest: ref.Digest, Size: int64(len(b)), Class: Placed, For: m.pid}
			if err := m.cats[n].PutBlob(m.ctx, row, b, nil); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// wrongBytes gives a node a page in which the bytes of a manifest are others.
func (m *model) wrongBytes(n int) error {
	if len(m.late) == 0 {
		return nil
	}
	pb := &rowpb.Page{}
	if err := proto.Unmarshal(m.late[m.rng.IntN(len(m.late))].page, pb); err != nil || len(pb.Contents) == 0 {
		return err
	}
	c := pb.Contents[m.rng.IntN(len(pb.Contents))]
	c.Bytes[m.rng.IntN(len(c.Bytes))] ^= 1
	p, err := deterministic.Marshal(pb)
	if err != nil {
		return err
	}
	if _, err := m.cats[n].ApplyPage(m.ctx, m.pid, p); !errors.Is(err, ErrInvalid) {
		return fmt.Errorf("rule 10: node %d takes in wrong bytes: %s", n, fmt.Sprint(err))
	}
	return m.compare(n)
}

// lie has a node write a manifest that names content of another project.
func (m *model) lie(n int) error {
	if m.leaving[n] {
		return nil
	}
	repo := m.pick(modelRepos)
	p := m.put(repo, "lie", m.pick(modelTags))
	p.Refs = append(p.Refs, Ref{Digest: m.rules.secret, Size: 1, Kind: RefBlob})
	r := &request{put: &p, repo: repo}
	m.doing = byWrite
	r.do(m.ctx, m.cats[n], m.pid)
	if err := m.account(n, r); err != nil {
		return err
	}
	return m.compare(n)
}

// checkTrust: a member is believed in what is of its projects. What it names of others is
// theirs, and goes to nobody on its project's behalf.
func (m *model) checkTrust(n int) error {
	if m.bad.believe {
		if err := m.believe(n); err != nil {
			return err
		}
	}
	if _, err := m.cats[n].BlobIn(m.pid, m.rules.secret); !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("rule 15: node %d gives content of project %s to readers of another one that names it (%s)", n, m.rules.shut, fmt.Sprint(err))
	}
	if b, _, err := m.cats[n].LinkedContent(m.pid, m.rules.secret); b != nil || err != nil {
		return fmt.Errorf("rule 15: node %d gives content of project %s to sites of another one (%s)", n, m.rules.shut, fmt.Sprint(err))
	}
	if _, err := m.cats[n].BlobIn(m.rules.shut, m.rules.secret); n%2 == 0 && err != nil {
		return fmt.Errorf("rule 15: content of project %s is its no more at node %d: %w", m.rules.shut, n, err)
	}
	return nil
}

func (m *model) believe(n int) error {
	_, _, named, err := m.cats[n].LinkedIn(m.pid, m.rules.secret)
	if err != nil || !named {
		return err
	}
	err = m.cats[n].Prove(m.ctx, m.rules.secret, m.pid)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// wrongClock has a node write with a wrong clock, cut off from all others, and find
// that out: it stamps anew what nobody has seen before it exchanges anything.
func (m *model) wrongClock(n int) error {
	off := time.Duration(m.rng.IntN(9)-4) * time.Hour
	m.clocks[n].at = m.clocks[n].at.Add(off)
	for range 1 + m.rng.IntN(3) {
		before := m.seenDots(n)
		if err := m.write(n); err != nil {
			return err
		}
		for d := range m.seenDots(n) {
			m.rules.wrong[d] = m.rules.wrong[d] || !before[d]
		}
	}
	defer func() { m.clocks[n].at = m.clocks[n].at.Add(-off) }() // people set it right
	if m.bad.wrongStamps {
		return nil
	}
	others := Vector{}
	for o := range m.cats {
		if o == n {
			continue
		}
		v, err := m.cats[o].Vector(m.pid)
		if err != nil {
			return err
		}
		for inc, seq := range v {
			others[inc] = max(others[inc], seq)
		}
	}
	if _, err := m.cats[n].Restamp(m.ctx, m.pid, others, -off); err != nil {
		return err
	}
	if err := m.accountRestamp(n, m.clocks[n].at.Add(-off)); err != nil {
		return err
	}
	m.doing = byClock
	return m.compare(n)
}

// seenDots are the live writes of tags that a node knows of.
func (m *model) seenDots(n int) map[Dot]bool {
	out := map[Dot]bool{}
	for k, h := range m.seen[n] {
		if k.kind == kindTag {
			for _, e := range h.live() {
				out[e.dot] = true
			}
		}
	}
	return out
}

// accountRestamp notes in the reference what a node wrote anew: the same, by other
// requests.
func (m *model) accountRestamp(n int, now time.Time) error {
	for k, h := range m.seen[n] {
		if k.kind != kindTag {
			continue
		}
		e, err := m.entry(n, k)
		if err != nil {
			return err
		}
		var lost []*event // what is not there any more
		for _, old := range h.live() {
			if !e.has(old.dot) {
				lost = append(lost, old)
			}
		}
		for i := range e.sibs {
			s := &e.sibs[i]
			if h[s.dot] != nil {
				continue
			}
			j := slices.IndexFunc(lost, func(old *event) bool { return bytes.Equal([]byte(old.digest), tagDigest(s)) })
			if j < 0 || m.owner[lost[j].dot] != n {
				return fmt.Errorf("rule 13: node %d stamped %s of %s:%s anew, which it did not write", n, s.dot, k.repo, k.name)
			}
			if int64(s.stamp>>stampShift) > now.UnixMilli() {
				return fmt.Errorf("rule 13: node %d stamped %s of %s:%s anew, with a time to come", n, s.dot, k.repo, k.name)
			}
			h[s.dot] = &event{dot: s.dot, put: true, digest: lost[j].digest, stamp: s.stamp, kills: map[Dot]bool{lost[j].dot: true}}
			m.owner[s.dot], m.owed[s.dot] = n, true
			m.highest[s.dot.Inc] = max(m.highest[s.dot.Inc], s.dot.Seq)
			lost = slices.Delete(lost, j, j+1)
		}
		m.expectConflicts(n, k)
	}
	return nil
}

// ruleStep is what may happen to a node besides: all else is as frequent as without it.
func (m *model) ruleStep(n int) error {
	switch m.rng.IntN(40) {
	case 0:
		return m.wrongBytes(n)
	case 1:
		return m.lie(n)
	case 2:
		return m.wrongClock(n)
	case 3, 4, 5, 6:
		return m.hear()
	default:
		return nil
	}
}
